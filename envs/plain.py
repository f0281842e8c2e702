"""An environment's state as a checkpoint can hold it, and back: every value comes back as it was, or is refused.

A checkpoint holds tensors, numbers, text and containers of them, and is read without running code. Arrays become
tensors; what else is allowed and has no place there becomes a dict with the key MARK.
"""

import collections
import dataclasses
import datetime
import decimal
import enum
import pathlib
from typing import Any

import numpy as np
import torch

MARK = "hesscale_rl"
DEEPEST = 100  # containers in each other: more is one that contains itself
SIMPLE = (type(None), bool, int, float, complex, str, bytes)
ALLOWED = "None, bool, int, float, complex, str, bytes, NumPy's arrays and numbers, and list, tuple and dict of them"
# What to save in place of a value, by its type; the first that fits.
INSTEAD: list[tuple[Any, str]] = [
    (enum.Enum, "its .value"),
    (np.random.Generator, "its .bit_generator.state"),
    (np.ma.MaskedArray, "its .data and .mask"),
    (np.ndarray, "np.asarray(...) of it"),
    (torch.Tensor, "its .numpy()"),
    (pathlib.PurePath, "str(...) of it"),
    ((datetime.date, datetime.time), "its .isoformat()"),
    ((np.datetime64, np.timedelta64), "str(...) of it"),
    (datetime.timedelta, "its .total_seconds()"),
    (decimal.Decimal, "str(...) of it"),
    ((set, frozenset), "sorted(...) of it"),
    (dict, "dict(...) of it"),
    (tuple, "tuple(...) of it"),
    ((list, range, collections.deque), "list(...) of it"),
    ((str, bytes, int, float, complex), "the plain value"),
]


class NotPlain(Exception):
    """A value that would not come back the same. One line: where it is, what it is, and what is allowed."""


def to_plain(value: Any, place: str, depth: int = 0) -> Any:
    """Return a value as a checkpoint can hold it; NotPlain, with its `place`, if it would come back as another."""
    kind = type(value)
    if depth > DEEPEST:
        raise NotPlain(f"{place} is {DEEPEST} containers deep")
    if kind in SIMPLE:
        return value
    if kind is np.ndarray:
        return _tensor(value, place)
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return {MARK: "number", "value": _tensor(np.array(value), place)}
    if kind in (list, tuple):
        return kind(to_plain(item, f"{place}[{i}]", depth + 1) for i, item in enumerate(value))
    if kind is dict:
        for key in value:
            if type(key) not in SIMPLE or key == MARK:
                raise NotPlain(
                    f"{place} has the key {key!r:.80}; allowed are {', '.join(k.__name__ for k in SIMPLE)}"
                )
        return {key: to_plain(item, f"{place}[{key!r}]", depth + 1) for key, item in value.items()}
    raise NotPlain(_refusal(value, place))


def from_plain(value: Any) -> Any:
    """The way back, from what `to_plain` returned."""
    if isinstance(value, torch.Tensor):
        return value.numpy().copy()
    if isinstance(value, tuple | list):
        return type(value)(map(from_plain, value))
    if isinstance(value, dict):
        if MARK in value:
            return value["value"].numpy()[()]
        return {key: from_plain(item) for key, item in value.items()}
    return value


def _tensor(array: np.ndarray, place: str) -> torch.Tensor:
    """An array as a tensor, which keeps its precision in a file that needs no pickle."""
    try:
        return torch.from_numpy(array.copy())
    except (TypeError, ValueError):  # text, objects, long doubles, another byte order
        raise NotPlain(
            f"{place} is an array of {array.dtype}; save one of numbers, in this machine's order"
        ) from None


def _refusal(value: Any, place: str) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    instead = next((way for other, way in INSTEAD if isinstance(value, other)), "")
    if not instead and dataclasses.is_dataclass(value):
        instead = "dataclasses.asdict(...) of it"
    return f"{place} is a {name}; " + (f"save {instead}" if instead else f"allowed are {ALLOWED}")
