"""Whether an environment keeps to what it declares: hesscale-rl check ENV [--env-module MODULE]

Plays episodes with random actions under the rules that training has (envs/checking.py), saves and loads its state,
and runs Gymnasium's own checker. Every line says what is good, wrong, or worth knowing. Exit code 0: nothing is
wrong, 1: something is, 2: there is no such environment.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hesscale_rl.errors import DONE, FAILED, EnvironmentFault, InputError
from hesscale_rl.names import POOL
from hesscale_rl.runs.command_line import Parser, obey
from hesscale_rl.system.console import say

if TYPE_CHECKING:
    from hesscale_rl.envs.checking import Checked

GOOD, WRONG, NOTE = "good", "wrong", "note"
STEPS = 1000  # of an episode, at most
PLAYED = 53  # before and after a state is saved; a prime, not to end with an episode
Finding = tuple[str, str]


def check(args: argparse.Namespace) -> int:
    """Look at everything and report; return the exit code."""
    from hesscale_rl import envs

    if args.env.startswith(POOL):
        raise InputError(f"{args.env}: EnvPool's environments are not looked at")
    if args.episodes < 1:
        raise InputError(f"--episodes {args.episodes}: must be at least 1")

    def made() -> "Checked":
        return envs.make(args.env, args.env_module, env_kwargs=args.env_kwargs)

    env, wrong = made(), False
    for findings in (_spaces(args.env, env), _episodes(env, args.episodes), _state(made), _gymnasium(made)):
        for kind, words in findings:
            say(f"{kind:5}  {words.removeprefix(f'--env-id {args.env}: ')}")
            wrong |= kind == WRONG
    return FAILED if wrong else DONE


def _spaces(env_id: str, env: "Checked") -> Iterator[Finding]:
    from gymnasium.spaces import Box

    from hesscale_rl.envs.checking import brief
    from hesscale_rl.rl.actions import ActionBox
    from hesscale_rl.rl.policy import check_spaces

    try:
        check_spaces(env_id, env.observation_space, env.action_space)
    except InputError as error:
        yield WRONG, str(error)
        return
    yield GOOD, f"observations: {brief(env.declared)}; actions: {brief(env.action_space)}"
    if isinstance(env.action_space, Box) and (hint := ActionBox(env.action_space).hint()):
        yield NOTE, hint
    if (hint := env.hint()) is not None:
        yield NOTE, hint


def _episodes(env: "Checked", episodes: int) -> Iterator[Finding]:
    """Play with random actions, under the rules of training."""
    import numpy as np

    env.action_space.seed(0)
    space: Any = env.observation_space  # a Box: it was made one
    steps, endless, outside, row = 0, 0, 0, np.empty(env.length)
    try:
        for episode in range(episodes):
            env.reset_into(row, seed=episode)
            for _ in range(STEPS):
                _, terminated, truncated = env.step_into(env.action_space.sample(), row)
                steps += 1
                outside += not bool(((row >= space.low) & (row <= space.high)).all())
                if terminated or truncated:
                    break
            else:
                endless += 1
        env.close()
    except EnvironmentFault as fault:
        yield WRONG, str(fault)
        return
    except Exception as error:  # of close(), whatever it may do
        yield WRONG, f"close() raised {type(error).__name__}: {error}"
    count = f"{episodes} episode{'s' * (episodes > 1)}, {steps:,} steps"
    yield GOOD, f"{count}: shapes, kinds of numbers, rewards and ends are as declared"
    if outside:
        yield NOTE, f"{outside:,} of {steps:,} observations lie outside the bounds of the observation_space"
    if endless:
        yield NOTE, f"{endless} episodes did not end within {STEPS} steps; max_episode_steps sets a limit"


def _state(made: Any) -> Iterator[Finding]:
    """Save it in the middle of an episode, and go on from there in another copy."""
    from hesscale_rl.envs import state

    here, there = made(), made()
    here.action_space.seed(1)
    actions = [here.action_space.sample() for _ in range(2 * PLAYED)]

    def play(env: Any, taken: list) -> list[tuple]:
        rows = []
        for action in taken:
            obs, *rest = env.step(action)[:4]
            rows.append((obs.tobytes(), *rest))
            if rest[1] or rest[2]:
                rows.append((env.reset()[0].tobytes(),))
        return rows

    try:
        here.reset(seed=0)
        play(here, actions[:PLAYED])
        saved = state.save(here)
        if saved is None:
            way = "save_state() and load_state(state) would let it go on"
            yield NOTE, f"its state cannot be saved: a resumed run begins new episodes; {way}"
            return
        state.load(there, saved)
        same = play(here, actions[PLAYED:]) == play(there, actions[PLAYED:])
    except EnvironmentFault:
        return  # told by the episodes before
    except Exception as error:  # of save_state or load_state
        yield WRONG, f"its state cannot be saved and loaded: {type(error).__name__}: {' '.join(str(error).split())}"
        return
    if same:
        yield GOOD, "its state, saved and loaded, goes on to the same numbers"
    else:
        yield WRONG, "its state, saved and loaded, goes on to other numbers: something that decides them is left out"


def _gymnasium(made: Any) -> Iterator[Finding]:
    """What Gymnasium's own checker finds."""
    from gymnasium.utils.env_checker import check_env

    found = False
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            check_env(made().unwrapped, skip_render_check=True)
        except Exception as error:  # an AssertionError, or whatever the environment does
            found = True
            yield WRONG, f"Gymnasium's checker: {_line(error) or type(error).__name__}"
    for warning in {_line(warning.message): None for warning in told}:
        yield NOTE, f"Gymnasium's checker: {warning}"
    if not found:
        yield GOOD, "Gymnasium's checker passes"


def _line(message: Any) -> str:
    """A message of Gymnasium's in one line, without its colours."""
    text = " ".join(str(message).split())
    return text.replace("\x1b[33m", "").replace("\x1b[0m", "").removeprefix("WARN: ")[:300]


def main() -> int:
    """Run the command line."""
    parser = Parser("hesscale-rl check", __doc__)
    parser.add_argument("env", metavar="ENV", help="the environment's name")
    parser.add_argument("--env-module", help="a module to import first, which registers it")
    parser.add_argument("--env-kwargs", help="its arguments: key=value,key=value or a JSON object")
    parser.add_argument("--episodes", type=int, default=5, help="how many (5)")
    return obey(parser, check)


if __name__ == "__main__":
    sys.exit(main())
