"""The losses in compiled form: value, gradient and diagonal at the outputs, as losses/ defines them.

Scalars are float64 inside, arrays and the value float32. g and d [N, C], the gradient and the diagonal, are filled.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from .. import losses
from ..jit import EXACT
from ..losses import Loss
from .records import DISTRIBUTIONS, LOG_STD, LOG_VAR, PolicyLoss, Samples

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@EXACT
def log_softmax(row: np.ndarray, logq: np.ndarray) -> None:
    """Fill logq with the logarithms of the row's softmax."""
    top, total = row[0], 0.0
    for v in row:
        top = max(top, v)
    for v in row:
        total += math.exp(np.float64(v) - top)
    log_total = top + math.log(total)
    for c in range(len(row)):
        logq[c] = row[c] - log_total


@EXACT
def _cross_entropy(z: np.ndarray, target: np.ndarray, factor: float, g: np.ndarray, d: np.ndarray) -> np.float32:
    value, logq = 0.0, np.empty(z.shape[1])
    for n in range(z.shape[0]):
        y = target[n]
        if not 0 <= y < z.shape[1]:
            raise IndexError("a class is out of range")
        log_softmax(z[n], logq)
        for c in range(z.shape[1]):
            q = math.exp(logq[c])
            g[n, c] = factor * q
            d[n, c] = factor * (q - q * q)
        g[n, y] -= factor
        value -= logq[y]
    return np.float32(factor * value)


@EXACT
def value(
    z: np.ndarray,
    returns: np.ndarray,
    old: np.ndarray,
    clip: float,
    coef: float,
    factor: float,
    g: np.ndarray,
    d: np.ndarray,
) -> np.float32:
    """ValueLoss; clip 0: none."""
    value, c = 0.0, coef * factor
    for n in range(z.shape[0]):
        v = np.float64(z[n, 0])
        error, on = v - returns[n], True
        square = error * error
        if clip > 0:
            w = old[n] + min(max(v - old[n], -clip), clip)
            other = (w - returns[n]) * (w - returns[n])
            if other > square and abs(v - old[n]) > clip:
                square, on = other, False
        value += square
        g[n, 0] = c * error if on else 0.0
        d[n, 0] = c if on else 0.0
    return np.float32(0.5 * c * value)


@EXACT
def objective(logp: float, old: float, a: float, clip: float) -> tuple[float, float, float]:
    """The policy loss of one sample and its first two derivatives in log pi; clip 0: the plain policy gradient."""
    if clip == 0:
        return -a * logp, -a, 0.0
    r = math.exp(logp - old)
    if (a >= 0 and r > 1 + clip) or (a < 0 and r < 1 - clip):
        return -a * min(max(r, 1 - clip), 1 + clip), 0.0, 0.0
    return -a * r, -a * r, -a * r


@EXACT
def log_deviation(p: float, kind: int) -> float:
    """The logarithm of the standard deviation that p says."""
    return p if kind == LOG_STD else 0.5 * (p if kind == LOG_VAR else math.log(p))


@EXACT
def gaussian(
    z: np.ndarray, kind: int, samples: Samples, loss: PolicyLoss, g: np.ndarray, d: np.ndarray
) -> np.float32:
    """GaussianPPO, or with clip 0 GaussianPolicyGradient; kind: LOG_STD, LOG_VAR or VAR."""
    actions, old, advantages = samples
    value, m, c = 0.0, actions.shape[1], loss.entropy_coef * loss.factor
    for n in range(z.shape[0]):
        logp = entropy = 0.0
        for i in range(m):
            p = np.float64(z[n, m + i])
            s = log_deviation(p, kind)
            x = (actions[n, i] - np.float64(z[n, i])) * math.exp(-s)
            logp -= 0.5 * x * x + s + HALF_LOG_2PI
            entropy += s + HALF_LOG_2PI + 0.5
        f, df, d2f = objective(logp, old[n], advantages[n] * loss.factor, loss.clip)
        value += f - c * entropy
        for i in range(m):
            p = np.float64(z[n, m + i])
            s = log_deviation(p, kind)
            inverse = math.exp(-s)
            x = (actions[n, i] - np.float64(z[n, i])) * inverse
            s1, s2 = x * inverse, -inverse * inverse
            g[n, i], d[n, i] = df * s1, d2f * s1 * s1 + df * s2
            if kind == LOG_STD:
                s1, s2, h1, h2 = x * x - 1, -2 * x * x, 1.0, 0.0
            elif kind == LOG_VAR:
                s1, s2, h1, h2 = 0.5 * (x * x - 1), -0.5 * x * x, 0.5, 0.0
            else:
                s1, s2, h1, h2 = 0.5 * (x * x - 1) / p, (0.5 - x * x) / (p * p), 0.5 / p, -0.5 / (p * p)
            g[n, m + i], d[n, m + i] = df * s1 - c * h1, d2f * s1 * s1 + df * s2 - c * h2
    return np.float32(value)


@EXACT
def categorical(z: np.ndarray, samples: Samples, loss: PolicyLoss, g: np.ndarray, d: np.ndarray) -> np.float32:
    """CategoricalPPO, or with clip 0 CategoricalPolicyGradient."""
    actions, old, advantages = samples
    value, c, logq = 0.0, loss.entropy_coef * loss.factor, np.empty(z.shape[1])
    for n in range(z.shape[0]):
        a, entropy = actions[n], 0.0
        if not 0 <= a < z.shape[1]:
            raise IndexError("a class is out of range")
        log_softmax(z[n], logq)
        for i in range(z.shape[1]):
            entropy -= math.exp(logq[i]) * logq[i]
        f, df, d2f = objective(logq[a], old[n], advantages[n] * loss.factor, loss.clip)
        value += f - c * entropy
        for i in range(z.shape[1]):
            q = math.exp(logq[i])
            s1, s2, u = (i == a) - q, q * q - q, logq[i] + entropy
            g[n, i] = df * s1 + c * q * u
            d[n, i] = d2f * s1 * s1 + df * s2 + c * q * ((1 - 2 * q) * u + 1 - q)
    return np.float32(value)


Seed = tuple[float, np.ndarray, np.ndarray]


def array(t: Tensor) -> np.ndarray:
    """Return t's numbers in rows; a copy only where they are not."""
    return (t if t.is_contiguous() else t.contiguous()).detach().numpy()


def _loop(loss: Any, n: int) -> tuple[Callable, tuple]:
    """The loop for this loss of n samples, and what it is given between the outputs and g."""
    factor = loss.factor(n)
    if type(loss) is losses.CrossEntropy:
        return _cross_entropy, (array(loss.target), factor)
    if type(loss) is losses.ValueLoss:
        returns = array(loss.returns)
        old = returns if loss.old_values is None else array(loss.old_values)
        return value, (returns, old, float(loss.clip or 0), float(loss.coef), factor)
    advantages = array(loss.advantages)
    clipped = isinstance(loss, losses.GaussianPPO | losses.CategoricalPPO)
    old = array(loss.old_logprob) if clipped else advantages
    samples = Samples(array(loss.actions), old, advantages)
    terms = PolicyLoss(float(loss.clip) if clipped else 0.0, float(loss.entropy_coef), factor)
    if isinstance(loss, losses.GaussianPPO | losses.GaussianPolicyGradient):
        return gaussian, (DISTRIBUTIONS[loss.distribution.parametrization], samples, terms)
    return categorical, (samples, terms)


def _arrays(given: tuple) -> list[np.ndarray]:
    """The arrays among what a loop is given, in records too."""
    parts = [part for a in given for part in (a if isinstance(a, Samples) else (a,))]
    return [a for a in parts if isinstance(a, np.ndarray)]


COVERED = (
    losses.CrossEntropy,
    losses.ValueLoss,
    losses.GaussianPPO,
    losses.GaussianPolicyGradient,
    losses.CategoricalPPO,
    losses.CategoricalPolicyGradient,
)


def seed(loss: Loss, outputs: Tensor) -> Seed | None:
    """Return the loss, its gradient and its diagonal at the outputs; None for a loss that has no loop here."""
    if type(loss) not in COVERED:
        return None
    loss.check(outputs)
    z = outputs.numpy()
    loop, given = _loop(loss, len(z))
    if any(a.dtype not in (np.float32, np.int64) for a in _arrays(given)):
        return None
    g, d = np.empty_like(z), np.empty_like(z)
    try:
        return loop(z, *given, g, d), g, d
    except IndexError:
        loss.value(outputs)  # says which class, by name and range
        raise
