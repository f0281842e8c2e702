"""What the policy's process and the one that talks to the robot (rtde.py) share, and what is logged of it."""

import numpy as np

# `sequence` is odd while the rest is being written.
STATE = np.dtype(
    [("sequence", "<i8"), ("stamp", "<f8"), ("status", "<i8"), ("overrides", "<i8", 4)]
    + [(name, "<f8", 6) for name in ("q", "qd", "q_target", "qd_target", "executed")]
)
# given: at which of the robot's stamps; awaited: the stamp that the policy waits for, for lock step (clock.py).
COMMAND = np.dtype(
    [("sequence", "<i8"), ("given", "<f8"), ("awaited", "<f8"), ("speed", "<f8"), ("wanted", "<f8", 6)]
)
CYCLE = np.dtype(
    [("stamp", "<f8"), ("given", "<f8"), ("did", "<i4"), ("safety_mode", "<i4")]
    + [(name, "<f8", 6) for name in ("q", "qd", "q_target", "qd_target", "wanted", "executed")]
)  # one record of the log
