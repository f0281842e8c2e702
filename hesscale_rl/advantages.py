"""Generalised advantage estimation (Schulman et al., 2016)."""

import numpy as np


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
    if np.ndim(rewards) == 2:
        both = []
        for i in range(rewards.shape[1]):
            own = (rewards[:, i], values[:, i], next_values[:, i], terminated[:, i], done[:, i])
            both.append(gae(*own, gamma, lam))
        return np.stack([a for a, _ in both], 1), np.stack([r for _, r in both], 1)
    # Python floats (float64) are several times faster than numpy scalars in a loop that cannot be vectorised.
    live = 1.0 - np.asarray(terminated, dtype=np.float64)
    values64 = np.asarray(values, dtype=np.float64)
    deltas = (rewards + gamma * live * np.asarray(next_values, dtype=np.float64) - values64).tolist()
    decays = (gamma * lam * (1.0 - np.asarray(done, dtype=np.float64))).tolist()
    advantage = 0.0
    for t in range(len(deltas) - 1, -1, -1):
        advantage = deltas[t] + decays[t] * advantage
        deltas[t] = advantage
    advantages = np.array(deltas)
    return advantages.astype(np.float32), (advantages + values64).astype(np.float32)
