"""Whole rollouts, compiled and by definition, and products of every shape against numpy."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesscale_rl import envs
from hesscale_rl.agents import ppo
from hesscale_rl.backend import use
from hesscale_rl.compiled.matmul import linear, pack, product
from hesscale_rl.rl.rollout import Rollout

CASES = [("Hopper-v5", std, e) for std in ppo.STDS for e in (1, 3)] + [
    ("CartPole-v1", "parameter", e) for e in (1, 3)
]


def policy_of(std, e=1, **settings):
    """A new policy of PPO for Hopper, or for CartPole with `std` "discrete"."""
    args = ppo.Args(env_id="CartPole-v1" if std == "discrete" else "Hopper-v5", num_envs=e, **settings)
    args.std = args.std if std == "discrete" else std
    env = envs.make(args.env_id)
    torch.manual_seed(0)
    return ppo.make_policy(env.observation_space, env.action_space, args)


@pytest.mark.parametrize("raw", [False, True], ids=["normalised", "raw"])
@pytest.mark.parametrize("env_id, std, e", CASES)
def test_a_rollout_is_what_its_definition_says(env_id, std, e, raw):
    own = policy_of(std if env_id == "Hopper-v5" else "discrete", e)
    if raw:
        own.obs_norm = own.reward_norm = None
    results = []
    for way in ("auto", "torch"):
        policy, episodes = copy.deepcopy(own), []
        with use(way):
            rollout = Rollout(envs.make_vector(env_id, e), policy, np.random.SeedSequence(3))
            rows = rollout.collect(120, lambda *episode, to=episodes: to.append(episode))
        assert len(episodes) > 1 and rollout.step == 120 * e and rows["valid"].all()
        results.append((rows, episodes, dict(policy.named_buffers())))
    (rows, episodes, buffers), (expected, expected_episodes, expected_buffers) = results
    assert [(step, length) for step, _, length in episodes] == [(s, n) for s, _, n in expected_episodes]
    # A last digit of an action changes what the simulation does with it.
    np.testing.assert_allclose([r for _, r, _ in episodes], [r for _, r, _ in expected_episodes], rtol=1e-3)
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, rtol=1e-3, atol=1e-3, err_msg=name)
    for name, values in expected_buffers.items():
        torch.testing.assert_close(buffers[name], values, rtol=1e-3, atol=1e-3)


@settings(deadline=None)  # the first call may have to load the machine code
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**16))
def test_products_of_every_shape(m, k, n, seed):
    random = np.random.default_rng(seed)
    a, b, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n), (n,)))
    out, scale = np.full((m, n), np.nan, np.float32), np.abs(a) @ np.abs(b) * 1e-6 + 1e-7
    product(a, pack(b), out)
    assert (np.abs(out - a.astype(float) @ b) <= scale).all()
    out[:] = np.nan
    product(np.ascontiguousarray(a.T).T, pack(b), out)
    assert (np.abs(out - a.astype(float) @ b) <= scale).all()
    linear(a, np.ascontiguousarray(b.T), bias, out)
    assert (np.abs(out - (a.astype(float) @ b + bias)) <= scale + 1e-6).all()
