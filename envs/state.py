"""The state of an environment, saved so that it goes on to the last bit; for the environments where that is known.

Known are Gymnasium's MuJoCo and classic-control environments, and any environment that has the two methods
`save_state() -> dict` (arrays, numbers, text and containers of them; None: not now) and `load_state(state)`; with no
wrapper that could have a state of its own.
"""

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco import MujocoEnv

from .checking import Checked

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
    """Return the state of `env` and of its wrappers, or None for an environment whose state cannot be known."""
    inner: Any = env.unwrapped
    module = type(inner).__module__  # of exactly this class: one derived from it may have a state of its own
    if not all(isinstance(w, KNOWN_WRAPPERS) for w in _wrappers(env)[:-1]):
        return None
    if hasattr(inner, "save_state") and hasattr(inner, "load_state"):
        own = _plain(inner.save_state())
        if own is None:
            return None
    elif isinstance(inner, MujocoEnv) and module.startswith("gymnasium.envs.mujoco"):
        own = _save_mujoco(inner)
    elif module.startswith("gymnasium.envs.classic_control"):
        own = {name: _plain(getattr(inner, name)) for name in CLASSIC if hasattr(inner, name)}
    else:
        return None
    wrappers = [{"elapsed": w._elapsed_steps} for w in _wrappers(env) if isinstance(w, gym.wrappers.TimeLimit)]
    return {"env": own, "random": inner.np_random.bit_generator.state, "time_limits": wrappers}


def load(env: gym.Env, state: State) -> None:
    """Bring an environment of the same kind into the state that `save` returned."""
    inner: Any = env.unwrapped
    env.reset()  # wrappers refuse to step before one
    if hasattr(inner, "load_state"):
        inner.load_state(_arrays(state["env"]))
    elif isinstance(inner, MujocoEnv):
        _load_mujoco(inner, state["env"])
    else:
        for name, value in state["env"].items():
            setattr(inner, name, _arrays(value))
    inner.np_random.bit_generator.state = state["random"]
    limits = [w for w in _wrappers(env) if isinstance(w, gym.wrappers.TimeLimit)]
    for limit, saved in zip(limits, state["time_limits"], strict=True):
        limit._elapsed_steps = saved["elapsed"]


def _wrappers(env: gym.Env) -> list[gym.Env]:
    found = [env]
    while isinstance(found[-1], gym.Wrapper):
        found.append(found[-1].env)
    return found


def _plain(value: Any) -> Any:
    """Arrays as tensors, which keep their precision in a file that needs no pickle."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    """The way back: tensors as arrays."""
    if isinstance(value, torch.Tensor):
        return value.numpy().copy()
    if isinstance(value, tuple | list):
        return type(value)(map(_arrays, value))
    return {key: _arrays(item) for key, item in value.items()} if isinstance(value, dict) else value


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
