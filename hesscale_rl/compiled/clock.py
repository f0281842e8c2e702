"""A clock for compiled loops: where a step's time goes. Loops that are given none are compiled without."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import EXACT, or_plain

ACT, PHYSICS, TASK, ACCOUNT, LAST = range(5)  # seconds of each, and when the last of them ended


def new_clock() -> np.ndarray:
    """Return a clock for `tick`: [5] float64."""
    return np.zeros(LAST + 1)


@or_plain(time.monotonic)
@intrinsic
def seconds(context: Any) -> Any:
    """Return what time.monotonic() returns."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32), word.as_pointer()])
        known = builder.module.globals.get("clock_gettime")
        function = known if known is not None else ir.Function(builder.module, kind, "clock_gettime")
        place = builder.alloca(word, 2)
        builder.call(function, [ir.Constant(ir.IntType(32), time.CLOCK_MONOTONIC), place])
        whole, nano = (builder.load(builder.gep(place, [ir.Constant(ir.IntType(32), i)])) for i in range(2))
        double = ir.DoubleType()
        part = builder.fmul(builder.sitofp(nano, double), ir.Constant(double, 1e-9))
        return builder.fadd(builder.sitofp(whole, double), part)

    return types.float64(), generate


@EXACT
def tick(clock: np.ndarray | None, part: int) -> None:
    """Count the time since the last tick as that of a part; clock None: not at all."""
    if clock is not None:
        now = seconds()
        clock[part] += now - clock[LAST]
        clock[LAST] = now


@EXACT
def begin(clock: np.ndarray | None) -> None:
    """Let the time count from now on; clock None: not at all."""
    if clock is not None:
        clock[LAST] = seconds()


def timed(clock: np.ndarray, part: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its time counted as that of a part."""

    def call(*given: Any) -> Any:
        began = time.monotonic()
        try:
            return function(*given)
        finally:
            clock[part] += time.monotonic() - began

    return call
