"""Epochs in compiled form: every minibatch is both networks forward and back, the losses, the cut, and the step."""

import math
from typing import NamedTuple

import numpy as np

from . import kernels, seeds, steps
from .jit import FAST, FAST_SUMS, ZERO, at

NO_HEAD = np.zeros(3, np.int64)


class Network(NamedTuple):
    """A chain for the loops: addresses of parameters, gradients, curvatures [L, 2]; head [3], of log_std's three."""

    params: np.ndarray
    grads: np.ndarray
    curvatures: np.ndarray
    sizes: np.ndarray
    codes: np.ndarray
    head: np.ndarray


@FAST
def _outputs(net, y, n):
    """The network's outputs from y, what `kernels.forward` gave, with the head's column block if it has one."""
    c = net.sizes[-1]
    z = y[len(y) - n * c :].reshape(n, c)
    if net.head[0] == 0:
        return z.copy()
    both = np.empty((n, 2 * c), np.float32)
    both[:, :c] = z
    both[:, c:] = at(net.head[0], 1, c)[0]
    return both


@FAST
def _back(net, x, y, dy, ddy, g, d, second, bends):
    """Fill the network's gradients and curvatures from those at its outputs."""
    c = net.sizes[-1]
    if net.head[0] != 0:
        for k in range(2 if second else 1):
            total = at(net.head[1 + k], 1, c)[0]
            total[:] = ZERO
            message = g if k == 0 else d
            for i in range(len(message)):
                for j in range(c):
                    total[j] += message[i, c + j]
    g, d = g[:, :c].copy(), (d[:, :c].copy() if second else np.empty((0, c), np.float32))
    kernels.reverse(net.params, net.sizes, net.codes, x, y, dy, ddy, g, d, bends, net.grads, net.curvatures)


@FAST
def _normalized(a):
    """(a - mean)/(standard deviation + 1e-8), the deviation with n - 1; a single advantage stays as it is."""
    if len(a) < 2:
        return a
    mean, square = 0.0, 0.0
    for v in a:
        mean += v
    mean /= len(a)
    for v in a:
        square += (v - mean) * (v - mean)
    out = np.empty_like(a)
    scale = 1 / (math.sqrt(square / (len(a) - 1)) + 1e-8)
    for i in range(len(a)):
        out[i] = (a[i] - mean) * scale
    return out


@FAST_SUMS
def _square(g):
    """The sum of squares; in blocks, so that float32 suffices inside one."""
    total, n = np.float64(0), len(g)
    for start in range(0, n, 1024):
        part = ZERO
        for i in range(start, min(start + 1024, n)):
            part += g[i] * g[i]
        total += np.float64(part)
    return total


@FAST
def _cut(grads, lengths, limit):
    """Scale all gradients so that their norm together is at most `limit`, as torch.nn.utils.clip_grad_norm_."""
    total = 0.0
    for k in range(len(lengths)):
        total += _square(at(grads[k], 1, lengths[k])[0])
    factor = limit / (math.sqrt(total) + 1e-6)
    if factor < 1:
        for k in range(len(lengths)):
            g = at(grads[k], 1, lengths[k])[0]
            for i in range(len(g)):
                g[i] *= np.float32(factor)


@FAST
def _minibatch(
    mean, variance, critic, x, kind, actions, classes, old, advantages, returns, old_values,
    norm_adv, clip, entropy_coef, value_clip, value_coef, limit, second, bends,
    where, lengths, counts, bounds, settings, etas,
):  # fmt: skip
    """Learn from one minibatch; return the two losses and the actor's outputs before the step.

    kind: of the policy's outputs, -1 softmax, else as in seeds. variance: the second network of the actor, or one
    without layers. where [7, K], lengths, counts [K]: as for the step, by groups that begin and end at `bounds`;
    settings [G, 5]: of every group lr, beta1, beta2, eps and delta. Fills etas [G]. Nothing is changed where a loss
    is not finite.
    """
    n, two = len(x), len(variance.codes) > 0
    factor = 1.0 / n
    y, dy, ddy = kernels.forward(mean.params, mean.sizes, mean.codes, x)
    z = _outputs(mean, y, n)
    c = z.shape[1]
    y2, dy2, ddy2 = y, dy, ddy
    if two:
        y2, dy2, ddy2 = kernels.forward(variance.params, variance.sizes, variance.codes, x)
        both = np.empty((n, 2 * c), np.float32)
        both[:, :c] = z
        both[:, c:] = _outputs(variance, y2, n)
        z = both
    a = _normalized(advantages) if norm_adv else advantages
    g, d = np.empty_like(z), np.empty_like(z)
    if kind < 0:
        actor_loss = seeds.categorical(z, classes, old, a, clip, entropy_coef, factor, g, d)
    else:
        actor_loss = seeds.gaussian(z, kind, actions, old, a, clip, entropy_coef, factor, g, d)
    yc, dyc, ddyc = kernels.forward(critic.params, critic.sizes, critic.codes, x)
    v = _outputs(critic, yc, n)
    gc, dc = np.empty_like(v), np.empty_like(v)
    critic_loss = seeds.value(v, returns, old_values, value_clip, value_coef, factor, gc, dc)
    if not math.isfinite(actor_loss + critic_loss):
        return actor_loss, critic_loss, z
    if two:
        _back(mean, x, y, dy, ddy, g[:, :c].copy(), d[:, :c].copy(), second, bends)
        _back(variance, x, y2, dy2, ddy2, g[:, c:].copy(), d[:, c:].copy(), second, bends)
    else:
        _back(mean, x, y, dy, ddy, g, d, second, bends)
    _back(critic, x, yc, dyc, ddyc, gc, dc, second, bends)
    if limit > 0:
        _cut(where[1], lengths, limit)
    for i in range(len(etas)):
        begin, end = bounds[i], bounds[i + 1]
        counts[begin:end] += 1
        lr, beta1, beta2, eps, delta = settings[i]
        own = where[:, begin:end], lengths[begin:end], counts[begin:end]
        etas[i] = steps.take(*own, lr, beta1, beta2, eps, delta)
    return actor_loss, critic_loss, z


@FAST
def _rows(a, order):
    """The rows `order` of a [B, C]."""
    out = np.empty((len(order), a.shape[1]), a.dtype)
    for i in range(len(order)):
        row = a[order[i]]
        for j in range(len(row)):
            out[i, j] = row[j]
    return out


@FAST
def epoch(
    mean, variance, critic, obs, kind, actions, classes, old, advantages, returns, old_values, order, cuts,
    norm_adv, clip, entropy_coef, value_clip, value_coef, limit, second, bends,
    where, lengths, counts, bounds, settings, etas,
):  # fmt: skip
    """Learn from the rows order[cuts[k] : cuts[k + 1]] of a batch, one minibatch after the other.

    Returns the last minibatch's losses and outputs, and how many were learned from; fewer than all where a loss is
    not finite. etas [K, G]; the rest as in `_minibatch`.
    """
    for k in range(len(cuts) - 1):
        mb = order[cuts[k] : cuts[k + 1]]
        actor_loss, critic_loss, z = _minibatch(
            mean, variance, critic, _rows(obs, mb), kind, _rows(actions, mb[: len(actions)]),
            classes[mb[: len(classes)]], old[mb], advantages[mb], returns[mb], old_values[mb], norm_adv, clip,
            entropy_coef, value_clip, value_coef, limit, second, bends, where, lengths, counts, bounds, settings,
            etas[k],
        )  # fmt: skip
        if not math.isfinite(actor_loss + critic_loss):
            return actor_loss, critic_loss, z, k
    return actor_loss, critic_loss, z, len(cuts) - 1
