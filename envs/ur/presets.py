"""The published settings of UR-Reacher: SenseAct's own (stock), and those of the paper's robot (v2).

SenseAct's frame is the base's turned by half a turn about z; positions here are in that frame, as in the papers.
"""

from dataclasses import dataclass

import numpy as np

from .safety import Bounds

Q_REF = np.array([1.58724391, -2.4, 1.5, -0.71790582, 1.63685572, 1.00910473])  # rad, where episodes begin
ACTUATED = (1, 2)  # shoulder lift and elbow
DRIFT = 0.05  # rad that the other joints may be off
HALF_TURN = np.array([-1.0, -1.0, 1.0])  # from the base's frame to SenseAct's, and back
FAR = 10.0  # m: no bound


@dataclass(frozen=True)
class Preset:
    """One preset. Angles in degrees, lengths in m, of the two joints and of x, y, z."""

    speed_max: float  # rad/s, an action of 1
    acceleration: float  # rad/s^2
    joint_low: tuple[float, float]
    joint_high: tuple[float, float]
    box_low: tuple[float, float, float]  # of the tool
    box_high: tuple[float, float, float]
    timeout: float  # s without an action, after which the arm stops
    target_low: tuple[float, float, float] = (-0.2, -0.3, 0.5)
    target_high: tuple[float, float, float] = (0.2, 0.4, 1.0)
    dt: float = 0.04  # s of a step

    def bounds(self, period: float = 0.008, guarded: bool = True) -> Bounds:
        """Return what the guard enforces; not `guarded`: nothing but the UR5's own limits of 360 degrees."""
        low, high = Q_REF - DRIFT, Q_REF + DRIFT
        low[[*ACTUATED]], high[[*ACTUATED]] = np.radians(self.joint_low), np.radians(self.joint_high)
        corners = np.array([self.box_low, self.box_high]) * HALF_TURN
        if not guarded:
            low, high = np.full(6, -2 * np.pi), np.full(6, 2 * np.pi)
            corners = np.array([[-FAR] * 3, [FAR] * 3])
        bounds = Bounds(low, high, corners.min(0), corners.max(0), self.speed_max, self.acceleration, period=period)
        return bounds if guarded else bounds._replace(table=-FAR, column=-FAR)


PRESETS = {
    "stock": Preset(0.3, 1.4, (-180, -120), (-60, 130), (-0.2, -0.3, 0.5), (0.2, 0.4, 1.0), timeout=0.5),
    "v2": Preset(1.0, 2.0, (-170, -150), (-10, 150), (-0.2, -FAR, 0.4), (0.2, 0.9, FAR), timeout=0.2),
}
