"""The published settings of UR-Reacher: SenseAct's own (stock), and those of the paper's robot (v2).

SenseAct's frame is the base's turned by half a turn about z; positions here are in that frame, as in the papers.
They are a UR5's; `Preset.on` moves them to where another arm reaches.
"""

from dataclasses import dataclass, replace

import numpy as np

from .arms import DEFAULT, JOINTS, RANGE, START, Arm
from .safety import Bounds

ACTUATED = (1, 2)  # shoulder lift and elbow
DRIFT = 0.05  # rad that the other joints may be off
HALF_TURN = np.array([-1.0, -1.0, 1.0])  # from the base's frame to SenseAct's, and back
FAR = 10.0  # m: no bound

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Preset:
    """One preset. Angles in degrees, lengths in m, of the two joints and of x, y, z."""

    speed_max: float  # rad/s, an action of 1
    acceleration: float  # rad/s^2
    joint_low: tuple[float, float]
    joint_high: tuple[float, float]
    box_low: Point  # of the tool
    box_high: Point
    timeout: float  # s without an action, after which the arm stops
    target_low: Point = (-0.2, -0.3, 0.5)
    target_high: Point = (0.2, 0.4, 1.0)
    dt: float = 0.04  # s of a step
    arm: Arm = DEFAULT

    def on(self, arm: Arm) -> "Preset":
        """Return the same task for another arm, which has the same angles: its positions lie where that arm reaches.

        y and z, from the shoulder, grow with its links' length, and x, across the plane in which it moves, with how
        far the wrist stands beside the base.

        >>> from hesscale_rl.envs.ur.arms import find_arm
        >>> [round(x, 3) for x in PRESETS["stock"].on(find_arm("UR3e")).target_high]
        [0.24, 0.224, 0.661]
        """
        longer, wider = arm.reach / self.arm.reach, arm.d[3] / self.arm.d[3]
        up = arm.d[0] - longer * self.arm.d[0]

        def moved(point: Point) -> Point:
            x, y, z = point
            return x * wider, y * longer, z * longer + up

        return replace(
            self, arm=arm, box_low=moved(self.box_low), box_high=moved(self.box_high),
            target_low=moved(self.target_low), target_high=moved(self.target_high),
        )  # fmt: skip

    def bounds(self, guarded: bool = True) -> Bounds:
        """Return what the guard enforces; not `guarded`: nothing but the joints' own limits of 360 degrees."""
        low, high = START - DRIFT, START + DRIFT
        low[[*ACTUATED]], high[[*ACTUATED]] = np.radians(self.joint_low), np.radians(self.joint_high)
        corners = np.array([self.box_low, self.box_high]) * HALF_TURN
        if not guarded:
            low, high = np.full(JOINTS, -RANGE), np.full(JOINTS, RANGE)
            corners = np.array([[-FAR] * 3, [FAR] * 3])
        arm, usual = self.arm, Bounds._field_defaults
        return Bounds(
            arm.links, low, high, corners.min(0), corners.max(0), self.speed_max, self.acceleration,
            period=arm.period, table=usual["table"] * arm.girth if guarded else -FAR,
            column=usual["column"] * arm.girth if guarded else -FAR, fastest=float(arm.max_speed.min()),
        )  # fmt: skip


PRESETS = {
    "stock": Preset(0.3, 1.4, (-180, -120), (-60, 130), (-0.2, -0.3, 0.5), (0.2, 0.4, 1.0), timeout=0.5),
    "v2": Preset(1.0, 2.0, (-170, -150), (-10, 150), (-0.2, -FAR, 0.4), (0.2, 0.9, FAR), timeout=0.2),
}
