"""The loops under the compiled twin: activations, and one pass forward and one back through an MLP, by numba.

They are for the small networks of reinforcement learning, where calling torch costs more than the arithmetic. Every
loop runs along the last axis, so that the compiler turns it into vector instructions.
"""

import math

import numpy as np

from ..jit import FAST, ONE, TWO, ZERO, at, beside, columns
from .matmul import linear, pack, product
from .records import GAUSSIAN_HEAD, MLP, NO_CURVATURE, NO_HEAD, WITH_D2F, Forward, Network

IDENTITY, TANH, RELU, SIGMOID, SILU, EXP = range(6)  # codes of the activations


@FAST
def tanh(x: np.ndarray, y: np.ndarray) -> None:
    """Y = tanh x, entry by entry of flat arrays: x P(x^2)/Q(x^2), within 3 units of float32's last place.

    P and Q were fitted to a relative error of 2.1e-8 on [0, 9]; beyond, tanh is 1 in float32.
    """
    limit = np.float32(9)
    for i in range(len(x)):
        v = x[i]
        v = limit if v > limit else v  # comparisons, not min and max: a NaN must stay one
        v = -limit if v < -limit else v
        s = v * v
        p = np.float32(1.335463696e-08)
        p = p * s + np.float32(2.060906291e-05)
        p = p * s + np.float32(3.495586879e-03)
        p = p * s + np.float32(1.338102457e-01)
        p = p * s + np.float32(9.999999795e-01)
        q = np.float32(7.776547757e-07)
        q = q * s + np.float32(3.285632823e-04)
        q = q * s + np.float32(2.587697739e-02)
        q = q * s + np.float32(4.671434017e-01)
        q = q * s + ONE
        v = v * p / q
        v = ONE if v > ONE else v
        y[i] = -ONE if v < -ONE else v


@FAST
def activate(code: int, y: np.ndarray, dy: np.ndarray, ddy: np.ndarray) -> None:
    """Replace y (flat) by f(y), and fill dy and ddy with f' and f''. Same forms as rules/activation.py."""
    if code == TANH:
        tanh(y, dy)  # not into y itself: a loop that writes where it reads is not vectorised
        for i in range(len(y)):
            t = dy[i]
            df = ONE - t * t
            y[i], dy[i], ddy[i] = t, df, -(t + t) * df
    elif code == RELU:
        for i in range(len(y)):
            dy[i] = ONE if y[i] > ZERO else ZERO
            ddy[i] = ZERO
            y[i] = ZERO if y[i] < ZERO else y[i]
    elif code == EXP:
        for i in range(len(y)):
            y[i] = dy[i] = ddy[i] = math.exp(y[i])
    elif code == SIGMOID:
        for i in range(len(y)):
            y[i] = ONE / (ONE + math.exp(-y[i]))
            dy[i] = y[i] * (ONE - y[i])
            ddy[i] = dy[i] * (ONE - y[i] - y[i])
    elif code == SILU:
        for i in range(len(y)):
            x, s = y[i], ONE / (ONE + math.exp(-y[i]))
            y[i] = x * s
            dy[i] = s + y[i] * (ONE - s)
            ddy[i] = s * (ONE - s) * (TWO + x * (ONE - s - s))


@FAST
def forward(net: MLP, x: np.ndarray) -> Forward:
    """Run an MLP on x [N, I], but for its head; return what the way back needs, a Forward."""
    n = x.shape[0]
    y = np.empty(n * net.sizes[1:].sum(), np.float32)
    dy, ddy = np.empty_like(y), np.empty_like(y)
    start, below = 0, x
    for layer in range(len(net.activations)):
        i, o = net.sizes[layer], net.sizes[layer + 1]
        stop = start + n * o
        above = y[start:stop].reshape(n, o)
        linear(below, at(net.params[2 * layer], o, i), at(net.params[2 * layer + 1], 1, o)[0], above)
        activate(net.activations[layer], y[start:stop], dy[start:stop], ddy[start:stop])
        start, below = stop, above
    return Forward(x, y, dy, ddy)


@FAST
def outputs_of(net: MLP, done: Forward) -> np.ndarray:
    """Return an MLP's outputs [N, C] after `forward`: [z, log_std] with a GaussianHead."""
    n, c = len(done.x), net.sizes[-1]
    z = done.y[len(done.y) - n * c :].reshape(n, c)
    return columns(z, 0, c) if net.head == NO_HEAD else beside(z, at(net.params[-1], 1, c)[0])


@FAST
def outputs(net: MLP, x: np.ndarray) -> np.ndarray:
    """Return an MLP's outputs [N, C] for x [N, I], without what the way back would need."""
    y = x
    for layer in range(len(net.activations)):
        i, o = net.sizes[layer], net.sizes[layer + 1]
        above = np.empty((x.shape[0], o), np.float32)
        linear(y, at(net.params[2 * layer], o, i), at(net.params[2 * layer + 1], 1, o)[0], above)
        flat = above.reshape(-1)
        if net.activations[layer] == TANH:
            y = np.empty_like(above)
            tanh(flat, y.reshape(-1))
        else:
            if net.activations[layer] != IDENTITY:
                dfs = np.empty_like(flat)
                activate(net.activations[layer], flat, dfs, np.empty_like(flat))
            y = above
    return y if net.head == NO_HEAD else beside(y, at(net.params[-1], 1, net.sizes[-1])[0])


@FAST
def read(v: np.ndarray, x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    """W = V'X and b = the sum of V over the samples, for v [N, O], x [N, I] by `pack`."""
    b[:] = ZERO
    product(v.T, x, w)
    for n in range(v.shape[0]):
        for o in range(v.shape[1]):
            b[o] += v[n, o]


@FAST
def read_head(v: np.ndarray, out: np.ndarray) -> None:
    """Fill out [C], a GaussianHead's, with the sum over the samples of the second half of v [N, 2 C]."""
    out[:] = ZERO
    for n in range(v.shape[0]):
        for j in range(len(out)):
            out[j] += v[n, len(out) + j]


@FAST
def reverse(net: Network, done: Forward, g: np.ndarray, d: np.ndarray, curvature: int) -> None:
    """Carry the gradient g and the diagonal d, both [N, C], from a network's outputs back to all its parameters.

    done: of `forward`. curvature: NO_CURVATURE, d is not looked at; WITHOUT_D2F, the terms in f'' are dropped; or
    WITH_D2F. g and d are left as they are.
    """
    mlp, n, second, start = net.mlp, len(done.x), curvature != NO_CURVATURE, len(done.y)
    c = mlp.sizes[-1]
    if mlp.head == GAUSSIAN_HEAD:
        read_head(g, at(net.grads[-1], 1, c)[0])
        if second:
            read_head(d, at(net.curvatures[-1], 1, c)[0])
    g, d = columns(g, 0, c), columns(d if second else d[:0], 0, c)
    for layer in range(len(mlp.activations) - 1, -1, -1):
        i, o = mlp.sizes[layer], mlp.sizes[layer + 1]
        weight, bias = 2 * layer, 2 * layer + 1
        stop, start = start, start - n * o
        if mlp.activations[layer] != IDENTITY:
            flat, df, d2f = g.reshape(-1), done.dy[start:stop], done.ddy[start:stop]
            if second:
                flat_d = d.reshape(-1)
                if curvature == WITH_D2F:
                    for k in range(n * o):
                        flat_d[k] = df[k] * (df[k] * flat_d[k]) + d2f[k] * flat[k]
                else:
                    for k in range(n * o):
                        flat_d[k] = df[k] * (df[k] * flat_d[k])
            for k in range(n * o):
                flat[k] *= df[k]
        below = done.x if layer == 0 else done.y[start - n * i : start].reshape(n, i)
        w, below = at(mlp.params[weight], o, i), pack(below)
        read(g, below, at(net.grads[weight], o, i), at(net.grads[bias], 1, o)[0])
        if second:
            read(d, below * below, at(net.curvatures[weight], o, i), at(net.curvatures[bias], 1, o)[0])
        if layer > 0:
            above, g, w = g, np.empty((n, i), np.float32), pack(w)
            product(above, w, g)
            if second:
                above, d = d, np.empty((n, i), np.float32)
                product(above, w * w, d)
