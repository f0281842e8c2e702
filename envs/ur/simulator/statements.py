"""URScript as text: the statements of it that are simulated, one a line, and programs made of them."""

import math
import re
from collections.abc import Callable
from typing import Any

from hesscale_rl.envs.ur.arms import JOINTS
from hesscale_rl.envs.ur.simulator.robot import SimulatedRobot
from hesscale_rl.envs.ur.simulator.script import Motion, Routine, Script

# Motions' parameters in their order, with defaults; the first is a list, of one number for each joint.
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
_MOTION = re.compile(r"\s*(speedj|movej|servoj|stopj)\(\s*(?:\[([^\]]*)\])?([^\[\]]*)\)\s*")
_CALL = re.compile(r"\s*(\w+)\(([^()\[\]]*)\)\s*(?:#.*)?")
_FIRST_BIT = {"set_digital_out": 0, "set_standard_digital_out": 0, "set_configurable_digital_out": 8}
_FIRST_BIT |= {"set_tool_digital_out": 16}
_SAID = {"textmsg", "popup", "sync"}  # nothing here that a program could notice

Act = Callable[[Script], Routine]


def motion(line: str) -> tuple[Callable[..., Routine], list[Any]] | None:
    """Return routine and arguments of a motion command; None if it is none, or not a right one."""
    found = _MOTION.fullmatch(line)
    if found is None:
        return None
    name, vector, rest = found.groups()
    values = dict(_PARAMETERS[name])
    try:
        target = [] if vector is None else [float(x) for x in vector.split(",")]
        for place, argument in enumerate(part for part in rest.split(",") if part.strip()):
            key, _, value = argument.rpartition("=")
            values[key.strip() or list(values)[place]] = float(value)
    except (ValueError, IndexError):
        return None
    whole = len(target) == (0 if name == "stopj" else JOINTS)
    if not whole or None in values.values() or values.keys() - _PARAMETERS[name]:
        return None
    move, order = _MOVES[name]
    return move, [*([target] if target else []), *(values[key] for key in order)]


def writes(line: str) -> Callable[[SimulatedRobot], None] | None:
    """Return what a statement that writes an output or a register does at once; None if it is none."""
    found = _CALL.fullmatch(line)
    name, arguments = (found[1], [part.strip() for part in found[2].split(",")]) if found else ("", [])
    if name in _SAID:
        return lambda robot: None
    try:
        number = sum(map(int, arguments[0].split("+"))) if len(arguments) == 2 else -1  # ur_rtde writes 0 +24
        if name in _FIRST_BIT and 0 <= number < 8 and arguments[1] in ("True", "False"):
            bit, on = 1 << number + _FIRST_BIT[name], arguments[1] == "True"
            return lambda robot: robot.set_digital(bit, on)
        if name == "write_output_integer_register" and 0 <= number < 48:
            integer = int(arguments[1])
            return lambda robot: robot.integers.__setitem__(number, integer)
        if name == "write_output_float_register" and 0 <= number < 48:
            value = float(arguments[1])
            return lambda robot: robot.doubles.__setitem__(number, value)
    except ValueError:
        pass
    return None


def sleeps(line: str) -> float | None:
    """Return the seconds of a `sleep`; None if it is none."""
    found = _CALL.fullmatch(line)
    try:
        seconds = float(found[2]) if found and found[1] == "sleep" else math.nan
    except ValueError:
        seconds = math.nan
    return seconds if 0 <= seconds < math.inf else None


def empty(line: str) -> bool:
    """Whether there is nothing to do."""
    return not line.strip() or line.strip().startswith("#")


class Statements(Script):
    """A program of statements, one after the other; motions last until they have ended."""

    def __init__(self, robot: SimulatedRobot, lines: list[str]):
        self._lines = lines
        super().__init__(robot)

    def main(self) -> Routine:
        """Carry them out."""
        for line in self._lines:
            if move := motion(line):
                yield from move[0](self, *move[1])
            elif act := writes(line):
                act(self.robot)
            elif (seconds := sleeps(line)) is not None:
                yield from self._wait(seconds)
        yield


def start(robot: SimulatedRobot, name: str, lines: list[str]) -> None:
    """Run a program of these statements, or tell of the first that is not simulated.

    Of a program that is not, nothing moves; what it writes to outputs and registers is written at once, so that no
    client waits for a word that never comes.
    """
    lines = [line for line in lines if not empty(line)]
    unknown = [line for line in lines if not (motion(line) or writes(line) or sleeps(line) is not None)]
    if unknown:
        robot.stop(f"replaced by {name}")
        robot.tell(f"{name}: {unknown[0].strip()[:60]!r} is not simulated; of {name} only outputs are written")
        for line in lines if robot.may_run else []:
            if act := writes(line):
                act(robot)
    elif len(lines) == 1 and (move := motion(lines[0])):
        robot.run(Motion(robot, move[0], *move[1]))
    else:
        robot.run(Statements(robot, lines), name)
