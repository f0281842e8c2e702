import numpy as np
import pytest

from hesscale_rl.rl.gae import gae


def call(rewards, values, next_values, terminated, done, gamma=0.5, lam=0.5):
    floats = (np.array(x, dtype=np.float32) for x in (rewards, values, next_values))
    return gae(*floats, np.array(terminated), np.array(done), gamma, lam)


def test_by_hand():
    # deltas: 1 + .5*2 - 1 = 1; 2 + .5*3 - 2 = 1.5; 3 + .5*4 - 3 = 2; factors gamma*lam = 1/4
    advantages, returns = call([1, 2, 3], [1, 2, 3], [2, 3, 4], [False] * 3, [False] * 3)
    assert advantages.tolist() == [1.5, 2.0, 2.0]  # 1 + 2/4, 1.5 + 2/4, 2
    assert returns.tolist() == [2.5, 4.0, 5.0]
    assert advantages.dtype == returns.dtype == np.float32


@pytest.mark.parametrize(("terminated", "delta"), [(True, 1.0), (False, 6.0)])
def test_an_episode_end_cuts_the_sum_and_only_a_truncation_is_bootstrapped(terminated, delta):
    # delta of the step that ends: 2 - 1 if terminated, 2 + .5*10 - 1 if truncated
    advantages, _ = call([0, 2, 9], [0, 1, 0], [1, 10, 0], [False, terminated, False], [False, True, False])
    assert advantages.tolist() == [0.5 + delta / 4, delta, 9.0]


def test_against_the_definition():
    rng = np.random.default_rng(0)
    T, gamma, lam = 300, 0.99, 0.95
    rewards, values, next_values = rng.normal(size=(3, T)).astype(np.float32)
    done = rng.random(T) < 0.1
    terminated = done & (rng.random(T) < 0.5)
    assert terminated.any() and (done & ~terminated).any()
    expected = np.zeros(T)
    for t in range(T):  # A_t = sum_k (gamma lambda)^k delta_{t+k} up to the end of the episode
        for k in range(T - t):
            future = 0.0 if terminated[t + k] else gamma * float(next_values[t + k])
            delta = float(rewards[t + k]) + future - float(values[t + k])
            expected[t] += (gamma * lam) ** k * delta
            if done[t + k]:
                break
    advantages, returns = gae(rewards, values, next_values, terminated, done, gamma, lam)
    np.testing.assert_array_equal(advantages, expected.astype(np.float32))
    np.testing.assert_allclose(returns, expected + values, rtol=1e-6, atol=1e-6)
