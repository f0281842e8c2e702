"""NumPy's arithmetic as its functions round it: the order of sums, what a NaN becomes, where BLAS fuses.

float32 arrays are summed in float32. Where another NumPy, or another processor, rounds otherwise, proof.py notices.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from hesscale_rl.jit import EXACT


@intrinsic
def fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a*b + c with one rounding."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), generate


@EXACT
def clip(x: float, low: float, high: float) -> float:
    """np.clip of one number: a NaN stays one."""
    y = x if x > low or x != x else low
    return y if y < high or y != y else high


@EXACT
def sum_of_squares(a: np.ndarray) -> float:
    """np.sum(np.square(a)) of at most 128 numbers: eight sums side by side, joined in pairs."""
    n = len(a)
    if n < 8:
        total = a[0] * a[0]
        for i in range(1, n):
            total += a[i] * a[i]
        return total
    part = a[:8] * a[:8]
    whole = n - n % 8
    for i in range(8, whole, 8):
        for k in range(8):
            part[k] += a[i + k] * a[i + k]
    total = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]))
    for i in range(whole, n):
        total += a[i] * a[i]
    return total


@EXACT
def distance(a: np.ndarray, b: np.ndarray) -> float:
    """np.linalg.norm(a - b) of points [3]: BLAS adds up the squares with one rounding each."""
    x, y, z = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return math.sqrt(fma(z, z, fma(y, y, x * x)))  # type: ignore[call-arg]
