"""The ground truth of a simulated robot: one record of every control cycle, in a file."""

import os

import numpy as np

from hesscale_rl.envs.ur.arms import JOINTS
from hesscale_rl.envs.ur.log import read_records

RECORD = np.dtype(
    [
        ("stamp", "<f8"),  # s
        ("q", "<f8", JOINTS),  # rad
        ("qd", "<f8", JOINTS),  # rad/s
        ("q_target", "<f8", JOINTS),
        ("qd_target", "<f8", JOINTS),
        ("safety_mode", "<i4"),
        ("program_running", "?"),
    ]
)


def read_log(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the cycles in a log as an array of RECORD."""
    return read_records(path, RECORD)
