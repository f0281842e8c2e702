"""What the policy's process and the one that talks to the robot (rtde.py) share, what is logged, and the faults."""

from dataclasses import dataclass

import numpy as np

from .arms import DEFAULT, JOINTS, Arm
from .safety import Bounds, RobotFault

# `sequence` is odd while the rest is being written. stands: whether the process, at its end, has read that it stands.
STATE = np.dtype(
    [("sequence", "<i8"), ("stamp", "<f8"), ("status", "<i8"), ("stands", "<i8"), ("overrides", "<i8", 4)]
    + [(name, "<f8", JOINTS) for name in ("q", "qd", "q_target", "qd_target", "executed")]
)
# given: at which of the robot's stamps; awaited: the stamp that the policy waits for, for lock step (clock.py).
COMMAND = np.dtype(
    [("sequence", "<i8"), ("given", "<f8"), ("awaited", "<f8"), ("speed", "<f8"), ("wanted", "<f8", JOINTS)]
)
CYCLE = np.dtype(
    [("stamp", "<f8"), ("given", "<f8"), ("did", "<i4"), ("safety_mode", "<i4")]
    + [(name, "<f8", JOINTS) for name in ("q", "qd", "q_target", "qd_target", "wanted", "executed")]
)  # one record of the log


@dataclass(frozen=True)
class Settings:
    """What the process needs to know of the robot and of the task."""

    host: str
    bounds: Bounds
    timeout: float = 0.2  # s of robot time without a command, after which the arm stops
    arm: Arm = DEFAULT
    in_flight: int = 3  # cycles from a state's stamp to the first movement that answers it, less one
    move_speed: float = 0.6  # rad/s
    move_acceleration: float = 1.0  # rad/s^2
    stop_acceleration: float = 4.0  # rad/s^2, when something is wrong
    largest_lag: float = 0.1  # rad between a joint and its reference: more is taken for a collision
    largest_force: float = 150.0  # N at the tool
    largest_temperature: float = 70.0  # degrees Celsius of a joint
    payload: float = 0.0  # kg, as it must be set on the pendant
    pose_tolerance: float = 0.002  # m between the robot's idea of where its tool is and ours
    log: str | None = None  # a file for every control cycle
    clock: str | None = None  # the file of a simulated robot's time, where that robot runs in lock step


class Held(RobotFault):
    """The arm has been stopped, and may go on when a person has agreed: `unlock`."""


class ProtectiveStop(Held):
    """The robot has stopped by itself, because of a collision or a motion that it refused."""

    def __init__(self, text: str = ""):
        super().__init__(text or "protective stop: the robot has stopped by itself; find out why before it goes on")


class PolicySilent(Held):
    """The policy let the arm move and then said nothing for longer than it may."""

    def __init__(self, text: str = ""):
        super().__init__(text or "the policy was silent for too long while the arm moved, which has been braked")


class TakenOver(RobotFault):
    """The robot does something else than it was told, though a program runs: another client's."""


class Stopped(RobotFault):
    """The robot is in a state that only a person standing at it can end: an emergency stop, a fault, no power."""


class Silent(RobotFault):
    """No news from the robot, or from the process that talks to it."""
