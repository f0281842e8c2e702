"""Generalised advantage estimation in compiled form: the twin of rl/gae.py, to the last bit."""

import numpy as np

from ...jit import EXACT


@EXACT
def _gae(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    terminated: np.ndarray,
    done: np.ndarray,
    gamma: float,
    lam: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The same for arrays [T, E], float32 and bool."""
    advantages, returns = np.empty_like(rewards), np.empty_like(rewards)
    for i in range(rewards.shape[1]):
        total = 0.0
        for t in range(len(rewards) - 1, -1, -1):
            error = rewards[t, i] - np.float64(values[t, i])
            if not terminated[t, i]:
                error += gamma * next_values[t, i]
            total = error if done[t, i] else error + gamma * lam * total
            advantages[t, i], returns[t, i] = total, total + values[t, i]
    return advantages, returns


def gae(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    terminated: np.ndarray,
    done: np.ndarray,
    gamma: float,
    lam: float,
) -> tuple[np.ndarray, np.ndarray]:
    """As rl/gae.py says."""
    shape = np.shape(rewards)
    steps = [np.asarray(a, np.float32).reshape(len(a), -1) for a in (rewards, values, next_values)]
    ends = [np.asarray(a, bool).reshape(len(a), -1) for a in (terminated, done)]
    advantages, returns = _gae(*steps, *ends, gamma, lam)
    return advantages.reshape(shape), returns.reshape(shape)
