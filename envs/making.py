"""What an environment's name becomes: one of Gymnasium, of a user's own module, or after a prefix of EnvPool.

`envs.make` is the function; a module of that name would hide it.
"""

import contextlib
import difflib
import functools
import importlib
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from hesscale_rl.errors import InputError
from hesscale_rl.names import POOL
from hesscale_rl.runs.command_line import read_kwargs
from hesscale_rl.system.console import complain

from .modules import users_own

if TYPE_CHECKING:
    from .checking import Checked
    from .vector import Envs, NextStep

UR_REACHER: dict[str, dict[str, str]] = {
    "URReacher-v0": {},
    "URReacherStock-v0": {"preset": "stock"},
    "URReacherMuJoCo-v0": {"driver": "mujoco"},
}
for _name, _settings in UR_REACHER.items():
    gym.register(_name, "hesscale_rl.envs.ur_reacher:URReacher", max_episode_steps=100, kwargs=_settings)  # 4 s


_offered: dict[str, Callable[..., gym.Env]] = {}


class _Kept(gym.Wrapper):
    """An environment that is somebody else's to close."""

    def close(self) -> None:
        pass


def name_of(env: Any) -> str:
    """Return what to call an environment, or the function that makes it, in place of Gymnasium's name."""
    if isinstance(env, gym.Env):
        return type(env.unwrapped).__name__
    name = getattr(env, "__name__", "")
    return name if name.isidentifier() else "own"


def offer(env_id: str, env: Any, copies: int) -> None:
    """Let `env_id` stand in this process for an environment, or for a function that makes one, before any other.

    InputError for what is neither, for an environment of which several copies are needed, and for a name that
    Gymnasium has for another.
    """
    if env_id in gym.registry:
        raise InputError(f"env_id {env_id}: Gymnasium knows another by this name; leave it out, or take a new one")
    if isinstance(env, gym.Env):
        if copies > 1:
            way = "give a function that makes one (a second one is needed for num_envs and for evaluation)"
            raise InputError(f"env: {env} is a single environment; {way}")
        own = _Kept(env)
        _offered[env_id] = lambda: own
    elif callable(env):
        _offered[env_id] = env
    else:
        raise InputError(f"env {env!r}: must be a gymnasium.Env or a function that makes one; a name is env_id")


def make(
    env_id: str, env_module: str | None = None, render_mode: str | None = None, env_kwargs: str | None = None
) -> "Checked":
    """Make a Gymnasium environment whose observations are vectors; InputError with one line if that is impossible.

    The time limit stays on (its end is a truncation), and no wrapper is added but the one that holds what it returns
    to what it declared, and makes vectors of it (checking.py): agents normalise for themselves. `env_module` is
    imported first, to register its own; `env_kwargs` are its constructor's arguments, as `read_kwargs` reads them.
    """
    from .checking import Checked

    if env_module is not None:
        import_users(f"--env-module {env_module}", env_module)
    check_id(env_id)
    from . import mujoco

    mujoco.quiet()
    # Not every environment of a user's own takes a render mode.
    given: dict[str, Any] = read_kwargs(env_kwargs) | ({} if render_mode is None else {"render_mode": render_mode})
    try:
        with users_own():
            maker = _offered.get(env_id) or functools.partial(gym.make, env_id, disable_env_checker=True)
            env = maker(**given)
    except (Exception, SystemExit) as error:  # it may fail in any way: a missing package, an asset, no display
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        flag = f" --env-kwargs {env_kwargs}" if env_kwargs is not None else ""
        raise InputError(f"--env-id {env_id}{flag}: cannot be made: {cause}") from error
    if not isinstance(env, gym.Env):
        raise InputError(f"--env-id {env_id}: what makes it returned {type(env).__name__}, which is no gymnasium.Env")
    try:
        return Checked(env, f"--env-id {env_id}")
    except InputError:
        env.close()
        raise


def make_vector(
    env_id: str, num_envs: int = 1, env_module: str | None = None, seed: int = 0, env_kwargs: str | None = None
) -> "Envs | NextStep":
    """Make `num_envs` of them behind one interface; "envpool:HalfCheetah-v5" takes EnvPool's, seeded with `seed`."""
    from .vector import Envs

    if env_id.startswith(POOL):
        return _pool(env_id, num_envs, seed, read_kwargs(env_kwargs))
    return Envs(*(make(env_id, env_module, None, env_kwargs) for _ in range(num_envs)))


def _pool(env_id: str, num_envs: int, seed: int, given: dict[str, Any]) -> "NextStep":
    from .vector import NextStep

    try:
        import envpool
    except ImportError:
        raise InputError(f"--env-id {env_id}: needs EnvPool, pip install 'hesscale-rl[envpool]'") from None
    name = env_id.removeprefix(POOL)
    known = envpool.list_all_envs()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise InputError(
            f"--env-id {env_id}: EnvPool has no {name}; it has {', '.join(near) or ', '.join(known[:5])}"
        )
    # A single seed would be counted up from one environment to the next, and neighbouring seeds would share streams.
    seeds = [int(s) >> 1 for s in np.random.SeedSequence(seed).generate_state(num_envs)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*precision lowered", UserWarning)  # of EnvPool's own spaces
        try:
            vector = envpool.make(name, env_type="gymnasium", num_envs=num_envs, seed=seeds, **given)
        except Exception as error:
            cause = " ".join(str(error).split())[:200]
            raise InputError(f"--env-id {env_id}: cannot be made with {given}: {cause}") from error
        try:
            return NextStep(vector, seeded=True, name=f"--env-id {env_id}")
        except InputError:
            vector.close()
            raise


def import_users(flag: str, module: str) -> None:
    """Import a module of the user's own; InputError with one line if that fails, in whatever way."""
    said = io.StringIO()
    try:
        with users_own(), contextlib.redirect_stderr(said):
            importlib.import_module(module)
    except SystemExit as error:  # of argparse perhaps, which has met flags of ours
        last = said.getvalue().strip().rpartition("\n")[2]
        cause = f"sys.exit({error.code!r})" + (f" after {last!r}" if last else "")
        way = "keep it under if __name__ == '__main__'"
        raise InputError(f"{flag}: cannot import {module}: {cause} while it was imported; {way}") from None
    except Exception as error:
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{flag}: cannot import {module}: {cause}") from None
    if said.getvalue():
        complain(said.getvalue().rstrip())


def check_id(env_id: str) -> None:
    """Raise InputError unless `env_id` names an environment that can exist today; nothing is created.

    "module:Name-v0" imports the module first, as in Gymnasium.
    """
    if env_id in _offered:
        return
    module, _, key = env_id.rpartition(":")
    if module:
        import_users(f"--env-id {env_id}", module)
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
