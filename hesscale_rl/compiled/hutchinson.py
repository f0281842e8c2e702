"""Hutchinson's estimate in compiled form: signs * (H signs) for random signs, the product by the R-operator.

R v is the derivative of v along the signs, as if every parameter moved by its sign (Pearlmutter 1994). R goes forward
beside the activations, through the loss's gradient, and back beside the gradient: R of the gradient is H times the
signs, exact, with all that two networks of one actor share. oracle.py says the same by autodiff.
"""

import math
from typing import NamedTuple

import numpy as np

from ..jit import EXACT, FAST, ONE, TWO, at, beside, columns, put
from .kernels import IDENTITY, read, read_head
from .losses import HALF_LOG_2PI, log_deviation, log_softmax, objective
from .matmul import linear, pack, product
from .records import (
    CATEGORICAL,
    GAUSSIAN_HEAD,
    LOG_STD,
    LOG_VAR,
    MLP,
    NO_HEAD,
    VAR,
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

WORD = 64  # signs in one random number


@EXACT
def draw(seed: np.uint64, first: int, signs: np.ndarray) -> None:
    """Fill `signs` [P] with 1 and -1: the bits, from the lowest on, of splitmix64's numbers from number `first` on.

    Number i needs no other: seed + (i + 1) gamma, mixed (Steele et al. 2014). seed: uint64.
    """
    for start in range(0, len(signs), WORD):
        x = seed + np.uint64(first + start // WORD + 1) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
        for i in range(start, min(start + WORD, len(signs))):
            signs[i] = ONE - TWO * np.float32(np.int32((x >> np.uint64(i - start)) & np.uint64(1)))


@EXACT
def gaussian(z: np.ndarray, rz: np.ndarray, kind: int, samples: Samples, loss: PolicyLoss, rg: np.ndarray) -> None:
    """Fill rg with R of the gradient of losses.gaussian, for rz = R z; [N, 2 A] all three."""
    actions, old, advantages = samples
    m, c = actions.shape[1], loss.entropy_coef * loss.factor
    xs, inverses, s1s = np.empty(m), np.empty(m), np.empty(m)
    for n in range(len(z)):
        logp = r_logp = 0.0
        for i in range(m):
            p = np.float64(z[n, m + i])
            s = log_deviation(p, kind)
            s1 = 1.0 if kind == LOG_STD else 0.5 if kind == LOG_VAR else 0.5 / p  # ds/dp
            inverse = math.exp(-s)
            x = (actions[n, i] - np.float64(z[n, i])) * inverse
            logp -= 0.5 * x * x + s + HALF_LOG_2PI
            r_logp += x * inverse * rz[n, i] + (x * x - 1) * s1 * rz[n, m + i]
            xs[i], inverses[i], s1s[i] = x, inverse, s1
        _, df, d2f = objective(logp, old[n], advantages[n] * loss.factor, loss.clip)
        for i in range(m):
            x, inverse, s1 = xs[i], inverses[i], s1s[i]
            rs = s1 * rz[n, m + i]
            rx = -inverse * rz[n, i] - x * rs
            r_s1 = -2 * s1 * rs if kind == VAR else 0.0
            rg[n, i] = d2f * r_logp * (x * inverse) + df * inverse * (rx - x * rs)
            r_logp1 = 2 * x * rx * s1 + (x * x - 1) * r_s1  # R of d log pi/dp
            rg[n, m + i] = d2f * r_logp * ((x * x - 1) * s1) + df * r_logp1 - c * r_s1


@EXACT
def categorical(z: np.ndarray, rz: np.ndarray, samples: Samples, loss: PolicyLoss, rg: np.ndarray) -> None:
    """The same for losses.categorical, [N, C]."""
    actions, old, advantages = samples
    c, logq, q = loss.entropy_coef * loss.factor, np.empty(z.shape[1]), np.empty(z.shape[1])
    for n in range(len(z)):
        a, entropy, r_log_total, r_entropy = actions[n], 0.0, 0.0, 0.0
        log_softmax(z[n], logq)
        for i in range(len(q)):
            q[i] = math.exp(logq[i])
            entropy -= q[i] * logq[i]
            r_log_total += q[i] * rz[n, i]
        for i in range(len(q)):
            r_entropy -= q[i] * (logq[i] + entropy) * rz[n, i]
        r_logp = rz[n, a] - r_log_total
        _, df, d2f = objective(logq[a], old[n], advantages[n] * loss.factor, loss.clip)
        for i in range(len(q)):
            r_logq, u = rz[n, i] - r_log_total, logq[i] + entropy
            rg[n, i] = d2f * r_logp * ((i == a) - q[i]) - df * q[i] * r_logq
            rg[n, i] += c * q[i] * (r_logq * u + r_logq + r_entropy)


@FAST
def _weights(mlp: MLP) -> int:
    """How many parameters the network has."""
    total = mlp.sizes[-1] if mlp.head == GAUSSIAN_HEAD else 0
    for layer in range(len(mlp.activations)):
        total += mlp.sizes[layer + 1] * (mlp.sizes[layer] + 1)
    return total


@FAST
def _add(a: np.ndarray, total: np.ndarray) -> None:
    """total += a, flat."""
    for i in range(len(a)):
        total[i] += a[i]


class Tangent(NamedTuple):
    """R of a pass forward: of every layer before and behind its activation, flat as y, and of the outputs [N, C]."""

    before: np.ndarray
    behind: np.ndarray
    outputs: np.ndarray


@FAST
def _forward(net: MLP, signs: np.ndarray, done: Forward) -> Tangent:
    """Return how a pass moves as every parameter moves by its sign.

    signs [P]: as the parameters of the network, layer by layer, the head's last.
    """
    x, y, n, start, first = done.x, done.y, len(done.x), 0, 0
    ra, ry, below, r_below = np.empty_like(y), np.empty_like(y), x, x
    for layer in range(len(net.activations)):
        i, o = net.sizes[layer], net.sizes[layer + 1]
        stop, bias = start + n * o, first + o * i
        flat, flat_y, df = ra[start:stop], ry[start:stop], done.dy[start:stop]
        linear(below, signs[first:bias].reshape(o, i), signs[bias : bias + o], flat.reshape(n, o))
        if layer > 0:  # the inputs do not move
            part = np.empty((n, o), np.float32)
            linear(r_below, at(net.params[2 * layer], o, i), np.zeros(o, np.float32), part)
            _add(part.reshape(-1), flat)
        for k in range(n * o):
            flat_y[k] = flat[k] if net.activations[layer] == IDENTITY else df[k] * flat[k]
        below, r_below = y[start:stop].reshape(n, o), flat_y.reshape(n, o)
        start, first = stop, bias + o
    rz = columns(r_below, 0, r_below.shape[1])
    return Tangent(ra, ry, rz if net.head == NO_HEAD else beside(rz, signs[first:]))


class Share(NamedTuple):
    """What one draw of signs adds to an estimate: a share of signs * H signs; the first one begins it."""

    share: np.float32
    first: bool


@FAST
def _enter(signs: np.ndarray, hz: np.ndarray, share: Share, d: np.ndarray) -> None:
    """Add a share of signs * hz to d."""
    if share.first:
        for i in range(len(d)):
            d[i] = share.share * signs[i] * hz[i]
    else:
        for i in range(len(d)):
            d[i] += share.share * signs[i] * hz[i]


@FAST
def _reverse(
    net: Network, signs: np.ndarray, done: Forward, moved: Tangent, g: np.ndarray, rg: np.ndarray, share: Share
) -> None:
    """Fill a network's gradients and curvatures from g and R g at its outputs, both [N, C]."""
    mlp, x, y, ry = net.mlp, done.x, done.y, moved.behind
    n, start, first, c = len(x), len(y), len(signs), mlp.sizes[-1]
    if mlp.head == GAUSSIAN_HEAD:
        first -= c
        r_total = np.empty(c, np.float32)
        read_head(g, at(net.grads[-1], 1, c)[0])
        read_head(rg, r_total)
        _enter(signs[first:], r_total, share, at(net.curvatures[-1], 1, c)[0])
    g, rg = columns(g, 0, c), columns(rg, 0, c)
    for layer in range(len(mlp.activations) - 1, -1, -1):
        i, o = mlp.sizes[layer], mlp.sizes[layer + 1]
        weight, shift = 2 * layer, 2 * layer + 1
        stop, start = start, start - n * o
        first, bias, end = first - o * (i + 1), first - o, first
        if mlp.activations[layer] != IDENTITY:
            flat, r_flat, r = g.reshape(-1), rg.reshape(-1), moved.before[start:stop]
            df, d2f = done.dy[start:stop], done.ddy[start:stop]
            for k in range(n * o):
                r_flat[k] = df[k] * r_flat[k] + d2f[k] * r[k] * flat[k]
                flat[k] *= df[k]
        below = pack(x if layer == 0 else y[start - n * i : start].reshape(n, i))
        read(g, below, at(net.grads[weight], o, i), at(net.grads[shift], 1, o)[0])
        hz, hz_bias, part = np.empty((o, i), np.float32), np.empty(o, np.float32), np.empty((o, i), np.float32)
        read(rg, below, hz, hz_bias)
        if layer > 0:
            product(g.T, pack(ry[start - n * i : start].reshape(n, i)), part)
            _add(part.reshape(-1), hz.reshape(-1))
        _enter(signs[first:bias], hz.reshape(-1), share, at(net.curvatures[weight], 1, o * i)[0])
        _enter(signs[bias:end], hz_bias, share, at(net.curvatures[shift], 1, o)[0])
        if layer > 0:
            w, above, r_above = pack(at(mlp.params[weight], o, i)), g, rg
            g, rg, side = np.empty((n, i), np.float32), np.empty((n, i), np.float32), np.empty((n, i), np.float32)
            product(above, w, g)
            product(r_above, w, rg)
            product(above, pack(signs[first:bias].reshape(o, i)), side)
            _add(side.reshape(-1), rg.reshape(-1))


@FAST
def back(
    nets: ActorCritic, passes: Passes, outputs: Outputs, batch: Batch, loss: PolicyLoss, draws: Draws, k: int
) -> None:
    """Fill all gradients and curvatures of an ActorCritic for minibatch k of an epoch, whose rows are `batch`.

    The signs lie as mean, variance, critic. passes, outputs, loss, draws: as records.py says.
    """
    mean, variance, critic = nets.mean, nets.variance, nets.critic
    a, half = _weights(mean.mlp), outputs.z.shape[1]
    b = a + (_weights(variance.mlp) if nets.separate else 0)
    signs = np.empty(b + _weights(critic.mlp), np.float32)
    words = (len(signs) + WORD - 1) // WORD
    for s in range(draws.samples):
        share = Share(np.float32(1 / draws.samples), s == 0)
        draw(draws.seed, (k * draws.samples + s) * words, signs)
        moved = _forward(mean.mlp, signs[:a], passes.mean)
        rz, moved2 = moved.outputs, moved
        if nets.separate:
            half = outputs.z.shape[1] // 2
            moved2 = _forward(variance.mlp, signs[a:b], passes.variance)
            both = np.empty_like(outputs.z)
            put(rz, both, 0)
            put(moved2.outputs, both, half)
            rz = both
        rg = np.empty_like(outputs.z)
        if nets.distribution == CATEGORICAL:
            categorical(outputs.z, rz, Samples(batch.choices, batch.old_logprob, batch.advantages), loss, rg)
        else:
            samples = Samples(batch.actions, batch.old_logprob, batch.advantages)
            gaussian(outputs.z, rz, nets.distribution, samples, loss, rg)
        moved3 = _forward(critic.mlp, signs[b:], passes.critic)
        rgc = np.empty_like(moved3.outputs)
        for i in range(len(rgc)):
            rgc[i, 0] = outputs.critic_d[i, 0] * moved3.outputs[i, 0]  # a critic has one output
        g1, rg1 = columns(outputs.g, 0, half), columns(rg, 0, half)
        _reverse(mean, signs[:a], passes.mean, moved, g1, rg1, share)
        if nets.separate:
            g2, rg2 = columns(outputs.g, half, 2 * half), columns(rg, half, 2 * half)
            _reverse(variance, signs[a:b], passes.variance, moved2, g2, rg2, share)
        _reverse(critic, signs[b:], passes.critic, moved3, outputs.critic_g, rgc, share)
