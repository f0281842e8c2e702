"""An optimizer's step over all tensors of a parameter group, in one pass over memory where it is not scaled."""

import math

import numpy as np
import torch
from torch import Tensor

from .jit import FAST, FAST_SUMS, ZERO, at
from .warm import ready


@FAST
def _averages(g, s, m, v, beta1, beta2):
    """Move m to beta1 m + (1 - beta1) g, and v to beta2 v + (1 - beta2) s^2."""
    # 1 - beta before it is rounded: afterwards it would be 1e-5 off for 0.999.
    rest1, b2, rest2 = np.float32(1 - beta1), np.float32(beta2), np.float32(1 - beta2)
    for i in range(len(m)):
        m[i] += rest1 * (g[i] - m[i])
        v[i] = b2 * v[i] + rest2 * (s[i] * s[i])


@FAST
def _average_of_squares(w, d, beta2):
    """Move w to beta2 w + (1 - beta2) d^2."""
    b2, rest2 = np.float32(beta2), np.float32(1 - beta2)
    for i in range(len(w)):
        w[i] = b2 * w[i] + rest2 * (d[i] * d[i])


@FAST
def _eta(h, delta):
    """The factor of step-size scaling; 1 for delta 0 or no curvature."""
    if delta == 0:
        return 1.0
    return min(1.0, math.sqrt(2 * delta / h)) if h > 0 else 1.0 + (h - h)  # a NaN stays one


@FAST_SUMS
def _curvature_along(m, v, w, root, eps, divide):
    """sum sqrt(w_hat) u^2 for the update u without its rate; in blocks, so that float32 suffices inside one.

    u is m/(sqrt(v_hat) + eps), or m itself unless `divide`.
    """
    total, n = np.float64(0), len(m)
    for start in range(0, n, 1024):
        part = ZERO
        for i in range(start, min(start + 1024, n)):
            u = m[i] / (math.sqrt(v[i]) * root + eps) if divide else m[i]
            part += math.sqrt(w[i]) * root * u * u
        total += np.float64(part)
    return total


@FAST
def _apply(p, m, v, rate, root, eps):
    """Take u = rate m/(sqrt(v) root + eps) from p."""
    for i in range(len(p)):
        p[i] -= rate * m[i] / (math.sqrt(v[i]) * root + eps)


@FAST
def adaptive_loop(where, lengths, counts, begin, end, lr, beta1, beta2, eps, delta):
    """Take the step of AdaHesScale or ScaledAdam for the tensors from `begin` to `end`; return eta.

    where [7, K]: the addresses of each tensor's p, g, s, m, v, d, w: v averages the squares of s, w those of d (for
    AdaHesScale w and d are 0: v serves). counts [K]: the steps that each has taken, this one included. delta 0: no
    scaling.
    """
    e = np.float32(eps)
    h = 0.0
    for k in range(begin, end):
        n = lengths[k]
        p, g, s = at(where[0, k], 1, n)[0], at(where[1, k], 1, n)[0], at(where[2, k], 1, n)[0]
        m, v = at(where[3, k], 1, n)[0], at(where[4, k], 1, n)[0]
        rate = lr / (1 - beta1 ** counts[k])
        root = np.float32(1 / math.sqrt(1 - beta2 ** counts[k]))
        _averages(g, s, m, v, beta1, beta2)
        if delta == 0:
            _apply(p, m, v, np.float32(rate), root, e)
        elif where[6, k] == 0:
            h += rate * rate * _curvature_along(m, v, v, root, e, True)
        else:
            w = at(where[6, k], 1, n)[0]
            _average_of_squares(w, at(where[5, k], 1, n)[0], beta2)
            h += rate * rate * _curvature_along(m, v, w, root, e, True)
    if delta == 0:
        return 1.0
    eta = _eta(h, delta)
    for k in range(begin, end):
        n = lengths[k]
        rate = np.float32(eta * lr / (1 - beta1 ** counts[k]))
        root = np.float32(1 / math.sqrt(1 - beta2 ** counts[k]))
        _apply(at(where[0, k], 1, n)[0], at(where[3, k], 1, n)[0], at(where[4, k], 1, n)[0], rate, root, e)
    return eta


@FAST
def _gradient_loop(where, lengths, counts, begin, end, lr, beta2, delta):
    """Take the step of ScaledSGD; return eta. where: as above, with only p and g, and d and w if delta is not 0."""
    h = 0.0
    if delta > 0:
        for k in range(begin, end):
            n = lengths[k]
            g, w = at(where[1, k], 1, n)[0], at(where[6, k], 1, n)[0]
            _average_of_squares(w, at(where[5, k], 1, n)[0], beta2)
            root = np.float32(1 / math.sqrt(1 - beta2 ** counts[k]))
            h += lr * lr * _curvature_along(g, w, w, root, ZERO, False)
    eta = _eta(h, delta)
    for k in range(begin, end):
        p, g = at(where[0, k], 1, lengths[k])[0], at(where[1, k], 1, lengths[k])[0]
        rate = np.float32(eta * lr)
        for i in range(len(p)):
            p[i] -= rate * g[i]
    return eta


@FAST
def take(where, lengths, counts, begin, end, lr, beta1, beta2, eps, delta):
    """Take the step of a group, the tensors from `begin` to `end`; return eta.

    where [7, K]: as for `adaptive_loop`; without an average m it is gradient descent.
    """
    if begin < end and where[3, begin] == 0:
        return _gradient_loop(where, lengths, counts, begin, end, lr, beta2, delta)
    return adaptive_loop(where, lengths, counts, begin, end, lr, beta1, beta2, eps, delta)


def adaptive(
    tensors: list[list[Tensor]], counts: list[int], lr: float, beta1: float, beta2: float, eps: float, delta: float
) -> float | None:
    """Take the step of AdaHesScale or ScaledAdam in place; return eta, or None where this loop cannot do it.

    tensors: p, g, s, m, v and, where the scaling has an average of its own, d and w; it must be contiguous float32
    on the CPU, all of it. delta 0: no scaling.
    """
    lengths = [p.numel() for p in tensors[0]]
    where: list[int] = []
    for ts in tensors:
        where += [t.data_ptr() for t in ts if t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()]
        if [t.numel() for t in ts] != lengths:
            return None  # torch says what is wrong with the shapes
    if len(where) < len(tensors) * len(counts):
        return None
    ready()
    where += [0] * ((7 - len(tensors)) * len(counts))
    table = np.array(where).reshape(7, -1)
    eta = adaptive_loop(table, np.array(lengths), np.array(counts), 0, len(lengths), lr, beta1, beta2, eps, delta)
    # Autograd must see the change: it refuses to go back through a tensor that was changed since.
    torch.autograd.graph.increment_version([*tensors[0], *tensors[3], *tensors[4]])
    return eta
