"""MuJoCo's own functions, by their addresses, and how compiled loops call them."""

import ctypes
from functools import cache
from typing import NamedTuple

import mujoco
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


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
def call(context, function, model, data):
    """Call the function at an address with two pointers, given as addresses too; the GIL is not needed."""

    def generate(target, builder, signature, arguments):
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer]).as_pointer()
        own = [builder.inttoptr(argument, pointer) for argument in arguments[1:]]
        builder.call(builder.inttoptr(arguments[0], kind), own)
        return target.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate
