"""Programs on the simulated controller, each routine a generator that yields once a control cycle.

`Control` stands for the script that ur_rtde uploads: it takes commands from input registers and answers in output
registers. `Motion` is a program of one motion command.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from hesscale_rl.envs.ur.arms import JOINTS, RANGE
from hesscale_rl.envs.ur.simulator.poses import POSE, compose, solve
from hesscale_rl.envs.ur.simulator.robot import PROTECTIVE_STOP, ScriptError, SimulatedRobot

Routine = Iterator[None]


class Script:
    """A program: routines that take turns within a cycle, those started later before `main`.

    So a target that `main` sets is taken up by its thread in the next cycle, as it is on a robot.
    """

    busy = False

    def __init__(self, robot: SimulatedRobot):
        self.robot = robot
        self._routines: dict[str, Routine] = {"main": self.main()}
        self._running = self._mover = ""
        self._over = False

    def main(self) -> Routine:
        """Run the first routine; the program ends with it."""
        raise NotImplementedError

    def step(self) -> bool:
        """Let one cycle pass; return whether there is another."""
        for name in reversed(list(self._routines)):
            if self._over or name not in self._routines:
                continue
            self._running = name
            if next(self._routines[name], StopIteration) is StopIteration:
                self._routines.pop(name, None)
        self._running = ""
        return "main" in self._routines and not self._over

    def close(self) -> None:
        """Be stopped; also from within a routine that runs."""
        self._over = True

    def start(self, name: str, routine: Routine) -> None:
        """Run a routine beside the others, from the next cycle on."""
        self._routines[name] = routine

    def kill(self, name: str) -> bool:
        """End a routine; return whether it was there."""
        if self._mover == name:
            self._mover = ""
        return self._routines.pop(name, None) is not None

    @contextmanager
    def _control(self) -> Iterator[None]:
        """Only one routine at a time may move the arm."""
        name = self._running
        if self._mover not in ("", name) and self.robot.thread_rule:
            raise ScriptError("another thread is already controlling the robot")
        self._mover = name
        yield
        if self._mover == name:
            self._mover = ""

    # -- the motion commands of URScript

    def speedj(self, qd: list[float], acceleration: float, time: float) -> Routine:
        """Hold these speeds for `time` seconds; 0: until they are reached."""
        with self._control():
            self.robot.speedj(qd, acceleration)
            if time > 0:
                yield from self._wait(time)
            else:
                yield
                while np.abs(self.robot.joints.qd_target - np.asarray(qd) * self.robot.slider).max() > 1e-9:
                    yield

    def servoj(self, q: list[float], time: float, lookahead: float) -> Routine:
        """Follow q for `time` seconds."""
        with self._control():
            self.robot.servoj(q, lookahead)
            yield from self._wait(time)

    def movej(self, q: list[float], speed: float, acceleration: float, duration: float = 0.0) -> Routine:
        """Go to q and stop there; a motion that is still under way is brought to an end before."""
        with self._control():
            if self.robot.joints.moving:
                yield from self._stand(acceleration)
            self.robot.movej(q, speed, acceleration, duration)
            while self.robot.joints.moving:
                yield

    def stopj(self, acceleration: float) -> Routine:
        """Come to a stand."""
        with self._control():
            yield from self._stand(acceleration)

    def _stand(self, acceleration: float) -> Routine:
        self.robot.stopj(acceleration)
        while self.robot.joints.moving:
            yield

    def _wait(self, time: float) -> Routine:
        if not math.isfinite(time):
            raise ScriptError("a time that is no number")
        for _ in range(max(1, math.ceil(time * self.robot.frequency - 1e-6))):
            yield


class Motion(Script):
    """A program of one motion command: a generator function of Script and its arguments.

    After a speedj or servoj it lasts one cycle longer: who sends another line in that time keeps the arm going.
    """

    def __init__(self, robot: SimulatedRobot, command: Callable[..., Routine], *arguments: object):
        self._command, self._arguments = command, arguments
        super().__init__(robot)

    def main(self) -> Routine:
        """Run the command."""
        yield from self._command(self, *self._arguments)
        if self.robot.joints.moving:
            yield


REALTIME = {6, 9, 10, 11, 24, 25, 26, 27, 38, 58, 66, 67, 68, 69, 70, 71}  # commands that are never waited for
READY, DONE = 1, 2  # in output register 0
STOP_SCRIPT = 255
LARGEST = 1e6  # of what a command may be told that moves nothing


class Control(Script):
    """The script rtde_control: commands by number in input register 0, their arguments in those that follow.

    offset: 0, or 24 where the upper registers are used. A command that is not simulated ends the program.
    """

    def __init__(self, robot: SimulatedRobot, offset: int = 0):
        super().__init__(robot)
        self._offset = offset
        self._count = self._operation = 0
        self._speed: tuple[list[float], float, float] = ([0.0] * JOINTS, 1.0, 0.0)
        self._servo: tuple[list[float], float, float] = ([0.0] * JOINTS, 0.0, 0.1)

    def main(self) -> Routine:
        """Take one command per cycle."""
        executing = False
        self._progress(-1)
        while True:
            command = self._integer(0)
            if command in REALTIME:
                yield from self._process(command)
                self._put(0, READY)
            elif command == 0:
                executing = False
                self._put(0, READY)
            elif not executing:
                self.busy = True
                yield from self._process(command)
                self.busy = False
                if command == STOP_SCRIPT:
                    return
                self._put(0, DONE)
                executing = True
            yield

    def _process(self, command: int) -> Routine:
        robot, a = self.robot, self._doubles(18)
        if command == 1:
            self._end_move()
            if self._integer(1):
                self.start("move", self._reporting(self.movej(a[:JOINTS], a[6], a[7])))
            else:
                yield from self.movej(a[:JOINTS], a[6], a[7])
        elif command == 9:
            self._speed = a[:JOINTS], a[6], a[7]
            if "speed" not in self._routines:
                self.start("speed", self._speed_thread())
        elif command == 11:
            self._servo = a[:JOINTS], a[8], a[9]
            if "servo" not in self._routines:
                self.start("servo", self._servo_thread())
        elif command in (15, 16):
            self.kill("speed" if command == 15 else "servo")
            yield from self.stopj(a[0])
        elif command in (33, 34):
            yield from self._stop(a[0], bool(self._integer(1)))
        elif command == 31:
            robot.halt(PROTECTIVE_STOP, "asked for by the program")
        elif command == 35:
            robot.watch(f"input_int_register_{self._offset}", 1 / a[0] if a[0] > 0 else 0.0)
        elif command in ANSWERS:
            count, answer = ANSWERS[command]
            if not all(abs(x) < LARGEST for x in a[:count]):  # False for what is no number, too
                raise ScriptError(f"command {command}: an argument is no usable number")
            answer(self, a)
        elif command != STOP_SCRIPT:
            raise ScriptError(f"command {command} is not simulated")

    def _speed_thread(self) -> Routine:
        while True:  # the last target for ever: no link to the client
            yield from self.speedj(*self._speed)

    def _servo_thread(self) -> Routine:
        while True:
            yield from self.servoj(*self._servo)

    def _stop(self, acceleration: float, beside: bool) -> Routine:
        if self.kill("stop"):
            self._progress(-1)
        else:
            self._end_move()
        if beside:
            self.start("stop", self._reporting(self.stopj(acceleration)))
        else:
            yield from self.stopj(acceleration)

    def _end_move(self) -> None:
        if self.kill("move"):
            self._progress(-1)

    def _reporting(self, routine: Routine) -> Routine:
        self._progress(0)
        yield from routine
        self._progress(-1)

    def _progress(self, value: int) -> None:
        """Write the word of asynchronous operations; 0: one begins, negative: it is over."""
        self._count = (self._count + 1) % 128
        if value == 0:
            self._operation = (self._operation + 1) % 128
        self._put(2, self._count << 16 | self._operation << 24 | (1 << 15 if value >= 0 else 0))

    # -- registers

    def _integer(self, n: int) -> int:
        return int(self.robot.inputs.get(f"input_int_register_{n + self._offset}", 0))

    def _doubles(self, count: int) -> list[float]:
        return [self.robot.inputs.get(f"input_double_register_{n + self._offset}", 0.0) for n in range(count)]

    def _put(self, n: int, value: int) -> None:
        self.robot.integers[n + self._offset] = value

    def put_doubles(self, values: np.ndarray | list[float]) -> None:
        """Write results to the output registers from 0 on."""
        self.robot.doubles[self._offset : self._offset + len(values)] = map(float, values)

    def put_truth(self, value: bool) -> None:
        """Write a result to output register 1."""
        self._put(1, int(value))

    # -- commands that only ask or set

    def payload(self, a: list[float]) -> None:
        """Take mass [kg], centre of gravity [m] and, where the command has it, inertia [kg m^2]."""
        self.robot.payload, self.robot.cog = a[0], np.array(a[1:4])
        if self._integer(0) == 65:
            self.robot.inertia = np.array(a[4:10])

    def tool(self, a: list[float]) -> None:
        """Take the tool's offset from the flange."""
        self.robot.tool = np.array(a[:POSE])

    def step_time(self, a: list[float]) -> None:
        """Give the control period, which the older series' script has no command for."""
        if self.robot.version >= (5, 4):
            self.put_doubles([self.robot.joints.period])

    def inverse(self, a: list[float]) -> None:
        """Give joints that reach a pose, and whether there are any."""
        explicit = self._integer(0) in (30, 61)
        robot, near = self.robot, np.array(a[POSE:][:JOINTS])
        q = solve(robot.arm.links, np.array(a[:POSE]), near if explicit else robot.joints.q, robot.tool)
        asks = self._integer(0) in (36, 60, 61)
        if not asks and q is None:
            raise ScriptError("get_inverse_kin: no solution")
        self.put_truth(q is not None) if asks else self.put_doubles(q if q is not None else [])

    def nothing(self, a: list[float]) -> None:
        """Take a setting that changes nothing here."""


# By command: how many double registers it reads, and what it does.
ANSWERS: dict[int, tuple[int, Callable[[Control, list[float]], None]]] = {
    8: (0, Control.nothing),  # zero_ftsensor
    17: (4, Control.payload),
    26: (0, Control.step_time),
    29: (6, Control.tool),
    30: (14, Control.inverse),
    36: (6, Control.inverse),
    37: (6, lambda s, a: s.put_truth(max(map(abs, a[:JOINTS])) <= RANGE)),
    38: (0, lambda s, a: s.put_doubles(s.robot.joints.torque)),
    39: (12, lambda s, a: s.put_doubles(compose(np.array(a[:POSE]), np.array(a[POSE:])))),
    40: (0, lambda s, a: s.put_doubles(s.robot.tool)),
    43: (0, lambda s, a: s.put_doubles(s.robot.pose())),
    44: (6, lambda s, a: s.put_doubles(s.robot.forward(np.array(a[:JOINTS])))),
    46: (6, Control.inverse),
    47: (0, lambda s, a: s.put_truth(s.robot.steady)),
    59: (3, Control.nothing),  # set_gravity
    60: (6, Control.inverse),
    61: (14, Control.inverse),
    65: (10, Control.payload),
}
