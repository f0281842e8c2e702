"""What a robot is asked before it moves, and what it must answer; and how a program on it is ended from outside."""

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import numpy as np

from . import kinematics
from .arms import PERIODS
from .safety import RobotFault, plausible
from .shared import ProtectiveStop, Silent, Stopped

if TYPE_CHECKING:
    from .control_loop import ControlLoop

DASHBOARD = 29999
ROBOT_RUNNING = 7
NORMAL, REDUCED, PROTECTIVE = 1, 2, 3  # safety modes; above: only a person at the robot can help
WATCHDOG = 10.0  # Hz: fewer packages, and the robot ends our program, which stops the arm


def check_ready(receive: Any) -> None:
    """Raise ProtectiveStop or Stopped unless the robot of this receive interface is on, and in no stop."""
    mode, safety = receive.getRobotMode(), receive.getSafetyMode()
    if safety == PROTECTIVE:
        raise ProtectiveStop("the robot is in a protective stop: find out why, and release it")
    if safety not in (NORMAL, REDUCED) or mode != ROBOT_RUNNING:
        raise Stopped(f"the robot is not ready (robot mode {mode}, safety mode {safety}): see its pendant")


def preflight(loop: "ControlLoop") -> dict[str, Any]:
    """Return what robot this is; RobotFault if anything about it is not as it must be before it moves."""
    settings, bounds, receive, arm = loop.settings, loop.bounds, loop.receive, loop.settings.arm
    version, model = loop.ask(loop.dashboard.polyscopeVersion), loop.ask(loop.dashboard.getRobotModel).upper()
    major = int("".join(c if c.isdigit() else " " for c in version).split()[0])
    period = PERIODS["e" if major >= 5 else "cb3"]
    if period != bounds.period:
        raise RobotFault(f"this controller ({version}) has cycles of {period} s, the bounds of {bounds.period} s")
    if model not in arm.models:
        raise RobotFault(f"this is a {model}; kinematics and bounds here are those of a {arm.name} (--arm)")
    if major >= 5 and not loop.ask(loop.dashboard.isInRemoteControl):
        raise RobotFault("the robot is not in remote control: switch it over on the pendant")
    slider = receive.getTargetSpeedFraction() * receive.getSpeedScaling()
    if slider < 0.999:
        raise RobotFault(f"the speed slider is at {100 * slider:.0f} %: put it to 100 % on the pendant")
    payload = receive.getPayload()
    if abs(payload - settings.payload) > 0.05:
        raise RobotFault(f"the pendant has a payload of {payload:g} kg, not {settings.payload:g} kg")
    packet = loop.next()
    said, ours = np.array(receive.getActualTCPPose()), kinematics.tcp(bounds.links, packet.q)
    away = float(np.linalg.norm(said[:3] - ours))
    if away > settings.pose_tolerance:
        raise RobotFault(
            f"the robot has its tool {1000 * away:.1f} mm from where our model has it: its calibration differs, "
            "or a TCP is set on the pendant (it must be zero)"
        )
    if problem := plausible(bounds, packet.q):
        raise RobotFault(f"the arm stands where it must not: {problem}; move it by hand first")
    if not loop.ask(lambda: loop.control.setWatchdog(WATCHDOG)):
        raise RobotFault("the robot did not take the watchdog, which stops it if we fall silent")
    serial = ""
    with contextlib.suppress(Silent):  # a CB3 of before 3.12 does not tell
        serial = loop.ask(loop.dashboard.getSerialNumber)
    return {"version": version, "model": model, "serial": serial}


def end_program(host: str) -> None:
    """Have the controller end the program that runs there, by another way than through that program."""
    with contextlib.suppress(OSError), socket.create_connection((host, DASHBOARD), 0.3) as desk:
        desk.settimeout(0.3)
        desk.recv(200)
        desk.sendall(b"stop\n")
        desk.recv(200)
