"""What talks to a robot: it reads, guards and commands it in every control cycle, in a process of its own (rtde.py).

It stands between the policy and the wire so that nothing which goes wrong on the policy's side, a slow update, an
exception, a kill, leaves the arm moving; and so that nothing which goes wrong in here, the client library included,
takes the policy's process along. If it dies itself, the robot's own watchdog stops the arm.
"""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .arms import JOINTS
from .connection import CALL, FRESH, Connection, Packet
from .log import Record
from .motion import Move
from .preflight import NORMAL, PROTECTIVE, REDUCED, ROBOT_RUNNING, WATCHDOG, check_ready, end_program, preflight
from .reference import PATIENCE, Reference
from .safety import FREE, RobotFault, admit, check_command, clearance
from .shared import CYCLE, PolicySilent, ProtectiveStop, Settings, Stopped, TakenOver

UNLOGGED = "{}: the log of the control cycles cannot be written: {}"
PROGRAM_RUNS = 2  # bit of robot_status_bits
UNLOCK_AFTER = 5.0  # s that a protective stop must last before the controller lets go
SETTLING = 2.0  # s of robot time in which the arm is read to stand, or not, before it is let go
ARRIVED, STILL = 0.005, 0.01  # rad, rad/s
OUTSIDE = 0.005  # rad or m out of the bounds, where the guard brings nobody: it keeps `Bounds.margin` inside


class ControlLoop(Connection):
    """The robot as this process sees it. Every method that moves it keeps the cycle going while it lasts.

    `state`, `command`: records of STATE and COMMAND (shared.py), which the policy's process sees too. `given_up`:
    whether that process is gone, or wants something else than what it asked for last.
    """

    def __init__(self, settings: Settings, state: np.ndarray, command: np.ndarray, given_up: Callable[[], bool]):
        super().__init__(settings)
        self.state, self.command, self.given_up = state, command, given_up
        self.record, self.unlogged = _record(settings), ""  # why the last cycle is not in the log
        self.sent = np.zeros((settings.in_flight, JOINTS))
        self.reference = Reference(settings.bounds, settings.in_flight)
        self.following, self.past = False, 0  # whether the robot's speed thread is on; commands up to here are past
        self.silent = False  # whether the policy has said nothing for too long while the arm moved
        self.stopped_at: float | None = None  # the robot's time of a protective stop
        self.connect()

    def preflight(self) -> dict[str, Any]:
        """Return what robot this is; RobotFault if anything about it is not as it must be before it moves."""
        return preflight(self)

    def call(self, act: Callable[[], Any]) -> Any:
        """Return what a call returns that should move the arm or stop it, with the robot watched meanwhile."""
        return self._called(act, CALL, self._look)

    # --- the cycle

    def unseen(self) -> None:
        """Not knowing where the arm is, we do not keep it moving."""
        if self.following:
            self.calls.begin(self._speeds(np.zeros(JOINTS)))

    def idle(self) -> Packet:
        """Let one control cycle pass in which nothing is checked or commanded."""
        packet = self.next()
        self._tell(packet, FREE, np.zeros(JOINTS))
        return packet

    def _look(self) -> Packet:
        """Let one control cycle pass in which nothing can be commanded, since a call is under way."""
        packet = self.next()
        try:
            self._check(packet)
        finally:
            self._account(packet, FREE, np.zeros(JOINTS), self.sent[-1])
        return packet

    def cycle(self) -> Packet:
        """Let one control cycle pass: read, check, command what the policy wants and the guard allows."""
        self._hear()
        packet = self.next()
        wanted, did, executed = np.zeros(JOINTS), FREE, np.zeros(JOINTS)
        try:
            self._check(packet)
            wanted = self._wanted(packet.stamp)
            if self.following or wanted.any():
                self.following = True
                bounds = self.bounds._replace(speed=self._fastest())
                executed, did = admit(packet.q, packet.q_target, packet.qd_target, self.sent, wanted, bounds)
        finally:
            self._account(packet, did, wanted, executed)
        if self.unlogged:
            raise RobotFault(self.unlogged)
        if not self.call(self._speeds(executed) if self.following else self._kick()):
            raise self._why()
        if self.silent:
            self.silent = False
            raise PolicySilent
        return packet

    def _hear(self) -> None:
        """In lock step, wait until the policy has said what it wants in answer to the state that it waited for."""
        told = self.state["sequence"] > 0 and self.clock.stepped
        while told and self.state["stamp"] >= self.command["awaited"] and not self.given_up():
            time.sleep(self.bounds.period / 16)

    def _wanted(self, stamp: float) -> np.ndarray:
        """What the policy wants at `stamp`: nothing if it said so before a stop, or too long ago, which is noted."""
        for _ in range(3):  # it may be writing
            sequence = int(self.command["sequence"])
            given, wanted = float(self.command["given"]), self.command["wanted"].copy()
            if sequence % 2 == 0 and sequence == int(self.command["sequence"]):
                break
        else:
            return np.zeros(JOINTS)
        if sequence <= self.past or self.given_up():
            return np.zeros(JOINTS)
        self.silent = stamp - given > self.settings.timeout + self.bounds.period / 2 and bool(wanted.any())
        return np.zeros(JOINTS) if self.silent else check_command(wanted)

    def _fastest(self) -> float:
        """The greatest joint speed allowed now, rad/s; what is no positive number stops the arm."""
        limit = float(self.command["speed"])
        return min(self.bounds.speed, limit) if limit > 0 else 0.0

    def _speeds(self, qd: np.ndarray) -> Callable[[], bool]:
        """The call that sends these speeds, which count as sent from now on."""
        self._sends(qd)
        # With a time of one cycle: else the robot's speedj looks for no new command until it has reached this one.
        speeds, acceleration, period = qd.tolist(), self.bounds.acceleration, self.bounds.period
        return lambda: self.control.speedJ(speeds, acceleration, period)

    def _kick(self) -> Callable[[], bool]:
        self._sends(np.zeros(JOINTS))
        return lambda: self.control.kickWatchdog()

    def _sends(self, qd: np.ndarray) -> None:
        self.sent[:-1] = self.sent[1:]
        self.sent[-1:] = qd
        self.reference.tell(qd)

    def _check(self, packet: Packet) -> None:
        """Raise RobotFault if the robot is not as it must be while it works for us."""
        s, r = self.settings, self.receive
        if packet.safety_mode == PROTECTIVE:
            self.stopped_at = packet.stamp
            raise ProtectiveStop
        if packet.safety_mode not in (NORMAL, REDUCED) or r.getRobotMode() != ROBOT_RUNNING:
            raise Stopped(
                f"the robot has been stopped (robot mode {r.getRobotMode()}, safety mode {packet.safety_mode}): "
                "see its pendant"
            )
        if strange := self.reference.look(packet.stamp, packet.q, packet.q_target, packet.qd_target):
            raise self.lost(strange)
        if (out := clearance(packet.q, self.bounds)) < -OUTSIDE:
            raise RobotFault(f"the arm is {-out:.3f} rad or m out of its bounds: {np.round(packet.q, 3).tolist()}")
        lag = float(np.abs(packet.q - packet.q_target).max())
        if lag > s.largest_lag:
            raise RobotFault(f"a joint is {lag:.2f} rad from its reference: a collision?")
        force = float(np.linalg.norm(r.getActualTCPForce()[:3]))
        if force > s.largest_force:
            raise RobotFault(f"{force:.0f} N at the tool: a collision?")
        hottest = max(r.getJointTemperatures())
        if hottest > s.largest_temperature:
            raise RobotFault(f"a joint is at {hottest:.0f} degrees Celsius: let it cool")
        if r.getSpeedScaling() * r.getTargetSpeedFraction() < 0.99:
            raise RobotFault("the speed slider was moved from 100 %")

    def _why(self) -> RobotFault:
        """The reason for a command that the robot did not take."""
        begin = self.next().stamp
        while (packet := self.next()).stamp < begin + 2 * FRESH:
            self._check(packet)
        return self.lost("it does not take our commands")

    def lost(self, strange: str) -> RobotFault:
        """Return the fault of a robot that does something else than it was told."""
        if self.receive.getRobotStatus() & PROGRAM_RUNS:
            return TakenOver(f"another program has taken the robot over: {strange}")
        return RobotFault(
            "the program on the robot has ended: by its watchdog, if this machine was too busy to send for "
            f"{1 / WATCHDOG:g} s, or by another client"
        )

    def _tell(self, packet: Packet, did: int, executed: np.ndarray) -> None:
        state = self.state
        state["sequence"] += 1
        state["stamp"], state["executed"] = packet.stamp, executed
        state["q"], state["qd"] = packet.q, packet.qd
        state["q_target"], state["qd_target"] = packet.q_target, packet.qd_target
        state["overrides"][did] += 1
        state["sequence"] += 1

    def _account(self, packet: Packet, did: int, wanted: np.ndarray, executed: np.ndarray) -> None:
        """Tell the policy of a cycle, and log it."""
        self._tell(packet, did, executed)
        if self.record is not None:
            joints = (packet.q, packet.qd, packet.q_target, packet.qd_target)
            given = float(self.command["given"])
            try:
                self.record.add(packet.stamp, given, did, packet.safety_mode, *joints, wanted, executed)
            except OSError as error:
                self.unlogged = UNLOGGED.format(error.filename, error.strerror)

    # --- motions

    def stop(self) -> None:
        """Come to a stand, and end the robot's speed thread: it refuses other motions beside it."""
        self.past = max(self.past, int(self.command["sequence"]))
        begin = self.last.stamp if self.last else 0.0
        while self.following:
            packet = self.cycle()
            if not self.sent.any() and _stands(packet):
                if not self.call(lambda: self.control.speedStop(self.bounds.acceleration)):
                    raise self._why()
                self.following = False
                self.reference.stand(packet.q_target)
            elif packet.stamp > begin + 5.0:
                raise RobotFault("the arm did not come to a stand in 5 s")

    def hold(self, fault: RobotFault) -> None:
        """Come to a stand, and follow no command until `unlock`."""
        self.past = np.iinfo(np.int64).max
        if not isinstance(fault, ProtectiveStop):
            with contextlib.suppress(ProtectiveStop):  # which is no reason to forget this one
                self.stop()
        end_program(self.settings.host)  # a person could else let it go on from the pendant

    def movej(self, q: np.ndarray) -> None:
        """Go to q [6] on a straight line of joint space that stays inside the bounds, and stand there."""
        self.stop()
        s, packet = self.settings, self.cycle()
        start = packet.q
        shares = np.linspace(0, 1, 2 + math.ceil(np.abs(q - start).max() / 0.02))
        path = [start + (q - start) * share for share in shares]
        if min(clearance(pose, self.bounds) for pose in path) < min(
            self.bounds.margin, clearance(start, self.bounds)
        ):
            raise RobotFault("the straight way there leaves the bounds: move the arm by hand to near its start")
        if np.abs(q - start).max() < ARRIVED:
            return
        speed = min(s.move_speed, self._fastest())
        if speed == 0:
            raise RobotFault("the arm may not move: its greatest speed is zero")
        way = Move(packet.q_target, np.asarray(q, dtype=np.float64), speed, s.move_acceleration)
        self.reference.go(way, s.move_acceleration)
        if not self.call(lambda: self.control.moveJ(q.tolist(), speed, s.move_acceleration, True)):
            raise self._why()
        begin = self.last.stamp if self.last else 0.0
        while True:
            packet = self.cycle()
            near = np.abs(packet.q - q).max() < ARRIVED and _stands(packet)
            if near and self.control.getAsyncOperationProgress() < 0:  # else the next speedJ would meet it
                break
            late = packet.stamp - begin > 1.5 * way.duration + 1.0
            if late or self.given_up():
                packet = self._break_off(way)
            if late:
                raise RobotFault(f"the arm did not arrive: joint angles {np.round(packet.q, 3).tolist()}")
            if self.given_up():
                break
        self.reference.stand(packet.q_target)
        self.past = max(self.past, int(self.command["sequence"]))

    def _break_off(self, way: Move) -> Packet:
        """End a moveJ before its end; not by a call that waits for the stand, too long for the watchdog."""
        braking = self.settings.stop_acceleration
        self.reference.go(way, max(braking, self.settings.move_acceleration))
        self.call(lambda: self.control.stopJ(braking, True))
        begin = self.last.stamp if self.last else 0.0
        while (packet := self.cycle()).stamp < begin + 2.0:
            if _stands(packet) and self.control.getAsyncOperationProgress() < 0:
                break
        return packet

    def unlock(self) -> None:
        """Release what holds the arm, load our program again, and check everything as at the beginning."""
        packet = self.next()
        if packet.safety_mode == PROTECTIVE:
            since = packet.stamp if self.stopped_at is None else self.stopped_at
            while packet.stamp < since + UNLOCK_AFTER + 0.1:
                packet = self.idle()
            self.ask(self.dashboard.closeSafetyPopup)
            self.ask(self.dashboard.unlockProtectiveStop)
            self._until(lambda: self.receive.getSafetyMode() in (NORMAL, REDUCED), 3.0, "did not release its stop")
        check_ready(self.receive)
        self.ask(self.control.disconnect, 10.0)
        self.upload()
        self._until(self.control.isProgramRunning, 5.0, "did not start our program again")
        self.following, self.stopped_at, self.sent[:] = False, None, 0
        self.reference.stand()
        self.past = int(self.command["sequence"])
        self.preflight()

    def _until(self, true: Callable[[], bool], seconds: float, otherwise: str) -> None:
        begin = self.idle().stamp
        while not true():
            if self.idle().stamp > begin + seconds:
                raise RobotFault(f"the robot {otherwise} within {seconds:g} s")

    def abandon(self, fault: RobotFault | None) -> None:
        """Stop the arm by all means that are left and let go; say in the state whether it was then read to stand.

        Whatever fails on the way, the next one is tried.
        """
        if not self.calls.busy and not isinstance(fault, TakenOver):  # else no program of ours listens
            with contextlib.suppress(Exception):
                if self.following:
                    self.ask(lambda: self.control.speedStop(self.settings.stop_acceleration))
            with contextlib.suppress(Exception):
                self.ask(lambda: self.control.stopScript())
        if fault is not None:
            end_program(self.settings.host)
        with contextlib.suppress(RobotFault):
            self.state["stands"] = self._settles()
        if self.record is not None:
            self.record.close()

    def _settles(self) -> bool:
        """Whether the arm is read to stand, PATIENCE times in a row, before SETTLING seconds are over."""
        begin, standing = self.idle().stamp, 0
        while standing < PATIENCE:
            packet = self.idle()
            standing = standing + 1 if _stands(packet) else 0
            if packet.stamp > begin + SETTLING:
                return False
        return True


def _record(settings: Settings) -> Record | None:
    """The log of the control cycles, if one is wanted; RobotFault if it cannot be."""
    try:
        return None if settings.log is None else Record(settings.log, CYCLE)
    except OSError as error:
        raise RobotFault(UNLOGGED.format(settings.log, error.strerror)) from None


def _stands(packet: Packet) -> bool:
    """Whether the arm and its reference stand."""
    return bool(np.abs(packet.qd).max() < STILL and np.abs(packet.qd_target).max() < 1e-3)
