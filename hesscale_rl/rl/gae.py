"""Generalised advantage estimation (Schulman et al., 2016)."""

import numpy as np

from ..backend import has_twin


@has_twin
def gae(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    terminated: np.ndarray,
    done: np.ndarray,
    gamma: float,
    lam: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns (advantage + value) of T consecutive steps, each float32 [T]; or [T, E], as the input.

    `next_values[t]` is the value of the observation that really followed step t: at the end of an episode its final
    observation, not the first of the next episode. `done` is terminated or truncated. Both cut the sum of later
    errors, but only a termination makes the future worth nothing: a truncated step is bootstrapped.

    >>> over = np.array([False, True])
    >>> advantages, returns = gae(np.ones(2), np.zeros(2), np.zeros(2), over, over, 0.5, 1.0)
    >>> returns.tolist()
    [1.5, 1.0]
    """
    rewards, values, next_values = (np.asarray(a, np.float64) for a in (rewards, values, next_values))
    error = rewards - values
    error = np.where(terminated, error, error + gamma * next_values)
    advantages, later = np.empty_like(error), np.zeros_like(error[0])
    for t in range(len(error) - 1, -1, -1):
        advantages[t] = later = np.where(done[t], error[t], error[t] + gamma * lam * later)
    return advantages.astype(np.float32), (advantages + values).astype(np.float32)
