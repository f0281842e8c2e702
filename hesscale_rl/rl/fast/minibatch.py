"""Epochs in compiled form: every minibatch is both networks forward and back, the losses, the cut, and the step."""

import math
from typing import NamedTuple

import numpy as np

from ...compiled import hutchinson, kernels, losses, steps
from ...compiled.records import CATEGORICAL, Batch, Outputs, Passes, PolicyLoss, Samples
from ...jit import FAST, FAST_SUMS, ZERO, at, columns, put


class Objective(NamedTuple):
    """What a pass minimises: PPO's losses, or with `clip` 0 A2C's. A clip or a norm of 0: none."""

    norm_adv: bool
    entropy_coef: float
    value_coef: float
    max_grad_norm: float
    clip: float = 0.0
    value_clip: float = 0.0


class Minibatches(NamedTuple):
    """Minibatch k of K is the rows order[cuts[k] : cuts[k + 1]] of a batch."""

    order: np.ndarray
    cuts: np.ndarray


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
    """The rows `order` of a [B, C], or of an empty one."""
    if len(a) == 0:
        return a
    out = np.empty((len(order), a.shape[1]), a.dtype)
    for i in range(len(order)):
        row = a[order[i]]
        for j in range(len(row)):
            out[i, j] = row[j]
    return out


@FAST
def _picked(a, order):
    """The entries `order` of a [B], or of an empty one."""
    if len(a) == 0:
        return a
    out = np.empty(len(order), a.dtype)
    for i in range(len(order)):
        out[i] = a[order[i]]
    return out


@FAST
def _minibatch(batch, order, norm_adv):
    """The rows `order` of a batch, their advantages normalised if they are to be."""
    a = _picked(batch.advantages, order)
    return Batch(
        _rows(batch.obs, order),
        _rows(batch.actions, order),
        _picked(batch.choices, order),
        _picked(batch.old_logprob, order),
        _normalized(a) if norm_adv else a,
        _picked(batch.returns, order),
        _picked(batch.old_values, order),
    )


@FAST
def _forward(nets, x):
    """The passes forward of all networks, the actor's outputs [N, C] and the critic's [N, 1]."""
    mean, critic = kernels.forward(nets.mean.mlp, x), kernels.forward(nets.critic.mlp, x)
    z, variance = kernels.outputs_of(nets.mean.mlp, mean), mean
    if nets.separate:
        variance = kernels.forward(nets.variance.mlp, x)
        half = z.shape[1]
        both = np.empty((len(x), 2 * half), np.float32)
        put(z, both, 0)
        put(kernels.outputs_of(nets.variance.mlp, variance), both, half)
        z = both
    return Passes(mean, variance, critic), z, kernels.outputs_of(nets.critic.mlp, critic)


@FAST
def _policy_loss(distribution, z, mb, loss, g, d):
    """The policy's loss for a minibatch; fills its gradient and diagonal at the outputs z."""
    if distribution == CATEGORICAL:
        return losses.categorical(z, Samples(mb.choices, mb.old_logprob, mb.advantages), loss, g, d)
    samples = Samples(mb.actions, mb.old_logprob, mb.advantages)
    return losses.gaussian(z, distribution, samples, loss, g, d)


@FAST
def _back(nets, passes, outputs, d, curvature):
    """Fill all gradients and curvatures from those at the outputs; d: the diagonal at the actor's."""
    g, critic = outputs.g, outputs.critic_g
    if nets.separate:
        half = g.shape[1] // 2
        g2, d2 = columns(g, half, 2 * half), columns(d, half, 2 * half)
        kernels.reverse(nets.variance, passes.variance, g2, d2, curvature)
        g, d = columns(g, 0, half), columns(d, 0, half)
    kernels.reverse(nets.mean, passes.mean, g, d, curvature)
    kernels.reverse(nets.critic, passes.critic, critic, outputs.critic_d, curvature)


@FAST
def epoch(nets, batch, minibatches, objective, curvature, draws, table, etas):
    """Learn from the minibatches of a batch, one after the other.

    curvature: what goes back beside the gradient, a code of records.py. draws: None, or for Hutchinson's estimate in
    its place where the signs come from; None is a type of its own, so that runs without it have nothing of it
    compiled. Fills etas [K, G].
    Returns the last minibatch's two losses, the actor's outputs before its step, and how many were learned from;
    fewer than all where a loss is not finite: then nothing more is changed.
    """
    order, cuts = minibatches
    for k in range(len(cuts) - 1):
        mb = _minibatch(batch, order[cuts[k] : cuts[k + 1]], objective.norm_adv)
        factor = 1.0 / len(mb.obs)
        passes, z, v = _forward(nets, mb.obs)
        loss = PolicyLoss(objective.clip, objective.entropy_coef, factor)
        g, d, gc, dc = np.empty_like(z), np.empty_like(z), np.empty_like(v), np.empty_like(v)
        actor_loss = _policy_loss(nets.distribution, z, mb, loss, g, d)
        clip, coef = objective.value_clip, objective.value_coef
        critic_loss = losses.value(v, mb.returns, mb.old_values, clip, coef, factor, gc, dc)
        if not math.isfinite(actor_loss + critic_loss):
            return actor_loss, critic_loss, z, k
        outputs = Outputs(z, g, gc, dc)
        if draws is None:
            _back(nets, passes, outputs, d, curvature)
        else:
            hutchinson.back(nets, passes, outputs, mb, loss, draws, k)
        if objective.max_grad_norm > 0:
            clip_grad_norm(table.where[:, 2], table.where[:, 0], objective.max_grad_norm)
        for j in range(len(table.counts)):
            table.counts[j] += 1
        steps.step(table, etas[k])
    return actor_loss, critic_loss, z, len(cuts) - 1
