"""Environments by name: `make` gives one ready for an agent, or says in one line why it cannot."""

import difflib
import importlib
import re

import gymnasium as gym

from hesscale_rl.errors import InputError

from . import mujoco


def make(env_id: str) -> gym.Env:
    """Make a Gymnasium environment whose observations are vectors; InputError with one line if that is impossible.

    The time limit stays on (its end is a truncation), no other wrapper is added: agents normalise for themselves.
    """
    check_id(env_id)
    mujoco.quiet()
    try:
        env = gym.make(env_id, disable_env_checker=True)
    except Exception as error:  # an environment may fail in any way: a missing package, a missing asset, no display
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"--env-id {env_id}: cannot be made: {cause}") from error
    space = env.observation_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        env.close()
        raise InputError(f"--env-id {env_id}: its observations are {space}; agents here need a vector, Box of rank 1")
    return env


def check_id(env_id: str) -> None:
    """Raise InputError unless `env_id` names an environment that can exist today; nothing is created.

    "module:Name-v0" imports the module first, as in Gymnasium.
    """
    module, _, key = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"--env-id {env_id}: cannot import {module}: {error}") from None
    name, version = _split(key)
    versions = _versions(name)
    if _retired(name, version):
        newest = f"{name}-v{max(versions)}"
        raise InputError(f"--env-id {env_id}: needs mujoco-py, which no longer runs; take {newest}")
    if key in gym.registry:
        return
    if versions:
        known = ", ".join(f"{name}-v{number}" for number in sorted(versions, reverse=True))
        problem = "has no version in it" if version is None else "no such version"
        raise InputError(f"--env-id {env_id}: {problem}; there is {known}")
    names = sorted({_split(known)[0] for known in gym.registry})
    close = {other.lower(): other for other in names}
    near = [close[match] for match in difflib.get_close_matches(name.lower(), close, n=2)]
    ids = [f"{other}-v{number}" for other in near for number in sorted(_versions(other), reverse=True)]
    hint = f"did you mean {', '.join(ids)}?" if ids else "gymnasium.pprint_registry() lists what there is"
    raise InputError(f"--env-id {env_id}: no such environment; {hint}")


def _split(key: str) -> tuple[str, int | None]:
    """The name and the version of a registered id: "Hopper-v5" is ("Hopper", 5)."""
    match = re.fullmatch(r"(.+)-v(\d+)", key)
    return (match[1], int(match[2])) if match else (key, None)


def _versions(name: str) -> list[int]:
    """The versions of an environment that can run."""
    ids = map(_split, gym.registry)
    return [number for other, number in ids if other == name and number is not None and not _retired(name, number)]


def _retired(name: str, version: int | None) -> bool:
    """Whether this is one of Gymnasium's MuJoCo environments of version 2 or 3: registered, but they only raise."""
    newest = gym.registry.get(f"{name}-v5")
    entry = newest.entry_point if newest else None
    return version in (2, 3) and isinstance(entry, str) and entry.startswith("gymnasium.envs.mujoco")
