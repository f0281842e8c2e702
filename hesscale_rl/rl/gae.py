"""Generalised advantage estimation (Schulman et al., 2016)."""

import numpy as np

from ..compiled.cache import ready
from .fast import normalize as running


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
    """
    ready()
    shape = np.shape(rewards)
    steps = [np.asarray(a, np.float32).reshape(len(a), -1) for a in (rewards, values, next_values)]
    ends = [np.asarray(a, bool).reshape(len(a), -1) for a in (terminated, done)]
    advantages, returns = np.empty_like(steps[0]), np.empty_like(steps[0])
    running.gae(*steps, *ends, gamma, lam, advantages, returns)
    return advantages.reshape(shape), returns.reshape(shape)
