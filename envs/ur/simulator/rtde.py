"""RTDE, version 2 of the protocol: robot to client in every control cycle, client to robot at any time.

After UR's "Real-Time Data Exchange (RTDE) guide". A package is uint16 size, uint8 type, payload; all big-endian.
"""

import math
import struct
from typing import Any

from hesscale_rl.envs.ur.simulator.client import Client, ProtocolError
from hesscale_rl.envs.ur.simulator.robot import SimulatedRobot
from hesscale_rl.envs.ur.simulator.variables import FORMATS, INPUTS, OUTPUTS, SINCE_5, Get, flat

VERSION, CONTROL_VERSION, TEXT = ord("V"), ord("v"), ord("M")
SETUP_OUTPUTS, SETUP_INPUTS, START, PAUSE, DATA = ord("O"), ord("I"), ord("S"), ord("P"), ord("U")
NOT_FOUND, IN_USE = "NOT_FOUND", "IN_USE"
WARNING = 2


def package(kind: int, payload: bytes) -> bytes:
    """Return a package with its header."""
    if len(payload) > 0xFFFF - 3:
        raise ProtocolError("an answer longer than a package")
    return struct.pack(">HB", 3 + len(payload), kind) + payload


class Recipe:
    """Variables in the order in which they are packed."""

    def __init__(self, names: list[str], types: list[str]):
        self.names, self.types = names, types
        self.struct = struct.Struct(">" + "".join(FORMATS[kind] for kind in types))

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Return the values by name, vectors as tuples; struct.error if the length is wrong."""
        numbers = self.struct.unpack(data)
        values, at = {}, 0
        for name, kind in zip(self.names, self.types, strict=True):
            width = int(FORMATS[kind][:-1] or 1)
            values[name] = numbers[at] if width == 1 else numbers[at : at + width]
            at += width
        return values


class Rtde(Client):
    """One RTDE client. `holders` is common to all: which client writes which input."""

    def __init__(self, robot: SimulatedRobot, holders: dict[str, "Rtde"]):
        self._robot, self._holders = robot, holders
        self._rest = b""
        self._inputs: list[Recipe] = []
        self._output: Recipe | None = None
        self._getters: list[Get] = []
        self._every = 1
        self._failed = self._started = False

    def feed(self, data: bytes) -> bytes:
        """Handle the packages that are complete and return the answers."""
        data, at = self._rest + data, 0
        answers = []
        while len(data) >= at + 3:
            size, kind = struct.unpack_from(">HB", data, at)
            if size < 3:
                raise ProtocolError("a package smaller than its header")
            if len(data) < at + size:
                break
            answers.append(self._handle(kind, data[at + 3 : at + size]))
            at += size
        self._rest = data[at:]
        return b"".join(answers)

    def cycle(self) -> bytes:
        """Return the data of this cycle, if it is one of the client's."""
        if not self._started or self._output is None or self._robot.cycle % self._every:
            return b""
        values = flat([get(self._robot) for get in self._getters])
        return package(DATA, b"\x01" + self._output.struct.pack(*values))

    def close(self) -> None:
        """Let other clients write the inputs."""
        for name in [name for name, holder in self._holders.items() if holder is self]:
            del self._holders[name]

    def _handle(self, kind: int, payload: bytes) -> bytes:
        if kind == VERSION and len(payload) == 2:
            return package(kind, bytes([payload == b"\x00\x02"]))
        if kind == CONTROL_VERSION:
            return package(kind, struct.pack(">4I", *self._robot.version))
        if kind == SETUP_OUTPUTS and len(payload) >= 8:
            (frequency,) = struct.unpack_from(">d", payload)
            return package(kind, self._set_up_outputs(frequency, names_in(payload[8:])))
        if kind == SETUP_INPUTS:
            return package(kind, self._set_up_inputs(names_in(payload)))
        if kind in (START, PAUSE):
            self._started = kind == START and not self._failed
            return package(kind, bytes([kind == PAUSE or self._started]))
        if kind == DATA and payload:
            return self._take(payload[0], payload[1:])
        if kind == TEXT:
            return b""
        raise ProtocolError(f"a package of type {kind} and {len(payload)} bytes")

    def _set_up_outputs(self, frequency: float, names: list[str]) -> bytes:
        missing = SINCE_5 if self._robot.version < (5,) else set()
        types = [OUTPUTS[n][0] if n in OUTPUTS and n not in missing else NOT_FOUND for n in names]
        rate = self._robot.frequency
        self._started = False
        self._failed = NOT_FOUND in types or not names or not 1 <= frequency <= rate
        if not self._failed:
            self._output, self._getters = Recipe(names, types), [OUTPUTS[name][1] for name in names]
            self._every = math.floor(rate / frequency)
        return bytes([not self._failed]) + ",".join(types).encode()

    def _set_up_inputs(self, names: list[str]) -> bytes:
        types = [
            NOT_FOUND if name not in INPUTS else IN_USE if self._holders.get(name, self) is not self else INPUTS[name]
            for name in names
        ]
        number = 0
        if names and not {NOT_FOUND, IN_USE} & set(types) and len(self._inputs) < 255:
            self._inputs.append(Recipe(names, types))
            self._holders.update(dict.fromkeys(names, self))
            number = len(self._inputs)
        return bytes([number]) + ",".join(types).encode()

    def _take(self, number: int, data: bytes) -> bytes:
        """Data that does not fit its recipe is told of and changes nothing: ur_rtde sends such packages."""
        try:
            if not 0 < number <= len(self._inputs):
                raise struct.error("no such recipe")
            self._robot.take(self._inputs[number - 1].unpack(data))
        except struct.error as error:
            return text(f"data for input recipe {number}: {error}")
        return b""


def names_in(payload: bytes) -> list[str]:
    """Return the variables in a list with commas; ur_rtde ends it with one."""
    return [name for name in payload.decode("latin-1").split(",") if name]


def text(message: str, level: int = WARNING) -> bytes:
    """Return a message for the client's log."""
    words, source = message.encode()[:255], b"RTDE"
    return package(TEXT, bytes([len(words)]) + words + bytes([len(source)]) + source + bytes([level]))
