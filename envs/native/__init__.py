"""Gymnasium's MuJoCo tasks stepped by compiled loops: the environment stays Gymnasium's, to the last bit.

The loops call MuJoCo's own functions (library.py) with the environment's own model and data, and then say what the
environment's `step` would have: its observation, its reward and whether it terminated (tasks.py), in NumPy's order of
rounding (arithmetic.py); the steps between the ends of a rollout's episodes are one call (rollout.py). Resetting,
rendering, saving and resuming know nothing of it. Where the same numbers are not sure, the environment steps itself
(finding.py, proof.py).
"""

from .finding import find
from .stepping import NativeStep

__all__ = ["NativeStep", "find"]
