"""How the loops are compiled, and how they reach memory that torch owns."""

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


EXACT = loops()
FAST = loops("contract", "nsz", "arcp")
FAST_SUMS = loops("contract", "nsz", "arcp", "reassoc")
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


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
def put(a, out, first):
    """Write a [N, C] into out, from the column `first` on. (numba takes seconds to compile a slice's assignment.)"""
    for i in range(len(a)):
        for j in range(a.shape[1]):
            out[i, first + j] = a[i, j]


@FAST
def beside(a, row):
    """Return [a, row] for a [N, C] and a row [C] that is the same for every sample."""
    n, c = a.shape
    out = np.empty((n, 2 * c), np.float32)
    put(a, out, 0)
    for i in range(n):
        for j in range(c):
            out[i, c + j] = row[j]
    return out


@FAST
def columns(a, first, stop):
    """Return a copy of these columns of a [N, C]."""
    out = np.empty((len(a), stop - first), a.dtype)
    for i in range(len(a)):
        for j in range(stop - first):
            out[i, j] = a[i, first + j]
    return out
