"""The loops under the compiled twin: products and activations of float32 matrices, by numba.

They are for the small networks of reinforcement learning, where calling torch costs more than the arithmetic; from
a width of about 200 on, torch's own products are faster. Every loop runs along the last axis and reads several rows
at once, so that the compiler turns it into vector instructions. No order of summation depends on the machine's load:
the same numbers come out every time.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic


def loops(*liberties: str) -> Callable[[Callable], Any]:
    """Return the decorator that compiles a function, kept in __pycache__, with these liberties in the arithmetic.

    contract: a*b + c may become one instruction. nsz, arcp: signs of zeros and a/b = a*(1/b) do not matter. reassoc:
    sums may be split into lanes.
    """

    def compiled(function: Callable) -> Any:
        how = dict(nogil=True, error_model="numpy", fastmath=set(liberties))
        try:
            return numba.njit(cache=True, **how)(function)  # type: ignore[call-overload]
        except RuntimeError:  # no folder to keep it in can be written to
            return numba.njit(**how)(function)  # type: ignore[call-overload]

    return compiled


FAST = loops("contract", "nsz", "arcp")
FAST_SUMS = loops("contract", "nsz", "arcp", "reassoc")
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)

IDENTITY, TANH, RELU, SIGMOID, SILU, EXP = range(6)  # codes of the activations


@FAST
def add_product(a, b, c):
    """C += A B for A [M, K] of any strides, B [K, N] and C [M, N] in rows: two rows of A by four of B at a time."""
    m_all, k_all = a.shape
    n_all = b.shape[1]
    m_even, k_four = m_all - m_all % 2, k_all - k_all % 4
    for m in range(0, m_even, 2):
        c0, c1 = c[m], c[m + 1]
        for k in range(0, k_four, 4):
            p0, p1, p2, p3 = a[m, k], a[m, k + 1], a[m, k + 2], a[m, k + 3]
            q0, q1, q2, q3 = a[m + 1, k], a[m + 1, k + 1], a[m + 1, k + 2], a[m + 1, k + 3]
            b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
            for n in range(n_all):
                c0[n] += p0 * b0[n] + p1 * b1[n] + p2 * b2[n] + p3 * b3[n]
                c1[n] += q0 * b0[n] + q1 * b1[n] + q2 * b2[n] + q3 * b3[n]
        for k in range(k_four, k_all):
            p0, q0, b0 = a[m, k], a[m + 1, k], b[k]
            for n in range(n_all):
                c0[n] += p0 * b0[n]
                c1[n] += q0 * b0[n]
    for m in range(m_even, m_all):
        c0 = c[m]
        for k in range(0, k_four, 4):
            p0, p1, p2, p3 = a[m, k], a[m, k + 1], a[m, k + 2], a[m, k + 3]
            b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
            for n in range(n_all):
                c0[n] += p0 * b0[n] + p1 * b1[n] + p2 * b2[n] + p3 * b3[n]
        for k in range(k_four, k_all):
            p0, b0 = a[m, k], b[k]
            for n in range(n_all):
                c0[n] += p0 * b0[n]


@FAST_SUMS
def linear(x, w, b, y):
    """Y = X W' + b for x [N, I], w [O, I], b [O], y [N, O]: four samples at a time, sums split into lanes."""
    n_four = len(x) - len(x) % 4
    for n in range(0, n_four, 4):
        x0, x1, x2, x3 = x[n], x[n + 1], x[n + 2], x[n + 3]
        for o in range(len(w)):
            row, s0, s1, s2, s3 = w[o], ZERO, ZERO, ZERO, ZERO
            for i in range(len(row)):
                s0 += x0[i] * row[i]
                s1 += x1[i] * row[i]
                s2 += x2[i] * row[i]
                s3 += x3[i] * row[i]
            y[n, o], y[n + 1, o], y[n + 2, o], y[n + 3, o] = s0 + b[o], s1 + b[o], s2 + b[o], s3 + b[o]
    for n in range(n_four, len(x)):
        x0 = x[n]
        for o in range(len(w)):
            row, s0 = w[o], ZERO
            for i in range(len(row)):
                s0 += x0[i] * row[i]
            y[n, o] = s0 + b[o]


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
    """Replace y (flat) by f(y), and fill dy and ddy with f' and f''. Same forms as rules.py."""
    if code == TANH:
        tanh(y, dy)  # not into y itself: a loop that writes where it reads is not vectorised
        for i in range(len(y)):
            t = dy[i]
            slope = ONE - t * t
            y[i], dy[i], ddy[i] = t, slope, -(t + t) * slope
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


@intrinsic
def _pointer(context, address):
    """The address, an integer, as a pointer to float32."""
    kind = types.CPointer(types.float32)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(address), generate


@FAST
def at(address, rows, columns):
    """The [rows, columns] floats that begin at the address; whoever gave it keeps them alive."""
    return numba.carray(_pointer(address), (rows, columns))  # type: ignore[call-arg]


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
                slopes = np.empty_like(flat)
                activate(codes[layer], flat, slopes, np.empty_like(flat))
            y = above
    return y


@FAST
def _read(v, x, w, b):
    """W = V'X and b = the sum of V over the samples, for v [N, O], x [N, I]."""
    w[:] = ZERO
    b[:] = ZERO
    add_product(v.T, x, w)
    for n in range(v.shape[0]):
        for o in range(v.shape[1]):
            b[o] += v[n, o]


@FAST
def reverse(params, sizes, codes, x, y, dy, ddy, g, d, bends, grads, curvatures):
    """Carry the gradient g and the diagonal d, both [N, sizes[-1]], back through the chain.

    Fills what `grads` and `curvatures` point to, as `params` does. An empty d asks for the gradient alone; without
    `bends` the terms in f'' are dropped (HesScaleGN). g and d are left as they are.
    """
    n, second, start = x.shape[0], d.size > 0, len(y)
    g, d = g.copy(), d.copy()
    for layer in range(len(codes) - 1, -1, -1):
        i, o = sizes[layer], sizes[layer + 1]
        stop, start = start, start - n * o
        if codes[layer] != IDENTITY:
            flat, slope, bend = g.reshape(-1), dy[start:stop], ddy[start:stop]
            if second:
                flat_d = d.reshape(-1)
                if bends:
                    for k in range(n * o):
                        flat_d[k] = slope[k] * (slope[k] * flat_d[k]) + bend[k] * flat[k]
                else:
                    for k in range(n * o):
                        flat_d[k] = slope[k] * (slope[k] * flat_d[k])
            for k in range(n * o):
                flat[k] *= slope[k]
        below = x if layer == 0 else y[start - n * i : start].reshape(n, i)
        w = at(params[layer, 0], o, i)
        _read(g, below, at(grads[layer, 0], o, i), at(grads[layer, 1], 1, o)[0])
        if second:
            _read(d, below * below, at(curvatures[layer, 0], o, i), at(curvatures[layer, 1], 1, o)[0])
        if layer > 0:
            above, g = g, np.zeros((n, i), np.float32)
            add_product(above, w, g)
            if second:
                above, d = d, np.zeros((n, i), np.float32)
                add_product(above, w * w, d)
