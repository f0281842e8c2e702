"""Evaluate a trained policy: hesscale-rl evaluate RUN [--checkpoint best] [--episodes 10] [--sampled] [--video]

A checkpoint of the run, the last one, acts with the normaliser it was saved with, which no longer changes. Every
episode has a seed of its own, so that two policies can be compared on the same ones. The returns are printed, and
written to RUN/evaluation.json; --video adds RUN/videos/step_N.mp4 of the first episode.
"""

import argparse
import contextlib
import math
import os
import statistics
import sys
from pathlib import Path

from hesscale_rl.errors import DONE, Diverged, InputError
from hesscale_rl.playing import agent_of, read_run
from hesscale_rl.runs.command_line import Parser, obey
from hesscale_rl.runs.video import Film, cannot_draw, need_video
from hesscale_rl.system.console import complain, say

MAX_STEPS = 100_000  # hesscale_rl.rl.episode's, which imports torch


def run_flags(parser: Parser) -> None:
    """Add a run directory, and what allows its environment's module to be imported, to a command line."""
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument(
        "--checkpoint",
        default="last",
        help="last, best (of a run with --eval-interval) or the number of a step (last)",
    )
    parser.add_argument("--env-module", metavar="MODULE", help="import it in place of the one that the run names")
    parser.add_argument("--trust-env-module", action="store_true", help="import the module that the run names")


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate and report."""
    if args.episodes < 1:
        raise InputError(f"--episodes {args.episodes}: must be at least 1")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed {args.seed}: must be zero or a positive integer below 2^63")
    if args.max_steps < 1:
        raise InputError(f"--max-steps {args.max_steps}: must be at least 1")
    agent_of(args.run)  # before torch is imported
    if args.video:
        need_video()
    import numpy as np
    import torch

    from hesscale_rl.rl.episode import episode

    torch.set_num_threads(1)
    try:
        mode = "rgb_array" if args.video else None
        policy, env, config, saved = read_run(args.run, mode, args.env_module, args.trust_env_module, args.checkpoint)
    except (ImportError, RuntimeError, AttributeError) as error:  # MuJoCo's, on importing a GL that is not there
        if not args.video:
            raise
        gl = os.environ["MUJOCO_GL"]
        raise InputError(f"--video: cannot draw with MUJOCO_GL={gl}: {' '.join(str(error).split())[:120]}") from None
    if (hint := env.hint()) is not None:
        complain(hint)
    random = np.random.default_rng(args.seed) if args.sampled else None
    step, played = saved["global_step"], []
    film = Film(args.run / "videos" / f"step_{step}.mp4", env.metadata.get("render_fps", 30)) if args.video else None
    for i in range(args.episodes):
        try:
            with film if film is not None and i == 0 else contextlib.nullcontext() as frames:
                played.append(episode(policy, env, args.seed + i, random, frames, args.max_steps))
        except Exception as error:
            if not args.video or isinstance(error, Diverged):
                raise
            raise cannot_draw("--video", config.env_id, error) from None
    returns = [value for value, _ in played]
    if cut := sum(length == args.max_steps for _, length in played):
        complain(f"{cut} of {len(played)} episodes were cut after {args.max_steps:,} steps (--max-steps)")
    spread = ""
    if len(returns) > 1:
        spread = f" ± {1.96 * statistics.stdev(returns) / math.sqrt(len(returns)):,.1f}"
    how = "sampled" if args.sampled else "most likely actions"
    count = f"{len(returns)} episode" + "s" * (len(returns) > 1)
    say(f"return {statistics.fmean(returns):,.1f}{spread} ({count}, {how}, step {step:,})")
    from hesscale_rl.runs.directory import write_json

    result = {"global_step": step, "sampled": args.sampled, "seeds": [args.seed + i for i in range(args.episodes)]}
    write_json(args.run / "evaluation.json", result | {"returns": returns, "lengths": [n for _, n in played]})
    if film is not None:
        say(f"video  {film.path}  ({film.count} frames)")
    env.close()
    return DONE


def main() -> int:
    """Run the command line."""
    parser = Parser("hesscale-rl evaluate", __doc__)
    run_flags(parser)
    parser.add_argument("--episodes", type=int, default=10, help="how many (10)")
    parser.add_argument("--seed", type=int, default=1000, help="of the first episode; the next have the next (1000)")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS, help="of an episode, at most (%(default)s)")
    parser.add_argument("--sampled", action="store_true", help="sample the actions as training does")
    parser.add_argument("--video", action="store_true", help="write the first episode as mp4")
    return obey(parser, evaluate, "interrupted", OSError, Diverged)  # the latter: what the run has learned has


if __name__ == "__main__":
    sys.exit(main())
