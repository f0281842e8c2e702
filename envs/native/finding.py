"""Whether compiled loops step an environment: it is known, unchanged, covered, and the numbers are the same."""

from types import FunctionType

import gymnasium as gym
from gymnasium.envs.mujoco import mujoco_env

from hesscale_rl import backend
from hesscale_rl.jit import PLAIN
from hesscale_rl.system.console import complain

from . import proof
from .library import library
from .stepping import STACK, NativeStep, UnknownArgument, known, settings


def find(env: gym.Env, name: str) -> NativeStep | None:
    """Return the compiled step of an environment, or None where its own is to be taken.

    One line on stderr, which begins with `name`, says so of a known task with arguments that are not covered, and of
    a Gymnasium or MuJoCo whose numbers are others.
    """
    task, found = known(env), library()
    if task is None or found is None or PLAIN or not backend.compiles():
        return None
    if not all(unchanged(kind) for kind in (type(env.unwrapped), mujoco_env.MujocoEnv, *STACK)):
        return None
    try:
        settings(env.unwrapped)
    except UnknownArgument as reason:
        say(f"{name}: Gymnasium's own step is taken, since {reason}")
        return None
    own = NativeStep(env, task, found)
    if not proof.same(own):
        say(f"{name}: Gymnasium's own step is taken: the compiled one gives other numbers with {proof.versions()}")
        return None
    return own


_said: set[str] = set()


def say(line: str) -> None:
    """Say a line once: several copies of an environment have the same to say."""
    if line not in _said:
        _said.add(line)
        complain(line)


def unchanged(kind: type) -> bool:
    """Whether the methods and properties of a class are those of its own file."""
    parts = (part.fget if isinstance(part, property) else part for part in vars(kind).values())
    return all(part.__module__ == kind.__module__ for part in parts if isinstance(part, FunctionType))
