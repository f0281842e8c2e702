"""The compiled twin of the tape, for small chains of Linear layers and activations in float32 on the CPU.

`find` recognises what it covers; everything else runs on the tape, which defines the result. The loops are compiled
before they are first needed and kept in a cache (warm.py).
"""

from . import kernels, running
from .chain import ACTIVATIONS, Chain, find, function

__all__ = ["ACTIVATIONS", "Chain", "find", "function", "kernels", "running"]
