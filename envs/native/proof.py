"""Whether the compiled step of an environment gives Gymnasium's numbers here: tried once, and remembered.

It is tried for every version of Gymnasium, MuJoCo, NumPy and of the files that matter, for every kind of processor,
and for the task's arguments: some hundred steps of a copy beside as many of another.
"""

import contextlib
import hashlib
import inspect
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import mujoco_env

from hesscale_rl.compiled import cache

from .stepping import NativeStep, settings
from .tasks import TaskSettings

STEPS = 400
SAME, OTHER = b"same", b"other"
_known: dict[str, bool] = {}


def versions() -> str:
    """Return the versions that decide the numbers."""
    return f"gymnasium {gym.__version__}, mujoco {mujoco.__version__}, numpy {np.__version__}"


def same(own: NativeStep) -> bool:
    """Return whether the compiled step of an environment gives the numbers of its own step."""
    cache.ready(cache.NATIVE)
    stamp = _stamp(own.inner)
    if stamp in _known:
        return _known[stamp]
    file, kept = cache.mark(f"native-{stamp}"), b""
    if file is not None:
        with contextlib.suppress(OSError):
            kept = file.read_bytes()
    result = kept == SAME if kept in (SAME, OTHER) else agrees(own)
    if file is not None and not kept:
        with contextlib.suppress(OSError):  # it is tried again then
            file.write_bytes(SAME if result else OTHER)
    _known[stamp] = result
    return result


def _stamp(inner: Any) -> str:
    """What the answer depends on."""
    files = [Path(inspect.getfile(kind)).read_bytes() for kind in (type(inner), mujoco_env.MujocoEnv)]
    parts = [versions(), type(inner).__qualname__, str(settings(inner)), str(inner.frame_skip)]
    return hashlib.sha256(b"\n".join([*files, *(part.encode() for part in parts)])).hexdigest()[:16]


def agrees(own: NativeStep, steps: int = STEPS) -> bool:
    """Return whether some hundred steps are the same, to the last bit, in two new environments of this kind."""
    first, second = (_copy(own.inner) for _ in range(2))
    twin = NativeStep(second, own.task, own.library)
    random, shape = np.random.default_rng(0), first.action_space.shape
    row = np.empty(len(first.reset(seed=0)[0]))
    second.reset(seed=0)
    if not twin.look() or twin.sizes != own.sizes:
        return False
    for t in range(steps):
        action = random.uniform(-1, 1, shape).astype(np.float32) * np.float32(4.0 if t % 100 > 80 else 1.0)
        obs, reward, terminated, _, _ = first.step(action)
        found = twin.step_into(action, row)
        expected = obs.tobytes(), np.float64(reward).tobytes(), bool(terminated)
        if expected != (row.tobytes(), np.float64(found[0]).tobytes(), bool(found[1])):
            return False
        if terminated or t % 100 == 99:
            for env in (first, second):
                env.reset(seed=t)
            twin.look()
    return True


def _copy(inner: Any) -> Any:
    """A new environment of this kind with the arguments that decide its steps; it was never reset."""
    new = type(inner)(**({"main_body": inner._main_body} if hasattr(inner, "_main_body") else {}))
    new.frame_skip = inner.frame_skip
    for field in TaskSettings._fields:
        if hasattr(inner, f"_{field}"):
            setattr(new, f"_{field}", getattr(inner, f"_{field}"))
    return new
