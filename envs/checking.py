"""What an environment returns, held against what it declared: the one place where it becomes our array.

An observation has the declared shape, to the letter, and a kind of number that the declared one can hold (numpy's
"same_kind": float64 for a float32 space is rounded, a float for a uint8 image is refused). A list or tuple of numbers
counts as the array that it spells. Every part of a Dict or Tuple is looked at before it is flattened. All numbers are
finite, and float32 holds them. A reward is one such number, no list of one; terminated and truncated are bools.
Infos are never looked at.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import gymnasium as gym
import numpy as np

from hesscale_rl.backend import chosen
from hesscale_rl.errors import Diverged, EnvironmentFault, InputError
from hesscale_rl.rl.normalize import copy_finite
from hesscale_rl.rl.records import LARGEST

from .native import NativeStep
from .ur.safety import RobotFault

_ARRAY, _FLOATS, _BOOLS = np.ndarray, (float, np.float64), (bool, np.bool_)
_FIVE = "the five values observation, reward, terminated, truncated, info"
_ALL = "return all five (gym's old done is terminated; a time limit is truncated)"


class Checked(gym.Wrapper):
    """An environment whose observations are finite float64 vectors [O], rewards float and ends bool.

    `name` begins every message: "--env-id Mine-v0". EnvironmentFault, with one line, for anything else that the
    environment returns, and for what it raises (but a robot's faults and our own errors, which pass as they are).
    `native`: a compiled step of the same numbers, for `step_into` to take where it can; None for none.
    """

    native: NativeStep | None = None

    def __init__(self, env: gym.Env, name: str):
        super().__init__(env)
        self.name = name
        self.declared = declared = _space(env, "observation_space", name)
        _space(env, "action_space", name)
        if not declared.is_np_flattenable:
            raise InputError(f"{name}: its observations are {brief(declared)}, which cannot be made a vector")
        vector = isinstance(declared, gym.spaces.Box) and len(declared.shape) == 1
        self.observation_space = declared if vector else gym.spaces.flatten_space(declared)
        self.length = int(np.prod(self.observation_space.shape or ()))
        # What needs only one comparison each; everything else, if it is right, is made such an array first.
        self._shape = declared.shape if vector else None
        self._dtype = declared.dtype if declared.dtype in (np.float32, np.float64) else None  # compared by identity
        self._copy = chosen(copy_finite)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode; return the observation [O] and the environment's own infos."""
        row = np.empty(self.length)
        return row, self.reset_into(row, seed=seed, options=options)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take an action; return the observation [O], the reward, both ends and the environment's own infos."""
        row = np.empty(self.length)
        return row, *self._own_step(action, row)

    def reset_into(self, row: np.ndarray, **how: Any) -> Any:
        """Begin an episode, write the observation into row [O] and return the infos."""
        try:
            result: Any = self.env.reset(**how)
        except (Exception, SystemExit) as error:
            raise _raised(self.name, "reset", error) from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._fault("reset", what(result), "the two values observation, info", "return both")
        self._read(result[0], row, "reset")
        if self.native is not None:
            self.native.look()
        return result[1]

    def step_into(self, action: Any, row: np.ndarray) -> tuple[float, bool, bool]:
        """Take an action, write the observation into row [O] and return the reward and both ends."""
        native = self.native
        if native is None or not native.takes(action):
            return self._own_step(action, row)[:3]
        reward, terminated, truncated = native.step_into(action, row)
        if not self._copy(row, row) or not -LARGEST <= reward <= LARGEST:
            raise self.fault_of(row, reward)
        return reward, terminated, truncated

    def fault_of(self, row: np.ndarray, reward: float) -> EnvironmentFault:
        """Return what to raise for a step's observation or reward of which one is not finite."""
        if not (np.abs(row) <= LARGEST).all():
            return self._not_finite("step", row)
        return self._unbounded(reward)

    def _own_step(self, action: Any, row: np.ndarray) -> tuple[float, bool, bool, Any]:
        """The environment's own step: `step_into`, and its infos."""
        try:
            result: Any = self.env.step(action)
        except (Exception, SystemExit) as error:
            raise _raised(self.name, "step", error) from error
        if not isinstance(result, tuple) or len(result) != 5:
            raise self._fault("step", what(result), _FIVE, _ALL)
        obs, reward, terminated, truncated, info = result
        self._read(obs, row, "step")
        if type(reward) not in _FLOATS or not -LARGEST <= reward <= LARGEST:
            reward = self._number(reward)
        if type(terminated) not in _BOOLS or type(truncated) not in _BOOLS:
            terminated = self._end("terminated", terminated)
            truncated = self._end("truncated", truncated)
        return reward, terminated, truncated, info

    def hint(self) -> str | None:
        """Return what to say of a wrapper of its own that normalises, None without one."""
        return _normalises(self.name, self.env)

    def _read(self, obs: Any, row: np.ndarray, call: str) -> None:
        """Write an observation into row [O]."""
        if type(obs) is not _ARRAY or obs.shape != self._shape or obs.dtype is not self._dtype:
            problem = wrong(self.declared, obs, "an observation")
            if problem is not None:
                raise self._fault(call, problem[0], problem[1], problem[2])
            flat = obs if self._shape else gym.spaces.flatten(self.declared, obs)
            obs = np.asarray(flat, np.float64)
        if not self._copy(obs, row):
            raise self._not_finite(call, row)

    def _not_finite(self, call: str, row: np.ndarray) -> EnvironmentFault:
        at = int(np.flatnonzero(~(np.abs(row) <= LARGEST))[0])
        came = f"an observation whose entry {at} is {row[at]}"
        return self._fault(call, came, "finite numbers that float32 holds", "look for what makes it so")

    def _number(self, reward: Any) -> float:
        array = as_array(reward)
        if array is None or array.shape != () or array.dtype.kind not in "fiub":
            came = f"the reward {what(reward)}"
            raise self._fault("step", came, "one number", "return a float")
        value = float(array)
        if not -LARGEST <= value <= LARGEST:
            raise self._unbounded(value)
        return value

    def _unbounded(self, reward: float) -> EnvironmentFault:
        came = f"the reward {reward}"
        return self._fault("step", came, "a finite number that float32 holds", "look for what makes it so")

    def _end(self, which: str, value: Any) -> bool:
        if not isinstance(value, _BOOLS):
            array = as_array(value)
            if array is None or array.shape != () or array.dtype != np.bool_:
                raise self._fault("step", f"{which} {what(value)}", "True or False", "return a bool")
        return bool(value)

    def _fault(self, call: str, came: str, expected: str, way: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self.name}: {call}() returned {came}; expected: {expected}; {way}")


class CheckedPool:
    """A gymnasium.vector.VectorEnv of E environments, held to what it declared as `Checked` holds a single one.

    Observations [E, O] float64, rewards [E] float64, ends [E] bool.
    """

    def __init__(self, vector: Any, name: str):
        self.vector, self.name, self.e = vector, name, vector.num_envs
        space = _space(vector, "single_observation_space", name)
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise InputError(f"{name}: its observations are {brief(space)}; needed is a vector, Box of rank 1")
        self.shape = self.e, space.shape[0]

    def reset(self, how: dict[str, Any]) -> np.ndarray:
        """Begin an episode in each; return the observations."""
        result = self._call("reset", 2, "the two values observations, infos", **how)
        return self._numbers("reset", "observations", result[0], self.shape)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Take the actions; return observations, rewards, terminated and truncated."""
        obs, rewards, *ends, _ = self._call("step", 5, _FIVE, actions)
        obs = self._numbers("step", "observations", obs, self.shape)
        rewards = self._numbers("step", "rewards", rewards, (self.e,))
        for end in ends:
            if not isinstance(end, np.ndarray) or end.shape != (self.e,) or end.dtype != np.bool_:
                raise self._fault("step", f"ends: {what(end)}", f"{self.e} bools")
        return obs, rewards, ends[0], ends[1]

    def hint(self) -> str | None:
        """As that of `Checked`."""
        return _normalises(self.name, self.vector)

    def close(self) -> None:
        """Close the pool."""
        self.vector.close()

    def _call(self, call: str, values: int, expected: str, *given: Any, **how: Any) -> tuple[Any, ...]:
        try:
            result = getattr(self.vector, call)(*given, **how)
        except (Exception, SystemExit) as error:
            raise _raised(self.name, call, error) from error
        if not isinstance(result, tuple) or len(result) != values:
            raise self._fault(call, what(result), expected)
        return result

    def _numbers(self, call: str, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
        array = as_array(value)
        if array is None or array.shape != shape or array.dtype.kind == "c":
            raise self._fault(call, f"{name}: {what(value)}", f"an array of shape {shape}")
        array = np.ascontiguousarray(array, np.float64)
        if not copy_finite(array.reshape(-1), array.reshape(-1)):
            raise self._fault(call, f"{name} that are not finite, or too large", "numbers that float32 holds")
        return array

    def _fault(self, call: str, came: str, expected: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self.name}: {call}() returned {came}; expected: {expected}")


def _normalises(name: str, env: Any) -> str | None:
    """What to say of a wrapper that keeps running statistics: no checkpoint has them, and no evaluation."""
    while env is not None:
        if hasattr(env, "obs_rms") or hasattr(env, "return_rms"):
            lost = "keeps statistics that no checkpoint has: evaluation and resumed runs begin without them"
            return f"{name}: its {type(env).__name__} {lost}; leave it out, the agents normalise for themselves"
        env = getattr(env, "env", None)
    return None


def _space(env: gym.Env, which: str, name: str) -> gym.Space:
    """A space of an environment; InputError unless it is one of Gymnasium's."""
    space = getattr(env, which, None)
    if not isinstance(space, gym.Space):
        has = "none" if space is None else what(space)
        raise InputError(f"{name}: its {which} is {has}; expected: a gymnasium.spaces.Space, set in __init__")
    return space


_NUMBERS = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
Problem = tuple[str, str, str]  # what came, what was declared, the way out


def wrong(space: gym.Space, value: Any, name: str) -> Problem | None:
    """Return what is wrong with `value`, called `name`, as an element of `space`; None if nothing is.

    Whether the numbers lie within a Box's bounds is not asked: few environments keep to those.
    """
    declared = f"{brief(space)}, its observation_space"
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            came = f"a dict of {', '.join(map(repr, value))}" if isinstance(value, Mapping) else what(value)
            return f"{name}: {came}", f"a dict of {', '.join(map(repr, space.spaces))}", "return all parts"
        parts = [(part, value[key], f"{name}[{key!r}]") for key, part in space.spaces.items()]
    elif isinstance(space, gym.spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            return f"{name}: {what(value)}", f"a tuple of {len(space.spaces)} parts", "return all parts"
        parts = [(part, value[i], f"{name}[{i}]") for i, part in enumerate(space.spaces)]
    else:
        way = "return what is declared, or declare what is returned"
        return None if _fits(space, value) else (f"{name}: {what(value)}", declared, way)
    return next(filter(None, (wrong(*part) for part in parts)), None)


def _fits(space: gym.Space, value: Any) -> bool:
    """Whether a single value, not a Dict or Tuple, is of a space."""
    if not isinstance(
        space, gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary
    ):
        return bool(space.contains(value))
    array = as_array(value)
    if array is None or array.shape != space.shape or not np.can_cast(array.dtype, space.dtype, "same_kind"):
        return False
    if isinstance(space, gym.spaces.Box):
        return array.dtype.kind != "c"
    return bool(space.contains(array.astype(space.dtype)))


def as_array(value: Any) -> np.ndarray | None:
    """Return the array of numbers or bools that a value spells, or None, as of one whose entries are masked."""
    try:
        if np.ma.is_masked(value):  # numpy would take the numbers under the mask
            return None
        array = np.asarray(value)
    except Exception:  # an object of somebody's own may fail in any way
        return None
    return array if array.dtype.kind in "fiubc" else None


def what(value: Any) -> str:
    """Return in a few words what a value is."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        return f"an array of shape {value.shape} with masked entries"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}, {value.dtype}"
    if isinstance(value, tuple | list) and len(value):
        array = as_array(value)
        kind = type(value).__name__
        if array is not None and array.shape != (len(value),):
            return f"a {kind} of shape {array.shape}"
        return f"a {kind} of {len(value)} value{'s' * (len(value) > 1)}"
    if isinstance(value, Mapping) and len(value):
        return f"a dict of {len(value)} values"
    text = " ".join(repr(value).split())
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if value is None or isinstance(value, bool) else f"{text} ({type(value).__name__})"


def brief(space: gym.Space) -> str:
    """Return a space in one line, without the bounds of every entry."""
    if isinstance(space, gym.spaces.Box):
        return f"Box of shape {space.shape}, {space.dtype}"
    text = " ".join(str(space).split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def _raised(name: str, call: str, error: BaseException) -> BaseException:
    """Return what to raise for what an environment raised: our own errors, and a robot's faults, as they are."""
    if isinstance(error, RobotFault | InputError | Diverged):
        return error
    text, place = str(error), _place(error)
    if isinstance(error, TypeError | ValueError) and "unpack" in text and "gymnasium" in place.parts:
        # A wrapper of Gymnasium's own, its time limit, has met the values first.
        return EnvironmentFault(f"{name}: {call}() returned other values; expected: {_FIVE}; {_ALL}")
    way = "; declare reset(self, seed=None, options=None)" if "unexpected keyword argument" in text else ""
    said = " ".join(text.split())[:200]
    where = f"({place.name}:{_innermost(error).tb_lineno})"
    return EnvironmentFault(f"{name}: {call}() raised {type(error).__name__}: {said} {where}{way}")


def _innermost(error: BaseException) -> TracebackType:
    trace = error.__traceback__
    assert trace is not None  # it was raised
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _place(error: BaseException) -> Path:
    """The file in which it was raised."""
    return Path(_innermost(error).tb_frame.f_code.co_filename)
