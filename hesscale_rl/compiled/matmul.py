"""Products of small float32 matrices, several times as fast as calling a BLAS for each.

The inner loop is written in the compiler's own language: a tile of C, 4 rows by 16 columns, stays in vector registers
while the loop runs over K. No order of summation depends on the machine's load: the same numbers come out every time.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import FAST, FAST_SUMS, ZERO, or_plain, put

ROWS, LANES = 4, 16  # 8 sums in 256-bit registers: enough to hide the latency of their additions


@intrinsic
def _tile(context: Any, a: Any, b: Any, c: Any, k: Any) -> Any:
    """C = A B for A [4, K], B [K, 16] and C [4, 16]; K at least 1.

    Each is its address, and the bytes from one row to the next; A has as third those from one column to the next.
    """
    float32, word = ir.FloatType(), ir.IntType(64)
    vector, first = ir.VectorType(float32, LANES), ir.Constant(ir.IntType(32), 0)
    none = ir.Constant(vector, ir.Undefined)
    spread = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (a, row, step), (b, b_row), (c, c_row) = (
            [builder.extract_value(matrix, i) for i in range(matrix.type.count)] for matrix in arguments[:3]
        )
        k = arguments[3]

        def load(address: Any, kind: Any) -> Any:
            value = builder.load(builder.inttoptr(address, kind.as_pointer()))
            value.align = 4
            return value

        before = builder.block
        loop, after = builder.append_basic_block("k"), builder.append_basic_block("store")
        builder.branch(loop)
        builder.position_at_end(loop)
        count, pa, pb = (builder.phi(word) for _ in range(3))
        sums = [builder.phi(vector) for _ in range(ROWS)]
        columns, address, new = load(pb, vector), pa, []
        for total in sums:
            one = builder.insert_element(none, load(address, float32), first)
            term = builder.fmul(builder.shuffle_vector(one, none, spread), columns, flags=("contract",))
            new.append(builder.fadd(total, term, flags=("contract",)))
            address = builder.add(address, row)
        left = builder.sub(count, ir.Constant(word, 1))
        for phi, start, following in (
            (count, k, left),
            (pa, a, builder.add(pa, step)),
            (pb, b, builder.add(pb, b_row)),
            *((total, ir.Constant(vector, [0.0] * LANES), value) for total, value in zip(sums, new, strict=True)),
        ):
            phi.add_incoming(start, before)
            phi.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed(">", left, ir.Constant(word, 0)), loop, after)
        builder.position_at_end(after)
        for value in new:
            builder.store(value, builder.inttoptr(c, vector.as_pointer())).align = 4
            c = builder.add(c, c_row)
        return context.get_dummy_value()

    pair, triple = (types.UniTuple(types.int64, count) for count in (2, 3))
    return types.void(triple, pair, pair, types.int64), generate


@FAST
def padded(columns: int) -> int:
    """The next multiple of the tile's width."""
    return (columns + LANES - 1) // LANES * LANES


@FAST
def pack(b: np.ndarray) -> np.ndarray:
    """Return B [K, N] in rows as `product` reads them: B itself, or a copy whose rows are filled up with zeros."""
    k, n = b.shape
    if n % LANES == 0:
        return b
    out = np.zeros((k, padded(n)), np.float32)
    put(b, out, 0)
    return out


@FAST
def transposed(w: np.ndarray) -> np.ndarray:
    """Return W' for W [O, I], with rows as `product` reads them."""
    o_all, i_all = w.shape
    width = padded(o_all)
    out = np.zeros((i_all, width), np.float32) if width > o_all else np.empty((i_all, width), np.float32)
    for start in range(0, o_all, 8):  # eight rows at a time: the writes then share cache lines
        for i in range(i_all):
            for o in range(start, min(start + 8, o_all)):
                out[i, o] = w[o, i]
    return out


def _product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    c[:] = a @ b[:, : c.shape[1]]


@or_plain(_product)
@FAST
def product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    """C = A B for A [M, K] of any strides, B [K, N] by `pack` or `transposed`, C [M, N] in rows."""
    m_all, k = a.shape
    n_all, m_four = c.shape[1], m_all - m_all % ROWS
    row, step, b_row, c_row = a.strides[0], a.strides[1], b.strides[0], c.strides[0]
    at_a, at_b, at_c = a.ctypes.data, b.ctypes.data, c.ctypes.data
    edge = np.empty((ROWS, LANES), np.float32)
    for n in range(0, n_all, LANES):
        width = min(LANES, n_all - n)
        for m in range(0, m_four, ROWS):
            rows = at_a + m * row, row, step
            if width == LANES:
                _tile(rows, (at_b + 4 * n, b_row), (at_c + m * c_row + 4 * n, c_row), k)  # type: ignore[call-arg]
            else:
                _tile(rows, (at_b + 4 * n, b_row), (edge.ctypes.data, 4 * LANES), k)  # type: ignore[call-arg]
                for i in range(ROWS):
                    for j in range(width):
                        c[m + i, n + j] = edge[i, j]
    for m in range(m_four, m_all):
        c0 = c[m]
        c0[:] = ZERO
        for i in range(k):
            p, b0 = a[m, i], b[i]
            for n in range(n_all):
                c0[n] += p * b0[n]


@FAST_SUMS
def _few_rows(x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray) -> None:
    """Y = X W' + b for few rows x [N, I]: sums along I, split into lanes, for four samples at a time."""
    four = len(x) - len(x) % 4
    for n in range(0, four, 4):
        x0, x1, x2, x3 = x[n], x[n + 1], x[n + 2], x[n + 3]
        for o in range(len(w)):
            row, s0, s1, s2, s3 = w[o], ZERO, ZERO, ZERO, ZERO
            for i in range(len(row)):
                s0 += x0[i] * row[i]
                s1 += x1[i] * row[i]
                s2 += x2[i] * row[i]
                s3 += x3[i] * row[i]
            y[n, o], y[n + 1, o], y[n + 2, o], y[n + 3, o] = s0 + b[o], s1 + b[o], s2 + b[o], s3 + b[o]
    for n in range(four, len(x)):
        x0 = x[n]
        for o in range(len(w)):
            row, s0 = w[o], ZERO
            for i in range(len(row)):
                s0 += x0[i] * row[i]
            y[n, o] = s0 + b[o]


@FAST
def linear(x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray) -> None:
    """Y = X W' + b for x [N, I], w [O, I], b [O], y [N, O]."""
    # Turning w around pays for many samples, and for more than a few outputs.
    if len(x) < 16 or len(w) < 4:
        _few_rows(x, w, b, y)
        return
    product(x, transposed(w), y)
    for n in range(len(x)):
        row = y[n]
        for o in range(len(row)):
            row[o] += b[o]
