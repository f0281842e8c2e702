"""An optimizer's step over all tensors of a parameter group, in one pass over memory where it is not scaled."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..jit import FAST, FAST_SUMS, ZERO, at
from .cache import ready

LARGEST = np.float32(2.0**126)  # an average of squares stays below it: a quarter of what float32 holds


@FAST
def _moved(v, x, keep, rest):
    """Return keep v + rest x^2, or LARGEST in place of more."""
    new = keep * v + rest * (x * x)
    if new > LARGEST:  # perhaps the square alone is more than float32 holds
        other = v - rest * v + (rest * x) * x
        return LARGEST if other > LARGEST else other
    return new


@FAST
def _averages(g, s, m, v, beta1, beta2, sign):
    """Move m to beta1 m + (1 - beta1) sign g, and v to beta2 v + (1 - beta2) s^2."""
    # 1 - beta before it is rounded: afterwards it would be 1e-5 off for 0.999.
    rest1, b2, rest2 = np.float32(1 - beta1), np.float32(beta2), np.float32(1 - beta2)
    for i in range(len(m)):
        m[i] += rest1 * (sign * g[i] - m[i])
        v[i] = _moved(v[i], s[i], b2, rest2)


@FAST
def _average_of_squares(w, d, beta2):
    """Move w to beta2 w + (1 - beta2) d^2."""
    b2, rest2 = np.float32(beta2), np.float32(1 - beta2)
    for i in range(len(w)):
        w[i] = _moved(w[i], d[i], b2, rest2)


@FAST
def _decay(p, rate):
    """Decoupled weight decay: p <- p - rate p."""
    keep = np.float32(1 - rate)
    for i in range(len(p)):
        p[i] *= keep


@FAST
def _larger(a, b):
    """The larger of two; a where it is NaN."""
    return b if b > a else a


@FAST
def _smaller(a, b):
    """The smaller of two; a where it is NaN."""
    return b if b < a else a


@FAST
def _most(delta, rate, newton, bound):
    """What an entry without its rate may count as: the whole region; for Newton steps and reach=None no bound."""
    return np.float32(np.inf if newton != 0 or bound == 0 or rate == 0 else 2 * delta / (rate * rate))


@FAST
def _eta(h, delta):
    """The factor of step-size scaling; 1 for delta 0 or no curvature."""
    if delta == 0:
        return 1.0
    return min(1.0, math.sqrt(2 * delta / h)) if h > 0 else 1.0 + (h - h)  # a NaN stays one


@FAST_SUMS
def _curvature_along(m, v, w, root, eps, bounds):
    """sum max(sqrt(w_hat), b|m|) u^2 for u = m/(max(sqrt(v_hat), a|m|) + eps), (a, b) = bounds; u has no rate yet.

    In blocks, so that float32 suffices inside one.
    """
    total, n = np.float64(0), len(m)
    for start in range(0, n, 1024):
        part = ZERO
        for i in range(start, min(start + 1024, n)):
            u = m[i] / _larger(math.sqrt(v[i]) * root + eps, bounds[0] * abs(m[i]) + eps)
            part += _larger(math.sqrt(w[i]) * root, bounds[1] * abs(m[i])) * u * u
        total += np.float64(part)
    return total


@FAST_SUMS
def _curvature_along_within(m, v, w, root, eps, flat, most):
    """The same for u = m/(sqrt(v_hat) + eps), where each entry is shortened until it counts as `most`."""
    total, n = np.float64(0), len(m)
    for start in range(0, n, 1024):
        part = ZERO
        for i in range(start, min(start + 1024, n)):
            u = m[i] / (math.sqrt(v[i]) * root + eps)
            part += _smaller(_larger(math.sqrt(w[i]) * root, flat * abs(m[i])) * u * u, most)
        total += np.float64(part)
    return total


@FAST_SUMS
def _curvature_along_gradient(g, w, root, bound, most):
    """sum max(sqrt(w_hat), bound |g|) g^2, each entry at most `most`; in blocks, for the sake of float32."""
    total, n = np.float64(0), len(g)
    for start in range(0, n, 1024):
        part = ZERO
        for i in range(start, min(start + 1024, n)):
            part += _smaller(_larger(math.sqrt(w[i]) * root, bound * abs(g[i])) * g[i] * g[i], most)
        total += np.float64(part)
    return total


@FAST
def _apply(p, m, v, rate, root, eps, bound):
    """Take u = rate m/(max(sqrt(v) root, bound |m|) + eps) from p."""
    for i in range(len(p)):
        p[i] -= rate * m[i] / _larger(math.sqrt(v[i]) * root + eps, bound * abs(m[i]) + eps)


@FAST
def _apply_within(p, m, v, w, rate, root, eps, flat, most):
    """Take u = rate m/(sqrt(v) root + eps) from p; each entry without its rate counts as `most` at most."""
    for i in range(len(p)):
        u = rate * m[i] / (math.sqrt(v[i]) * root + eps)
        longest = rate * math.sqrt(most / _larger(math.sqrt(w[i]) * root, flat * abs(m[i])))
        p[i] -= _larger(_smaller(u, longest), -longest)


@FAST
def adaptive_loop(where, lengths, counts, begin, end, settings):
    """Take the step of AdaHesScale or ScaledAdam for the tensors from `begin` to `end`; return eta.

    where [7, K]: the addresses of each tensor's p, g, s, m, v, d, w: v averages the squares of s, w those of d (for
    AdaHesScale w and d are 0: v serves). counts [K]: the steps that each has taken, this one included. settings: as
    `settings` gives them.
    """
    lr, beta1, beta2, eps, delta, decay, sign, newton, bound = settings
    e, flip = np.float32(eps), np.float32(sign)
    h = 0.0
    for k in range(begin, end):
        n = lengths[k]
        p, g, s = at(where[0, k], 1, n)[0], at(where[1, k], 1, n)[0], at(where[2, k], 1, n)[0]
        m, v = at(where[3, k], 1, n)[0], at(where[4, k], 1, n)[0]
        fade = 1 - beta1 ** counts[k]
        rate = lr / fade
        root = np.float32(1 / math.sqrt(1 - beta2 ** counts[k]))
        low, flat = np.float32(newton * bound / fade), np.float32(bound / fade)
        _averages(g, s, m, v, beta1, beta2, flip)
        if decay != 0:
            _decay(p, lr * decay)
        if delta == 0:
            _apply(p, m, v, np.float32(rate), root, e, low)
        elif where[6, k] == 0:
            h += rate * rate * _curvature_along(m, v, v, root, e, (low, flat))
        else:
            w = at(where[6, k], 1, n)[0]
            _average_of_squares(w, at(where[5, k], 1, n)[0], beta2)
            most = _most(delta, rate, newton, bound)
            if most == np.inf:
                h += rate * rate * _curvature_along(m, v, w, root, e, (low, flat))
            else:
                h += rate * rate * _curvature_along_within(m, v, w, root, e, flat, most)
    if delta == 0:
        return 1.0
    eta = _eta(h, delta)
    for k in range(begin, end):
        n = lengths[k]
        fade = 1 - beta1 ** counts[k]
        rate, most = np.float32(eta * lr / fade), _most(delta, lr / fade, newton, bound)
        low, flat = np.float32(newton * bound / fade), np.float32(bound / fade)
        root = np.float32(1 / math.sqrt(1 - beta2 ** counts[k]))
        p, m, v = at(where[0, k], 1, n)[0], at(where[3, k], 1, n)[0], at(where[4, k], 1, n)[0]
        if most == np.inf:
            _apply(p, m, v, rate, root, e, low)
        else:
            _apply_within(p, m, v, at(where[6, k], 1, n)[0], rate, root, e, flat, most)
    return eta


@FAST
def _gradient_loop(where, lengths, counts, begin, end, settings):
    """Take the step of ScaledSGD; return eta. where: as above, with only p and g, and d and w if delta is not 0."""
    lr, _, beta2, _, delta, decay, sign, _, bound = settings
    h, most = 0.0, _most(delta, lr, 0.0, bound)
    if delta > 0:
        for k in range(begin, end):
            n = lengths[k]
            g, w = at(where[1, k], 1, n)[0], at(where[6, k], 1, n)[0]
            _average_of_squares(w, at(where[5, k], 1, n)[0], beta2)
            root = np.float32(1 / math.sqrt(1 - beta2 ** counts[k]))
            h += lr * lr * _curvature_along_gradient(g, w, root, np.float32(bound), most)
    eta = _eta(h, delta)
    for k in range(begin, end):
        p, g = at(where[0, k], 1, lengths[k])[0], at(where[1, k], 1, lengths[k])[0]
        if decay != 0:
            _decay(p, lr * decay)
        rate = np.float32(sign * eta * lr)
        if delta == 0 or most == np.inf:
            for i in range(len(p)):
                p[i] -= rate * g[i]
        else:
            w, root = at(where[6, k], 1, lengths[k])[0], np.float32(1 / math.sqrt(1 - beta2 ** counts[k]))
            for i in range(len(p)):
                longest = math.sqrt(most / _larger(math.sqrt(w[i]) * root, np.float32(bound) * abs(g[i])))
                p[i] -= rate * _larger(_smaller(g[i], longest), -longest)
    return eta


@FAST
def step(where, lengths, counts, begin, end, settings):
    """Take the step of a group, the tensors from `begin` to `end`; return eta.

    where [7, K]: as for `adaptive_loop`; without an average m it is gradient descent.
    """
    if begin < end and where[3, begin] == 0:
        return _gradient_loop(where, lengths, counts, begin, end, settings)
    return adaptive_loop(where, lengths, counts, begin, end, settings)


def settings(group: dict[str, Any], newton: bool) -> np.ndarray:
    """Return a parameter group's settings [9] for the loops; newton: `reach` bounds the update, too.

    They are lr, beta1, beta2, eps, delta (0: no scaling), weight_decay, -1 to ascend or 1, newton and 1/reach.
    """
    beta1, beta2 = group["betas"] if "betas" in group else (0.0, group["beta2"])
    averages = float(group["lr"]), beta1, beta2, group.get("eps", 0.0), group["delta"] or 0.0
    reach = group["reach"]
    sign = -1.0 if group["maximize"] else 1.0
    return np.array([*averages, group["weight_decay"], sign, newton, 0.0 if reach is None else 1 / reach])


PLAIN = (Tensor, nn.Parameter)


def is_plain(t: Tensor) -> bool:
    """Whether the loops may read the tensor where it lies: contiguous float32 on the CPU, of no subclass.

    A subclass (DTensor, say) has its numbers elsewhere.
    """
    return type(t) in PLAIN and t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()


def adaptive(tensors: list[list[Tensor]], counts: list[int], settings: np.ndarray) -> float | None:
    """Take the step of AdaHesScale or ScaledAdam in place; return eta, or None where this loop cannot do it.

    tensors: p, g, s, m, v and, where the scaling has an average of its own, d and w, all of which must be plain.
    """
    lengths = [p.numel() for p in tensors[0]]
    where: list[int] = []
    for ts in tensors:
        where += [t.data_ptr() for t in ts if is_plain(t)]
        if [t.numel() for t in ts] != lengths:
            return None  # torch says what is wrong with the shapes
    if len(where) < len(tensors) * len(counts):
        return None
    ready()
    where += [0] * ((7 - len(tensors)) * len(counts))
    table = np.array(where).reshape(7, -1)
    eta = adaptive_loop(table, np.array(lengths), np.array(counts), 0, len(lengths), settings)
    # Autograd must see the change: it refuses to go back through a tensor that was changed since.
    torch.autograd.graph.increment_version([*tensors[0], *tensors[3], *tensors[4]])
    return eta
