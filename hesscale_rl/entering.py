"""Torch's functions that are written in Python, so that a mode sees what they call and not the call itself."""

from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any

_ENTERED: dict[Any, Callable[..., Any]] = {}


def entered(func: Any) -> Callable[..., Any]:
    """Return the function without its question whether somebody overrides it; those it chooses from too."""
    if func not in _ENTERED:
        cells = tuple(
            CellType(entered(cell.cell_contents)) if isinstance(cell.cell_contents, FunctionType) else cell
            for cell in func.__closure__ or ()
        )
        own = {name: _never for name in func.__globals__ if name.startswith("has_torch_function")}
        inner = FunctionType(func.__code__, func.__globals__ | own, func.__name__, func.__defaults__, cells or None)
        inner.__kwdefaults__ = func.__kwdefaults__
        _ENTERED[func] = inner
    return _ENTERED[func]


def _never(*args: Any) -> bool:
    return False
