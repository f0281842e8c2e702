"""Whether a robot does what it was told, judged by the reference that its joints follow.

Any client of a UR may start a program in place of ours, and ur_rtde says nothing of it. But the reference, target_q
and target_qd, is the controller's own arithmetic, without noise or lag: it goes from cycle to cycle towards one of
the speeds that were sent lately, by `acceleration` at most, or along the way of a moveJ, or it stands. What it does
beside that, another program does.
"""

import math
from typing import NamedTuple

import numpy as np

from .arms import JOINTS
from .motion import Move
from .safety import Bounds

# rad/s that a reference may be beside its model. The model is exact (1e-9 rad/s on the simulated controller); this is
# what a joint that was told to stand may creep without being taken to move. A movej with more than 0.125 rad/s^2 is
# faster after one cycle of 8 ms; UR's own default is 1.4.
TOLERANCE = 1e-3
PATIENCE = 3  # cycles in a row: the reason may come a cycle or two later than what it makes the reference do
# Cycles more than the usual way there and back for which a command may still be the one that is followed: a busy host
# reads or sends a few of them late. Also what the pauses between two states may add to.
LATE = 4
PLACE = 0.01  # rad that a joint which is told to stand may be from its place: twice what counts as arrived


class Telling(NamedTuple):
    """What a robot was told beside speeds: a way, with at most this speed and acceleration."""

    way: Move
    acceleration: float


class Reference:
    """What a robot was told in the last cycles, and whether its reference follows.

    in_flight: cycles from a command to the movement that answers it.
    """

    def __init__(self, bounds: Bounds, in_flight: int):
        self.bounds = bounds
        self.told = np.zeros((in_flight + 1 + LATE, JOINTS))  # rad/s, newest last
        self.place = np.full(JOINTS, math.nan)  # rad, of the joints that were told nothing but to stand
        self.on_way: Telling | None = None
        self.strange = 0  # cycles in a row
        self._before: tuple[float, np.ndarray] | None = None  # stamp and target_qd

    def tell(self, qd: np.ndarray) -> None:
        """Note the speeds [6] that are sent now."""
        self.told[:-1] = self.told[1:]
        self.told[-1] = qd
        self.place[qd != 0.0] = math.nan

    def go(self, way: Move, acceleration: float) -> None:
        """Note that the robot is sent along a way, with at most this acceleration, rad/s^2, until `stand`."""
        self.on_way = Telling(way, acceleration)
        self.place[:] = math.nan

    def stand(self, q_target: np.ndarray | None = None) -> None:
        """Note that the arm stands, at q_target [6] or where it is found next, and is told nothing."""
        self.on_way, self.strange, self.told[:] = None, 0, 0.0
        self.place[:] = math.nan if q_target is None else q_target
        self._before = None

    def look(self, stamp: float, q: np.ndarray, q_target: np.ndarray, qd_target: np.ndarray) -> str:
        """Return what the robot does that it was not told to; empty if nothing, or not for PATIENCE cycles yet."""
        before, self._before = self._before, (stamp, qd_target)
        if before is None:
            if self.on_way is not None:
                return ""
            self.place = np.where(np.isnan(self.place) & ~self.told.any(0), q_target, self.place)
            return ""
        away = np.abs(q - self.place)
        if (away > PLACE).any():
            i = int(np.nanargmax(away))
            return f"joint {i + 1} is {away[i]:.3f} rad from its place, and was told to stand there"
        cycles = max(1, round((stamp - before[0]) / self.bounds.period))
        if self._explained(before[1], qd_target, cycles):
            self.strange = 0
            return ""
        self.strange += cycles
        if self.strange < PATIENCE:
            return ""
        i = int(np.abs(qd_target - self.told[-1]).argmax())
        told = "moves on its way to the start" if self.on_way else f"was told {self.told[-1, i]:.3f}"
        return f"joint {i + 1} goes with {qd_target[i]:.3f} rad/s, and {told}"

    def _explained(self, before: np.ndarray, now: np.ndarray, cycles: int) -> bool:
        """Whether the reference's speeds [6] can have become these in so many cycles."""
        if self.on_way is not None:
            return self._along(self.on_way, before, now, cycles)
        most = self.bounds.acceleration * self.bounds.period * cycles
        ways = self.told - before
        if cycles > 1:  # towards one, then another
            low, high = np.minimum(ways.min(0), 0.0), np.maximum(ways.max(0), 0.0)
            low, high = np.maximum(low, -most), np.minimum(high, most)
            return bool(((now >= before + low - TOLERANCE) & (now <= before + high + TOLERANCE)).all())
        # Either all joints arrive together, as here, or each as soon as it can: UR does not say.
        longest = np.maximum(np.abs(ways).max(1), most)[:, None]
        together, alone = before + ways * (most / longest), before + np.clip(ways, -most, most)
        low, high = np.minimum(together, alone) - TOLERANCE, np.maximum(together, alone) + TOLERANCE
        return bool(((now >= low) & (now <= high)).all(1).any())

    def _along(self, telling: Telling, before: np.ndarray, now: np.ndarray, cycles: int) -> bool:
        """Whether it goes along the way, not back, and not faster than it was told."""
        way, length = telling.way.way, telling.way.length
        share = float(now @ way) * length / float(way @ way) if length > 0 else 0.0  # rad/s of the joint that leads
        beside = now - way * (share / length) if length > 0 else now
        return bool(
            np.abs(beside).max() <= TOLERANCE
            and -TOLERANCE <= share <= telling.way.speed + TOLERANCE
            and np.abs(now - before).max() <= telling.acceleration * self.bounds.period * cycles + TOLERANCE
        )
