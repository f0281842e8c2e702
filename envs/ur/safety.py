"""The last stage before the wire: no command leaves it that could carry the arm out of its bounds.

A command is let through if the arm, having followed it for as long as nobody might take it back, could still stop
inside the bounds. Else it is scaled down to what can be stopped in time; and an arm that stands outside, whoever put
it there, is led back slowly. These bounds are of software: those on the robot's pendant must be at least as tight.
"""

import math
from typing import NamedTuple

import numpy as np

from hesscale_rl.jit import EXACT

from .arms import JOINTS
from .kinematics import ELBOW, TCP, WRIST_1, points
from .motion import approach

FREE, SLOWED, STOPPED, RETURNING = range(4)  # what the guard did to a command
OVERRIDES = ("", "slowed", "stopped", "returning")
RETURN_SPEED = 0.1  # rad/s, norm over the joints, as SenseAct's
STANDING = 0.01  # rad/s: below it a joint is taken to stand still
STEP = 0.02  # rad between two looks along a path; a point bows out by 0.2 mm in between

LOOKS = 4  # while the speeds change
BISECTIONS = 6  # of how much of a command can be let through


class RobotFault(RuntimeError):
    """The robot, or what was asked of it, is not as it must be. The arm has been told to stop."""


class Bounds(NamedTuple):
    """Which arm it is, where it may be and how it may move. Angles rad, lengths m in the base's frame."""

    links: np.ndarray  # [4, 6], `Arm.links`
    joint_low: np.ndarray  # [6]
    joint_high: np.ndarray  # [6]
    tcp_low: np.ndarray  # [3]
    tcp_high: np.ndarray  # [3]
    speed: float  # rad/s of a joint
    acceleration: float  # rad/s^2 of the leading joint, when speeding up and when stopping
    hold: float = 0.1  # s for which a command may act before it is taken back: the robot's own watchdog
    margin: float = 0.001  # rad or m that is kept from every bound
    period: float = 0.008  # s of a control cycle
    table: float = 0.1  # m above the base's plane for elbow and wrists, whose radius is 0.06
    column: float = 0.2  # m between the wrists and the base's axis, up to the shoulder
    fastest: float = math.pi  # rad/s, what every joint of this arm can do


@EXACT
def clearance(q: np.ndarray, bounds: Bounds) -> float:
    """Return the smallest distance of the pose q [6] from a bound, rad or m; negative outside."""
    least = math.inf
    for i in range(len(q)):
        least = min(least, q[i] - bounds.joint_low[i], bounds.joint_high[i] - q[i])
    at = points(bounds.links, q)
    for k in range(3):
        least = min(least, at[TCP, k] - bounds.tcp_low[k], bounds.tcp_high[k] - at[TCP, k])
    for i in range(ELBOW, TCP):
        least = min(least, at[i, 2] - bounds.table)
    for i in range(WRIST_1, TCP + 1):
        x, y, z = at[i]
        least = min(least, math.sqrt(x * x + y * y + max(z - bounds.links[1, 0], 0.0) ** 2) - bounds.column)
    return least


@EXACT
def _along(start: np.ndarray, way: np.ndarray, bounds: Bounds) -> float:
    """The smallest clearance on the straight way [6] from a pose, its start left out."""
    longest = 0.0
    for i in range(len(way)):
        longest = max(longest, abs(way[i]))
    count = math.ceil(longest / STEP)
    least, q = math.inf, np.empty(len(way))
    for k in range(1, count + 1):
        for i in range(len(q)):
            q[i] = start[i] + way[i] * (k / count)
        least = min(least, clearance(q, bounds))
    return least


@EXACT
def stopping_clearance(q: np.ndarray, qd: np.ndarray, command: np.ndarray, bounds: Bounds) -> float:
    """Return the smallest clearance on the way of an arm at q, qd [6] that is given this command [6] and then stops.

    It follows the command for `bounds.hold` seconds, then brakes.
    """
    longest, fastest, least = 0.0, 0.0, math.inf
    for i in range(len(q)):
        longest = max(longest, abs(command[i] - qd[i]))
    ramp = longest / bounds.acceleration
    time = min(ramp, bounds.hold)
    share = time / ramp if ramp > 0.0 else 0.0
    at, speed = np.empty(len(q)), np.empty(len(q))
    for k in range(1, LOOKS + 1):
        part = k / LOOKS  # of the time in which the speeds change
        for i in range(len(q)):
            speed[i] = qd[i] + (command[i] - qd[i]) * share * part
            at[i] = q[i] + (qd[i] + speed[i]) / 2 * time * part
        least = min(least, clearance(at, bounds))
    for i in range(len(q)):
        fastest = max(fastest, abs(speed[i]))
    coast = bounds.hold - time + fastest / bounds.acceleration / 2
    return min(least, _along(at, speed * coast, bounds))


@EXACT
def admit(
    q: np.ndarray, q_target: np.ndarray, qd_target: np.ndarray, sent: np.ndarray, wanted: np.ndarray, bounds: Bounds
) -> tuple[np.ndarray, int]:
    """Return the speeds [6] to command instead of `wanted`, and what was done: FREE, SLOWED, STOPPED or RETURNING.

    q: the joints; q_target, qd_target: the reference they follow; sent [K, 6]: the commands on their way, which the
    robot had not followed when it said so. Where the joints lag behind the reference, the margin grows.
    """
    margin = bounds.margin
    at, speed, command, asked = q_target.copy(), qd_target.copy(), np.empty(len(q)), False
    for i in range(len(q)):
        margin += abs(q[i] - q_target[i])
        command[i] = min(max(wanted[i], -bounds.speed), bounds.speed)
        asked = asked or command[i] != 0.0
    for k in range(len(sent)):
        before = speed.copy()
        approach(speed, sent[k], bounds.acceleration, bounds.period)
        for i in range(len(q)):
            at[i] += (before[i] + speed[i]) * (bounds.period / 2)
    if stopping_clearance(at, speed, command, bounds) >= margin:
        return command, FREE
    stop = np.zeros(len(q))
    if stopping_clearance(at, speed, stop, bounds) >= margin:
        safe, unsafe = 0.0, 1.0
        for _ in range(BISECTIONS):
            share = (safe + unsafe) / 2
            if stopping_clearance(at, speed, command * share, bounds) >= margin:
                safe = share
            else:
                unsafe = share
        return (command * safe, SLOWED) if safe > 0.0 else (stop, STOPPED)
    if not asked or np.abs(speed).max() > STANDING + RETURN_SPEED or clearance(at, bounds) >= margin:
        return stop, STOPPED  # nothing moves that nobody wants to move
    return way_back(at, bounds), RETURNING


@EXACT
def way_back(q: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return the speeds [6], of norm RETURN_SPEED, that raise the clearance of q most."""
    slope, square = np.empty(len(q)), 0.0
    for i in range(len(q)):
        one = q.copy()
        one[i] += 1e-4
        more = clearance(one, bounds)
        one[i] -= 2e-4
        slope[i] = more - clearance(one, bounds)
        square += slope[i] * slope[i]
    return slope * (RETURN_SPEED / math.sqrt(square)) if square > 0.0 else slope


def check_command(wanted: np.ndarray) -> np.ndarray:
    """Return the command as [6] float64; RobotFault for what is no command: another shape, or not finite."""
    try:
        command = np.array(wanted, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RobotFault(f"a command must be {JOINTS} speeds, not {wanted!r}") from error
    if command.shape != (JOINTS,):
        raise RobotFault(f"a command must be {JOINTS} speeds, not an array of shape {command.shape}")
    if not np.isfinite(command).all():
        raise RobotFault(f"a command must be finite, not {command.tolist()}")
    return command


def plausible(bounds: Bounds, q: np.ndarray) -> str:
    """Return what is wrong with these bounds or with standing at q [6] inside them; empty if nothing is."""
    for name in ("joint", "tcp"):
        low, high = getattr(bounds, f"{name}_low"), getattr(bounds, f"{name}_high")
        if not (low < high).all():
            return f"the {name} bounds are empty: {low.tolist()} to {high.tolist()}"
    if not 0 < bounds.speed <= bounds.fastest or not 0 < bounds.acceleration <= 40:
        return f"speed {bounds.speed:g} rad/s or acceleration {bounds.acceleration:g} rad/s^2 is beyond this arm"
    for i in np.flatnonzero((q < bounds.joint_low) | (q > bounds.joint_high)):
        return f"joint {i + 1} is at {q[i]:.3f} rad, outside {bounds.joint_low[i]:.3f} to {bounds.joint_high[i]:.3f}"
    at = points(bounds.links, q)[TCP]
    if (at < bounds.tcp_low).any() or (at > bounds.tcp_high).any():
        box = f"{bounds.tcp_low.tolist()} to {bounds.tcp_high.tolist()}"
        return f"the tool is at {np.round(at, 3).tolist()} m, outside {box}"
    return "" if clearance(q, bounds) >= 0 else "elbow or wrists are too near to the table or to the base"
