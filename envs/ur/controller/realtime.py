"""Port 30003: programs as text from the client, the robot's state as a packet in every cycle.

After UR's "Remote control via TCP/IP", Client_Interface, tables of the real-time interface by version.
"""

import re
import struct
from collections.abc import Callable

from envs.ur.controller.robot import Robot
from envs.ur.controller.script import Control, Motion, Routine, Script
from envs.ur.controller.session import ProtocolError, Session
from envs.ur.controller.variables import CURRENT, JOINT_RUNNING, TEMPERATURE, VOLTAGE, flat

LONGEST_PROGRAM = 1 << 20  # bytes; ur_rtde's has 42163
PACKET_SIZES = (1060, 1108, 1116, 1140, 1220)  # bytes, of firmware 3.2, 3.5 and 5.0, 3.10 and 5.4, 5.9, 5.10
_SINCE = (
    ((3, 2), 1060),
    ((3, 5), 1108),
    ((3, 10), 1116),
    ((5, 0), 1108),
    ((5, 4), 1116),
    ((5, 9), 1140),
    ((5, 10), 1220),
)

# URScript's parameters in their order, with defaults; the first is a list of six.
_PARAMETERS: dict[str, dict[str, float | None]] = {
    "speedj": {"a": None, "t": 0.0},
    "movej": {"a": 1.4, "v": 1.05, "t": 0.0, "r": 0.0},
    "servoj": {"a": 0.0, "v": 0.0, "t": 0.008, "lookahead_time": 0.1, "gain": 300.0},
    "stopj": {"a": 2.0},
}
_MOVES: dict[str, tuple[Callable[..., Routine], tuple[str, ...]]] = {
    "speedj": (Script.speedj, ("a", "t")),
    "movej": (Script.movej, ("v", "a", "t")),
    "servoj": (Script.servoj, ("t", "lookahead_time")),
    "stopj": (Script.stopj, ("a",)),
}
_COMMAND = re.compile(r"\s*(speedj|movej|servoj|stopj)\(\s*(?:\[([^\]]*)\])?([^\[\]]*)\)\s*")
_BEGIN = re.compile(rb"(def|sec)\s+(\w+)\s*\(")
_END = re.compile(rb"^end[ \t\r]*\n", re.MULTILINE)
_OFFSET = re.compile(rb"global reg_offset_int = # int register offset\s*(\d+)")


def packet_size(version: tuple[int, ...]) -> int:
    """Return the size of the packet that a controller of this version sends."""
    return next(size for since, size in reversed(_SINCE) if version[:2] >= since)


def packet(robot: Robot, size: int) -> bytes:
    """Return the state as a packet of this size: int32 size, then doubles."""
    arm, zeros = robot.arm, (0.0,) * 6
    values = [
        robot.stamp,
        *(arm.q_target, arm.qd_target, arm.qdd_target, zeros, arm.torque),  # zeros: currents
        *(arm.q, arm.qd, zeros, zeros),
        *(robot.pose(), robot.speed(), zeros, robot.pose(target=True), robot.speed(target=True)),
        *(0.0, (TEMPERATURE,) * 6, 0.0, 0.0, robot.robot_mode, (JOINT_RUNNING,) * 6, robot.safety_mode),
        *(zeros, (0.0, 0.0, -9.81), zeros, robot.slider, 0.0, 0.0, 0.0, VOLTAGE, VOLTAGE, CURRENT),
        *((VOLTAGE,) * 6, robot.digital_outputs, robot.runtime_state),
        *(robot.elbow(), robot.safety_mode, (0.0,) * 3, robot.payload, robot.cog, robot.inertia),
    ]
    count = (size - 4) // 8  # each version appends to the one before
    return struct.pack(f">i{count}d", size, *flat(values)[:count])


class Realtime(Session):
    """One client of port 30003. It gets no packet while an earlier one is unsent: ur_rtde never reads them."""

    backlog = 0

    def __init__(self, robot: Robot, size: int):
        self._robot, self._size = robot, size
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Start the programs that are complete; a later one takes the place of an earlier."""
        data, at = self._rest + data, 0
        while (newline := data.find(b"\n", at)) >= 0:
            if _BEGIN.match(data, at):
                end = _END.search(data, at)
                if end is None:
                    break
                self._upload(data[at : end.end()])
                at = end.end()
            else:
                self._command(data[at:newline].decode("latin-1"))
                at = newline + 1
        self._rest = data[at:]
        if len(self._rest) > LONGEST_PROGRAM:
            raise ProtocolError("a program without end")
        return b""

    def cycle(self) -> bytes:
        """Return the packet of this cycle."""
        return packet(self._robot, self._size)

    def _upload(self, program: bytes) -> None:
        """Run ur_rtde's script. Any other `def` ends what runs and does nothing; a `sec` runs beside it."""
        kind, name = _BEGIN.match(program).groups()  # type: ignore[union-attr]
        if name == b"rtde_control":
            offset = _OFFSET.search(program)
            self._robot.run(Control(self._robot, 24 if offset and int(offset[1]) == 24 else 0), "rtde_control")
        elif kind == b"def":
            self._robot.stop(f"replaced by {name.decode('latin-1')}, which is not simulated")

    def _command(self, line: str) -> None:
        """Run one motion command as a program; a line that is none is ignored, as a robot does after a log entry."""
        found = _COMMAND.fullmatch(line)
        if found is None:
            return
        name, vector, rest = found.groups()
        values = dict(_PARAMETERS[name])
        try:
            target = [] if vector is None else [float(x) for x in vector.split(",")]
            for place, argument in enumerate(part for part in rest.split(",") if part.strip()):
                key, _, value = argument.rpartition("=")
                values[key.strip() or list(values)[place]] = float(value)
        except (ValueError, IndexError):
            return
        if (
            len(target) != (0 if name == "stopj" else 6)
            or None in values.values()
            or values.keys() - _PARAMETERS[name]
        ):
            return
        move, order = _MOVES[name]
        arguments = [values[key] for key in order]
        self._robot.run(Motion(self._robot, move, *([target] if target else []), *arguments))
