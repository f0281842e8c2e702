"""Running statistics in compiled form, one observation at a time; float64, in the order of the plain formulas."""

import math

import numpy as np

from ...jit import EXACT

LARGEST = float(np.finfo(np.float32).max)  # what float32, and so every network, can hold


@EXACT
def take(x, row):
    """Copy x [n] into row [n], float64; return whether float32 holds all of it: no NaN, nothing infinite."""
    held = True
    for i in range(len(row)):
        row[i] = x[i]
        held &= abs(row[i]) <= LARGEST
    return held


@EXACT
def welford_update(x, mean, var, count):
    """Take x [n] into mean and var [n] and count [1] by Welford's recurrence; return whether all of x is finite.

    A single observation has no spread: var keeps its initial value until the second.
    """
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
def normalize(x, mean, var, eps, clip, out):
    """Fill out [n], float32, with (x - mean)/sqrt(var + eps), held within clip; a NaN stays one."""
    for i in range(len(x)):
        z = (x[i] - mean[i]) / math.sqrt(var[i] + eps)
        z = clip if z > clip else z
        out[i] = np.float32(-clip if z < -clip else z)


@EXACT
def normalize_and_update(x, mean, var, count, eps, clip, out):
    """Count x in and fill out with it normalised, or as it is if count is empty; return whether x is finite."""
    if len(count) > 0:
        finite = welford_update(x, mean, var, count)
        normalize(x, mean, var, eps, clip, out)
        return finite
    finite = True
    for i in range(len(x)):
        finite &= math.isfinite(x[i])
        out[i] = x[i]
    return finite


@EXACT
def scale(reward, over, gamma, ret, mean, var, count, eps, clip):
    """Return the reward over the standard deviation of the discounted return ret [1], held within clip."""
    ret[0] = ret[0] * gamma + reward
    welford_update(ret, mean, var, count)
    if over:
        ret[0] = 0.0
    z = reward / math.sqrt(var[0] + eps)
    z = clip if z > clip else z
    return -clip if z < -clip else z


@EXACT
def gae(rewards, values, next_values, terminated, done, gamma, lam, advantages, returns):
    """Fill advantages and returns, all [T, E], as hesscale_rl/rl/gae.py says."""
    for i in range(rewards.shape[1]):
        total = 0.0
        for t in range(len(rewards) - 1, -1, -1):
            error = rewards[t, i] - np.float64(values[t, i])
            if not terminated[t, i]:
                error += gamma * next_values[t, i]
            total = error if done[t, i] else error + gamma * lam * total
            advantages[t, i], returns[t, i] = total, total + values[t, i]
