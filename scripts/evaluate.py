"""Evaluate a trained policy: hesscale-rl evaluate RUN [--episodes 10] [--sampled] [--video]

The last checkpoint of the run acts with the normaliser it was saved with, which no longer changes. Every episode has
a seed of its own, so that two policies can be compared on the same ones. The returns are printed, and written to
RUN/evaluation.json; --video adds RUN/videos/step_N.mp4 of the first episode.
"""

import argparse
import importlib
import math
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesscale_rl import agents
from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.arguments import need_one_of
from hesscale_rl.runs.checkpoint import checkpoints, newest_checkpoint, read_config, read_object, trusted_module
from hesscale_rl.scripts.commands import Parser, obey
from hesscale_rl.system.console import complain, say

if TYPE_CHECKING:
    import gymnasium as gym
    import numpy as np

    from hesscale_rl.envs.checking import Checked
    from hesscale_rl.rl.policy import Policy

MAX_STEPS = 100_000  # of an episode: an environment may never end one


def run_flags(parser: Parser) -> None:
    """Add a run directory, and what allows its environment's module to be imported, to a command line."""
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--env-module", metavar="MODULE", help="import it in place of the one that the run names")
    parser.add_argument("--trust-env-module", action="store_true", help="import the module that the run names")


def agent_of(run: Path) -> str:
    """Return the name of the agent that made the run; InputError if there is none of ours. It needs no torch."""
    name = read_object(run / "meta.json").get("agent")
    if name == "supervised":
        raise InputError(f"{run}: a supervised run, which plays no episodes; hesscale-rl plot takes it")
    if name not in agents.names():
        raise InputError(f"{run}: made by the agent {name!r}; there is {', '.join(agents.names())}")
    read_object(run / "config.json")
    if not checkpoints(run / "checkpoints"):
        raise InputError(f"{run}: it has no checkpoint yet")
    return name


def load(
    run: Path, render_mode: str | None = None, env_module: str | None = None, trust_env_module: bool = False
) -> "tuple[Policy, Checked, Any, dict]":
    """Return the policy of a run's last checkpoint, its environment, the run's arguments and the checkpoint.

    `env_module`, `trust_env_module`: as of `trusted_module`. InputError for a run directory that is damaged.
    """
    agent = importlib.import_module(f"hesscale_rl.agents.{agent_of(run)}")
    from hesscale_rl import envs

    args = read_config(run, agent.Args)
    need_one_of(args, "std", agent.STDS)
    module = trusted_module(run, args, env_module, trust_env_module)
    env = envs.make(args.env_id.removeprefix(envs.POOL), module, render_mode, args.env_kwargs)
    saved = newest_checkpoint(run)
    try:
        policy = agent.make_policy(env.observation_space, env.action_space, args)
        policy.load_state_dict(saved["policy"])
    except (RuntimeError, ValueError, TypeError) as error:
        env.close()
        cause = " ".join(str(error).split())[:120]
        raise InputError(f"{run}: its checkpoint is of other networks, or config.json is damaged ({cause})") from None
    return policy, env, args, saved


def episode(
    policy: "Policy",
    env: "gym.Env",
    seed: int,
    random: "np.random.Generator | None" = None,
    frames: list | None = None,
    max_steps: int = MAX_STEPS,
) -> tuple[float, int]:
    """Play one episode from a reset with `seed`, up to max_steps; return its return and length.

    `random`: sample the actions; None: the most likely ones. `frames` takes up the pictures. InputError for an action
    that is not finite.
    """
    import numpy as np

    obs, _ = env.reset(seed=seed)
    total, length, over = 0.0, 0, False
    while not over and length < max_steps:
        if frames is not None:
            frames.append(env.render())
        norm = policy.obs_norm
        seen = obs.astype(np.float32) if norm is None else norm.normalize(obs)
        noise = None if random is None else policy.noise(random, 1)
        chosen = policy.act(seen[None], noise)
        if not np.isfinite(chosen).all():  # before it is clipped: an infinite one would be the greatest
            raise InputError(f"the policy's action is not finite: {chosen[0].tolist()}; what it learned has diverged")
        action = policy.to_env(chosen)[0]
        obs, reward, terminated, truncated, _ = env.step(action)
        total, length, over = total + float(reward), length + 1, terminated or truncated
    return total, length


def write_video(path: Path, frames: list, fps: float) -> None:
    """Write the pictures as an mp4."""
    import imageio

    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}")
    try:
        # A side that is not a multiple of 16 would be scaled: some players cannot show it otherwise.
        imageio.mimwrite(part, frames, format="mp4", fps=fps, macro_block_size=16)
        part.replace(path)
    except ImportError as error:
        raise InputError(f"--video: needs ffmpeg, pip install 'hesscale-rl[video]' ({error})") from None
    finally:
        part.unlink(missing_ok=True)


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
        os.environ.setdefault("MUJOCO_GL", "egl")  # before MuJoCo is imported: without a screen the default fails
        need_video()
    import numpy as np
    import torch

    torch.set_num_threads(1)
    try:
        mode = "rgb_array" if args.video else None
        policy, env, config, saved = load(args.run, mode, args.env_module, args.trust_env_module)
    except (ImportError, RuntimeError, AttributeError) as error:  # MuJoCo's, on importing a GL that is not there
        if not args.video:
            raise
        gl = os.environ["MUJOCO_GL"]
        raise InputError(f"--video: cannot draw with MUJOCO_GL={gl}: {' '.join(str(error).split())[:120]}") from None
    if (hint := env.hint()) is not None:
        complain(hint)
    random = np.random.default_rng(args.seed) if args.sampled else None
    frames: list | None = [] if args.video else None
    played = []
    for i in range(args.episodes):
        try:
            played.append(episode(policy, env, args.seed + i, random, frames if i == 0 else None, args.max_steps))
        except Exception as error:
            if not args.video:
                raise
            cause = str(error).strip().partition("\n")[0] or type(error).__name__
            gl = f"MUJOCO_GL={os.environ['MUJOCO_GL']}; egl needs a driver, osmesa the library of that name"
            raise InputError(f"--video: {config.env_id} cannot be drawn: {cause} ({gl})") from None
    returns = [value for value, _ in played]
    if cut := sum(length == args.max_steps for _, length in played):
        complain(f"{cut} of {len(played)} episodes were cut after {args.max_steps:,} steps (--max-steps)")
    spread = ""
    if len(returns) > 1:
        spread = f" ± {1.96 * statistics.stdev(returns) / math.sqrt(len(returns)):,.1f}"
    how = "sampled" if args.sampled else "most likely actions"
    step = saved["global_step"]
    count = f"{len(returns)} episode" + "s" * (len(returns) > 1)
    say(f"return {statistics.fmean(returns):,.1f}{spread} ({count}, {how}, step {step:,})")
    from hesscale_rl.runs.directory import write_json

    result = {"global_step": step, "sampled": args.sampled, "seeds": [args.seed + i for i in range(args.episodes)]}
    write_json(args.run / "evaluation.json", result | {"returns": returns, "lengths": [n for _, n in played]})
    if frames:
        path = args.run / "videos" / f"step_{step}.mp4"
        write_video(path, frames, env.metadata.get("render_fps", 30))
        say(f"video  {path}  ({len(frames)} frames)")
    env.close()
    return DONE


def need_video() -> None:
    """InputError before an episode is played for nothing."""
    try:
        import imageio  # noqa: F401
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        raise InputError("--video: needs imageio-ffmpeg, pip install 'hesscale-rl[video]'") from None


def main() -> int:
    """Run the command line."""
    parser = Parser("hesscale-rl evaluate", __doc__)
    run_flags(parser)
    parser.add_argument("--episodes", type=int, default=10, help="how many (10)")
    parser.add_argument("--seed", type=int, default=1000, help="of the first episode; the next have the next (1000)")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS, help="of an episode, at most (%(default)s)")
    parser.add_argument("--sampled", action="store_true", help="sample the actions as training does")
    parser.add_argument("--video", action="store_true", help="write the first episode as mp4")
    return obey(parser, evaluate, "interrupted", OSError)


if __name__ == "__main__":
    sys.exit(main())
