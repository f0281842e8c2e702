"""Port 30003: programs as text from the client, the robot's state as a packet in every cycle.

After UR's "Remote control via TCP/IP", Client_Interface, tables of the real-time interface by version.
"""

import re
import struct

from hesscale_rl.envs.ur.arms import JOINTS
from hesscale_rl.envs.ur.simulator.client import Client, ProtocolError
from hesscale_rl.envs.ur.simulator.robot import SimulatedRobot
from hesscale_rl.envs.ur.simulator.script import Control
from hesscale_rl.envs.ur.simulator.statements import empty, motion, sleeps, start, writes
from hesscale_rl.envs.ur.simulator.variables import CURRENT, JOINT_RUNNING, TEMPERATURE, VOLTAGE, flat

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

_BEGIN = re.compile(rb"(def|sec)\s+(\w+)\s*\(")
_END = re.compile(rb"^end[ \t\r]*\n", re.MULTILINE)
_OFFSET = re.compile(rb"global reg_offset_int = # int register offset\s*(\d+)")


def packet_size(version: tuple[int, ...]) -> int:
    """Return the size of the packet that a controller of this version sends."""
    return next(size for since, size in reversed(_SINCE) if version[:2] >= since)


def packet(robot: SimulatedRobot, size: int) -> bytes:
    """Return the state as a packet of this size: int32 size, then doubles."""
    joints, zeros = robot.joints, (0.0,) * JOINTS
    values = [
        robot.stamp,
        *(joints.q_target, joints.qd_target, joints.qdd_target, zeros, joints.torque),  # zeros: currents
        *(joints.q, joints.qd, zeros, zeros),
        *(robot.pose(), robot.speed(), zeros, robot.pose(target=True), robot.speed(target=True)),
        *(0.0, (TEMPERATURE,) * JOINTS, 0.0, 0.0, robot.robot_mode, (JOINT_RUNNING,) * JOINTS, robot.safety_mode),
        *(zeros, (0.0, 0.0, -9.81), zeros, 1.0, 0.0, 0.0, 0.0, VOLTAGE, VOLTAGE, CURRENT),
        *((VOLTAGE,) * JOINTS, robot.digital_outputs, robot.runtime_state),
        *(robot.elbow(), robot.safety_mode, (0.0,) * 3, robot.payload, robot.cog, robot.inertia),
    ]
    count = (size - 4) // 8  # each version appends to the one before
    return struct.pack(f">i{count}d", size, *flat(values)[:count])


class Realtime(Client):
    """One client of port 30003. It gets no packet while an earlier one is unsent: ur_rtde never reads them."""

    backlog = 0

    def __init__(self, robot: SimulatedRobot, size: int):
        self._robot, self._size = robot, size
        self._rest, self._looked = bytearray(), 0  # what is no whole program yet, and up to where that is known

    def feed(self, data: bytes) -> bytes:
        """Start the programs that are complete; a later one takes the place of an earlier."""
        rest, at = self._rest, 0
        rest += data
        while (newline := rest.find(b"\n", at if _BEGIN.match(rest, at) else max(at, self._looked))) >= 0:
            if _BEGIN.match(rest, at):
                end = _END.search(rest, max(at, self._looked))
                if end is None:
                    self._looked = rest.rfind(b"\n") + 1
                    break
                self._upload(bytes(rest[at : end.end()]))
                at = end.end()
            else:
                self._command(rest[at:newline].decode("latin-1"))
                at = newline + 1
        else:
            self._looked = len(rest)
        del rest[:at]
        self._looked = max(self._looked - at, 0)
        if len(rest) > LONGEST_PROGRAM:
            raise ProtocolError("a program without end")
        return b""

    def cycle(self) -> bytes:
        """Return the packet of this cycle."""
        return packet(self._robot, self._size)

    def _upload(self, program: bytes) -> None:
        """Run ur_rtde's script, or a program of simulated statements. A `sec` would run beside it."""
        kind, word = _BEGIN.match(program).groups()  # type: ignore[union-attr]
        name = word.decode("latin-1")
        if name == "rtde_control":
            offset = _OFFSET.search(program)
            self._robot.run(Control(self._robot, 24 if offset and int(offset[1]) == 24 else 0), name)
        elif kind == b"def":
            start(self._robot, name, program.decode("latin-1").splitlines()[1:-1])
        else:
            self._robot.tell(f"{name}: a program beside the other is not simulated")

    def _command(self, line: str) -> None:
        """Run one statement as a program; of what is no right one is told, as a robot does in its log."""
        if motion(line) or writes(line) or sleeps(line) is not None:
            start(self._robot, "a line", [line])
        elif not empty(line):
            self._robot.tell(f"a line that is not simulated: {line.strip()[:60]!r}")
