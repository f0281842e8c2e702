"""The ground truth of a simulated robot: one record of every control cycle, in a file."""

import os

import numpy as np

from hesscale_rl.envs.ur.log import read_records

RECORD = np.dtype(
    [
        ("stamp", "<f8"),  # s
        ("q", "<f8", 6),  # rad
        ("qd", "<f8", 6),  # rad/s
        ("q_target", "<f8", 6),
        ("qd_target", "<f8", 6),
        ("safety_mode", "<i4"),
        ("program_running", "?"),
    ]
)


def read_log(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the cycles in a log as an array of RECORD."""
    return read_records(path, RECORD)
