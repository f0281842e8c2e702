"""How the loops are compiled and kept, and how they reach memory that torch owns."""

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserWideCacheLocator
from numba.extending import intrinsic
from numba.misc.appdirs import AppDirs

PACKAGE = Path(__file__).parent
FOLDERS = (PACKAGE, PACKAGE / "envs")  # the latter may be a link, which rglob does not follow
RECORDS = "records.py"  # where NamedTuples and codes of compiled functions stand, if not in the same file
PLAIN = bool(numba.config.DISABLE_JIT)  # type: ignore[attr-defined]  # NUMBA_DISABLE_JIT=1, to debug: all is Python


def plain(record: tuple) -> tuple:
    """Return a record as nested tuples without names.

    numba looks up the type of each NamedTuple at every call from Python, a microsecond apiece, and of tuples in a
    tenth of it. What is called at every step takes these, and makes records of them inside.
    """
    return tuple(plain(value) if isinstance(value, tuple) else value for value in record)


def has_loops(path: Path, text: bytes) -> bool:
    """Return whether a file's text becomes machine code: its loops, intrinsics, or the records that they take."""
    return path.name == RECORDS or b"jit import" in text or b"import intrinsic" in text


@cache
def sources(beside: Path | None = None) -> str:
    """Return one stamp over the text of every file of compiled functions, and of what they have constants from.

    `beside`: a folder of a user's own with such files, an optimizer's kernel perhaps.
    """
    paths = sorted({path for folder in FOLDERS for path in folder.rglob("*.py")})
    paths += [] if beside is None else sorted(beside.glob("*.py"))
    texts = (path.read_bytes() for path in paths)
    covered = (text for path, text in zip(paths, texts, strict=True) if has_loops(path, text))
    return hashlib.sha256(b"\n".join(covered)).hexdigest()[:12]


def _foreign_folder(function: Callable) -> Path | None:
    """Where a function stands that is not the library's."""
    folder = Path(function.__code__.co_filename).resolve().parent
    ours = any(folder.is_relative_to(own.resolve()) for own in FOLDERS)
    return None if ours else folder


class UsersFolder(UserWideCacheLocator):
    """The user's cache folder, where there is one: without HOME and an account, numba would make one named ~ here."""

    @classmethod
    def from_function(cls, function: Callable, path: str) -> Any:
        """Return the folder for a function's machine code, or None."""
        known = os.path.isabs(AppDirs(appname="numba", appauthor=False).user_cache_dir)
        return super().from_function(function, path) if known else None


class _CacheFiles(CompileResultCacheImpl):
    """Where numba keeps machine code; stale as soon as any of our sources changes.

    numba itself looks at the file of the function alone: an edit to a function that it calls, or to a constant that
    it has from another module, would go on running as it was, in a robot's guard too.
    """

    _locator_classes = [
        UsersFolder if kind is UserWideCacheLocator else kind for kind in CompileResultCacheImpl._locator_classes
    ]

    def __init__(self, function: Callable):
        super().__init__(function)
        self.locator.get_source_stamp = partial(sources, _foreign_folder(function))


class _Cache(FunctionCache):
    _impl_class = _CacheFiles

    def __init__(self, function: Callable):
        super().__init__(function)
        # numba reads an index of its own version before it looks at the stamp, and fails where a class in it is gone.
        self._cache_file._version += f" {self._cache_file._source_stamp}"


def loops(*liberties: str) -> Callable[[Callable], Any]:
    """Return the decorator that compiles a function, kept in __pycache__, with these liberties in the arithmetic.

    contract: a*b + c may become one instruction. nsz, arcp: signs of zeros and a/b = a*(1/b) do not matter. reassoc:
    sums may be split into lanes.
    """

    def compiled(function: Callable) -> Any:
        if PLAIN:
            return np.errstate(all="ignore")(function)  # as compiled code, which warns of nothing
        dispatcher: Any = numba.njit(nogil=True, error_model="numpy", fastmath=set(liberties))(function)
        with contextlib.suppress(RuntimeError):  # no folder to keep it in can be written to
            dispatcher._cache = _Cache(function)
        return dispatcher

    return compiled


def or_plain(python: Callable) -> Callable[[Any], Any]:
    """Return the decorator for a function that only a compiler understands: `python` stands for it without one."""
    return lambda compiled: python if PLAIN else compiled


EXACT = loops()
FAST = loops("contract", "nsz", "arcp")
FAST_SUMS = loops("contract", "nsz", "arcp", "reassoc")
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    """The address, an integer, as a pointer to float32."""
    kind = types.CPointer(types.float32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(address), generate


def _at(address: int, rows: int, columns: int) -> np.ndarray:
    floats: Any = (ctypes.c_float * (rows * columns)).from_address(int(address))
    return np.frombuffer(floats, np.float32).reshape(rows, columns)


@or_plain(_at)
@FAST
def at(address: int, rows: int, columns: int) -> np.ndarray:
    """The [rows, columns] floats that begin at the address; whoever gave it keeps them alive."""
    return numba.carray(_pointer(address), (rows, columns))  # type: ignore[call-arg]


def calling(signature: Any) -> Any:
    """Return call(address, arguments): what the compiled function of that signature, which begins there, returns.

    So a loop calls a function that it does not know when it is compiled. Without a compiler the function itself takes
    the place of its address.
    """

    @intrinsic
    def call(context: Any, address: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, given: Any) -> Any:
            values = [context.get_value_type(kind) for kind in signature.args]
            result = context.get_value_type(signature.return_type)
            function = builder.inttoptr(given[0], ir.FunctionType(result, values).as_pointer())
            return builder.call(function, [builder.extract_value(given[1], i) for i in range(len(values))])

        return signature.return_type(address, types.Tuple(signature.args)), generate

    return or_plain(lambda function, arguments: function(*arguments))(call)


@FAST
def put(a: np.ndarray, out: np.ndarray, first: int) -> None:
    """Write a [N, C] into out, from the column `first` on. (numba takes seconds to compile a slice's assignment.)"""
    for i in range(len(a)):
        for j in range(a.shape[1]):
            out[i, first + j] = a[i, j]


@FAST
def beside(a: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return [a, row] for a [N, C] and a row [C] that is the same for every sample."""
    n, c = a.shape
    out = np.empty((n, 2 * c), np.float32)
    put(a, out, 0)
    for i in range(n):
        for j in range(c):
            out[i, c + j] = row[j]
    return out


@FAST
def columns(a: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Return a copy of these columns of a [N, C]."""
    out = np.empty((len(a), stop - first), a.dtype)
    for i in range(len(a)):
        for j in range(stop - first):
            out[i, j] = a[i, first + j]
    return out
