import copy
import math

import numpy as np
import pytest
import torch

from hesscale_rl.rl.normalize import RewardNorm, RunningNorm


def seen(data: np.ndarray) -> RunningNorm:
    norm = RunningNorm(data.shape[1:])
    for x in data:
        norm.update(x)
    return norm


@pytest.mark.parametrize("n", [2, 3, 500])
def test_statistics_are_those_of_the_whole_batch(n):
    data = np.random.default_rng(0).normal(1e4, [1.0, 0.01, 100.0], size=(n, 3))
    norm = seen(data)
    assert norm.count.item() == n
    np.testing.assert_allclose(norm.mean.numpy(), data.mean(0), rtol=1e-13)
    # The data are known to 1e-16 of their distance from 0, which bounds what any formula can give.
    np.testing.assert_allclose(norm.var.numpy(), data.var(0), rtol=1e-9)


def test_before_data_only_the_clip_acts_and_one_observation_keeps_the_scale():
    norm = RunningNorm((2,), clip=5.0, eps=0.0)
    np.testing.assert_array_equal(norm.normalize(np.array([3.0, -7.0])), np.float32([3.0, -5.0]))
    norm.update(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(norm.normalize(np.array([2.0, 2.0])), np.float32([1.0, 0.0]))


def test_normalize_and_forward_agree_to_the_bit_on_batches_too():
    rng = np.random.default_rng(1)
    norm = seen(rng.normal(3.0, 2.0, size=(50, 4)))
    x = rng.normal(3.0, 30.0, size=(20, 4)).astype(np.float32)
    expected = np.clip((x - norm.mean.numpy()) / np.sqrt(norm.var.numpy() + 1e-8), -10, 10).astype(np.float32)
    out = norm(torch.from_numpy(x))
    assert norm.normalize(x).dtype == np.float32 and out.dtype == torch.float32
    assert (np.abs(expected) == 10).any() and (np.abs(expected) < 10).any()
    np.testing.assert_array_equal(norm.normalize(x), expected)
    np.testing.assert_array_equal(out.numpy(), expected)
    np.testing.assert_array_equal(np.stack([norm.normalize(row) for row in x]), expected)


def test_a_dimension_that_never_changes_is_zero():
    norm = seen(np.full((100, 1), 0.1))
    assert norm.normalize(np.array([0.1])) == 0.0


@pytest.mark.parametrize("way", ["load", "deepcopy"])
def test_a_copy_goes_on_alike_and_apart(way):
    data = np.random.default_rng(2).normal(size=(30, 2))
    norm = seen(data[:20])
    if way == "load":
        other = RunningNorm((2,))
        other.update(data[0])  # what was there before must not matter
        other.load_state_dict(norm.state_dict())
    else:
        other = copy.deepcopy(norm)
    for x in data[20:]:
        other.update(x)
    assert norm.count.item() == 20
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in seen(data).state_dict().items())


def test_rewards_are_divided_by_the_deviation_of_the_return():
    norm, returns, running = RewardNorm(gamma=0.9), [], 0.0
    for reward in [1.0, 0.5, -2.0, 3.0, 0.0, 1.0]:
        running = 0.9 * running + reward
        returns.append(running)
        spread = np.std(returns) if len(returns) > 1 else 1.0
        assert norm.scale(reward, False) == pytest.approx(reward / spread, rel=1e-6)


def test_the_return_starts_anew_with_each_episode():
    norm = RewardNorm(gamma=1.0)
    seen = []
    for step in range(1, 9):
        norm.scale(1, episode_over=step % 4 == 0)
        seen.append(norm.ret.item())
    assert seen == [1, 2, 3, 0, 1, 2, 3, 0]
    # The last step of an episode counts with its whole return: the returns seen are 1 2 3 4 1 2 3 4.
    assert norm.stats.mean.item() == pytest.approx(2.5)
    assert norm.stats.var.item() == pytest.approx(np.var([1, 2, 3, 4]))


def test_scaled_rewards_are_clipped_and_a_nan_is_not_hidden():
    norm = RewardNorm(gamma=0.0)
    for _ in range(1000):
        norm.scale(0.0, False)
    assert norm.scale(1.0, False) == 10.0
    assert norm.scale(-1000.0, False) == -10.0
    assert math.isnan(norm.scale(math.nan, False))


def test_reward_state_travels_in_the_state_dict():
    norm, other = RewardNorm(0.99), RewardNorm(0.99)
    for reward in [1.0, -2.0, 4.0]:
        norm.scale(reward, False)
    other.load_state_dict(norm.state_dict())
    assert [norm.scale(r, False) for r in (2.0, 5.0)] == [other.scale(r, False) for r in (2.0, 5.0)]
