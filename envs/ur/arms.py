"""The arms of Universal Robots as data: one entry of ARMS each, in the numbers that are published.

Lengths, offsets, masses, centres of mass and inertias: UR's article "DH parameters for calculations of kinematics and
dynamics", as of the ur_description package of UniversalRobots/Universal_Robots_ROS2_Description (config/NAME), which
says where each comes from; there, UR3, UR5 and their e-Series have the inertias of cylinders. Torques: UR's article
"Max. joint torques", speeds: the user manuals, both as of the same package (joint_limits.yaml). Payloads and
footprints: UR's data sheets. An arm that was calibrated differs from its table by up to some millimetres.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hesscale_rl.errors import InputError
from hesscale_rl.runs.command_line import one_of

JOINTS = 6  # of every arm: base, shoulder lift, elbow, wrist 1 to 3
JOINT_NAMES = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
# The twists between the joints [rad], the same for every arm. They are quarters of a turn: their cosines and sines
# are whole numbers, without the rounding of math.cos.
TWISTS = (math.pi / 2, 0.0, 0.0, math.pi / 2, -math.pi / 2, 0.0)
_COS, _SIN = (0.0, 1.0, 1.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 1.0, -1.0, 0.0)
PERIODS = {"cb3": 0.008, "e": 0.002}  # seconds of a control cycle, by series
SERIES = {"cb3": "CB3", "e": "e-Series"}  # in words
RANGE = 2 * math.pi  # rad, of every joint in either direction
# rad, where episodes begin: SenseAct's q_ref. The arms are of one shape, and stand alike with the same angles.
START = np.array([1.58724391, -2.4, 1.5, -0.71790582, 1.63685572, 1.00910473])

Vectors = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class Arm:
    """One arm. Vectors are in the DH frame of their link: x, y, z.

    inertia: xx, yy, zz and, where they are published, xy, xz, yz, about the centre of mass.
    """

    name: str
    series: str  # cb3 or e
    lengths: tuple[float, float]  # m, a of upper arm and forearm
    offsets: tuple[float, float, float, float]  # m, d of base and of wrists 1 to 3
    mass: tuple[float, ...]  # kg
    centre: Vectors  # m
    inertia: Vectors  # kg m^2
    torque: tuple[float, ...]  # N m, the greatest of each motor
    speed: tuple[float, ...]  # degrees/s, the greatest of each joint
    payload: float  # kg
    footprint: float  # m, diameter of the base
    shoulder: float  # m from the base's axis to the upper arm's
    elbow: float  # m from the base's axis to the forearm's

    @property
    def period(self) -> float:
        """Seconds of a control cycle."""
        return PERIODS[self.series]

    @property
    def a(self) -> tuple[float, ...]:
        """The links' lengths [6], m."""
        return (0.0, *self.lengths, 0.0, 0.0, 0.0)

    @property
    def d(self) -> tuple[float, ...]:
        """The links' offsets [6], m."""
        base, *wrists = self.offsets
        return (base, 0.0, 0.0, *wrists)

    @cached_property
    def links(self) -> np.ndarray:
        """The DH table as compiled functions take it [4, 6]: a, d, and the twists' cosines and sines."""
        return np.array([self.a, self.d, _COS, _SIN])

    @cached_property
    def max_speed(self) -> np.ndarray:
        """The joints' greatest speeds [6], rad/s."""
        return np.array([degrees / 180 * math.pi for degrees in self.speed])

    @property
    def reach(self) -> float:
        """The length of upper arm and forearm, m."""
        return -sum(self.lengths)

    @property
    def girth(self) -> float:
        """How thick its links are, by its footprint and in units of the default arm's."""
        return self.footprint / DEFAULT.footprint

    @property
    def models(self) -> set[str]:
        """What its dashboard may call it, in capitals; the series is told by the version of its software."""
        size = self.name.upper().removesuffix("E")
        return {size, size + {"cb3": "CB", "e": "E"}[self.series]}


_UR3_LINKS = ((0.0, -0.02, 0.0), (0.13, 0.0, 0.1157), (0.05, 0.0, 0.0238), (0.0, 0.0, 0.01), (0.0, 0.0, 0.01),
              (0.0, 0.0, -0.02))  # fmt: skip
_UR5_LINKS = ((0.0, -0.02561, 0.00193), (0.2125, 0.0, 0.11336), (0.15, 0.0, 0.0265), (0.0, -0.0018, 0.01634),
              (0.0, 0.0018, 0.01634), (0.0, 0.0, -0.001159))  # fmt: skip
_UR10_LINKS = ((0.021, 0.0, 0.027), (0.38, 0.0, 0.158), (0.24, 0.0, 0.068), (0.0, 0.007, 0.018), (0.0, 0.007, 0.018),
               (0.0, 0.0, -0.026))  # fmt: skip
_UR10_INERTIA = (
    (0.03408, 0.03529, 0.02156, 0.00002, -0.00425, 0.00008),
    (0.02814, 0.77068, 0.76943, 0.00005, -0.01561, 0.00002),
    (0.01014, 0.30928, 0.30646, 0.00008, 0.00916, 0.0),
    (0.00296, 0.00222, 0.00258, -0.00001, 0.0, -0.00024),
    (0.00296, 0.00222, 0.00258, -0.00001, 0.0, -0.00024),
    (0.00040, 0.00041, 0.00034, 0.0, 0.0, 0.0),
)
_SMALL_SPEED, _USUAL_SPEED = (180.0,) * 3 + (360.0,) * 3, (180.0,) * 6
_LARGE_SPEED = (120.0,) * 2 + (180.0,) * 4

_TABLE = (
    Arm(
        "UR3", "cb3", (-0.24365, -0.21325), (0.1519, 0.11235, 0.08535, 0.0819),
        mass=(2.0, 3.42, 1.26, 0.8, 0.8, 0.35), centre=_UR3_LINKS,
        inertia=(
            (0.0080932, 0.005625, 0.0080932), (0.0096188, 0.0217285, 0.0217285), (0.0035438, 0.0065468, 0.0065468),
            (0.0016106, 0.00225, 0.0016106), (0.0015722, 0.00225, 0.0015722), (0.00013627, 0.00013627, 0.0001792),
        ),
        torque=(56.0, 56.0, 28.0, 12.0, 12.0, 12.0), speed=_SMALL_SPEED,
        payload=3.0, footprint=0.128, shoulder=0.1198, elbow=0.0275,
    ),
    Arm(
        "UR5", "cb3", (-0.42500, -0.39225), (0.089159, 0.10915, 0.09465, 0.0823),
        mass=(3.7, 8.393, 2.33, 1.219, 1.219, 0.1879), centre=_UR5_LINKS,
        inertia=(
            (0.014972, 0.010406, 0.014972), (0.015107, 0.133886, 0.133886), (0.004095, 0.031217, 0.031217),
            (0.002014, 0.002194, 0.002014), (0.001831, 0.002194, 0.001831), (8.06e-5, 8.06e-5, 1.32e-4),
        ),
        torque=(150.0, 150.0, 150.0, 28.0, 28.0, 28.0), speed=_USUAL_SPEED,
        payload=5.0, footprint=0.149, shoulder=0.136, elbow=0.0165,
    ),
    Arm(
        "UR10", "cb3", (-0.612, -0.5723), (0.1273, 0.163941, 0.1157, 0.0922),
        mass=(7.1, 12.7, 4.27, 2.0, 2.0, 0.365), centre=_UR10_LINKS, inertia=_UR10_INERTIA,
        torque=(330.0, 330.0, 150.0, 56.0, 56.0, 56.0), speed=_LARGE_SPEED,
        payload=10.0, footprint=0.190, shoulder=0.220941, elbow=0.049042,
    ),
    Arm(
        "UR3e", "e", (-0.24355, -0.2132), (0.15185, 0.13105, 0.08535, 0.0921),
        mass=(1.98, 3.4445, 1.437, 0.871, 0.805, 0.261), centre=_UR3_LINKS,
        inertia=(
            (0.0080932, 0.005625, 0.0080932), (0.0096188, 0.0217285, 0.0217285), (0.0035438, 0.0065446, 0.0065446),
            (0.002085, 0.00225, 0.002085), (0.002085, 0.00225, 0.002085), (0.00013627, 0.00013627, 0.0001792),
        ),
        torque=(54.0, 54.0, 28.0, 9.0, 9.0, 9.0), speed=_SMALL_SPEED,
        payload=3.0, footprint=0.128, shoulder=0.120, elbow=0.027,
    ),
    Arm(
        "UR5e", "e", (-0.425, -0.3922), (0.1625, 0.1333, 0.0997, 0.0996),
        mass=(3.761, 8.058, 2.846, 1.37, 1.3, 0.365), centre=_UR5_LINKS,
        inertia=(
            (0.0102675, 0.00666, 0.0102675), (0.0151074, 0.1338858, 0.1338858), (0.004095, 0.0312094, 0.0312094),
            (0.0025599, 0.0021942, 0.0025599), (0.0025599, 0.0021942, 0.0025599),
            (9.8904e-5, 9.8904e-5, 1.32117e-4),
        ),
        torque=(150.0, 150.0, 150.0, 28.0, 28.0, 28.0), speed=_USUAL_SPEED,
        payload=5.0, footprint=0.149, shoulder=0.138, elbow=0.007,
    ),
    Arm(
        "UR10e", "e", (-0.6127, -0.57155), (0.1807, 0.17415, 0.11985, 0.11655),
        mass=(7.369, 13.051, 3.989, 2.1, 1.98, 0.615), centre=_UR10_LINKS, inertia=_UR10_INERTIA,
        torque=(330.0, 330.0, 150.0, 54.0, 54.0, 54.0), speed=_LARGE_SPEED,
        payload=12.5, footprint=0.190, shoulder=0.1762, elbow=0.0393,
    ),
    Arm(
        "UR16e", "e", (-0.4784, -0.36), (0.1807, 0.17415, 0.11985, 0.11655),
        mass=(7.369, 10.450, 4.321, 2.180, 2.033, 0.907),
        centre=((0.0, -0.016, 0.030), (0.302, 0.0, 0.160), (0.194, 0.0, 0.065), (0.0, -0.009, 0.011),
                (0.0, 0.018, 0.012), (0.0, 0.0, -0.044)),
        inertia=(
            (0.03351, 0.03374, 0.02100, 0.00002, -0.00001, 0.00374),
            (0.02796, 0.47558, 0.47635, -0.00010, -0.00720, 0.00003),
            (0.01091, 0.12060, 0.11714, 0.00006, 0.01012, 0.00001),
            (0.00609, 0.00245, 0.00579, -0.00001, 0.0, 0.00083),
            (0.00389, 0.00219, 0.00363, -0.00001, 0.0, -0.00045),
            (0.00117, 0.00118, 0.00084, 0.0, 0.0, 0.0),
        ),
        torque=(330.0, 330.0, 150.0, 54.0, 54.0, 54.0), speed=_LARGE_SPEED,
        payload=16.0, footprint=0.190, shoulder=0.176, elbow=0.040,
    ),
)  # fmt: skip
ARMS = {arm.name: arm for arm in _TABLE}
DEFAULT = ARMS["UR5"]  # where none is named: the arm of SenseAct, of the paper, and of the presets' numbers


def find_arm(name: str) -> Arm:
    """Return the arm of this name; InputError with the closest one if there is none.

    >>> find_arm("UR10e").payload
    12.5
    """
    if name in ARMS:
        return ARMS[name]
    raise InputError(f"arm {name!r}: {one_of(str(name), ARMS)}")
