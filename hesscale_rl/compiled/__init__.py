"""The compiled twin of the tape, for small chains of Linear layers and activations in float32 on the CPU.

`find` recognises what it covers; everything else runs on the tape, which defines the result. The loops are compiled
when they are first called and kept in __pycache__; the wait is announced.
"""

import sys

from numba.core import event

from . import kernels, running
from .chain import ACTIVATIONS, Chain, find, function


class _Announcement(event.Listener):
    """One line on stderr when the first of our loops has to be compiled."""

    made = False

    def on_start(self, event: event.Event) -> None:
        ours = event.data["dispatcher"].py_func.__module__.startswith(__name__)
        if ours and not self.made:
            self.made = True
            print("hesscale_rl: compiling its loops, once for this installation (about 10 s)", file=sys.stderr)

    def on_end(self, event: event.Event) -> None:
        pass


event.register("numba:compile", _Announcement())

__all__ = ["ACTIVATIONS", "Chain", "find", "function", "kernels", "running"]
