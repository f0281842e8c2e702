"""The loops under the compiled twin: activations, and one pass forward and one back through a chain, by numba.

They are for the small networks of reinforcement learning, where calling torch costs more than the arithmetic. Every
loop runs along the last axis, so that the compiler turns it into vector instructions.
"""

import math

import numpy as np

from ..jit import FAST, ONE, TWO, ZERO, at, columns
from .matmul import linear, pack, product

IDENTITY, TANH, RELU, SIGMOID, SILU, EXP = range(6)  # codes of the activations


@FAST
def tanh(x, y):
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
def activate(code, y, dy, ddy):
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
def forward(params, sizes, codes, x):
    """Run the chain on x [N, sizes[0]]; return y, dy and ddy, flat: every layer's [N, O_l] one after the other.

    params [L, 2]: the addresses of every layer's weight [O, I] and bias [O].
    """
    n = x.shape[0]
    y = np.empty(n * sizes[1:].sum(), np.float32)
    dy, ddy = np.empty_like(y), np.empty_like(y)
    start, below = 0, x
    for layer in range(len(codes)):
        i, o = sizes[layer], sizes[layer + 1]
        stop = start + n * o
        above = y[start:stop].reshape(n, o)
        linear(below, at(params[layer, 0], o, i), at(params[layer, 1], 1, o)[0], above)
        activate(codes[layer], y[start:stop], dy[start:stop], ddy[start:stop])
        start, below = stop, above
    return y, dy, ddy


@FAST
def outputs(params, sizes, codes, x):
    """Return the chain's outputs [N, sizes[-1]] for x [N, sizes[0]], without what the way back would need."""
    y = x
    for layer in range(len(codes)):
        i, o = sizes[layer], sizes[layer + 1]
        above = np.empty((x.shape[0], o), np.float32)
        linear(y, at(params[layer, 0], o, i), at(params[layer, 1], 1, o)[0], above)
        flat = above.reshape(-1)
        if codes[layer] == TANH:
            y = np.empty_like(above)
            tanh(flat, y.reshape(-1))
        else:
            if codes[layer] != IDENTITY:
                dfs = np.empty_like(flat)
                activate(codes[layer], flat, dfs, np.empty_like(flat))
            y = above
    return y


@FAST
def read(v, x, w, b):
    """W = V'X and b = the sum of V over the samples, for v [N, O], x [N, I] by `pack`."""
    b[:] = ZERO
    product(v.T, x, w)
    for n in range(v.shape[0]):
        for o in range(v.shape[1]):
            b[o] += v[n, o]


@FAST
def reverse(params, sizes, codes, x, y, dy, ddy, g, d, use_d2f, grads, curvatures):
    """Carry the gradient g and the diagonal d, both [N, sizes[-1]], back through the chain.

    Fills what `grads` and `curvatures` point to, as `params` does. An empty d asks for the gradient alone; without
    `bends` the terms in f'' are dropped (HesScaleGN). g and d are left as they are.
    """
    n, second, start = x.shape[0], d.size > 0, len(y)
    g, d = columns(g, 0, g.shape[1]), columns(d, 0, d.shape[1])
    for layer in range(len(codes) - 1, -1, -1):
        i, o = sizes[layer], sizes[layer + 1]
        stop, start = start, start - n * o
        if codes[layer] != IDENTITY:
            flat, df, d2f = g.reshape(-1), dy[start:stop], ddy[start:stop]
            if second:
                flat_d = d.reshape(-1)
                if use_d2f:
                    for k in range(n * o):
                        flat_d[k] = df[k] * (df[k] * flat_d[k]) + d2f[k] * flat[k]
                else:
                    for k in range(n * o):
                        flat_d[k] = df[k] * (df[k] * flat_d[k])
            for k in range(n * o):
                flat[k] *= df[k]
        below = x if layer == 0 else y[start - n * i : start].reshape(n, i)
        w, below = at(params[layer, 0], o, i), pack(below)
        read(g, below, at(grads[layer, 0], o, i), at(grads[layer, 1], 1, o)[0])
        if second:
            read(d, below * below, at(curvatures[layer, 0], o, i), at(curvatures[layer, 1], 1, o)[0])
        if layer > 0:
            above, g, w = g, np.empty((n, i), np.float32), pack(w)
            product(above, w, g)
            if second:
                above, d = d, np.empty((n, i), np.float32)
                product(above, w * w, d)
