"""The compiled steps of a rollout against their literal twin, and products of every shape against numpy."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hesscale_rl import envs
from hesscale_rl.agents import a2c, ppo
from hesscale_rl.compiled.matmul import linear, pack, product
from hesscale_rl.rl.policy import sampler
from hesscale_rl.rl.rollout import Rollout

CASES = [("Hopper-v5", std, e) for std in ppo.STDS for e in (1, 3)] + [
    ("CartPole-v1", "parameter", e) for e in (1, 3)
]


def literal(env, policy, seed, num_steps):
    """`Rollout.collect` as one would write it down: one environment after the other, one number at a time."""
    e = env.num_envs
    noise_seed, *env_seeds = seed.spawn(1 + e)
    first = env.reset([int(s.generate_state(1)[0]) for s in env_seeds])
    obs = np.stack([policy.normalize_and_update(row) for row in first])
    noise = policy.noise(np.random.default_rng(noise_seed), num_steps, e)
    rows, episodes, returns, lengths, count = [], [], [0.0] * e, [0] * e, 0
    for t in range(num_steps):
        actions = policy.act(obs, noise[t])
        step = env.step(policy.to_env(actions))
        row = dict(obs=obs.copy(), actions=actions, terminated=step.terminated.copy())
        row |= dict(
            done=step.terminated | step.truncated, next_obs=np.empty_like(obs), rewards=np.empty(e, np.float32)
        )
        for i in range(e):
            obs[i] = row["next_obs"][i] = policy.normalize_and_update(step.final[i])
            if row["done"][i]:
                obs[i] = policy.normalize_and_update(step.obs[i])
            reward, over = float(step.rewards[i]), bool(row["done"][i])
            row["rewards"][i] = policy.reward_norm.scale(reward, over, i) if policy.reward_norm else reward
            returns[i], lengths[i], count = returns[i] + reward, lengths[i] + 1, count + 1
            if over:
                episodes.append((count, returns[i], lengths[i]))
                returns[i], lengths[i] = 0.0, 0
        rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, episodes


@pytest.mark.parametrize("agent", [ppo, a2c], ids=["normalised", "raw"])
@pytest.mark.parametrize("env_id, std, e", CASES)
def test_a_rollout_is_what_its_literal_twin_says(agent, env_id, std, e):
    env, twin = envs.make_vector(env_id, e), envs.make_vector(env_id, e)
    torch.manual_seed(0)
    raw = ["--no-normalize"] if agent is a2c else []
    args = agent.parse(agent.Args, agent.PRESETS, [*raw, "--std", std], "agent")
    policy = agent.make_policy(env.observation_space, env.action_space, args)
    policy.reward_norm = policy.reward_norm and type(policy.reward_norm)(0.99, e)
    other, episodes = copy.deepcopy(policy), []
    rollout = Rollout(env, policy, np.random.SeedSequence(3))
    result = rollout.collect(120, lambda *episode: episodes.append(episode))
    expected, expected_episodes = literal(twin, other, np.random.SeedSequence(3), 120)
    assert len(episodes) > 1 and rollout.step == 120 * e and result["valid"].all()
    assert [(step, length) for step, _, length in episodes] == [(s, n) for s, _, n in expected_episodes]
    # A last digit of an action changes what the simulation does with it.
    np.testing.assert_allclose([r for _, r, _ in episodes], [r for _, r, _ in expected_episodes], rtol=1e-3)
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values, rtol=1e-3, atol=1e-3, err_msg=name)
    for a, b in zip(policy.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("std", [*ppo.STDS, "discrete"])
def test_the_sampler_samples_as_act_does(std):
    args = ppo.Args(env_id="CartPole-v1" if std == "discrete" else "Hopper-v5")
    args.std = args.std if std == "discrete" else std
    env = envs.make(args.env_id)
    policy = ppo.make_policy(env.observation_space, env.action_space, args)
    random = np.random.default_rng(0)
    obs = random.standard_normal((5, policy.observations)).astype(np.float32)
    noise = 3 * policy.noise(random, 5)
    actions = policy.act(obs, noise)
    filled, to_env = np.empty_like(actions), np.empty_like(actions)
    assert sampler(policy)(obs, noise, filled, to_env)
    np.testing.assert_allclose(filled, actions, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_env, policy.to_env(actions), rtol=1e-5, atol=1e-6)
    assert std == "discrete" or (np.abs(to_env) == 1).any()
    obs[3] = np.nan
    assert not sampler(policy)(obs, noise, filled, to_env)


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
