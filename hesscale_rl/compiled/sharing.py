"""Loops of several threads that share tasks: numbers that only one of them gets, and waiting for the others."""

import ctypes
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import FAST, or_plain

WORD = ir.IntType(64)
LINE = 8  # int64 in a cache line: what different threads write lies apart


def _integer(address: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(int(address))


def _fetch_add(address: int, amount: int) -> int:
    before = _integer(address).value
    _integer(address).value = before + amount
    return before


def _store(address: int, value: int) -> None:
    _integer(address).value = value


@or_plain(_fetch_add)
@intrinsic
def fetch_add(context: Any, address: Any, amount: Any) -> Any:
    """Add to the int64 at an address; return what it was before. No other thread comes in between."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(arguments[0], WORD.as_pointer()), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@or_plain(lambda address: _integer(address).value)
@intrinsic
def load(context: Any, address: Any) -> Any:
    """Return the int64 at an address; what its writer wrote before is seen from here on."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], WORD.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@or_plain(_store)
@intrinsic
def store(context: Any, address: Any, value: Any) -> Any:
    """Write the int64 at an address; who reads it sees what was written before."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], builder.inttoptr(arguments[0], WORD.as_pointer()), "release", 8)
        return target.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@or_plain(lambda: None)
@intrinsic
def give_way(context: Any) -> Any:
    """Let the processor do something else, if there is anything."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        module = builder.module
        known = module.globals.get("sched_yield")
        builder.call(known if known is not None else ir.Function(module, kind, "sched_yield"), [])
        return target.get_dummy_value()

    return types.void(), generate


@FAST
def wait(address: int, least: int) -> None:
    """Return when the int64 at an address is at least so large."""
    while load(address) < least:
        for _ in range(100):  # on a core of its own the other thread is soon done
            if load(address) >= least:
                return
        give_way()
