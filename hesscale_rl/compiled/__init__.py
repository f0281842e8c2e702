"""The compiled twin of the tape, for small chains of Linear layers and activations in float32 on the CPU.

`find` recognises what it covers; everything else runs on the tape, which defines the result.
"""

from .chain import Chain, find

__all__ = ["Chain", "find"]
