"""What an environment may ask of an arm, whichever it is, and the arms that live in this process."""

import math
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np

from hesscale_rl.jit import EXACT

from .arms import JOINTS, START
from .motion import Joints, approach
from .safety import FREE, Bounds, admit, check_command, plausible


class Status(IntEnum):
    """What keeps the arm from moving."""

    RUNNING = 0
    STALE = 1  # no news from the robot
    PROTECTIVE_STOP = 2  # may be unlocked by a person, after 5 s
    EMERGENCY_STOP = 3  # and all that only a person at the robot can end
    POLICY_SILENT = 4  # while the arm moved; a person has to agree before it moves again


class State(NamedTuple):
    """What the robot said of itself at `stamp`, in seconds of its own clock. Angles rad, speeds rad/s, [6]."""

    stamp: float
    q: np.ndarray
    qd: np.ndarray
    q_target: np.ndarray
    qd_target: np.ndarray
    status: Status
    executed: np.ndarray  # the speeds last sent to the robot
    override: int  # the strongest thing that the guard did since the last `wait`: see safety.OVERRIDES


class Driver(Protocol):
    """An arm. Only `wait` lets a simulated one go on; a real one goes on by itself.

    Every method raises RobotFault when the robot cannot do it or is not as it must be, with the arm stopped.
    """

    bounds: Bounds

    def read(self) -> State:
        """Return the newest state."""

    def wait(self, stamp: float) -> State:
        """Return the first state from `stamp` on."""

    def speedj(self, qd: np.ndarray) -> None:
        """Move the joints with these speeds [6] until told otherwise, as far as the bounds allow."""

    def stop(self) -> State:
        """Come to a stand, and return when that is reached."""

    def movej(self, q: np.ndarray) -> State:
        """Go to q [6] in a straight line of joint space, and return when standing there."""

    def unlock(self) -> None:
        """Release a stop (shared.Held); a person has looked why it came."""

    def close(self) -> None:
        """Stop and let go."""


class Delays(NamedTuple):
    """Control cycles, drawn anew for each episode from low to high inclusive.

    A UR's CB3 says where it was one cycle ago, and follows a command after one to three (docs/ur.md).
    """

    sensing: tuple[int, int] = (1, 1)
    actuation: tuple[int, int] = (1, 3)


USUAL, NO_DELAY = Delays(), Delays((0, 0), (0, 0))


STILL = 1e-3  # rad/s


class InProcess:
    """An arm in this process: every control cycle is sensed, guarded and followed one by one.

    `joints` are told of nothing but speeds: `movej` puts them there, and the clock goes on by the time that the way
    would have taken.
    """

    move_speed, move_acceleration = 0.8, 1.4

    def __init__(self, bounds: Bounds, joints: Joints, delays: Delays = USUAL):
        if problem := plausible(bounds, joints.q):
            raise ValueError(problem)
        if joints.period != bounds.period:
            raise ValueError(f"the arm's cycles of {joints.period} s are not the bounds' of {bounds.period} s")
        self.bounds, self.joints, self.ranges = bounds, joints, delays
        self.sensing, self.actuation = delays.sensing[1], delays.actuation[1]
        self.cycle = 0
        self._rest(joints.q)

    def _rest(self, q: np.ndarray) -> None:
        """Stand at q; what was under way is forgotten."""
        self.joints.place(q)
        self.wanted = np.zeros(JOINTS)
        # history [S + 1, 4, 6]: q, qd and their references, newest last; sent [S + A, 6]: commands, newest last.
        self.history = np.tile(np.stack([q, np.zeros(JOINTS), q, np.zeros(JOINTS)]), (self.sensing + 1, 1, 1))
        self.sent = np.zeros((self.sensing + self.actuation, JOINTS))
        self.override, self.executed = FREE, np.zeros(JOINTS)

    def draw(self, random: np.random.Generator) -> None:
        """Draw the delays for an episode, and begin its time at 0; the arm must stand."""
        (low_s, high_s), (low_a, high_a) = self.ranges
        self.sensing, self.actuation = (
            int(random.integers(low_s, high_s + 1)),
            int(random.integers(low_a, high_a + 1)),
        )
        self.cycle = self.sensing
        self._rest(self.joints.q.copy())

    def read(self) -> State:
        """Return the newest state."""
        q, qd, q_target, qd_target = self.history[0].copy()
        stamp = (self.cycle - self.sensing) * self.bounds.period
        return State(stamp, q, qd, q_target, qd_target, Status.RUNNING, self.executed.copy(), self.override)

    def speedj(self, qd: np.ndarray) -> None:
        """Move the joints with these speeds [6] until told otherwise, as far as the bounds allow."""
        self.wanted = check_command(qd)

    def wait(self, stamp: float) -> State:
        """Let cycles pass until the state of `stamp` is known."""
        until = math.ceil(stamp / self.bounds.period - 1e-6) + self.sensing
        self.override = FREE
        if until > self.cycle:
            self._run(until - self.cycle)
            self.cycle = until
        return self.read()

    def _run(self, cycles: int) -> None:
        for _ in range(cycles):
            sensed, joints = self.history[0], self.joints
            command, did = admit(sensed[0], sensed[2], sensed[3], self.sent, self.wanted, self.bounds)
            joints.speedj(self.sent[-self.actuation] if self.actuation else command, self.bounds.acceleration)
            self.sent[:-1] = self.sent[1:]
            self.sent[-1:] = command
            joints.step()
            self.history[:-1] = self.history[1:]
            last = self.history[-1]
            last[0], last[1], last[2], last[3] = joints.q, joints.qd, joints.q_target, joints.qd_target
            self.override, self.executed = max(self.override, did), command

    def stop(self) -> State:
        """Come to a stand."""
        self.wanted = np.zeros(JOINTS)
        while self.sent.any() or self.history[:, 3].any() or np.abs(self.history[0, 1]).max() > STILL:
            self._run(1)
            self.cycle += 1
        return self.read()

    def movej(self, q: np.ndarray) -> State:
        """Stand at q [6], as much later as the way takes."""
        self.stop()
        way = float(np.abs(q - self.joints.q).max())
        ramp = self.move_speed / self.move_acceleration
        seconds = (
            way / self.move_speed + ramp
            if way > self.move_speed * ramp
            else 2 * math.sqrt(way / self.move_acceleration)
        )
        self.cycle += math.ceil(seconds / self.bounds.period)
        self._rest(np.array(q, dtype=np.float64))
        return self.read()

    def unlock(self) -> None:
        """Nothing: these arms know no protective stop."""

    def close(self) -> None:
        """Nothing to let go of."""

    def save_state(self) -> dict[str, Any]:
        """Return all that decides the next states."""
        names = ("cycle", "sensing", "actuation", "wanted", "history", "sent", "override", "executed")
        return {name: getattr(self, name) for name in names} | {"arm": self.joints.save_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `save_state` returned."""
        for name, value in state.items():
            if name != "arm":
                setattr(self, name, value)
        self.joints.load_state(state["arm"])


class KinematicDriver(InProcess):
    """Joints that follow their reference exactly: all cycles of a step in one compiled call."""

    def __init__(self, bounds: Bounds, delays: Delays = USUAL, q: np.ndarray = START):
        super().__init__(bounds, Joints(q, bounds.period), delays)

    def _run(self, cycles: int) -> None:
        joints = self.joints
        commands = self.sent, self.wanted, self.executed
        did = _cycles(cycles, joints.q_target, joints.qd_target, self.history, *commands, self.bounds)
        self.override = max(self.override, did)


@EXACT
def _cycles(
    cycles: int,
    q: np.ndarray,
    qd: np.ndarray,
    history: np.ndarray,
    sent: np.ndarray,
    wanted: np.ndarray,
    executed: np.ndarray,
    bounds: Bounds,
) -> int:
    """`InProcess._run` for an arm without a body; everything is changed in place."""
    override, count, before = 0, len(sent), np.empty(len(q))
    actuation = count - (len(history) - 1)  # `history` has one state more than there are cycles of sensing
    for _ in range(cycles):
        sensed = history[0]
        command, did = admit(sensed[0], sensed[2], sensed[3], sent, wanted, bounds)
        override = max(override, did)
        # The oldest of `sent` has been followed when the new one comes in.
        followed = command if actuation == 0 else sent[count - actuation]
        goal = followed.copy()
        for k in range(count - 1):
            sent[k] = sent[k + 1]
        if count > 0:
            sent[count - 1] = command
        executed[:] = command
        before[:] = qd
        approach(qd, goal, bounds.acceleration, bounds.period)
        for i in range(len(q)):
            q[i] += (before[i] + qd[i]) * (bounds.period / 2)
        for k in range(len(history) - 1):
            history[k] = history[k + 1]
        history[-1, 0], history[-1, 1], history[-1, 2], history[-1, 3] = q, qd, q, qd
    return override
