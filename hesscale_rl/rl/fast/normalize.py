"""Running statistics in compiled form, one observation at a time: the twins of rl/normalize.py, to the last bit."""

import math

import numpy as np

from ...jit import EXACT
from ..records import LARGEST, RewardScale, Statistics


@EXACT
def copy_finite(x: np.ndarray, row: np.ndarray) -> bool:
    """Copy x [n] into row [n], float64; return whether float32 holds all of it."""
    held = True
    for i in range(len(row)):
        row[i] = x[i]
        held &= abs(row[i]) <= LARGEST
    return held


@EXACT
def welford_update(x: np.ndarray, stats: Statistics) -> bool:
    """Count x [n] in; return whether all of it is finite."""
    mean, var, count = stats.mean, stats.var, stats.counted
    finite = True
    count[0] += 1
    n = count[0]
    for i in range(len(x)):
        finite &= math.isfinite(x[i])
        delta = x[i] - mean[i]
        mean[i] += delta / n
        square = delta * (x[i] - mean[i])
        if n == 2:
            var[i] = square / n
        elif n > 2:
            var[i] += (square - var[i]) / n
    return finite


@EXACT
def normalize(x: np.ndarray, stats: Statistics, out: np.ndarray) -> None:
    """Fill out [n], float32, with x [n] normalised."""
    mean, var, eps, clip = stats.mean, stats.var, stats.eps, stats.clip
    for i in range(len(x)):
        z = (x[i] - mean[i]) / math.sqrt(var[i] + eps)
        z = clip if z > clip else z  # comparisons, not min and max: a NaN stays one
        out[i] = np.float32(-clip if z < -clip else z)


@EXACT
def normalize_and_update(x: np.ndarray, stats: Statistics, out: np.ndarray) -> bool:
    """Count x [n] in and fill out with it normalised, or as it is; return whether x is finite."""
    if stats.active:
        finite = welford_update(x, stats)
        normalize(x, stats, out)
        return finite
    finite = True
    for i in range(len(x)):
        finite &= math.isfinite(x[i])
        out[i] = x[i]
    return finite


@EXACT
def scale_and_update(reward: float, over: bool, scale: RewardScale, i: int) -> float:
    """Count a reward of environment i in; return it scaled, or as it is."""
    ret, stats = scale.ret[i : i + 1], scale.stats
    if not stats.active:
        return reward
    ret[0] = ret[0] * scale.gamma + reward
    welford_update(ret, stats)
    if over:
        ret[0] = 0.0
    z = reward / math.sqrt(stats.var[0] + stats.eps)
    z = stats.clip if z > stats.clip else z
    return -stats.clip if z < -stats.clip else z
