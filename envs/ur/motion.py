"""The motion of an arm's joints, cycle by cycle: what a UR controller makes of speedj, movej and stopj."""

import math
from typing import Any, Protocol

import numpy as np

from hesscale_rl.jit import EXACT

from .arms import DEFAULT, JOINTS


@EXACT
def approach(qd: np.ndarray, goal: np.ndarray, acceleration: float, period: float) -> None:
    """Let the speeds qd [6] go one cycle towards their goal, in place.

    The joint with the longest way changes by `acceleration`, the others so that all arrive together.
    """
    longest = 0.0
    for i in range(len(qd)):
        longest = max(longest, abs(goal[i] - qd[i]))
    share = 1.0 if longest <= acceleration * period else acceleration * period / longest
    for i in range(len(qd)):
        qd[i] = goal[i] if share == 1.0 else qd[i] + share * (goal[i] - qd[i])


class Body(Protocol):
    """What follows the reference: joints without a body do not lag."""

    q: np.ndarray
    qd: np.ndarray
    torque: np.ndarray

    def place(self, q: np.ndarray) -> None:
        """Stand at q."""

    def save_state(self) -> np.ndarray:
        """Return all that decides the next steps."""

    def load_state(self, state: np.ndarray) -> None:
        """Go on from what `save_state` returned."""

    def follow(self, q: np.ndarray, qd: np.ndarray, qdd: np.ndarray) -> None:
        """Go one cycle, towards these angles, speeds and accelerations at its end."""


class Joints:
    """An arm's joints and the reference that they follow; `step` is one control cycle.

    q, qd: the joints, [6], rad and rad/s. q_target, qd_target, qdd_target: the reference. `moving` is False when
    the reference stands still and no motion is left to do.
    """

    def __init__(self, q: np.ndarray, period: float = DEFAULT.period, body: Body | None = None):
        self.period, self.body = period, body
        self.place(q)

    def place(self, q: np.ndarray) -> None:
        """Stand at q from now on, without a way there."""
        self.q_target = np.array(q, dtype=np.float64)
        self.qd_target, self.qdd_target = np.zeros(JOINTS), np.zeros(JOINTS)
        self._goal, self._acceleration = np.zeros(JOINTS), 1.0
        self._move: Move | None = None
        self._servo: np.ndarray | None = None
        if self.body is not None:
            self.body.place(self.q_target)

    @property
    def q(self) -> np.ndarray:
        """The joints' angles."""
        return self.q_target if self.body is None else self.body.q

    @property
    def qd(self) -> np.ndarray:
        """The joints' speeds."""
        return self.qd_target if self.body is None else self.body.qd

    @property
    def torque(self) -> np.ndarray:
        """The motors' torques, N m; zero where there is no body."""
        return np.zeros(JOINTS) if self.body is None else self.body.torque

    @property
    def moving(self) -> bool:
        """Whether anything is left to be done."""
        return self._move is not None or bool(self.qd_target.any() or self._goal.any())

    def speedj(self, qd: np.ndarray, acceleration: float) -> None:
        """Go to these speeds and hold them."""
        self._move = self._servo = None
        self._goal, self._acceleration = np.array(qd, dtype=np.float64), float(acceleration)

    def stopj(self, acceleration: float) -> None:
        """Come to a stand."""
        self.speedj(np.zeros(JOINTS), acceleration)

    def movej(self, q: np.ndarray, speed: float, acceleration: float, duration: float = 0.0) -> None:
        """Go to q in a straight line of joint space and stop there; `duration` > 0 [s] overrides speed."""
        self._servo = None
        self._goal = np.zeros(JOINTS)
        self._move = Move(self.q_target, np.asarray(q, dtype=np.float64), speed, acceleration, duration)

    def servoj(self, q: np.ndarray, lookahead: float = 0.1) -> None:
        """Follow q, which is given anew in every cycle, smoothed over `lookahead` seconds."""
        self._move, self._goal = None, np.zeros(JOINTS)
        self._servo, self._lookahead = np.array(q, dtype=np.float64), max(float(lookahead), self.period)

    def step(self) -> None:
        """Let one control cycle pass."""
        before_q, before_qd = self.q_target.copy(), self.qd_target.copy()
        if self._move is not None:
            self.q_target, self.qd_target, over = self._move.step(self.period)
            if over:
                self._move = None
        elif self._servo is not None:
            # A first-order lag, which is what lookahead and gain do to a reference that moves.
            share = -math.expm1(-self.period / self._lookahead * 3)
            self.q_target = before_q + share * (self._servo - before_q)
            self.qd_target = (self.q_target - before_q) / self.period
        else:
            self.qd_target = before_qd.copy()
            approach(self.qd_target, self._goal, self._acceleration, self.period)
            self.q_target = before_q + (before_qd + self.qd_target) * (self.period / 2)
        self.qdd_target = (self.qd_target - before_qd) / self.period
        if self.body is not None:
            self.body.follow(self.q_target, self.qd_target, self.qdd_target)

    def save_state(self) -> dict[str, Any]:
        """Return what decides the next steps of an arm that is told speeds; RuntimeError within another motion."""
        if self._move is not None or self._servo is not None:
            raise RuntimeError("an arm on its way to a pose cannot be saved")
        own = {name: getattr(self, name).copy() for name in ("q_target", "qd_target", "qdd_target", "_goal")}
        body = None if self.body is None else self.body.save_state()
        return own | {"_acceleration": self._acceleration, "body": body}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `save_state` returned."""
        for name, value in state.items():
            if name != "body":
                setattr(self, name, value)
        if self.body is not None:
            self.body.load_state(state["body"])


class Move:
    """A way from one pose to another: the joint with the longest way speeds up, cruises and slows down."""

    def __init__(self, start: np.ndarray, end: np.ndarray, speed: float, acceleration: float, duration: float = 0.0):
        self.start, self.way, self.time = start.copy(), end - start, 0.0
        length = float(np.abs(self.way).max())
        self.length = length
        if duration > 0 and length > 0:
            # A trapezoid with this acceleration that takes this long; the triangle if it is too short for one.
            acceleration = max(acceleration, 4 * length / duration**2)
            speed = (
                acceleration * duration
                - math.sqrt(max((acceleration * duration) ** 2 - 4 * acceleration * length, 0))
            ) / 2
        self.acceleration = acceleration
        self.speed = min(speed, math.sqrt(length * acceleration))
        self.ramp = self.speed / acceleration
        self.duration = length / self.speed + self.ramp if length > 0 else 0.0

    def at(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Return angles and speeds [6] at a time [s] from the start."""
        if time >= self.duration:
            return self.start + self.way, np.zeros(JOINTS)
        if time < self.ramp:
            gone, speed = self.acceleration * time**2 / 2, self.acceleration * time
        elif time <= self.duration - self.ramp:
            gone, speed = self.speed * (time - self.ramp / 2), self.speed
        else:
            left = self.duration - time
            gone, speed = self.length - self.acceleration * left**2 / 2, self.acceleration * left
        return self.start + self.way * (gone / self.length), self.way * (speed / self.length)

    def step(self, period: float) -> tuple[np.ndarray, np.ndarray, bool]:
        """Return angles and speeds one cycle later, and whether that is the end."""
        self.time += period
        return *self.at(self.time), self.time >= self.duration
