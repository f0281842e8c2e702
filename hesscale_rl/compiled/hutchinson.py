"""Hutchinson's estimate in compiled form: signs * (H signs) for random signs, the product by the R-operator.

R v is the derivative of v along the signs, as if every parameter moved by its sign (Pearlmutter 1994). R goes forward
beside the activations, through the loss's gradient, and back beside the gradient: R of the gradient is H times the
signs, exact, with all that two networks of one actor share. oracle.py says the same by autodiff.
"""

import math

import numpy as np

from ..jit import EXACT, FAST, ONE, TWO, ZERO, at, beside, columns, put
from .kernels import IDENTITY, read
from .losses import HALF_LOG_2PI, log_softmax, objective
from .matmul import linear, pack, product

WORD = 64  # signs in one random number


@EXACT
def draw(seed, first, signs):
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
def gaussian(z, rz, mb, kind, actions, old, advantages, clip, entropy_coef, factor, rg):
    """Fill rg with R of the gradient of seeds.gaussian, for rz = R z; [N, 2 A] all three.

    mb [N]: the rows of `actions` and `old` that z belongs to; advantages [N].
    """
    m, c = actions.shape[1], entropy_coef * factor
    xs, inverses, slopes = np.empty(m), np.empty(m), np.empty(m)
    for n in range(len(z)):
        logp = r_logp = 0.0
        for i in range(m):
            p = np.float64(z[n, m + i])
            s = p if kind == 0 else 0.5 * (p if kind == 1 else math.log(p))
            slope = 1.0 if kind == 0 else 0.5 if kind == 1 else 0.5 / p  # ds/dp
            inverse = math.exp(-s)
            x = (actions[mb[n], i] - np.float64(z[n, i])) * inverse
            logp -= 0.5 * x * x + s + HALF_LOG_2PI
            r_logp += x * inverse * rz[n, i] + (x * x - 1) * slope * rz[n, m + i]
            xs[i], inverses[i], slopes[i] = x, inverse, slope
        _, df, d2f = objective(logp, old[mb[n]], advantages[n] * factor, clip)
        for i in range(m):
            x, inverse, slope = xs[i], inverses[i], slopes[i]
            rs = slope * rz[n, m + i]
            rx = -inverse * rz[n, i] - x * rs
            r_slope = -2 * slope * rs if kind == 2 else 0.0
            rg[n, i] = d2f * r_logp * (x * inverse) + df * inverse * (rx - x * rs)
            r_logp_slope = 2 * x * rx * slope + (x * x - 1) * r_slope
            rg[n, m + i] = d2f * r_logp * ((x * x - 1) * slope) + df * r_logp_slope - c * r_slope


@EXACT
def categorical(z, rz, mb, actions, old, advantages, clip, entropy_coef, factor, rg):
    """The same for seeds.categorical, [N, C]."""
    c, logq, q = entropy_coef * factor, np.empty(z.shape[1]), np.empty(z.shape[1])
    for n in range(len(z)):
        a, entropy, r_log_total, r_entropy = actions[mb[n]], 0.0, 0.0, 0.0
        log_softmax(z[n], logq)
        for i in range(len(q)):
            q[i] = math.exp(logq[i])
            entropy -= q[i] * logq[i]
            r_log_total += q[i] * rz[n, i]
        for i in range(len(q)):
            r_entropy -= q[i] * (logq[i] + entropy) * rz[n, i]
        r_logp = rz[n, a] - r_log_total
        _, df, d2f = objective(logq[a], old[mb[n]], advantages[n] * factor, clip)
        for i in range(len(q)):
            r_logq, u = rz[n, i] - r_log_total, logq[i] + entropy
            rg[n, i] = d2f * r_logp * ((i == a) - q[i]) - df * q[i] * r_logq
            rg[n, i] += c * q[i] * (r_logq * u + r_logq + r_entropy)


@FAST
def _weights(net):
    """How many parameters the network has."""
    total = net.sizes[-1] if len(net.codes) > 0 and net.head[0] != 0 else 0
    for layer in range(len(net.codes)):
        total += net.sizes[layer + 1] * (net.sizes[layer] + 1)
    return total


@FAST
def _add(a, total):
    """total += a, flat."""
    for i in range(len(a)):
        total[i] += a[i]


@FAST
def _forward(net, signs, x, y, dy):
    """Return R of every layer before and behind its activation, flat as y, and R of the outputs [N, C].

    signs [P]: as the parameters of the network, layer by layer, the head's last.
    """
    n, start, first = len(x), 0, 0
    ra, ry, below, r_below = np.empty_like(y), np.empty_like(y), x, x
    for layer in range(len(net.codes)):
        i, o = net.sizes[layer], net.sizes[layer + 1]
        stop, bias = start + n * o, first + o * i
        flat, flat_y, slope = ra[start:stop], ry[start:stop], dy[start:stop]
        linear(below, signs[first:bias].reshape(o, i), signs[bias : bias + o], flat.reshape(n, o))
        if layer > 0:  # the inputs do not move
            part = np.empty((n, o), np.float32)
            linear(r_below, at(net.params[layer, 0], o, i), np.zeros(o, np.float32), part)
            _add(part.reshape(-1), flat)
        for k in range(n * o):
            flat_y[k] = flat[k] if net.codes[layer] == IDENTITY else slope[k] * flat[k]
        below, r_below = y[start:stop].reshape(n, o), flat_y.reshape(n, o)
        start, first = stop, bias + o
    rz = columns(r_below, 0, r_below.shape[1])
    return ra, ry, rz if net.head[0] == 0 else beside(rz, signs[first:])


@FAST
def _enter(signs, hz, share, fresh, d):
    """Add the share of signs * hz to d, or begin d with it."""
    if fresh:
        for i in range(len(d)):
            d[i] = share * signs[i] * hz[i]
    else:
        for i in range(len(d)):
            d[i] += share * signs[i] * hz[i]


@FAST
def _reverse(net, signs, x, y, dy, ddy, ra, ry, g, rg, share, fresh):
    """Fill the network's gradients and curvatures from g and R g at its outputs, both [N, C]; see `_enter`."""
    n, start, first, c = len(x), len(y), len(signs), net.sizes[-1]
    if net.head[0] != 0:
        first -= c
        total, r_total = at(net.head[1], 1, c)[0], np.zeros(c, np.float32)
        total[:] = ZERO
        for i in range(n):
            for j in range(c):
                total[j] += g[i, c + j]
                r_total[j] += rg[i, c + j]
        _enter(signs[first:], r_total, share, fresh, at(net.head[2], 1, c)[0])
    g, rg = columns(g, 0, c), columns(rg, 0, c)
    for layer in range(len(net.codes) - 1, -1, -1):
        i, o = net.sizes[layer], net.sizes[layer + 1]
        stop, start = start, start - n * o
        first, bias, end = first - o * (i + 1), first - o, first
        if net.codes[layer] != IDENTITY:
            flat, r_flat, r = g.reshape(-1), rg.reshape(-1), ra[start:stop]
            slope, bend = dy[start:stop], ddy[start:stop]
            for k in range(n * o):
                r_flat[k] = slope[k] * r_flat[k] + bend[k] * r[k] * flat[k]
                flat[k] *= slope[k]
        below = pack(x if layer == 0 else y[start - n * i : start].reshape(n, i))
        read(g, below, at(net.grads[layer, 0], o, i), at(net.grads[layer, 1], 1, o)[0])
        hz, hz_bias, part = np.empty((o, i), np.float32), np.empty(o, np.float32), np.empty((o, i), np.float32)
        read(rg, below, hz, hz_bias)
        if layer > 0:
            product(g.T, pack(ry[start - n * i : start].reshape(n, i)), part)
            _add(part.reshape(-1), hz.reshape(-1))
        _enter(signs[first:bias], hz.reshape(-1), share, fresh, at(net.curvatures[layer, 0], 1, o * i)[0])
        _enter(signs[bias:end], hz_bias, share, fresh, at(net.curvatures[layer, 1], 1, o)[0])
        if layer > 0:
            w, above, r_above = pack(at(net.params[layer, 0], o, i)), g, rg
            g, rg, side = np.empty((n, i), np.float32), np.empty((n, i), np.float32), np.empty((n, i), np.float32)
            product(above, w, g)
            product(r_above, w, rg)
            product(above, pack(signs[first:bias].reshape(o, i)), side)
            _add(side.reshape(-1), rg.reshape(-1))


@FAST
def back(
    mean, variance, critic, x, first, second, third, z, g, gc, dc,
    kind, actions, classes, mb, old, advantages, clip, entropy_coef, factor, draws, k,
):  # fmt: skip
    """Fill all gradients and curvatures for minibatch k of an epoch.

    first, second, third: what `kernels.forward` gave for mean, variance and critic. z, g: the actor's outputs and
    the gradient there; gc, dc: the gradient and the diagonal at the critic's. mb: the minibatch's rows of actions,
    classes and old. draws: the epoch's seed, and how many signs for every parameter; they lie as mean, variance,
    critic.
    """
    (y, dy, ddy), (y2, dy2, ddy2), (yc, dyc, ddyc), (seed, samples) = first, second, third, draws
    two, a, half = len(variance.codes) > 0, _weights(mean), z.shape[1]
    b = a + _weights(variance)
    signs = np.empty(b + _weights(critic), np.float32)
    words, share = (len(signs) + WORD - 1) // WORD, np.float32(1 / samples)
    for s in range(samples):
        draw(seed, (k * samples + s) * words, signs)
        ra, ry, rz = _forward(mean, signs[:a], x, y, dy)
        ra2, ry2 = ra, ry
        if two:
            half = z.shape[1] // 2
            ra2, ry2, rz2 = _forward(variance, signs[a:b], x, y2, dy2)
            both = np.empty_like(z)
            put(rz, both, 0)
            put(rz2, both, half)
            rz = both
        rg = np.empty_like(z)
        if kind < 0:
            categorical(z, rz, mb, classes, old, advantages, clip, entropy_coef, factor, rg)
        else:
            gaussian(z, rz, mb, kind, actions, old, advantages, clip, entropy_coef, factor, rg)
        rac, ryc, rv = _forward(critic, signs[b:], x, yc, dyc)
        rgc, fresh = np.empty_like(rv), s == 0
        for i in range(len(rv)):
            rgc[i, 0] = dc[i, 0] * rv[i, 0]  # a critic has one output
        g1, rg1 = columns(g, 0, half), columns(rg, 0, half)
        _reverse(mean, signs[:a], x, y, dy, ddy, ra, ry, g1, rg1, share, fresh)
        if two:
            g2, rg2 = columns(g, half, 2 * half), columns(rg, half, 2 * half)
            _reverse(variance, signs[a:b], x, y2, dy2, ddy2, ra2, ry2, g2, rg2, share, fresh)
        _reverse(critic, signs[b:], x, yc, dyc, ddyc, rac, ryc, gc, rgc, share, fresh)
