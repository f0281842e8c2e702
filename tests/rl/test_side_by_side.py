"""Several environments, each at its own pace: the same numbers in any number of threads, and what they count in."""

import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from comparing import assert_equal
from hypothesis import given
from hypothesis import strategies as st

from hesscale_rl import envs
from hesscale_rl.agents import ppo
from hesscale_rl.backend import use
from hesscale_rl.envs.vector import Envs
from hesscale_rl.errors import EnvironmentFault
from hesscale_rl.rl import normalize
from hesscale_rl.rl.normalize import RewardNorm, RunningNorm
from hesscale_rl.rl.records import statistics_of
from hesscale_rl.rl.rollout import Rollout

E, T = 9, 25


def rollouts(env, threads, calls=(T, 3, T)):
    """What several calls of `collect` return, the ends of episodes, and all that is saved."""
    torch.manual_seed(0)
    args, ends = ppo.Args(num_envs=env.num_envs), []
    policy = ppo.make_policy(env.observation_space, env.action_space, args)
    rollout = Rollout(env, policy, np.random.SeedSequence(3), threads)
    rows = [rollout.collect(steps, lambda *end: ends.append(end)) for steps in calls]
    saved = rollout.state_dict() | {"envs": [s["random"] for s in rollout.state_dict()["envs"]]}
    return rows, ends, saved, dict(policy.named_buffers())


def assert_same(results):
    rows, *rest = results[0]
    for other_rows, *others in results[1:]:
        assert_equal(rest, others)
        for found, expected in zip(other_rows, rows, strict=True):
            assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def make(env_id, limit, e=E):
    return Envs(*(gym.make(env_id, disable_env_checker=True, max_episode_steps=limit) for _ in range(e)))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("env_id", ["Hopper-v5", "CartPole-v1"])
def test_threads_change_no_number(env_id, backend):
    with use(backend):
        results = [rollouts(make(env_id, 20), threads) for threads in (1, 2, 8)]
    rows, ends, _, _ = results[0]
    assert len(ends) > E and [end[0] for end in ends] == sorted(end[0] for end in ends)
    assert rows[0]["obs"].shape[:2] == (T, E) and len({rows[0]["obs"][-1, i].tobytes() for i in range(E)}) == E
    assert_same(results)


def test_compiled_steps_and_gymnasiums_own_give_the_same_in_threads():
    own = make("Walker2d-v5", 20, 3)
    for part in own.copies:
        part.native = None
    own.parts = lambda: [part for part in parts if not setattr(part.copies[0], "native", None)]
    parts = [Envs(copy) for copy in own.copies]
    assert_same([rollouts(make("Walker2d-v5", 20, 3), 2), rollouts(own, 2)])


@given(
    st.lists(st.integers(0, 2**16), min_size=1, max_size=5),
    st.integers(0, 4),
    st.sampled_from([0.0, 1.0, 1e6]),
    st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_joined_statistics_are_those_of_all_that_was_counted_in(seeds, before, centre, spread):
    norm, whole = RunningNorm((2,)), []
    for x in centre + spread * np.random.default_rng(0).normal(size=(before, 2)):
        norm.update(x)
        whole.append(x)
    e = len(seeds) + 1  # one alone counts into the policy's own
    norms = normalize.normalizers(norm, None, e)
    for i, seed in enumerate([7, *seeds]):
        random, own = np.random.default_rng(seed), statistics_of(norms.obs, i)
        for x in centre + spread * random.normal(3, 2, size=(1 + seed % 7, 2)):
            normalize.welford_update(x, own)
            whole.append(x)
    normalize.join(norms, norm, None)
    assert norm.count == len(whole)
    np.testing.assert_allclose(norm.mean, np.mean(whole, 0), rtol=1e-12, atol=1e-12)
    # Around a million, float64 knows where a number is to 1e-10.
    np.testing.assert_allclose(norm.var, np.var(whole, 0), rtol=1e-5 if centre > 1 else 1e-10, atol=1e-15)
    assert (norm.var >= 0).all()


def test_a_single_environment_counts_into_the_policys_own():
    norm, rewards = RunningNorm((3,)), RewardNorm(0.99)
    norms = normalize.normalizers(norm, rewards)
    normalize.welford_update(np.ones(3), statistics_of(norms.obs, 0))
    assert norm.count == 1 and norms.rewards.ret.base is not None
    normalize.join(norms, norm, rewards)
    assert norm.count == 1


class Failing(gym.Env):
    """Raises in step `fails`; the others take their time, so that threads would meet it in any order."""

    observation_space, action_space = gym.spaces.Box(0, 9, (1,)), gym.spaces.Box(-1, 1, (1,))

    def __init__(self, number, fails):
        self.number, self.fails, self.steps = number, fails, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1), {}

    def step(self, action):
        self.t, self.steps = self.t + 1, self.steps + 1
        time.sleep(0.001 * (5 - self.number))
        if self.steps == self.fails:
            raise RuntimeError(f"number {self.number}")
        return np.full(1, self.t), 1.0, False, self.t == 3, {}


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_that_fails_by_number_is_told_and_nothing_of_the_rollout_counts(threads):
    env = Envs(*(Failing(i, {1: 5, 3: 2}.get(i, 99)) for i in range(4)))
    policy, ends = ppo.make_policy(env.observation_space, env.action_space, ppo.Args(num_envs=4)), []
    rollout = Rollout(env, policy, np.random.SeedSequence(0), threads)
    counted = policy.obs_norm.count.item()
    with pytest.raises(EnvironmentFault, match="number 1"):
        rollout.collect(8, lambda *end: ends.append(end))
    assert policy.obs_norm.count.item() == counted and ends == []


def test_a_pool_steps_together_and_normalises_by_the_same_rule():
    class Pool:
        """Two copies in lock step, as a pool has them."""

        num_envs = 2

        def __init__(self):
            self.inner = make("CartPole-v1", 20, 2)
            self.reset, self.step, self.save = self.inner.reset, self.inner.step, self.inner.save
            self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space

    with use("torch"):
        assert_same([rollouts(make("CartPole-v1", 20, 2), 1), rollouts(Pool(), 1)])


def test_several_environments_of_one_name_are_one_vector():
    assert len(envs.make_vector("CartPole-v1", 3).parts()) == 3
