"""Steps of several environments with one policy, and the accounting of their episodes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import Diverged
from .fast.acting import REWARD, record
from .policy import Policy, addresses

Arrays = dict[str, np.ndarray]


class Step(NamedTuple):
    """One step of E environments; the arrays may change with the next."""

    obs: np.ndarray  # [E, O] float64, what the next action is for
    final: np.ndarray  # [E, O] float64, what really followed the action; the same array where nothing was reset
    rewards: np.ndarray  # [E]
    terminated: np.ndarray  # [E] bool
    truncated: np.ndarray  # [E] bool
    valid: np.ndarray  # [E] bool; False: nothing was learned, the environment only reset itself


class Rollout:
    """Steps E environments (`envs`: reset, step, save and load as envs/vector.py has them) with a policy.

    `step` counts transitions over all environments. Each environment, and the noise of the actions, has a random
    stream of its own, spawned from `seed`: neighbouring seeds share none. The policy's parameters may change
    from one call of `collect` to the next.
    """

    def __init__(self, envs: Any, policy: Policy, seed: np.random.SeedSequence):
        self.envs, self.policy = envs, policy
        noise_seed, *env_seeds = seed.spawn(1 + envs.num_envs)
        self.random = np.random.default_rng(noise_seed)
        self.step = 0
        self.returns, self.lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
        self.obs = np.empty((envs.num_envs, policy.observations), np.float32)
        self._begin([int(s.generate_state(1)[0]) for s in env_seeds])
        self._addresses: list[Any] = []
        self._statistics = self._normalizers()

    def _begin(self, seeds: list[int]) -> None:
        obs = self.envs.reset(seeds)
        if obs.shape != self.obs.shape:
            raise ValueError(f"the environments' reset returned the shape {obs.shape}, not {self.obs.shape}")
        for seen, first in zip(self.obs, obs, strict=True):
            seen[:] = self.policy.normalize_and_update(first)

    def collect(self, num_steps: int, ended: Callable[[int, float, int], None], stop_at_end: bool = False) -> Arrays:
        """Take num_steps steps in every environment; return them as arrays [T, E, ...].

        obs, next_obs (what really followed: at an episode's end its final observation), actions, rewards (scaled),
        terminated, done (terminated or truncated), valid (False: not a transition, leave it out). Calls
        ended(step, return, length) for each episode that ends. `stop_at_end`: return earlier, with the step that
        ended an episode.
        """
        e, shape, each, policy = self.envs.num_envs, self.obs.shape, (self.envs.num_envs,), self.policy
        if self._addresses != addresses(policy.actor):
            self._addresses, self._sample = addresses(policy.actor), policy.sampler()
        noise = policy.noise(self.random, num_steps, e)
        obs = np.empty((num_steps, *self.obs.shape), dtype=np.float32)
        next_obs, rewards = np.empty_like(obs), np.zeros((num_steps, e), dtype=np.float32)
        actions = np.empty(noise.shape[:2], np.int64) if policy.discrete else np.empty_like(noise)
        terminated, done, valid = (np.zeros((num_steps, e), dtype=bool) for _ in range(3))
        # Environments may keep what they are given: every step has its own.
        to_env, taken = np.empty_like(actions), num_steps
        to = (self.returns, self.lengths, self.obs, next_obs, rewards, terminated, done, valid, *self._statistics)
        for t in range(num_steps):
            obs[t] = self.obs
            if not self._sample(self.obs, noise[t], actions[t], to_env[t]):
                raise Diverged("an action is not finite")
            step = self.envs.step(policy.given(to_env[t]))
            # The loop below reads as many numbers as it was told of.
            ends = step.terminated.shape == step.truncated.shape == step.valid.shape == step.rewards.shape == each
            if not (ends and step.obs.shape == step.final.shape == shape):
                raise ValueError(f"the environments' step returned {[a.shape for a in step]}, not {shape}")
            over = record(t, *step, step.obs is not step.final, *to)
            if over < 0:
                raise Diverged("a reward is not finite" if over == REWARD else "an observation is not finite")
            if over > 0:
                self._end(done[t] & valid[t], np.cumsum(valid[t]), ended)
            self.step += int(np.count_nonzero(valid[t]))
            if over > 0 and stop_at_end:
                taken = t + 1
                break
        every = dict(obs=obs, next_obs=next_obs, actions=actions, rewards=rewards, terminated=terminated, done=done)
        return {name: values[:taken] for name, values in (every | dict(valid=valid)).items()}

    def _normalizers(self) -> tuple[Any, ...]:
        """The running statistics as `record` takes them."""
        none, norm, scale = np.empty(0), self.policy.obs_norm, self.policy.reward_norm
        seeing = (none, none, none, 0.0, 0.0) if norm is None else norm.arrays()
        if scale is None:
            return (*seeing, none, 1.0, none, none, none, 0.0, 0.0)
        return (*seeing, scale.ret.numpy(), scale.gamma, *scale.stats.arrays()[:3], scale.eps, scale.clip)

    def _end(self, over: np.ndarray, counted: np.ndarray, ended: Callable[[int, float, int], None]) -> None:
        """Close the accounts of the environments whose episode is over."""
        for i in np.flatnonzero(over):
            ended(self.step + int(counted[i]), float(self.returns[i]), int(self.lengths[i]))
            self.returns[i], self.lengths[i] = 0.0, 0

    def state_dict(self, new_episodes: bool = False) -> dict[str, Any]:
        """Return all that decides the next steps; "envs" is None where the environments cannot be saved.

        `new_episodes`: so that who loads it begins new ones, in environments that may have failed here.
        """
        return {
            "step": self.step,
            "obs": torch.from_numpy(self.obs.copy()),
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "random": self.random.bit_generator.state,
            "envs": None if new_episodes else self.envs.save(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from there; return False if the environments had to begin new episodes instead."""
        self.step = state["step"]
        self.random.bit_generator.state = state["random"]
        if state["envs"] is None or not self.envs.load(state["envs"]):
            self._begin([int(n) for n in self.random.integers(2**31, size=self.envs.num_envs)])
            if self.policy.reward_norm is not None:
                self.policy.reward_norm.ret.zero_()  # of the episodes that were left
            return False
        self.obs[:] = state["obs"].numpy()
        self.returns[:], self.lengths[:] = state["returns"], state["lengths"]
        return True
