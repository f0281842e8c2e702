"""The compiled twin of the tape, for small MLPs, Linear layers and activations in float32 on the CPU.

`find` recognises what it covers; everything else runs on the tape, which defines the result. The loops are compiled
before they are first needed and kept in a cache (cache.py). Torch is imported with the first of these names, so that
what only wants a compiled loop does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import kernels
    from .mlp import ACTIVATIONS, FastMLP, find, function

__all__ = ["ACTIVATIONS", "FastMLP", "find", "function", "kernels"]


def __getattr__(name: str) -> Any:
    if name == "kernels":
        return import_module(f".{name}", __name__)
    if name in __all__:
        return getattr(import_module(".mlp", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
