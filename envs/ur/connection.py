"""The three conversations with one robot, over ur_rtde: what it says, what it is told, and its dashboard."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .calls import Calls
from .clock import clock
from .preflight import check_ready
from .safety import RobotFault
from .shared import Settings, Silent
from .waiting import Waiting

# RTDE's names of what is read in every cycle; the library takes them in one by one, so a new stamp comes last.
VARIABLES = [
    "target_q", "target_qd", "actual_q", "actual_qd", "actual_TCP_pose", "actual_TCP_force",
    "joint_temperatures", "robot_mode", "safety_mode", "runtime_state", "robot_status_bits", "safety_status_bits",
    "speed_scaling", "target_speed_fraction", "payload", "timestamp",
]  # fmt: skip
FRESH = 0.25  # s without a new stamp after which the robot is given up
CALL = 0.25  # s of robot time that a call which moves the arm may take: the watchdog has bitten long before


class Packet(NamedTuple):
    """What the robot says in one control cycle."""

    stamp: float
    q: np.ndarray
    qd: np.ndarray
    q_target: np.ndarray
    qd_target: np.ndarray
    safety_mode: int


class Connection:
    """A robot's words, one by one, and calls of the library, none of which is waited for blindly."""

    def __init__(self, settings: Settings):
        self.settings, self.bounds = settings, settings.bounds
        self.calls, self.clock = Calls(), clock(settings.clock)
        # s until a call counts as slow, and the robot's next words are heard meanwhile; in lock step it waits for us.
        self.patience = 5.0 if self.clock.stepped else settings.bounds.period / 2
        self.last: Packet | None = None

    def connect(self) -> None:
        """Talk to the robot, and have our program run on it; RobotFault if that cannot be."""
        import dashboard_client
        import rtde_receive

        host = self.settings.host
        try:
            self.dashboard = dashboard_client.DashboardClient(host)
            self.dashboard.connect(2000)
            self.receive = rtde_receive.RTDEReceiveInterface(host, 1 / self.bounds.period, VARIABLES)
        except RuntimeError as error:
            raise Silent(f"cannot talk to a robot at {host}: {' '.join(str(error).split())}") from None
        check_ready(self.receive)
        self.upload()

    def upload(self) -> None:
        """Have our program run on the robot, with no command in it.

        By a new connection: it clears the registers. The program, loaded again over the old one, would find the last
        command of its predecessor there, and follow it. The constructor lets nothing else run in this process, and
        has time limits of its own; beyond them the policy's process ends this one.
        """
        import rtde_control

        host, frequency = self.settings.host, 1 / self.bounds.period
        try:
            self.control = self.ask(lambda: rtde_control.RTDEControlInterface(host, frequency), 15.0)
        except Silent as error:
            raise RobotFault(f"the robot did not take our program: {error.__cause__ or error}") from None

    def next(self) -> Packet:
        """Wait for the robot's next word and return it; RobotFault if none comes."""
        waiting, held = Waiting(self.clock), False
        while True:
            stamp = self.receive.getTimestamp()
            if self.last is None or stamp != self.last.stamp:
                break
            if not self.receive.isConnected():
                raise Silent("the robot has closed the connection")
            if (silent := waiting.look()) > FRESH:
                raise Silent(f"no news from the robot for {silent:.2f} s")
            if silent > 3 * self.bounds.period and not held and not self.calls.busy:
                self.unseen()
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

    def unseen(self) -> None:
        """Do what is right while it is not known what the robot does."""

    def idle(self) -> Packet:
        """Let one control cycle pass in which nothing is checked or commanded."""
        return self.next()

    def ask(self, act: Callable[[], Any], seconds: float = 2.0) -> Any:
        """Return what a call returns that moves nothing, within so many seconds of robot time."""
        return self._called(act, seconds, self.idle)

    def _called(self, act: Callable[[], Any], seconds: float, look: Callable[[], Packet]) -> Any:
        self._returned(CALL, look)
        self.calls.begin(act)
        self._returned(seconds, look)
        try:
            return self.calls.result()
        except RuntimeError as error:
            raise Silent(f"the connection to the robot has failed: {' '.join(str(error).split())}") from error

    def _returned(self, seconds: float, look: Callable[[], Packet]) -> None:
        """Return when the call has come back; RobotFault if it has not in this time."""
        begin = None
        while not self.calls.done(self.patience):
            stamp = look().stamp
            begin = stamp if begin is None else begin
            if stamp > begin + seconds:
                raise self.lost(f"the program on the robot has not answered for {seconds:g} s")

    def lost(self, strange: str) -> RobotFault:
        """Return the fault of a robot that does something else than it was told."""
        return RobotFault(strange)
