"""Epochs in compiled form: every minibatch is both networks forward and back, the losses, the cut, and the step.

A minibatch's rows go through the networks in blocks, in as many threads as there are; what the blocks say of the
parameters is then added up in their order, and one thread takes the step. How many blocks there are, and so every
digit, depends on the rows alone.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ...compiled import hutchinson, kernels, losses, steps
from ...compiled.records import (
    CATEGORICAL,
    MLP,
    NO_CURVATURE,
    ActorCritic,
    Batch,
    Draws,
    Forward,
    Network,
    Outputs,
    Passes,
    PolicyLoss,
    Samples,
)
from ...compiled.sharing import LINE, fetch_add, load, store, wait
from ...jit import FAST, FAST_SUMS, ZERO, at, columns, put

ROWS = 128  # of a block, at most: what a pass leaves of them stays in a core's own cache
TASK, DONE, TURN, STOP = (LINE * i for i in range(4))  # where these stand in what threads share
SHARED = 4 * LINE
BYTES = 8  # of each


class Objective(NamedTuple):
    """What a pass minimises: PPO's losses, or with `clip` 0 A2C's. A clip or a norm of 0: none."""

    norm_adv: bool
    entropy_coef: float
    value_coef: float
    max_grad_norm: float
    clip: float = 0.0
    value_clip: float = 0.0


class Minibatches(NamedTuple):
    """Minibatch k of K is the rows order[cuts[k] : cuts[k + 1]] of a batch, and tasks firsts[k] to firsts[k + 1]."""

    order: np.ndarray
    cuts: np.ndarray
    firsts: np.ndarray


class Work(NamedTuple):
    """What the threads of a pass have in common, and what comes of it.

    shared: the address of SHARED int64, 0 to begin with: the next task, tasks done, the minibatch whose turn it is,
    and whether to stop. parts [B - 1, 2, P]: gradients and curvatures of all blocks but the first, whose are where
    the table has them. moments [K, 2]: mean of a minibatch's advantages and what their distance from it is multiplied
    by. losses [B, 2]: of actor and critic, by block, of the last minibatch; outputs [N, C]: the actor's, before its
    step. learned [1]: how many minibatches were learned from.
    """

    shared: int
    parts: np.ndarray
    moments: np.ndarray
    losses: np.ndarray
    outputs: np.ndarray
    etas: np.ndarray
    learned: np.ndarray


class RowBlock(NamedTuple):
    """Block b of minibatch k: its rows; the minibatch's moments, and one over its size; where the outputs go."""

    k: int
    b: int
    rows: np.ndarray
    norm: np.ndarray
    factor: float
    outputs: np.ndarray


@FAST
def blocks_of(n: int) -> int:
    """Into how many blocks n rows are cut."""
    return (n + ROWS - 1) // ROWS


@FAST
def _block(k: int, b: int, minibatches: Minibatches, work: Work) -> RowBlock:
    """Block b of minibatch k: blocks are alike, and in whole tiles of four rows."""
    rows = minibatches.order[minibatches.cuts[k] : minibatches.cuts[k + 1]]
    n, blocks = len(rows), blocks_of(len(rows))
    size = (n + 4 * blocks - 1) // (4 * blocks) * 4
    start, stop = b * size, min(n, (b + 1) * size)
    return RowBlock(k, b, rows[start:stop], work.moments[k], 1.0 / n, work.outputs[start:stop])


@FAST
def moments(advantages: np.ndarray, order: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Return [K, 2], of each minibatch: mean and 1/(standard deviation + 1e-8) of its advantages.

    The deviation is with n - 1; a single advantage stays as it is.
    """
    out = np.empty((len(cuts) - 1, 2))
    for k in range(len(out)):
        rows = order[cuts[k] : cuts[k + 1]]
        mean, square = 0.0, 0.0
        for i in rows:
            mean += advantages[i]
        mean /= len(rows)
        for i in rows:
            square += (advantages[i] - mean) * (advantages[i] - mean)
        out[k, 0], out[k, 1] = 0.0, 1.0
        if len(rows) > 1:
            out[k, 0], out[k, 1] = mean, 1 / (math.sqrt(square / (len(rows) - 1)) + 1e-8)
    return out


@FAST_SUMS
def _square(g: np.ndarray) -> float:
    """The sum of squares; in blocks, so that float32 suffices inside one."""
    total, n = np.float64(0), len(g)
    for start in range(0, n, 1024):
        part = ZERO
        for i in range(start, min(start + 1024, n)):
            part += g[i] * g[i]
        total += np.float64(part)
    return total


@FAST
def clip_grad_norm(grads: np.ndarray, lengths: np.ndarray, limit: float) -> None:
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
def _rows(a: np.ndarray, order: np.ndarray) -> np.ndarray:
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
def _picked(a: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The entries `order` of a [B], or of an empty one."""
    if len(a) == 0:
        return a
    out = np.empty(len(order), a.dtype)
    for i in range(len(order)):
        out[i] = a[order[i]]
    return out


@FAST
def _samples(batch: Batch, block: RowBlock, objective: Objective) -> Batch:
    """What a policy learns from in a block: the rows, advantages normalised if they are to be. The rest is empty."""
    a, none = _picked(batch.advantages, block.rows), batch.returns[:0]
    if objective.norm_adv:
        for i in range(len(a)):
            a[i] = (a[i] - block.norm[0]) * block.norm[1]
    actions, choices = _rows(batch.actions, block.rows), _picked(batch.choices, block.rows)
    old = _picked(batch.old_logprob, block.rows)
    return Batch(_rows(batch.obs, block.rows), actions, choices, old, a, none, none)


@FAST
def _policy_loss(
    distribution: int, z: np.ndarray, mb: Batch, loss: PolicyLoss, g: np.ndarray, d: np.ndarray
) -> float:
    """The policy's loss for some rows; fills its gradient and diagonal at the outputs z."""
    if distribution == CATEGORICAL:
        return losses.categorical(z, Samples(mb.choices, mb.old_logprob, mb.advantages), loss, g, d)
    samples = Samples(mb.actions, mb.old_logprob, mb.advantages)
    return losses.gaussian(z, distribution, samples, loss, g, d)


@FAST
def _critic_loss(
    v: np.ndarray, batch: Batch, block: RowBlock, objective: Objective, g: np.ndarray, d: np.ndarray
) -> float:
    """The critic's loss for a block; fills its gradient and diagonal at the values v."""
    returns, old = _picked(batch.returns, block.rows), _picked(batch.old_values, block.rows)
    clip, coef = objective.value_clip, objective.value_coef
    return losses.value(v, returns, old, clip, coef, block.factor, g, d)


@FAST
def _forward_actor(nets: ActorCritic, x: np.ndarray) -> tuple[Forward, Forward, np.ndarray]:
    """The passes forward of the actor's networks, and its outputs [N, C]."""
    mean = kernels.forward(nets.mean.mlp, x)
    z, variance = kernels.outputs_of(nets.mean.mlp, mean), mean
    if nets.separate:
        variance = kernels.forward(nets.variance.mlp, x)
        half = z.shape[1]
        both = np.empty((len(x), 2 * half), np.float32)
        put(z, both, 0)
        put(kernels.outputs_of(nets.variance.mlp, variance), both, half)
        z = both
    return mean, variance, z


@FAST
def _of_block(net: Network, b: int) -> Network:
    """A network whose gradients and curvatures are those that block b has a place for."""
    return Network(net.mlp, net.grads[b], net.curvatures[b])


@FAST
def _actor(nets: ActorCritic, batch: Batch, block: RowBlock, objective: Objective, curvature: int) -> float:
    """Forward and back through the actor for a block; returns the loss."""
    mb = _samples(batch, block, objective)
    mean, variance, z = _forward_actor(nets, mb.obs)
    put(z, block.outputs, 0)
    g, d = np.empty_like(z), np.empty_like(z)
    loss = PolicyLoss(objective.clip, objective.entropy_coef, block.factor)
    value = _policy_loss(nets.distribution, z, mb, loss, g, d)
    if nets.separate:
        half = z.shape[1] // 2
        g2, d2 = columns(g, half, 2 * half), columns(d, half, 2 * half)
        kernels.reverse(_of_block(nets.variance, block.b), variance, g2, d2, curvature)
        g, d = columns(g, 0, half), columns(d, 0, half)
    kernels.reverse(_of_block(nets.mean, block.b), mean, g, d, curvature)
    return value


@FAST
def _critic(nets: ActorCritic, batch: Batch, block: RowBlock, objective: Objective, curvature: int) -> float:
    """The same for the critic."""
    done = kernels.forward(nets.critic.mlp, _rows(batch.obs, block.rows))
    v = kernels.outputs_of(nets.critic.mlp, done)
    g, d = np.empty_like(v), np.empty_like(v)
    value = _critic_loss(v, batch, block, objective, g, d)
    kernels.reverse(_of_block(nets.critic, block.b), done, g, d, curvature)
    return value


@FAST
def _both(
    nets: ActorCritic, batch: Batch, block: RowBlock, objective: Objective, draws: Draws
) -> tuple[float, float]:
    """The same for both at once, with Hutchinson's estimate; returns both losses."""
    mb, b = _samples(batch, block, objective), block.b
    mean, variance, z = _forward_actor(nets, mb.obs)
    put(z, block.outputs, 0)
    critic = kernels.forward(nets.critic.mlp, mb.obs)
    v = kernels.outputs_of(nets.critic.mlp, critic)
    g, d, gc, dc = np.empty_like(z), np.empty_like(z), np.empty_like(v), np.empty_like(v)
    loss = PolicyLoss(objective.clip, objective.entropy_coef, block.factor)
    value = _policy_loss(nets.distribution, z, mb, loss, g, d)
    critic_value = _critic_loss(v, batch, block, objective, gc, dc)
    parts = _of_block(nets.mean, b), _of_block(nets.variance, b), _of_block(nets.critic, b)
    own, passes = ActorCritic(nets.distribution, nets.separate, *parts), Passes(mean, variance, critic)
    hutchinson.back(own, passes, Outputs(z, g, gc, dc), mb, loss, draws, block.k)
    return value, critic_value


@FAST
def _do(
    task: int,
    nets: ActorCritic,
    batch: Batch,
    block: RowBlock,
    objective: Objective,
    curvature: int,
    draws: Draws | None,
    losses_of: np.ndarray,
) -> None:
    """Do a task: the actor's part of a block, the critic's, or both for Hutchinson's estimate. Enters its losses."""
    if draws is not None:
        losses_of[0], losses_of[1] = _both(nets, batch, block, objective, draws)
    elif task % 2 == 0:
        losses_of[0] = _actor(nets, batch, block, objective, curvature)
    else:
        losses_of[1] = _critic(nets, batch, block, objective, curvature)


@FAST
def _add_up(table: steps.StepTable, parts: np.ndarray, blocks: int, curvature: int) -> None:
    """Add what all blocks but the first say of the parameters to what the first says, in their order."""
    for b in range(blocks - 1):
        start = 0
        for k in range(len(table.where)):
            row = table.where[k]
            stop = start + row[0]
            for which in range(2 if curvature != NO_CURVATURE else 1):
                total, part = steps.floats(row[2 + which], row[0]), parts[b, which, start:stop]
                for i in range(len(total)):
                    total[i] += part[i]
            start = stop


@FAST
def _step(k: int, blocks: int, objective: Objective, curvature: int, table: steps.StepTable, work: Work) -> bool:
    """Take the step of minibatch k; return False, with nothing changed, where its loss is not finite."""
    actor, critic = work.losses[0, 0], work.losses[0, 1]
    for b in range(1, blocks):
        actor += work.losses[b, 0]
        critic += work.losses[b, 1]
    work.losses[0, 0], work.losses[0, 1] = actor, critic
    if not math.isfinite(actor + critic):
        return False
    _add_up(table, work.parts, blocks, curvature)
    if objective.max_grad_norm > 0:
        clip_grad_norm(table.where[:, 2], table.where[:, 0], objective.max_grad_norm)
    for j in range(len(table.counts)):
        table.counts[j] += 1
    steps.step(table, work.etas[k])
    work.learned[0] = k + 1
    return True


@FAST
def _network(n: Any) -> Network:
    """The record of a plain Network."""
    return Network(MLP(*n[0]), n[1], n[2])


@FAST
def take_part(
    nets: Any,
    batch: Any,
    minibatches: Any,
    objective: Any,
    curvature: int,
    draws: Draws | None,
    table: Any,
    work: Any,
) -> None:
    """Learn from the minibatches of a batch, one after the other, together with every thread that takes part.

    What is given are records as plain tuples. curvature: what goes back beside the gradient, a code of records.py.
    draws: None, or for Hutchinson's estimate in its place the record of where the signs come from; None is a type of
    its own, so that runs without it have nothing of it compiled. Where a loss is not finite, nothing more is changed.
    """
    nets = ActorCritic(nets[0], nets[1], _network(nets[2]), _network(nets[3]), _network(nets[4]))
    batch, minibatches, objective = Batch(*batch), Minibatches(*minibatches), Objective(*objective)
    table, work, k, last = steps.StepTable(*table), Work(*work), 0, len(minibatches[1]) - 1
    at_task, at_done, at_turn, at_stop = (
        work.shared + BYTES * TASK, work.shared + BYTES * DONE, work.shared + BYTES * TURN, work.shared + BYTES * STOP
    )  # fmt: skip
    while True:
        task = fetch_add(at_task, 1)
        while k < last and task >= minibatches.firsts[k + 1]:
            k += 1
        if k == last:
            return
        wait(at_turn, k)
        if load(at_stop) != 0:
            return
        task -= minibatches.firsts[k]
        b = task if draws is not None else task // 2
        block = _block(k, b, minibatches, work)
        _do(task, nets, batch, block, objective, curvature, draws, work.losses[b])
        if fetch_add(at_done, 1) + 1 == minibatches.firsts[k + 1]:  # all of the minibatch is done, and nobody goes on
            blocks = blocks_of(minibatches.cuts[k + 1] - minibatches.cuts[k])
            if not _step(k, blocks, objective, curvature, table, work):
                store(at_stop, 1)
            store(at_turn, k + 1 if load(at_stop) == 0 else last)
