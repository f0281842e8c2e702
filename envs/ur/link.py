"""What talks to a robot: it reads, guards and commands it in every control cycle, in a process of its own (rtde.py).

It stands between the policy and the wire so that nothing which goes wrong on the policy's side, a slow update, an
exception, a kill, leaves the arm moving; and so that nothing which goes wrong in here, the client library included,
takes the policy's process along. If it dies itself, the robot's own watchdog stops the arm.
"""

import contextlib
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import kinematics
from .arm import PERIODS, Move
from .clock import clock
from .record import Record
from .safety import FREE, Bounds, RobotFault, admit, clearance, plausible
from .shared import CYCLE
from .waiting import Waiting

# RTDE's names of what is read in every cycle; the library takes them in one by one, so a new stamp comes last.
VARIABLES = [
    "target_q", "target_qd", "actual_q", "actual_qd", "actual_TCP_pose", "actual_TCP_force",
    "joint_temperatures", "robot_mode", "safety_mode", "runtime_state", "robot_status_bits", "safety_status_bits",
    "speed_scaling", "target_speed_fraction", "payload", "timestamp",
]  # fmt: skip
DASHBOARD = 29999
ROBOT_RUNNING = 7
NORMAL, REDUCED, PROTECTIVE = 1, 2, 3  # safety modes; above: only a person at the robot can help
FRESH = 0.25  # s without a new stamp after which the robot is given up
UNLOCK_AFTER = 5.0  # s that a protective stop must last before the controller lets go
WATCHDOG = 10.0  # Hz: fewer packages, and the robot ends our program, which stops the arm
ARRIVED, STILL = 0.005, 0.01  # rad, rad/s


@dataclass(frozen=True)
class Settings:
    """What the process needs to know of the robot and of the task."""

    host: str
    bounds: Bounds
    timeout: float = 0.2  # s of the robot's time without a command, after which the arm stops
    in_flight: int = 3  # cycles from a state's stamp to the first movement that answers it, less one
    move_speed: float = 0.6  # rad/s
    move_acceleration: float = 1.0  # rad/s^2
    stop_acceleration: float = 4.0  # rad/s^2, when something is wrong
    largest_lag: float = 0.1  # rad between a joint and its reference: more is taken for a collision
    largest_force: float = 150.0  # N at the tool
    largest_temperature: float = 70.0  # degrees Celsius of a joint
    payload: float = 0.0  # kg, as it must be set on the pendant
    pose_tolerance: float = 0.002  # m between the robot's idea of where its tool is and ours
    log: str | None = None  # a file for every control cycle
    clock: str | None = None  # the file of a simulated robot's time, where that robot runs in lock step


class Packet(NamedTuple):
    """What the robot says in one control cycle."""

    stamp: float
    q: np.ndarray
    qd: np.ndarray
    q_target: np.ndarray
    qd_target: np.ndarray
    safety_mode: int


class ProtectiveStop(RobotFault):
    """The robot has stopped by itself, because of a collision or a motion that it refused. It can be unlocked."""


class Stopped(RobotFault):
    """The robot is in a state that only a person standing at it can end: an emergency stop, a fault, no power."""


class Silent(RobotFault):
    """No news from the robot, or from the process that talks to it."""


class Link:
    """The robot as this process sees it. Every method that moves it keeps the cycle going while it lasts.

    `state`, `command`: records of STATE and COMMAND (shared.py), which the policy's process sees too. `given_up`:
    whether that process is gone, or wants something else than what it asked for last.
    """

    def __init__(self, settings: Settings, state: np.ndarray, command: np.ndarray, given_up: Callable[[], bool]):
        self.settings, self.bounds = settings, settings.bounds
        self.state, self.command, self.given_up = state, command, given_up
        self.record = None if settings.log is None else Record(settings.log, CYCLE)
        self.sent = np.zeros((settings.in_flight, 6))
        self.clock = clock(settings.clock)
        self.following, self.past = False, 0  # whether the robot's speed thread is on; commands up to here are past
        self.stopped_at: float | None = None  # the robot's time of a protective stop
        self.last: Packet | None = None
        self._connect()

    def _connect(self) -> None:
        import dashboard_client
        import rtde_receive

        host = self.settings.host
        try:
            self.dashboard = dashboard_client.DashboardClient(host)
            self.dashboard.connect(2000)
            self.receive = rtde_receive.RTDEReceiveInterface(host, 1 / self.bounds.period, VARIABLES)
        except RuntimeError as error:
            raise Silent(f"cannot talk to a robot at {host}: {' '.join(str(error).split())}") from None
        self._check_standing()
        self._upload()

    def _upload(self) -> None:
        """Have our program run on the robot, with no command in it.

        By a new connection: it clears the registers. The program, loaded again over the old one, would find the last
        command of its predecessor there, and follow it.
        """
        import rtde_control

        try:
            self.control = rtde_control.RTDEControlInterface(self.settings.host, 1 / self.bounds.period)
        except RuntimeError as error:
            raise RobotFault(f"the robot did not take our program: {' '.join(str(error).split())}") from None

    def preflight(self) -> dict[str, Any]:
        """Return what robot this is; RobotFault if anything about it is not as it must be before it moves."""
        version = self.dashboard.polyscopeVersion()
        major = int("".join(c if c.isdigit() else " " for c in version).split()[0])
        period = PERIODS["e" if major >= 5 else "cb3"]
        if period != self.bounds.period:
            raise RobotFault(
                f"this controller ({version}) has cycles of {period} s, the bounds of {self.bounds.period} s"
            )
        model = self.dashboard.getRobotModel().upper()
        if model not in ("UR5", "UR5CB"):
            raise RobotFault(f"this is a {model}; kinematics and bounds here are those of a UR5")
        if major >= 5 and not self.dashboard.isInRemoteControl():
            raise RobotFault("the robot is not in remote control: switch it over on the pendant")
        slider = self.receive.getTargetSpeedFraction() * self.receive.getSpeedScaling()
        if slider < 0.999:
            raise RobotFault(f"the speed slider is at {100 * slider:.0f} %: put it to 100 % on the pendant")
        payload = self.receive.getPayload()
        if abs(payload - self.settings.payload) > 0.05:
            raise RobotFault(f"the pendant has a payload of {payload:g} kg, not {self.settings.payload:g} kg")
        packet = self._next()
        said, ours = np.array(self.receive.getActualTCPPose()), kinematics.tcp(packet.q)
        away = float(np.linalg.norm(said[:3] - ours))
        if away > self.settings.pose_tolerance:
            raise RobotFault(
                f"the robot has its tool {1000 * away:.1f} mm from where our model has it: its calibration differs, "
                "or a TCP is set on the pendant (it must be zero)"
            )
        if problem := plausible(self.bounds, packet.q):
            raise RobotFault(f"the arm stands where it must not: {problem}; move it by hand first")
        if not self.control.setWatchdog(WATCHDOG):
            raise RobotFault("the robot did not take the watchdog, which stops it if we fall silent")
        serial = ""
        with contextlib.suppress(RuntimeError):  # a CB3 of before 3.12 does not tell
            serial = self.dashboard.getSerialNumber()
        return {"version": version, "model": model, "serial": serial}

    def _check_standing(self) -> None:
        mode, safety = self.receive.getRobotMode(), self.receive.getSafetyMode()
        if safety == PROTECTIVE:
            raise ProtectiveStop("the robot is in a protective stop: find out why, and release it")
        if safety not in (NORMAL, REDUCED) or mode != ROBOT_RUNNING:
            raise Stopped(f"the robot is not ready (robot mode {mode}, safety mode {safety}): see its pendant")

    # --- the cycle

    def _next(self) -> Packet:
        """Wait for the robot's next word, tell the policy, and return it; RobotFault if it is not a good one."""
        waiting, held = Waiting(self.clock), False
        while True:
            stamp = self.receive.getTimestamp()
            if self.last is None or stamp != self.last.stamp:
                break
            if not self.receive.isConnected():
                raise Silent("the robot has closed the connection")
            if (silent := waiting.look()) > FRESH:
                raise Silent(f"no news from the robot for {silent:.2f} s")
            if silent > 3 * self.bounds.period and self.following and not held:
                self._send(np.zeros(6))  # not knowing where it is, we do not keep it moving
                held = True
            time.sleep(self.bounds.period / 16)
        r, before = self.receive, math.nan
        while stamp != before:  # until no new state came while this one was being read
            before = stamp
            joints = (r.getActualQ(), r.getActualQd(), r.getTargetQ(), r.getTargetQd())
            packet = Packet._make((stamp, *map(np.array, joints), r.getSafetyMode()))
            stamp = r.getTimestamp()
        self.last = packet
        return packet

    def cycle(self) -> Packet:
        """Let one control cycle pass: read, check, command what the policy wants and the guard allows."""
        self._hear()
        packet = self._next()
        wanted, did, executed = np.zeros(6), FREE, np.zeros(6)
        try:
            self._check(packet)
            wanted = self._wanted(packet.stamp)
            if self.following or wanted.any():
                self.following = True
                bounds = self.bounds._replace(speed=self._fastest())
                executed, did = admit(packet.q, packet.q_target, packet.qd_target, self.sent, wanted, bounds)
                if not self._send(executed):
                    raise self._why()
            elif not self.control.kickWatchdog():
                raise self._why()
            self.sent[:-1] = self.sent[1:]
            self.sent[-1:] = executed
        finally:
            self._tell(packet, did, executed)
            if self.record is not None:
                given = float(self.command["given"])
                joints = (packet.q, packet.qd, packet.q_target, packet.qd_target)
                try:
                    self.record.add(packet.stamp, given, did, packet.safety_mode, *joints, wanted, executed)
                except OSError as error:
                    raise RobotFault(f"the log of the control cycles cannot be written: {error}") from None
        return packet

    def _hear(self) -> None:
        """In lock step, wait until the policy has said what it wants in answer to the state that it waited for."""
        told = self.state["sequence"] > 0 and self.clock.stepped
        while told and self.state["stamp"] >= self.command["awaited"] and not self.given_up():
            time.sleep(self.bounds.period / 16)

    def _wanted(self, stamp: float) -> np.ndarray:
        """What the policy wants at `stamp`: nothing, if it has not said so for too long, or before something else."""
        for _ in range(3):  # it may be writing
            sequence = int(self.command["sequence"])
            given, wanted = float(self.command["given"]), self.command["wanted"].copy()
            if sequence % 2 == 0 and sequence == int(self.command["sequence"]):
                late = stamp - given > self.settings.timeout + self.bounds.period / 2
                return np.zeros(6) if late or sequence <= self.past or self.given_up() else wanted
        return np.zeros(6)

    def _fastest(self) -> float:
        """The greatest joint speed allowed now, rad/s; what is no positive number stops the arm."""
        limit = float(self.command["speed"])
        return min(self.bounds.speed, limit) if limit > 0 else 0.0

    def _send(self, qd: np.ndarray) -> bool:
        # With a time of one cycle: else the robot's speedj looks for no new command until it has reached this one.
        return self.control.speedJ(qd.tolist(), self.bounds.acceleration, self.bounds.period)

    def _check(self, packet: Packet) -> None:
        """Raise RobotFault if the robot is not as it must be while it works for us."""
        s, r = self.settings, self.receive
        if packet.safety_mode == PROTECTIVE:
            self.stopped_at = packet.stamp
            raise ProtectiveStop("protective stop: the robot has stopped by itself; find out why before it goes on")
        if packet.safety_mode not in (NORMAL, REDUCED) or r.getRobotMode() != ROBOT_RUNNING:
            raise Stopped(
                f"the robot has been stopped (robot mode {r.getRobotMode()}, safety mode {packet.safety_mode}): "
                "see its pendant"
            )
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
        deadline = self.clock.now() + 2 * FRESH
        while self.clock.now() < deadline:
            self._check(self._next())
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

    # --- motions

    def stop(self) -> None:
        """Come to a stand, and end the robot's speed thread: it refuses other motions beside it."""
        self.past = int(self.command["sequence"])
        deadline = self.clock.now() + 5.0
        while self.following:
            packet = self.cycle()
            if not self.sent.any() and _stands(packet):
                if not self.control.speedStop(self.bounds.acceleration):
                    raise self._why()
                self.following = False
            elif self.clock.now() > deadline:
                raise RobotFault("the arm did not come to a stand in 5 s")

    def movej(self, q: np.ndarray) -> None:
        """Go to q [6] on a straight line of joint space that stays inside the bounds, and stand there."""
        self.stop()
        s, start = self.settings, self.cycle().q
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
        way = Move(start, np.asarray(q, dtype=np.float64), speed, s.move_acceleration)
        if not self.control.moveJ(q.tolist(), speed, s.move_acceleration, True):
            raise self._why()
        begin = self.last.stamp if self.last else 0.0
        while True:
            packet = self.cycle()
            near = np.abs(packet.q - q).max() < ARRIVED and _stands(packet)
            if near and self.control.getAsyncOperationProgress() < 0:  # else the next speedJ would meet it
                break
            late = packet.stamp - begin > 1.5 * way.duration + 1.0
            if late or self.given_up():
                self._break_off()
            if late:
                raise RobotFault(f"the arm did not arrive: joint angles {np.round(packet.q, 3).tolist()}")
            if self.given_up():
                return
        self.past = int(self.command["sequence"])

    def _break_off(self) -> None:
        """End a moveJ before its end; not by a call that waits for the stand, too long for the watchdog."""
        self.control.stopJ(self.settings.stop_acceleration, True)
        deadline = self.clock.now() + 2.0
        while self.clock.now() < deadline:
            if _stands(self.cycle()) and self.control.getAsyncOperationProgress() < 0:
                break

    def end_program(self) -> None:
        """Have the controller end our program, by another way than through the program."""
        with contextlib.suppress(OSError), socket.create_connection((self.settings.host, DASHBOARD), 0.3) as desk:
            desk.settimeout(0.3)
            desk.recv(200)
            desk.sendall(b"stop\n")
            desk.recv(200)

    def unlock(self) -> None:
        """Release a protective stop, load our program again, and check everything as at the beginning."""
        packet = self._next()
        if packet.safety_mode == PROTECTIVE:
            since = packet.stamp if self.stopped_at is None else self.stopped_at
            while packet.stamp < since + UNLOCK_AFTER + 0.1:
                packet = self._next()
            self.dashboard.closeSafetyPopup()
            self.dashboard.unlockProtectiveStop()
            self._until(lambda: self.receive.getSafetyMode() in (NORMAL, REDUCED), 3.0, "did not release its stop")
        self._check_standing()
        self.control.disconnect()
        self._upload()
        self._until(self.control.isProgramRunning, 5.0, "did not start our program again")
        self.following, self.stopped_at, self.sent[:] = False, None, 0
        self.past = int(self.command["sequence"])
        self.preflight()

    def _until(self, true: Callable[[], bool], seconds: float, otherwise: str) -> None:
        begin = self._next().stamp
        while not true():
            if self._next().stamp > begin + seconds:
                raise RobotFault(f"the robot {otherwise} within {seconds:g} s")

    def abandon(self) -> None:
        """Stop the arm by all means that are left and let go; whatever fails on the way, the next one is tried."""
        acts: list[Callable[[], Any]] = [
            lambda: self.control.speedStop(self.settings.stop_acceleration) if self.following else None,
            lambda: self.control.stopScript(),
            lambda: self.record.close() if self.record is not None else None,
        ]
        for act in acts:
            try:
                act()
            except Exception:  # noqa: BLE001,S112,RUF100 - nothing may keep the next one from being tried
                continue


def _stands(packet: Packet) -> bool:
    """Whether the arm and its reference stand."""
    return bool(np.abs(packet.qd).max() < STILL and np.abs(packet.qd_target).max() < 1e-3)
