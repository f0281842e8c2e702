"""MuJoCo's own functions and memory, by their addresses, and how compiled loops reach them."""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import mujoco
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hesscale_rl.jit import EXACT


class Library(NamedTuple):
    """Addresses of MuJoCo's functions of (model, data): a step, and the forces that a step leaves out."""

    mj_step: int
    mj_rnePostConstraint: int


@cache
def library() -> Library | None:
    """Return where the functions are that the Python package itself calls, or None if they cannot be found."""
    try:
        loaded = ctypes.CDLL(mujoco._functions.__file__)  # a search in it goes on in the libraries that it needs
        addresses = (ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in Library._fields)
        return Library(*(int(address) for address in addresses if address))
    except (AttributeError, OSError, TypeError):
        return None


@intrinsic
def call(context: Any, function: Any, model: Any, data: Any) -> Any:
    """Call the function at an address with two pointers, given as addresses too; the GIL is not needed."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer]).as_pointer()
        own = [builder.inttoptr(argument, pointer) for argument in arguments[1:]]
        builder.call(builder.inttoptr(arguments[0], kind), own)
        return target.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def _doubles(context: Any, address: Any) -> Any:
    """The address as a pointer to float64."""
    kind = types.CPointer(types.float64)

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], target.get_value_type(kind))

    return kind(types.intp), generate


@EXACT
def numbers(address: int, n: int) -> np.ndarray:
    """The n numbers at an address."""
    return numba.carray(_doubles(address), (n,))  # type: ignore[call-arg]


@EXACT
def points(address: int, n: int) -> np.ndarray:
    """The n points [n, 3] at an address."""
    return numba.carray(_doubles(address), (n, 3))  # type: ignore[call-arg]
