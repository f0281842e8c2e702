"""Steps of several environments with one policy, and the accounting of their episodes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..backend import compiles, definition, has_twin
from ..errors import Diverged
from .normalize import normalize_and_update, normalizers, scale_and_update
from .policy import Policy, addresses, sampler
from .records import OBSERVATION, REWARD, Account, Normalizers, Outcomes, Rows, Step

Arrays = dict[str, np.ndarray]


@has_twin
def record(
    t: int, step: Step, reset: bool, seen: np.ndarray, account: Account, norms: Normalizers, rows: Outcomes
) -> int:
    """Enter step t of E environments into the rows of a rollout; return how many episodes ended.

    `reset`: whether some did, so that step.obs begins the next ones. seen [E, O]: the normalised observations that
    the next actions are for, replaced. Of each environment in turn, the observation and the reward are counted in and
    normalised. REWARD or OBSERVATION, a negative number, if one is not finite.
    """
    over = 0
    for i in range(len(seen)):
        done, valid = bool(step.terminated[i] or step.truncated[i]), step.valid[i]
        rows.terminated[t, i], rows.done[t, i], rows.valid[t, i] = step.terminated[i], done, valid
        reward = float(step.rewards[i])
        if not math.isfinite(reward):  # MuJoCo answers a NaN action with a reset of its own and a NaN reward
            return REWARD
        if not normalize_and_update(step.final[i], norms.obs, rows.next_obs[t, i]):
            return OBSERVATION
        seen[i] = rows.next_obs[t, i]
        if reset and done and not normalize_and_update(step.obs[i], norms.obs, seen[i]):
            return OBSERVATION
        if not valid:  # it only reset itself: nothing may be summed across it
            rows.done[t, i] = True
            continue
        rows.rewards[t, i] = scale_and_update(reward, done, norms.rewards, i)
        account.returns[i] += reward
        account.lengths[i] += 1
        over += done
    return over


@has_twin
def recorder(account: Account, norms: Normalizers, rows: Outcomes) -> Callable[[int, Step, bool, np.ndarray], int]:
    """Return `record` for these records: a function of t, step, reset and seen, for loops that call it often."""
    enter = definition(record)
    return lambda t, step, reset, seen: enter(t, step, reset, seen, account, norms, rows)


class Rollout:
    """Steps E environments (`envs`: reset, step, save and load as envs/vector.py has them) with a policy.

    Where `envs` has a `driver` for it, that one takes the steps between the ends of episodes, to the same numbers.

    `step` counts transitions over all environments. Each environment, and the noise of the actions, has a random
    stream of its own, spawned from `seed`: neighbouring seeds share none. The policy's parameters may change
    from one call of `collect` to the next.
    """

    def __init__(self, envs: Any, policy: Policy, seed: np.random.SeedSequence):
        self.envs, self.policy = envs, policy
        noise_seed, *env_seeds = seed.spawn(1 + envs.num_envs)
        self.random = np.random.default_rng(noise_seed)
        self.step = 0
        self.account = Account(np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64))
        self.obs = np.empty((envs.num_envs, policy.observations), np.float32)
        self._begin([int(s.generate_state(1)[0]) for s in env_seeds])
        self._sampled: Any = None  # for which backend and addresses `_sample` and `_driver` are good
        self._norms = normalizers(policy.obs_norm, policy.reward_norm)

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
        if self._sampled != (where := (compiles(), addresses(policy.actor))):
            self._sampled, self._sample = where, sampler(policy)
            self._driver = self.envs.driver(policy) if hasattr(self.envs, "driver") and compiles() else None
        noise = policy.noise(self.random, num_steps, e)
        obs = np.empty((num_steps, *self.obs.shape), dtype=np.float32)
        actions = np.empty(noise.shape[:2], np.int64) if policy.discrete else np.empty_like(noise)
        terminated, done, valid = (np.zeros((num_steps, e), dtype=bool) for _ in range(3))
        followed = Outcomes(np.empty_like(obs), np.zeros((num_steps, e), dtype=np.float32), terminated, done, valid)
        # Environments may keep what they are given: every step has its own.
        rows, t = Rows(obs, noise, actions, np.empty_like(actions), followed), 0
        enter = recorder(self.account, self._norms, followed)
        while t < num_steps:
            if self._driver is not None and self._driver.ready:
                first = t
                t, driven = self._driver.drive(t, rows, self.obs, self.account, self._norms)
                self.step += t - first
                if driven is None:
                    break
                step = driven
            else:
                step = self._act(t, rows)
            # The loop below reads as many numbers as it was told of.
            ends = step.terminated.shape == step.truncated.shape == step.valid.shape == step.rewards.shape == each
            if not (ends and step.obs.shape == step.final.shape == shape):
                raise ValueError(f"the environments' step returned {[a.shape for a in step]}, not {shape}")
            over = enter(t, step, step.obs is not step.final, self.obs)
            if over < 0:
                raise Diverged("a reward is not finite" if over == REWARD else "an observation is not finite")
            if over > 0:
                self._end(done[t] & valid[t], np.cumsum(valid[t]), ended)
            self.step += int(np.count_nonzero(valid[t]))
            t += 1
            if over > 0 and stop_at_end:
                break
        every = dict(obs=obs, actions=actions) | followed._asdict()
        return {name: values[:t] for name, values in every.items()}

    def _act(self, t: int, rows: Rows) -> Step:
        """Act in every environment for row t; return what followed."""
        rows.obs[t] = self.obs
        if not self._sample(self.obs, rows.noise[t], rows.actions[t], rows.to_env[t]):
            raise Diverged("an action is not finite")
        return self.envs.step(self.policy.given(rows.to_env[t]))

    def _end(self, over: np.ndarray, counted: np.ndarray, ended: Callable[[int, float, int], None]) -> None:
        """Close the accounts of the environments whose episode is over."""
        for i in np.flatnonzero(over):
            ended(self.step + int(counted[i]), float(self.account.returns[i]), int(self.account.lengths[i]))
            self.account.returns[i], self.account.lengths[i] = 0.0, 0

    def state_dict(self, new_episodes: bool = False) -> dict[str, Any]:
        """Return all that decides the next steps; "envs" is None where the environments cannot be saved.

        `new_episodes`: so that who loads it begins new ones, in environments that may have failed here.
        """
        return {
            "step": self.step,
            "obs": torch.from_numpy(self.obs.copy()),
            "returns": self.account.returns.tolist(),
            "lengths": self.account.lengths.tolist(),
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
        self.account.returns[:], self.account.lengths[:] = state["returns"], state["lengths"]
        return True
