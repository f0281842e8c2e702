"""What can go wrong, on demand: a port that takes commands as lines, and the same commands at set times.

    pstop, safeguard, estop   stop the robot; clear ends every such stop, and a freeze, at once
    freeze SECONDS            nothing is sent or read, while robot and watchdog go on
    drop                      close the connections of all clients
    latency MEAN JITTER       delay all packages, both ways, by MEAN seconds and an exponential time of mean JITTER
    shift MM                  report poses of a forearm that is longer by so many millimetres
    packet BYTES              send packets of this size on port 30003
    threads on|off            whether moving the arm from two threads ends a program
    local, remote             switch between local and remote control, as at the pendant
    pass SECONDS              let robot time pass as fast as it can
    release                   in lock step, wait no more for the client that has set a watchdog
    state                     answer with stamp, joints and modes, as JSON

Every line is answered by one line: `ok`, the state, or `error: ...`.
"""

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from hesscale_rl.envs.ur.simulator.client import LineClient
from hesscale_rl.envs.ur.simulator.realtime import PACKET_SIZES
from hesscale_rl.envs.ur.simulator.robot import PROTECTIVE_STOP, ROBOT_STOP, SAFEGUARD_STOP
from hesscale_rl.errors import InputError

if TYPE_CHECKING:
    from hesscale_rl.envs.ur.simulator.server import Server

_STOPS = {"pstop": PROTECTIVE_STOP, "safeguard": SAFEGUARD_STOP, "estop": ROBOT_STOP}
_NUMBERS = {"freeze": 1, "drop": 0, "latency": 2, "shift": 1, "packet": 1, "clear": 0, "state": 0}
_NUMBERS |= {"pass": 1, "release": 0, "local": 0, "remote": 0}


class Fault:
    """A command with its arguments; InputError if it is none."""

    def __init__(self, line: str):
        self.name, *self.words = line.split() or [""]
        self.numbers: list[float] = []
        if self.name == "threads" and self.words in (["on"], ["off"]) or self.name in _STOPS and not self.words:
            return
        try:
            self.numbers = [float(word) for word in self.words]
        except ValueError:
            self.numbers = [math.nan]
        if len(self.numbers) != _NUMBERS.get(self.name) or not all(map(math.isfinite, self.numbers)):
            raise InputError(f"no such fault: {line!r}")
        if self.name == "packet" and self.numbers[0] not in PACKET_SIZES:
            raise InputError(f"packets have {', '.join(map(str, PACKET_SIZES))} bytes")
        if self.name in ("freeze", "latency") and min(self.numbers) < 0:
            raise InputError(f"{self.name}: a negative time")

    def apply(self, server: "Server") -> str:
        """Let it happen and return the answer."""
        robot, n = server.robot, self.numbers
        if self.name == "state":
            return json.dumps(state(server))
        if self.name in _STOPS:
            robot.halt(_STOPS[self.name], "on demand")
        elif self.name in ("local", "remote"):
            robot.remote = self.name == "remote"
        elif self.name == "threads":
            robot.thread_rule = self.words == ["on"]
        else:
            effects: dict[str, Callable[..., None]] = {
                "clear": server.clear,
                "drop": server.drop,
                "freeze": server.freeze,
                "latency": server.delay,
                "packet": server.size_packets,
                "pass": server.hurry,
                "release": server.release,
                "shift": robot.lengthen,
            }
            effects[self.name](*n)
        return "ok"


def scheduled(text: str) -> tuple[float, Fault]:
    """Return robot time [s] and fault of NAME@TIME or NAME@TIME:ARGUMENT,ARGUMENT."""
    name, _, rest = text.partition("@")
    time, _, arguments = rest.partition(":")
    try:
        if not math.isfinite(float(time)):
            raise InputError("a time that never comes")
        return float(time), Fault(f"{name} {arguments.replace(',', ' ')}")
    except ValueError as error:
        raise InputError(f"--fault {text}: write NAME@TIME[:ARGUMENTS], as in freeze@3.5:1.0 ({error})") from None


def state(server: "Server") -> dict[str, object]:
    """Return what a test wants to know of the robot, as it is and not as clients are told."""
    robot, joints = server.robot, server.robot.joints
    return {
        "stamp": robot.stamp,
        "q": joints.q.tolist(),
        "qd": joints.qd.tolist(),
        "q_target": joints.q_target.tolist(),
        "qd_target": joints.qd_target.tolist(),
        "robot_mode": robot.robot_mode,
        "safety_mode": robot.safety_mode,
        "runtime_state": robot.runtime_state,
        "program_running": robot.program is not None,
        "speed_scaling": robot.slider,
        "payload": robot.payload,
        "digital_outputs": robot.digital_outputs,
        "clients": server.clients,
    }


class Desk(LineClient):
    """One client of the control port."""

    def __init__(self, server: "Server"):
        super().__init__()
        self._server = server

    def answer(self, line: str) -> bytes:
        """Carry out one command."""
        try:
            return (Fault(line).apply(self._server) + "\n").encode()
        except InputError as error:
            return f"error: {error}\n".encode()
