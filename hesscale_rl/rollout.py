"""Steps of several environments with one policy, and the accounting of their episodes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .errors import Diverged
from .policy import Policy

Arrays = dict[str, np.ndarray]


class Rollout:
    """Steps E environments (`envs`: reset, step, save and load as envs/vector.py has them) with a policy.

    `step` counts transitions over all environments. Each environment, and the noise of the actions, has a random
    stream of its own, spawned from `seed`: neighbouring seeds share none.
    """

    def __init__(self, envs: Any, policy: Policy, seed: np.random.SeedSequence):
        self.envs, self.policy = envs, policy
        noise_seed, *env_seeds = seed.spawn(1 + envs.num_envs)
        self.random = np.random.default_rng(noise_seed)
        first = envs.reset([int(s.generate_state(1)[0]) for s in env_seeds])
        self.obs = np.stack([*map(self._normalizer(), first)])
        self.step = 0
        self.returns, self.lengths = [0.0] * envs.num_envs, [0] * envs.num_envs

    def _normalizer(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function that counts in an observation [O] and returns it as the networks see it, float32."""
        if self.policy.obs_norm is None:
            return _finite
        step = self.policy.obs_norm.stepper()

        def normalize(obs: np.ndarray) -> np.ndarray:
            seen, finite = step(obs)
            return seen if finite else _finite(obs)

        return normalize

    def collect(self, num_steps: int, ended: Callable[[int, float, int], None], stop_at_end: bool = False) -> Arrays:
        """Take num_steps steps in every environment; return them as arrays [T, E, ...].

        obs, next_obs (what really followed: at an episode's end its final observation), actions, rewards (scaled),
        terminated, done (terminated or truncated), valid (False: not a transition, leave it out). Calls
        ended(step, return, length) for each episode that ends. `stop_at_end`: return earlier, with the step that
        ended an episode.
        """
        e, shape = self.envs.num_envs, self.obs.shape
        noise = self.policy.noise(self.random, num_steps, e)
        obs = np.empty((num_steps, *shape), dtype=np.float32)
        next_obs, rewards = np.empty_like(obs), np.zeros((num_steps, e), dtype=np.float32)
        actions = np.empty(noise.shape[:2], np.int64) if self.policy.discrete else np.empty_like(noise)
        terminated, done, valid = (np.zeros((num_steps, e), dtype=bool) for _ in range(3))
        taken, actor, normalize = num_steps, self.policy.actor_function(), self._normalizer()
        norm = self.policy.reward_norm
        scale = norm.stepper() if norm is not None else lambda reward, over, env: reward
        for t in range(num_steps):
            obs[t] = self.obs
            actions[t] = self.policy.act(self.obs, noise[t], actor)
            if not np.isfinite(actions[t]).all():
                raise Diverged("an action is not finite")
            step = self.envs.step(self.policy.to_env(actions[t]))
            terminated[t], done[t], valid[t] = step.terminated, step.terminated | step.truncated, step.valid
            for i in range(e):
                over, reward = bool(done[t, i]), float(step.rewards[i])
                # MuJoCo answers a NaN action with a reset of its own and a NaN reward.
                if not math.isfinite(reward):
                    raise Diverged("a reward is not finite")
                self.obs[i] = next_obs[t, i] = normalize(step.final[i])
                if over and step.obs is not step.final:
                    self.obs[i] = normalize(step.obs[i])
                if step.valid[i]:
                    rewards[t, i] = scale(reward, over, i)
                    self._count(i, reward, over, ended)
            if stop_at_end and done[t].any():
                taken = t + 1
                break
        # An environment that only resets itself ends what came before: nothing may be summed across it.
        done |= ~valid
        every = dict(obs=obs, next_obs=next_obs, actions=actions, rewards=rewards, terminated=terminated, done=done)
        return {name: values[:taken] for name, values in (every | dict(valid=valid)).items()}

    def _count(self, i: int, reward: float, over: bool, ended: Callable[[int, float, int], None]) -> None:
        """Enter a step of environment i into its account."""
        self.step += 1
        self.returns[i] += reward
        self.lengths[i] += 1
        if over:
            ended(self.step, self.returns[i], self.lengths[i])
            self.returns[i], self.lengths[i] = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides the next steps; "envs" is None where the environments cannot be saved."""
        return {
            "step": self.step,
            "obs": torch.from_numpy(self.obs.copy()),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "random": self.random.bit_generator.state,
            "envs": self.envs.save(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from there; return False if the environments had to begin new episodes instead."""
        self.step = state["step"]
        self.random.bit_generator.state = state["random"]
        if state["envs"] is None:
            first = self.envs.reset([int(n) for n in self.random.integers(2**31, size=self.envs.num_envs)])
            self.obs = np.stack([*map(self._normalizer(), first)])
            if self.policy.reward_norm is not None:
                self.policy.reward_norm.ret.zero_()  # of the episodes that were left
            return False
        self.obs = state["obs"].numpy().copy()
        self.returns, self.lengths = list(state["returns"]), list(state["lengths"])
        self.envs.load(state["envs"])
        return True


def _finite(obs: np.ndarray) -> np.ndarray:
    """Return an observation as float32; Diverged if it is not finite."""
    if not np.isfinite(obs).all():
        raise Diverged("an observation is not finite")
    return obs.astype(np.float32)
