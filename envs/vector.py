"""One or several copies of an environment behind one interface, whichever way they reset themselves.

A step returns what really followed (`final`, for bootstrapping) apart from what comes next (`obs`, after a reset
where an episode ended), so that no agent needs to know the reset mode behind it.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from hesscale_rl.rollout import Step

from . import state


def _rows(obs: Any) -> np.ndarray:
    return np.ascontiguousarray(obs, dtype=np.float64)


class Envs:
    """E copies of one environment; this class, with E = 1, runs a bare one: the fastest way."""

    num_envs = 1

    def __init__(self, env: gym.Env):
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._rewards, self._always = np.zeros(1), np.ones(1, dtype=bool)
        self._terminated, self._truncated = np.zeros(1, dtype=bool), np.zeros(1, dtype=bool)

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Begin an episode in each, seeded with one seed each; return the observations [E, O]."""
        return _rows(self.env.reset(seed=seeds[0])[0])[None]

    def step(self, actions: np.ndarray) -> Step:
        """Take the actions [E, ...]; where an episode ends, begin the next."""
        obs, reward, terminated, truncated, _ = self.env.step(actions[0])
        obs = final = _rows(obs)[None]
        if terminated or truncated:
            final, obs = obs.copy(), _rows(self.env.reset()[0])[None]  # a reset may write into the same array
        self._rewards[0], self._terminated[0], self._truncated[0] = float(reward), terminated, truncated
        return Step(obs, final, self._rewards, self._terminated, self._truncated, self._always)

    def save(self) -> list[state.State] | None:
        """Return the state of every environment, or None if it cannot be known."""
        states = [state.save(env) for env in self._each()]
        return None if any(s is None for s in states) else [s for s in states if s is not None]

    def load(self, states: list[state.State]) -> None:
        """Go on from what `save` returned."""
        for env, own in zip(self._each(), states, strict=True):
            state.load(env, own)

    def close(self) -> None:
        """Give back windows and memory."""
        self.env.close()

    def _each(self) -> list[gym.Env]:
        return [self.env]


class Several(Envs):
    """E environments in this process, by Gymnasium's SyncVectorEnv with resets in the same step."""

    def __init__(self, make: Any, num_envs: int):
        self.vector = SyncVectorEnv([lambda: state.Copied(make())] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        self.num_envs = num_envs
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space
        self._always = np.ones(num_envs, dtype=bool)

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Begin an episode in each."""
        return self.vector.reset(seed=list(seeds))[0]

    def step(self, actions: np.ndarray) -> Step:
        """Take the actions."""
        obs, rewards, terminated, truncated, infos = self.vector.step(actions)
        obs = final = _rows(obs)
        if "final_obs" in infos:
            final = obs.copy()
            for i in np.flatnonzero(infos["_final_obs"]):
                final[i] = infos["final_obs"][i]
        return Step(obs, final, rewards, terminated, truncated, self._always)

    def close(self) -> None:
        """Close all."""
        self.vector.close()

    def _each(self) -> list[gym.Env]:
        return list(self.vector.envs)


class NextStep(Envs):
    """E environments of a gymnasium.vector.VectorEnv that resets in the step after the last: EnvPool's.

    The step in which an environment only resets itself is not `valid`, and its action is ignored.
    """

    def __init__(self, vector: Any, seeded: bool = False):
        self.vector, self.num_envs, self._seeded = vector, vector.num_envs, seeded
        self.observation_space, self.action_space = vector.single_observation_space, vector.single_action_space
        self._over = np.zeros(self.num_envs, dtype=bool)

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Begin an episode in each; `seeded` when it was made, a pool takes no seeds here."""
        self._over[:] = False
        how = {} if self._seeded else {"seed": list(seeds)}
        return np.asarray(self.vector.reset(**how)[0])

    def step(self, actions: np.ndarray) -> Step:
        """Take the actions."""
        obs, rewards, terminated, truncated, _ = self.vector.step(actions)
        valid, self._over = ~self._over, terminated | truncated
        obs = _rows(obs)
        return Step(obs, obs, np.asarray(rewards, dtype=np.float64), terminated, truncated, valid)

    def save(self) -> None:
        """Nothing: the environments are behind a wall."""
        return None

    def close(self) -> None:
        """Close the pool."""
        self.vector.close()
