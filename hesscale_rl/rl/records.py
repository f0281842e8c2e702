"""The records of a rollout, which its functions and their compiled twins share and change in place."""

from typing import NamedTuple

import numpy as np

LARGEST = float(np.finfo(np.float32).max)  # what float32, and so every network, can hold
REWARD, OBSERVATION = -1, -2  # what is not finite, by what `record` returns


class Statistics(NamedTuple):
    """Running statistics of vectors: mean and var [n], counted [1], float64; `active` False: nothing is normalised.

    `eps` is added to the variance, and what was normalised is held within `clip`.
    """

    active: bool
    mean: np.ndarray
    var: np.ndarray
    counted: np.ndarray
    eps: float
    clip: float


class RewardScale(NamedTuple):
    """The discounted return so far in each environment, ret [E], and the statistics of it [1] that all share."""

    ret: np.ndarray
    gamma: float
    stats: Statistics


class Normalizers(NamedTuple):
    """What each of E environments counts in while a rollout lasts: the same records, statistics [E, n] and [E, 1]."""

    obs: Statistics
    rewards: RewardScale


def normalizers_of(norms: Normalizers, own: slice) -> Normalizers:
    """Return those of some environments alone."""

    def part(stats: Statistics) -> Statistics:
        return stats._replace(mean=stats.mean[own], var=stats.var[own], counted=stats.counted[own])

    rewards = norms.rewards
    return Normalizers(part(norms.obs), rewards._replace(ret=rewards.ret[own], stats=part(rewards.stats)))


class Account(NamedTuple):
    """The undiscounted return and the length of the episode that each environment is in, [E]."""

    returns: np.ndarray
    lengths: np.ndarray


def statistics_of(stats: Statistics, i: int) -> Statistics:
    """Return environment i's, of those [E, n] of all."""
    return Statistics(stats.active, stats.mean[i], stats.var[i], stats.counted[i], stats.eps, stats.clip)


class Step(NamedTuple):
    """One step of E environments; the arrays may change with the next."""

    obs: np.ndarray  # [E, O] float64, what the next action is for
    final: np.ndarray  # [E, O] float64, what really followed the action; the same array where nothing was reset
    rewards: np.ndarray  # [E]
    terminated: np.ndarray  # [E] bool
    truncated: np.ndarray  # [E] bool
    valid: np.ndarray  # [E] bool; False: nothing was learned, the environment only reset itself


class Outcomes(NamedTuple):
    """What followed from the actions of a rollout, [T, E, ...].

    `next_obs` [T, E, O]: what really followed, normalised: at an episode's end its final observation; `rewards`,
    scaled; `done`: terminated or truncated; `valid` False: not a transition.
    """

    next_obs: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    done: np.ndarray
    valid: np.ndarray


class Rows(NamedTuple):
    """The rows of a rollout, [T, E, ...]: the normalised observations, the noise, the actions, and what followed.

    `to_env`: the actions within their bounds, as the environments take them.
    """

    obs: np.ndarray
    noise: np.ndarray
    actions: np.ndarray
    to_env: np.ndarray
    outcomes: Outcomes
