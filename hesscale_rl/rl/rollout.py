"""Steps of several environments with one policy, and the accounting of their episodes."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from ..backend import compiles, definition, has_twin
from ..compiled.clock import ACCOUNT, ACT, TASK, new_clock, timed
from ..errors import Diverged
from ..system.threads import Threads
from .normalize import join, normalize_and_update, normalizers, scale_and_update
from .policy import Place, Policy, Sampler, sampler
from .records import (
    OBSERVATION,
    REWARD,
    Account,
    Normalizers,
    Outcomes,
    Rows,
    Step,
    normalizers_of,
    statistics_of,
)

Arrays = dict[str, np.ndarray]
Ended = Callable[[int, float, int], None]  # of an episode: the step, its return and its length


@has_twin
def record(
    t: int, step: Step, reset: bool, seen: np.ndarray, account: Account, norms: Normalizers, rows: Outcomes
) -> int:
    """Enter step t of E environments into the rows of a rollout; return how many episodes ended.

    `reset`: whether some did, so that step.obs begins the next ones. seen [E, O]: the normalised observations that
    the next actions are for, replaced. Of each environment in turn, the observation and the reward are counted in and
    normalised. REWARD or OBSERVATION, a negative number, if one is not finite.
    """
    over, scales = 0, norms.rewards
    for i in range(len(seen)):
        obs, scale = statistics_of(norms.obs, i), scales._replace(stats=statistics_of(scales.stats, i))
        done, valid = bool(step.terminated[i] or step.truncated[i]), step.valid[i]
        rows.terminated[t, i], rows.done[t, i], rows.valid[t, i] = step.terminated[i], done, valid
        reward = float(step.rewards[i])
        if not math.isfinite(reward):  # MuJoCo answers a NaN action with a reset of its own and a NaN reward
            return REWARD
        if not normalize_and_update(step.final[i], obs, rows.next_obs[t, i]):
            return OBSERVATION
        seen[i] = rows.next_obs[t, i]
        if reset and done and not normalize_and_update(step.obs[i], obs, seen[i]):
            return OBSERVATION
        if not valid:  # it only reset itself: nothing may be summed across it
            rows.done[t, i] = True
            continue
        rows.rewards[t, i] = scale_and_update(reward, done, scale, i)
        account.returns[i] += reward
        account.lengths[i] += 1
        over += done
    return over


@has_twin
def recorder(account: Account, norms: Normalizers, rows: Outcomes) -> Callable[[int, Step, bool, np.ndarray], int]:
    """Return `record` for these records: a function of t, step, reset and seen, for loops that call it often."""
    enter = definition(record)
    return lambda t, step, reset, seen: enter(t, step, reset, seen, account, norms, rows)


class Part:
    """Environments of a rollout that step together, `envs`, and where each of them is.

    `first`: the number of the first among all; obs, account: the rollout's, of these alone.
    """

    def __init__(self, envs: Any, policy: Policy, first: int, obs: np.ndarray, account: Account):
        own = slice(first, first + envs.num_envs)
        self.envs, self.policy, self.own, self.obs = envs, policy, own, obs[own]
        self.account = Account(account.returns[own], account.lengths[own])
        self.taken = 0  # transitions of the rollout that is being collected
        self.clock: np.ndarray | None = None  # where the time is counted, if it is

    def sample_with(self, sample: Sampler) -> None:
        """Act so from now on."""
        self._sample, self._step, self._recorder = sample, self.envs.step, recorder
        self._driver = self.envs.driver(self.policy) if hasattr(self.envs, "driver") and compiles() else None
        if self.clock is None:
            return
        clock = self.clock
        self._sample, self._step = timed(clock, ACT, sample), timed(clock, TASK, self.envs.step)
        self._recorder = lambda *records: timed(clock, ACCOUNT, recorder(*records))
        if self._driver is not None:
            self._driver.clock = clock

    def collect(self, noise: np.ndarray, norms: Normalizers, ended: Ended, stop_at_end: bool) -> Arrays:
        """Take a step for each row of noise [T, E, ...], as `Rollout.collect` does.

        Calls ended(n, return, length) for an episode that ends with the n-th transition here, from 1 on.
        """
        num_steps, e, shape = len(noise), self.envs.num_envs, self.obs.shape
        obs = np.empty((num_steps, *shape), dtype=np.float32)
        actions = np.empty(noise.shape[:2], np.int64) if self.policy.discrete else np.empty_like(noise)
        terminated, done, valid = (np.zeros((num_steps, e), dtype=bool) for _ in range(3))
        followed = Outcomes(np.empty_like(obs), np.zeros((num_steps, e), dtype=np.float32), terminated, done, valid)
        # Environments may keep what they are given: every step has its own.
        rows, t = Rows(obs, noise, actions, np.empty_like(actions), followed), 0
        enter: Any = None
        while t < num_steps:
            if self._driver is not None and self._driver.ready:
                first = t
                t, driven = self._driver.drive(t, rows, self.obs, self.account, norms)
                self.taken += t - first
                if driven is None:
                    break
                step = driven
            else:
                step = self._act(t, rows)
            # The loop below reads as many numbers as it was told of.
            ends = step.terminated.shape == step.truncated.shape == step.valid.shape == step.rewards.shape == (e,)
            if not (ends and step.obs.shape == step.final.shape == shape):
                raise ValueError(f"the environments' step returned {[a.shape for a in step]}, not {shape}")
            enter = enter or self._recorder(self.account, norms, followed)
            over = enter(t, step, step.obs is not step.final, self.obs)
            if over < 0:
                raise Diverged("a reward is not finite" if over == REWARD else "an observation is not finite")
            if over > 0:
                self._end(done[t] & valid[t], self.taken + np.cumsum(valid[t]), ended)
            self.taken += int(np.count_nonzero(valid[t]))
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
        return self._step(self.policy.given(rows.to_env[t]))

    def _end(self, over: np.ndarray, numbers: np.ndarray, ended: Ended) -> None:
        """Close the accounts of the environments whose episode is over, with the transitions of these numbers."""
        for i in np.flatnonzero(over):
            ended(int(numbers[i]), float(self.account.returns[i]), int(self.account.lengths[i]))
            self.account.returns[i], self.account.lengths[i] = 0.0, 0


class Rollout:
    """Steps E environments (`envs`: reset, step, save and load as envs/vector.py has them) with a policy.

    Where `envs` has `parts`, each of them takes its steps without waiting for the others, in one of so many threads;
    and where a part has a `driver`, that one takes the steps between the ends of episodes. Neither changes a number.

    `step` counts transitions over all environments. Each environment, and the noise of the actions, has a random
    stream of its own, spawned from `seed`: neighbouring seeds share none. The policy's parameters may change
    from one call of `collect` to the next.
    """

    def __init__(self, envs: Any, policy: Policy, seed: np.random.SeedSequence, threads: int = 1):
        self.envs, self.policy = envs, policy
        noise_seed, *env_seeds = seed.spawn(1 + envs.num_envs)
        self.random = np.random.default_rng(noise_seed)
        self.step = 0
        self.account = Account(np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64))
        self.obs = np.empty((envs.num_envs, policy.observations), np.float32)
        self._begin([int(s.generate_state(1)[0]) for s in env_seeds])
        self._place: Place | None = None  # for which the parts act
        single = self.envs.num_envs == 1  # counts into the policy's own statistics, which stay where they are
        self._norms = normalizers(policy.obs_norm, policy.reward_norm) if single else None
        self.parts: list[Part] = []
        for part in envs.parts() if hasattr(envs, "parts") else [envs]:
            first = self.parts[-1].own.stop if self.parts else 0
            self.parts.append(Part(part, policy, first, self.obs, self.account))
        self.threads = Threads(min(threads, len(self.parts)))

    def watch(self) -> list[np.ndarray]:
        """Count from now on where the time goes; return the clocks (compiled/clock.py), one of each part."""
        for part in self.parts:
            part.clock = new_clock()
        self._place = None
        return [part.clock for part in self.parts if part.clock is not None]

    def _begin(self, seeds: list[int]) -> None:
        obs = self.envs.reset(seeds)
        if obs.shape != self.obs.shape:
            raise ValueError(f"the environments' reset returned the shape {obs.shape}, not {self.obs.shape}")
        for seen, first in zip(self.obs, obs, strict=True):
            seen[:] = self.policy.normalize_and_update(first)

    def collect(self, num_steps: int, ended: Ended, stop_at_end: bool = False) -> Arrays:
        """Take num_steps steps in every environment; return them as arrays [T, E, ...].

        obs, next_obs (what really followed: at an episode's end its final observation), actions, rewards (scaled),
        terminated, done (terminated or truncated), valid (False: not a transition, leave it out). Calls
        ended(step, return, length) for each episode that ends. `stop_at_end`: return earlier, with the step that
        ended an episode; for environments that step together alone.

        Several environments normalise by statistics of their own, which begin where the policy's stand and are
        joined to them after the rollout: what an environment does depends on no other.
        """
        policy, before = self.policy, self.step
        if self._place is None or not self._place.unmoved():
            self._place, sample = Place(policy.actor), sampler(policy)
            for part in self.parts:
                part.sample_with(sample)
        for part in self.parts:
            part.taken = 0
        noise = policy.noise(self.random, num_steps, self.envs.num_envs)
        norms = self._norms or normalizers(policy.obs_norm, policy.reward_norm, self.envs.num_envs)
        try:
            if len(self.parts) == 1:
                (part,) = self.parts
                steps = part.collect(noise, norms, lambda n, *episode: ended(before + n, *episode), stop_at_end)
            else:
                steps = self._collect_side_by_side(noise, norms, ended)
        finally:
            self.step = before + sum(part.taken for part in self.parts)
        join(norms, policy.obs_norm, policy.reward_norm)
        return steps

    def _collect_side_by_side(self, noise: np.ndarray, norms: Normalizers, ended: Ended) -> Arrays:
        """Let every part take its steps; tell of episodes' ends, when all have, as if they had taken them in turn."""
        jobs, ends, before = [], [], self.step
        for i, part in enumerate(self.parts):

            def tell(n: int, total: float, length: int, i: int = i) -> None:
                ends.append((before + (n - 1) * len(self.parts) + i + 1, total, length))

            own = normalizers_of(norms, part.own)
            jobs.append(partial(part.collect, np.ascontiguousarray(noise[:, part.own]), own, tell, False))
        collected = self.threads.run(jobs)
        for end in sorted(ends):
            ended(*end)
        return {name: np.concatenate([steps[name] for steps in collected], 1) for name in collected[0]}

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
