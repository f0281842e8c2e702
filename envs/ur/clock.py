"""Whose time counts between a policy, its driver and a robot: the host's, or a simulated robot's that waits for them.

A simulated robot in lock step (`hesscale-rl ur sim --lock-step FILE`) begins no control cycle before its driver has
answered the last one, and writes its time to FILE. Driver and policy count their time limits by that, and the driver
answers no cycle before the policy has spoken. So what happens in which cycle is the same on every machine.
"""

import mmap
import time
from typing import Protocol

import numpy as np


class Clock(Protocol):
    """Seconds. `stepped`: robot, driver and policy wait for each other."""

    stepped: bool

    def now(self) -> float:
        """Return the seconds since some moment."""


class HostClock:
    """The host's monotonic seconds, which wait for nobody."""

    stepped = False

    def now(self) -> float:
        """Return the seconds since some moment."""
        return time.monotonic()


class RobotClock:
    """A simulated robot's own seconds, in a file; OSError or ValueError if that is none."""

    stepped = True

    def __init__(self, path: str):
        with open(path, "r+b") as file:
            self._seconds = np.frombuffer(mmap.mmap(file.fileno(), 8), "<f8")

    def now(self) -> float:
        """Return the robot's time."""
        return float(self._seconds[0])

    def set(self, seconds: float) -> None:
        """Say what time it is; the robot's part."""
        self._seconds[0] = seconds

    @classmethod
    def create(cls, path: str) -> "RobotClock":
        """Return a clock in a new file, at 0."""
        with open(path, "wb") as file:
            file.write(bytes(8))
        return cls(path)


def clock(path: str | None) -> Clock:
    """Return the clock in this file; without one, the host's."""
    return HostClock() if path is None else RobotClock(path)
