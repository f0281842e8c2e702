"""A real arm, or whatever speaks its protocol: the driver, and the process behind it where control_loop.py talks."""

import contextlib
import multiprocessing as mp
import os
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .arms import JOINTS
from .clock import clock
from .control_loop import ControlLoop
from .drivers import State, Status
from .preflight import end_program
from .safety import FREE, Bounds, RobotFault, admit, check_command
from .shared import COMMAND, STATE, Held, PolicySilent, ProtectiveStop, Settings, Silent, Stopped, TakenOver
from .waiting import Waiting

FAULTS = {kind.__name__: kind for kind in (RobotFault, ProtectiveStop, PolicySilent, TakenOver, Stopped, Silent)}
STATUS = {ProtectiveStop: Status.PROTECTIVE_STOP, PolicySilent: Status.POLICY_SILENT, Silent: Status.STALE}
HOLDS = {status: kind for kind, status in STATUS.items() if issubclass(kind, Held)}
ORDERS = {signal.SIGINT, signal.SIGHUP}  # from the terminal to the whole group; the process obeys the policy's alone
POLL, LOOK = 0.0005, 0.05  # s between two looks at the state, and for an answer
HANGS = 1.0  # s without a new state after which the process is given up
NICE = -15  # of the threads of ur_rtde, where that is allowed: late for the watchdog is a stop
CONNECTING, MOVING, UNLOCKING = 30.0, 30.0, 30.0  # s that an answer may take


class UrRtdeDriver:
    """A robot over ur_rtde, in a process of its own that re-sends, guards and watches in every control cycle.

    The constructor connects and checks the robot, and moves nothing; RobotFault says what is not as it must be.
    After a RobotFault the arm stands or is coming to a stand, as far as that is in this program's hands: what is Held
    can be released with `unlock`, after anything else a new driver has to be made. `robot`: version, model and serial
    number. `stands`: after `close`, whether the arm was read to stand.
    """

    stands = False

    def __init__(self, settings: Settings):
        self.settings, self.bounds, self._clock = settings, settings.bounds, clock(settings.clock)
        _compile_guard(self.bounds)  # once, and kept for the process below
        spawn = mp.get_context("spawn")
        shared = spawn.RawArray("b", STATE.itemsize), spawn.RawArray("b", COMMAND.itemsize)
        self._state, self._command = np.frombuffer(shared[0], STATE)[0], np.frombuffer(shared[1], COMMAND)[0]
        self._seen = np.zeros(4, np.int64)
        self.limit_speed(self.bounds.speed)
        self._connection, theirs = spawn.Pipe()
        arguments = (theirs, shared, settings, os.getpid())
        self.process = spawn.Process(target=serve, args=arguments, name="ur-link", daemon=True)
        self._asked = 0  # requests are numbered: an answer may come after the one who asked was interrupted
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.robot: dict[str, Any] = self._answer(CONNECTING)
        self.wait(0.0)

    def _ask(self, seconds: float, name: str, *arguments: Any) -> Any:
        try:
            self._asked += 1
            self._connection.send((self._asked, name, arguments))
        except OSError:
            raise self._fault() from None
        return self._answer(seconds, telling=name in ("stop", "movej"))

    def _answer(self, seconds: float, telling: bool = False) -> Any:
        """Wait for the process's answer, its faults are raised here. telling: it tells of every cycle meanwhile."""
        sequence, waiting = -1, Waiting(self._clock)
        try:
            number, kind, until = -1, "done", time.monotonic() + seconds
            while number != self._asked and kind == "done":
                if self._connection.poll(LOOK):
                    number, kind, content = self._connection.recv()
                elif self._state["sequence"] != sequence:
                    sequence, waiting = int(self._state["sequence"]), Waiting(self._clock)
                elif telling and waiting.look() > HANGS:
                    raise self._hangs()
                elif time.monotonic() > until:
                    self.process.kill()
                    raise Silent(f"the process that talks to the robot gave no answer for {seconds:g} s")
        except (EOFError, OSError):
            raise Silent(self._died()) from None
        if kind == "done":
            return content
        raise FAULTS[kind](content)

    def _died(self) -> str:
        self.process.join(1.0)
        return (
            f"the process that talks to the robot has died (exit code {self.process.exitcode}); "
            "the robot's watchdog stops the arm"
        )

    def _fault(self) -> RobotFault:
        """What went wrong, as the process told it."""
        try:
            self._answer(1.0)
        except RobotFault as fault:
            return fault
        return Silent("the process that talks to the robot has ended")

    def read(self) -> State:
        """Return the newest state."""
        waiting = Waiting(self._clock)
        while True:
            before = int(self._state["sequence"])
            copy = self._state.copy()
            if before % 2 == 0 and before == int(self._state["sequence"]):
                break
            if waiting.look() > HANGS:
                raise self._hangs()
        counts = copy["overrides"]
        did = int(np.flatnonzero(counts > self._seen).max(initial=FREE))
        joints = (copy["q"], copy["qd"], copy["q_target"], copy["qd_target"])
        return State(float(copy["stamp"]), *joints, Status(int(copy["status"])), copy["executed"], did)

    def wait(self, stamp: float) -> State:
        """Return the first state from `stamp` on."""
        self._seen = self._state["overrides"].copy()
        self._command["awaited"] = stamp = stamp - self.bounds.period / 2
        sequence, waiting = -1, Waiting(self._clock)
        while True:
            status = int(self._state["status"])
            if status in HOLDS:
                raise HOLDS[Status(status)]
            if status != Status.RUNNING or not self.process.is_alive():
                raise self._fault()
            if self._state["sequence"] > 0 and self._state["stamp"] >= stamp:
                return self.read()
            if self._state["sequence"] != sequence:
                sequence, waiting = int(self._state["sequence"]), Waiting(self._clock)
            elif waiting.look() > HANGS:
                raise self._hangs()
            time.sleep(POLL)

    def _hangs(self) -> RobotFault:
        self.process.kill()
        return Silent(
            "the process that talks to the robot hangs: it is ended, and the robot's watchdog stops the arm"
        )

    def speedj(self, qd: np.ndarray) -> None:
        """Move the joints with these speeds [6] for as long as the task's timeout, as far as the bounds allow."""
        try:
            wanted = check_command(qd)
        except RobotFault:
            self._give(np.zeros(JOINTS))
            raise
        self._give(wanted)

    def _give(self, wanted: np.ndarray) -> None:
        self._command["sequence"] += 1
        self._command["wanted"], self._command["given"] = wanted, self._state["stamp"]
        self._command["sequence"] += 1

    def limit_speed(self, speed: float) -> None:
        """Let no joint be faster than this, rad/s, nor than the bounds allow; ValueError unless it is positive."""
        if not speed > 0:
            raise ValueError(f"a greatest speed of {speed} rad/s: must be a positive number")
        self._command["speed"] = speed

    def stop(self) -> State:
        """Come to a stand."""
        self._ask(MOVING, "stop")
        return self.read()

    def movej(self, q: np.ndarray) -> State:
        """Go to q [6] in a straight line of joint space, and return when standing there."""
        self._ask(MOVING, "movej", np.asarray(q, dtype=np.float64))
        return self.read()

    def unlock(self) -> None:
        """Release what is Held, a protective stop not before it is 5 s old; a person has looked why it came."""
        self._ask(UNLOCKING, "unlock")

    def close(self) -> None:
        """Stop and let go; at most some seconds, after which the process is killed and the robot's watchdog acts.

        A second time does nothing.
        """
        if self._connection.closed:
            return
        with contextlib.suppress(OSError):
            self._connection.send((0, "close", ()))
        self.process.join(8.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.stands = bool(self._state["stands"])
        self._connection.close()


# --- the process


def serve(connection: Connection, shared: tuple[Any, Any], settings: Settings, parent: int) -> None:
    """Be the process: until the connection ends, the parent dies, or the robot cannot be trusted any more."""
    for number in ORDERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)  # this thread, and those that it starts
    state, command = np.frombuffer(shared[0], STATE)[0], np.frombuffer(shared[1], COMMAND)[0]
    _compile_guard(settings.bounds)

    def orphaned() -> bool:
        return bool(ended) or os.getppid() != parent

    try:
        loop = ControlLoop(settings, state, command, lambda: orphaned() or connection.poll())
    except RobotFault as fault:
        _report(connection, fault)
        return
    except ImportError:
        _report(connection, RobotFault("a robot needs ur_rtde: pip install 'hesscale-rl[robot]'"))
        return
    with contextlib.suppress(OSError, AttributeError):
        # The guard's own thread goes before everything else on this machine, where that is allowed. It sleeps most of
        # the time. The library's threads have begun before: they spin, and would keep one processor to themselves.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
    wrong: RobotFault | None = None
    try:
        connection.send((0, "done", loop.preflight()))
        _work(loop, connection, orphaned)
    except RobotFault as fault:
        wrong = fault
    except (EOFError, OSError):  # the parent has closed the connection, or is gone
        pass
    except Exception as error:
        traceback.print_exc()
        wrong = RobotFault(f"the process that talks to the robot has a fault of its own: {error!r}")
    finally:
        if wrong is not None:
            state["status"] = _status(wrong)
            _report(connection, wrong)
        if isinstance(wrong, Silent):
            # The library may be connecting again, and loading a program without a watchdog.
            end_program(settings.host)
            os._exit(3)  # every call of the library could take seconds now, or end in a crash; the watchdog acts
        loop.abandon(wrong)
        os._exit(0)  # the library takes a second to disconnect in good order, and nothing needs it


def _work(loop: ControlLoop, connection: Connection, orphaned: Callable[[], bool]) -> None:
    """Cycle after cycle, and what the parent asks for in between. Ends with the arm at a stand."""
    wrong: RobotFault | None = None  # holds the arm until the parent asks to unlock it
    while not orphaned():
        try:
            if connection.poll():
                number, name, arguments = connection.recv()
                loop.command["awaited"] = np.inf  # in lock step: the policy waits until this is done
                if name == "close":
                    break
                if wrong is not None and name != "unlock":
                    _report(connection, wrong)
                    continue
                getattr(loop, name)(*arguments)
                wrong, loop.state["status"] = None, Status.RUNNING
                loop.command["awaited"] = -np.inf  # and then the robot for what the policy wants next
                connection.send((number, "done", None))
            elif wrong is None:
                name = "cycle"
                loop.cycle()
            else:
                loop.idle()
        except (Held, Stopped) as fault:
            if isinstance(fault, Stopped) and name != "unlock":
                raise
            if wrong is None:
                loop.state["status"] = _status(fault)
                loop.hold(fault)
            wrong = fault
            if name != "cycle":
                _report(connection, fault)
    if wrong is None:
        loop.stop()


def _status(fault: RobotFault) -> Status:
    return STATUS.get(type(fault), Status.EMERGENCY_STOP)


def _report(connection: Connection, fault: RobotFault) -> None:
    with contextlib.suppress(OSError):
        connection.send((-1, type(fault).__name__, str(fault)))


def _compile_guard(bounds: Bounds) -> None:
    """Have the guard compiled before the first cycle that needs it."""
    zero = np.zeros(JOINTS)
    admit(zero, zero, zero, np.zeros((1, JOINTS)), zero, bounds)
