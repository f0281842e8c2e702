"""Epochs in compiled form: every minibatch is both networks forward and back, the losses, the cut, and the step."""

import math
from typing import NamedTuple

import numpy as np

from ...compiled import hutchinson, kernels, losses, steps
from ...jit import FAST, FAST_SUMS, ZERO, at, beside, columns, put

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
    return columns(z, 0, c) if net.head[0] == 0 else beside(z, at(net.head[0], 1, c)[0])


@FAST
def _back(net, x, y, dy, ddy, g, d, second, use_d2f):
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
    g, d = columns(g, 0, c), columns(d if second else d[:0], 0, c)
    kernels.reverse(net.params, net.sizes, net.codes, x, y, dy, ddy, g, d, use_d2f, net.grads, net.curvatures)


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
def clip_grad_norm(grads, lengths, limit):
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
def _rows(a, order):
    """The rows `order` of a [B, C]."""
    out = np.empty((len(order), a.shape[1]), a.dtype)
    for i in range(len(order)):
        row = a[order[i]]
        for j in range(len(row)):
            out[i, j] = row[j]
    return out


@FAST
def _picked(a, order):
    """The entries `order` of a [B]."""
    out = np.empty(len(order), a.dtype)
    for i in range(len(order)):
        out[i] = a[order[i]]
    return out


@FAST
def epoch(
    mean, variance, critic, obs, kind, actions, classes, old, advantages, returns, old_values, order, cuts,
    norm_adv, entropy_coef, value_coef, limit, clip, value_clip, second, use_d2f, draws,
    where, lengths, counts, bounds, settings, etas,
):  # fmt: skip
    """Learn from the rows order[cuts[k] : cuts[k + 1]] of a batch, one minibatch after the other.

    kind: of the policy's outputs, -1 softmax, else as in seeds. variance: the second network of the actor, or one
    without layers. where [7, P], lengths, counts [P]: as for the step, by groups that begin and end at `bounds`;
    settings [G, 9]: of every group, as `steps.settings` gives them. draws: None, or for Hutchinson's estimate in
    place of the diagonal a seed and the number of draws; None is a type of its own, so that runs without it have
    nothing of it compiled. Fills etas [K, G].
    Returns the last minibatch's two losses, the actor's outputs before its step, and how many were learned from;
    fewer than all where a loss is not finite: then nothing more is changed.
    """
    two = len(variance.codes) > 0
    for k in range(len(cuts) - 1):
        mb = order[cuts[k] : cuts[k + 1]]
        x, factor = _rows(obs, mb), 1.0 / len(mb)
        y, dy, ddy = kernels.forward(mean.params, mean.sizes, mean.codes, x)
        z = _outputs(mean, y, len(mb))
        y2, dy2, ddy2, half = y, dy, ddy, z.shape[1]  # the width of what the first network is given back
        if two:
            y2, dy2, ddy2 = kernels.forward(variance.params, variance.sizes, variance.codes, x)
            both = np.empty((len(mb), 2 * half), np.float32)
            put(z, both, 0)
            put(_outputs(variance, y2, len(mb)), both, half)
            z = both
        a = _picked(advantages, mb)
        if norm_adv:
            a = _normalized(a)
        g, d = np.empty_like(z), np.empty_like(z)
        if kind < 0:
            taken = _picked(classes, mb)
            actor_loss = losses.categorical(z, taken, _picked(old, mb), a, clip, entropy_coef, factor, g, d)
        else:
            rows = _rows(actions, mb)
            actor_loss = losses.gaussian(z, kind, rows, _picked(old, mb), a, clip, entropy_coef, factor, g, d)
        yc, dyc, ddyc = kernels.forward(critic.params, critic.sizes, critic.codes, x)
        v = _outputs(critic, yc, len(mb))
        gc, dc = np.empty_like(v), np.empty_like(v)
        targets = _picked(returns, mb), _picked(old_values, mb)
        critic_loss = losses.value(v, *targets, value_clip, value_coef, factor, gc, dc)
        if not math.isfinite(actor_loss + critic_loss):
            return actor_loss, critic_loss, z, k
        if draws is None:
            _back(mean, x, y, dy, ddy, columns(g, 0, half), columns(d, 0, half), second, use_d2f)
            if two:
                g2, d2 = columns(g, half, 2 * half), columns(d, half, 2 * half)
                _back(variance, x, y2, dy2, ddy2, g2, d2, second, use_d2f)
            _back(critic, x, yc, dyc, ddyc, gc, dc, second, use_d2f)
        else:
            hutchinson.back(
                mean, variance, critic, x, (y, dy, ddy), (y2, dy2, ddy2), (yc, dyc, ddyc), z, g, gc, dc,
                kind, actions, classes, mb, old, a, clip, entropy_coef, factor, draws, k,
            )  # fmt: skip
        if limit > 0:
            clip_grad_norm(where[1], lengths, limit)
        for i in range(len(settings)):
            for j in range(bounds[i], bounds[i + 1]):
                counts[j] += 1
            etas[k, i] = steps.step(where, lengths, counts, bounds[i], bounds[i + 1], settings[i])
    return actor_loss, critic_loss, z, len(cuts) - 1
