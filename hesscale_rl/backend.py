"""The one switch between the two ways of computing: by definitions, or by their compiled twins.

A definition is plain Python, numpy or torch. Its compiled twin has its name and its signature, stands in the folder
`fast` beside it, and gives the same result: to the last bit, or to a rounding that a test bounds. Which of them runs
is the backend's to say, for everything in this process:

    "auto"      the compiled twin of everything that has one
    "compiled"  the same; and an agent's update that has none is an error
    "torch"     definitions alone: nothing compiled runs

`hesscale-rl train --backend` sets it for a run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from typing import Any, TypeVar

from .names import BACKENDS

_backend = "auto"
F = TypeVar("F", bound=Callable[..., Any])


def current() -> str:
    """Return the backend: "auto", "compiled" or "torch"."""
    return _backend


def compiles() -> bool:
    """Return whether compiled twins may run."""
    return _backend != "torch"


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Let this be the backend until the block ends; ValueError for one that there is not."""
    global _backend
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: allowed are {', '.join(BACKENDS)}")
    before, _backend = _backend, backend
    try:
        yield
    finally:
        _backend = before


def has_twin(definition: F) -> F:
    """Let calls of a function go to its compiled twin where the backend has one for them.

    The twin returns NotImplemented for what it does not cover; then the definition runs.
    """

    @wraps(definition)
    def either(*args: Any, **kwargs: Any) -> Any:
        if compiles() and (result := twin(either)(*args, **kwargs)) is not NotImplemented:
            return result
        return definition(*args, **kwargs)

    return either  # type: ignore[return-value]


def chosen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a call of `function`, which has a twin for everything, runs now: for loops that call it often."""
    return twin(function) if compiles() else definition(function)


def definition(function: Any) -> Callable[..., Any]:
    """Return the definition of a function that has a twin."""
    return function.__wrapped__


@cache
def twin(function: Any) -> Callable[..., Any]:
    """Return the compiled twin of a function that has one, once the loops are in the cache."""
    from .compiled.cache import ready

    ready()
    package, _, module = function.__module__.rpartition(".")
    return getattr(import_module(f"{package}.fast.{module}"), function.__name__)
