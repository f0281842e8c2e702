"""The state of an environment, saved so that it goes on to the last bit; for the environments where that is known.

Known are Gymnasium's MuJoCo and classic-control environments, and any environment that has the two methods
`save_state() -> dict` (arrays, numbers, text and containers of them; None: not now) and `load_state(state)`; with no
wrapper that could have a state of its own. What may be in that dict: envs/plain.py.
"""

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco import MujocoEnv

from .checking import Checked
from .plain import NotPlain, from_plain, to_plain

State = dict[str, Any]

# What decides the next step of gymnasium.envs.classic_control, beside the random generator.
CLASSIC = ("state", "steps_beyond_terminated", "last_u")


KNOWN_WRAPPERS = (
    gym.wrappers.TimeLimit,
    gym.wrappers.OrderEnforcing,
    gym.wrappers.PassiveEnvChecker,
    gym.wrappers.FlattenObservation,
    Checked,
)


def save(env: gym.Env) -> State | None:
    """Return the state of `env` and of its wrappers, or None for an environment whose state cannot be known.

    NotPlain if its save_state() raises, or returns what would not come back from a file as it was.
    """
    inner: Any = env.unwrapped
    module = type(inner).__module__  # of exactly this class: one derived from it may have a state of its own
    if not all(isinstance(w, KNOWN_WRAPPERS) for w in _wrappers(env)[:-1]):
        return None
    if hasattr(inner, "save_state") and hasattr(inner, "load_state"):
        own = _own(inner)
        if own is None:
            return None
    elif isinstance(inner, MujocoEnv) and module.startswith("gymnasium.envs.mujoco"):
        own = _save_mujoco(inner)
    elif module.startswith("gymnasium.envs.classic_control"):
        own = {name: to_plain(getattr(inner, name), name) for name in CLASSIC if hasattr(inner, name)}
    else:
        return None
    wrappers = [{"elapsed": w._elapsed_steps} for w in _wrappers(env) if isinstance(w, gym.wrappers.TimeLimit)]
    return {"env": own, "random": to_plain(inner.np_random.bit_generator.state, "np_random"), "time_limits": wrappers}


def load(env: gym.Env, state: State) -> None:
    """Bring an environment of the same kind into the state that `save` returned."""
    inner: Any = env.unwrapped
    env.reset()  # wrappers refuse to step before one
    if hasattr(inner, "load_state"):
        inner.load_state(from_plain(state["env"]))
    elif isinstance(inner, MujocoEnv):
        _load_mujoco(inner, state["env"])
    else:
        for name, value in state["env"].items():
            setattr(inner, name, from_plain(value))
    inner.np_random.bit_generator.state = from_plain(state["random"])
    limits = [w for w in _wrappers(env) if isinstance(w, gym.wrappers.TimeLimit)]
    for limit, saved in zip(limits, state["time_limits"], strict=True):
        limit._elapsed_steps = saved["elapsed"]


def _wrappers(env: gym.Env) -> list[gym.Env]:
    found = [env]
    while isinstance(found[-1], gym.Wrapper):
        found.append(found[-1].env)
    return found


def _own(env: Any) -> dict[str, Any] | None:
    """What an environment's own save_state() returns, as a checkpoint can hold it."""
    if not callable(env.load_state):
        raise NotPlain(f"load_state is {env.load_state!r}, not a method")
    try:
        own = env.save_state()
    except Exception as error:  # whatever an environment of somebody's own may do
        raise NotPlain(f"save_state() raised {type(error).__name__}: {error}") from error
    if own is not None and not isinstance(own, dict):
        raise NotPlain(f"save_state() returned a {type(own).__name__}; expected is a dict, or None")
    return to_plain(own, "save_state()")


def _save_mujoco(env: MujocoEnv) -> State:
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    values = np.empty(mujoco.mj_stateSize(env.model, kind))
    mujoco.mj_getState(env.model, env.data, values, kind)
    # Rewards read the bodies' places as the last step left them (Ant, Humanoid): not part of MuJoCo's own state.
    places = {name: torch.from_numpy(getattr(env.data, name).copy()) for name in ("xpos", "xipos")}
    return {"integration": torch.from_numpy(values), **places}


def _load_mujoco(env: MujocoEnv, state: State) -> None:
    mujoco.mj_setState(env.model, env.data, state["integration"].numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)
    for name in ("xpos", "xipos"):
        getattr(env.data, name)[:] = state[name].numpy()
