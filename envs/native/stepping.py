"""Which environments the compiled steps are for, and the step of one of them.

Known are exactly Gymnasium's classes in KNOWN, with their own model and in the wrappers that `gymnasium.make` puts
around them. What is derived from them, wrapped otherwise or changed has a step of its own, which nothing takes its
place of; that is looked at anew after every reset.
"""

import math
import os
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco import mujoco_env

from . import tasks
from .library import Library
from .tasks import TaskSettings

MOST = 128  # numbers that `arithmetic.sum_of_squares` can sum up as NumPy does


class NativeTask(NamedTuple):
    """A task's number, the file of its model, the bodies that it names, and whether their masses count."""

    number: int
    model: str
    bodies: tuple[str, ...] = ()
    weighs: bool = False


KNOWN = {
    "half_cheetah_v4.HalfCheetahEnv": NativeTask(tasks.HALF_CHEETAH, "half_cheetah.xml"),
    "half_cheetah_v5.HalfCheetahEnv": NativeTask(tasks.HALF_CHEETAH, "half_cheetah.xml"),
    "swimmer_v4.SwimmerEnv": NativeTask(tasks.SWIMMER, "swimmer.xml"),
    "swimmer_v5.SwimmerEnv": NativeTask(tasks.SWIMMER, "swimmer.xml"),
    "hopper_v5.HopperEnv": NativeTask(tasks.HOPPER, "hopper.xml"),
    "walker2d_v5.Walker2dEnv": NativeTask(tasks.WALKER2D, "walker2d_v5.xml"),
    "ant_v5.AntEnv": NativeTask(tasks.ANT, "ant.xml"),
    "humanoid_v5.HumanoidEnv": NativeTask(tasks.HUMANOID, "humanoid.xml", weighs=True),
    "humanoidstandup_v5.HumanoidStandupEnv": NativeTask(tasks.STANDUP, "humanoidstandup.xml"),
    "reacher_v5.ReacherEnv": NativeTask(tasks.REACHER, "reacher.xml", ("fingertip", "target")),
    "pusher_v5.PusherEnv": NativeTask(tasks.PUSHER, "pusher_v5.xml", ("tips_arm", "object", "goal")),
    "inverted_pendulum_v5.InvertedPendulumEnv": NativeTask(tasks.PENDULUM, "inverted_pendulum.xml"),
    "inverted_double_pendulum_v5.InvertedDoublePendulumEnv": NativeTask(tasks.DOUBLE, "inverted_double_pendulum.xml"),
}
USUAL, NO_ARGUMENT = TaskSettings()._asdict(), object()
PLACE = "gymnasium.envs.mujoco."
STACK = (gym.wrappers.TimeLimit, gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker)  # from the outside


class UnknownArgument(Exception):
    """A known task with an argument that the compiled step does not know. One line: which."""


class NativeStep:
    """The compiled step of one environment, `env` with its wrappers as `gymnasium.make` returns it.

    `ready`: whether the next step can be taken. After every reset `look` has to be called; nothing else is ever kept
    of the environment than where its memory lies.
    """

    def __init__(self, env: gym.Env, task: NativeTask, found: Library):
        self.env, self.task, self.library = env, task, found
        self.inner: Any = env.unwrapped
        self.sizes = sizes(self.inner)
        self.ready = False
        self.model: Any = None
        self.data: Any = None
        self.decides: Any = None  # what `block` was made from beside these two

    def look(self) -> bool:
        """Look at the environment as it is now; return, and keep in `ready`, whether it is one that is known."""
        self.ready = False
        if known(self.env) is not self.task or sizes(self.inner) != self.sizes:
            return False
        try:
            own = settings(self.inner)
        except UnknownArgument:
            return False
        wrappers = wrappers_of(self.env)
        self.limit = next((w for w in wrappers if type(w) is gym.wrappers.TimeLimit), None)
        self.orders = [w for w in wrappers if type(w) is gym.wrappers.OrderEnforcing]
        model, data = self.inner.model, self.inner.data
        decides = own, self.inner.frame_skip, model.opt.timestep, getattr(self.inner, "_main_body", None)
        if self.data is not data or self.model is not model or self.decides != decides or self.task.weighs:
            self.block = block(self.inner, self.task, self.library, own)
        self.model, self.data, self.decides = model, data, decides
        self.length = model.nu
        self.ready = all(w._has_reset for w in self.orders) and (
            self.limit is None or self.limit._elapsed_steps is not None
        )
        return self.ready

    def takes(self, action: Any) -> bool:
        """Whether this step can be taken with such an action: everything else is the environment's own to judge."""
        fits = type(action) is np.ndarray and action.dtype == np.float32 and action.shape == (self.length,)
        return fits and self.takes_steps

    @property
    def takes_steps(self) -> bool:
        """Whether the next step can be taken."""
        return self.ready and self.inner.data is self.data and self.inner.model is self.model

    def step_into(self, action: np.ndarray, row: np.ndarray) -> tuple[float, bool, bool]:
        """Take an action [A] float32 and write the observation into row [O]; return the reward and both ends."""
        reward, terminated = tasks.step(self.block, action, row, None)
        truncated = False
        if self.limit is not None:
            elapsed: Any = self.limit._elapsed_steps  # a number: `look` has seen to it
            self.limit._elapsed_steps = elapsed + 1
            truncated = elapsed + 1 >= self.limit._max_episode_steps
        return reward, terminated, truncated


def wrappers_of(env: gym.Env) -> list[gym.Wrapper]:
    """Return the wrappers of an environment, from the outside."""
    found = []
    while isinstance(env, gym.Wrapper):
        found.append(env)
        env = env.env
    return found


def known(env: gym.Env) -> NativeTask | None:
    """Return the task of an environment that is exactly one of Gymnasium's, as its `make` returns it; else None."""
    places = [STACK.index(type(w)) if type(w) in STACK else -1 for w in wrappers_of(env)]
    if places != sorted(set(places) - {-1}):
        return None
    inner = env.unwrapped
    kind = type(inner)
    task = KNOWN.get(f"{kind.__module__.removeprefix(PLACE)}.{kind.__qualname__}")
    if task is None or not kind.__module__.startswith(PLACE):
        return None
    parts: list[Any] = [inner, *wrappers_of(env)]
    own = any(not methods(part.__class__).isdisjoint(vars(part)) for part in parts)
    return None if own else task


@cache
def methods(kind: Any) -> frozenset[str]:
    """Return the names of a class's methods and properties: an object that has one of these itself has changed it."""
    return frozenset(n for n in dir(kind) if isinstance(getattr(kind, n, None), FunctionType | property))


def sizes(inner: Any) -> tuple[int, ...]:
    """Return how many numbers there are in the state of an environment's model."""
    model = inner.model
    return model.nq, model.nv, model.nu, model.nbody, model.nsite


def settings(inner: Any) -> TaskSettings:
    """Return what of an environment's arguments decides its steps; UnknownArgument for what no argument should be."""
    task = KNOWN[f"{type(inner).__module__.removeprefix(PLACE)}.{type(inner).__qualname__}"]
    path = os.path.join(os.path.dirname(mujoco_env.__file__), "assets", task.model)
    if inner.fullpath != path:
        raise UnknownArgument(f"its model is {inner.fullpath}")
    if type(inner.frame_skip) is not int or inner.frame_skip < 1:
        raise UnknownArgument(f"its frame_skip is {inner.frame_skip!r}")
    if inner.render_mode == "human":
        raise UnknownArgument("it shows every step")
    if inner.model.na or inner.data.cfrc_ext.size > MOST or inner.model.nu > MOST:
        raise UnknownArgument("its model was changed")
    given = {}
    for field, usual in USUAL.items():
        value = getattr(inner, f"_{field}", NO_ARGUMENT)
        if value is NO_ARGUMENT:
            continue
        given[field] = covered(value, usual)
        if given[field] is None:
            raise UnknownArgument(f"its {field} is {value!r}")
    return TaskSettings(**given)


def covered(value: Any, usual: Any) -> Any:
    """Return a setting as the loops take it, None if it is not of the kind of its usual value."""
    if isinstance(usual, tuple):
        pair = isinstance(value, tuple | list) and len(value) == 2 and all(type(x) in (int, float) for x in value)
        return (float(value[0]), float(value[1])) if pair else None
    if isinstance(usual, bool):
        return value if type(value) is bool else None
    return float(value) if type(value) in (int, float) and not math.isnan(value) else None


def block(inner: Any, task: NativeTask, found: Library, own: TaskSettings) -> np.ndarray:
    """Return where an environment's model and data are, [1] of tasks.BLOCK; good as long as both live."""
    model, data = inner.model, inner.data
    names: tuple[Any, ...] = (inner._main_body,) if task.number == tasks.ANT else task.bodies
    bodies = [model.body(name).id for name in names] + [0] * (3 - len(names))
    row = [task.number, *found, model._address, data._address, inner.frame_skip, *bodies]
    row += [inner.dt, model.opt.timestep, model.body_mass.sum(), 2.0]
    row += [getattr(own, name) for name in tasks.NUMBERS[4:]]
    row += [bound for name in tasks.RANGES for bound in getattr(own, name)]
    for name in tasks.ARRAYS:
        array = getattr(model if name == "body_mass" else data, name)
        row += [array.ctypes.data, len(array) if name in tasks.POINTS else array.size]
    return np.array([tuple(row)], tasks.BLOCK)
