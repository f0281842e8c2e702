"""What a robot does that it was not told to is noticed in three cycles; what it was told, however late, is not."""

import math

import numpy as np
import pytest

from hesscale_rl.envs.ur.arms import START as Q_REF
from hesscale_rl.envs.ur.calls import Calls
from hesscale_rl.envs.ur.connection import CALL, Connection, Packet
from hesscale_rl.envs.ur.motion import Joints, Move
from hesscale_rl.envs.ur.presets import PRESETS
from hesscale_rl.envs.ur.reference import PATIENCE, PLACE, Reference
from hesscale_rl.envs.ur.safety import RobotFault
from hesscale_rl.envs.ur.shared import Settings

BOUNDS = PRESETS["v2"].bounds()
PERIOD, ACCELERATION = BOUNDS.period, BOUNDS.acceleration
IN_FLIGHT = Settings("", BOUNDS).in_flight


class Robot:
    """An arm that follows what it is told some cycles late, and a witness that is told the same."""

    def __init__(self):
        self.joints, self.reference, self.cycles = Joints(Q_REF, PERIOD), Reference(BOUNDS, IN_FLIGHT), 0
        self.sent = [np.zeros(6)] * 20

    def step(self, late=None):
        """Let a cycle pass; `late`: follow what was sent so many cycles ago, not another program."""
        if late is not None:
            self.joints.speedj(self.sent[-1 - late], ACCELERATION)
        self.joints.step()
        self.cycles += 1

    def look(self):
        arm = self.joints
        return self.reference.look(self.cycles * PERIOD, arm.q, arm.q_target.copy(), arm.qd_target.copy())

    def send(self, qd):
        self.sent.append(qd)
        self.reference.tell(qd)


@pytest.mark.parametrize("seed", range(20))
def test_a_robot_that_follows_late_and_is_seen_now_and_then_is_not_strange(seed):
    random, robot = np.random.default_rng(seed), Robot()
    late = 2
    for cycle in range(400):
        if cycle % random.integers(1, 8) == 0:
            qd = np.array([0, *random.uniform(-1, 1, 2), 0, 0, 0])
        for _ in range(1 if random.random() < 0.9 else random.integers(2, 6)):  # some states are missed
            late = min(max(late + int(random.integers(-1, 2)), 0), IN_FLIGHT)
            robot.step(late)
        assert not robot.look()
        robot.send(qd)
    assert np.abs(robot.joints.qd).max() > 0.05


@pytest.mark.parametrize("seed", range(5))
def test_a_robot_on_its_way_and_one_that_brakes_on_it_is_not_strange(seed):
    random, robot = np.random.default_rng(seed), Robot()
    end = Q_REF + np.array([0, *random.uniform(-0.5, 0.5, 2), 0, 0, 0])
    robot.joints.movej(end, 0.6, 1.0)
    robot.reference.go(Move(Q_REF, end, 0.6, 1.0), 1.0)
    for cycle in range(400):
        if cycle == 30:
            robot.reference.go(Move(Q_REF, end, 0.6, 1.0), 4.0)
            robot.joints.stopj(4.0)
        robot.step()
        assert not robot.look()


FOREIGN = {
    "movej of the base": lambda arm: arm.movej(Q_REF - [1.5, 0, 0, 0, 0, 0], 1.0, 1.4),
    "a slow movej of the base": lambda arm: arm.movej(Q_REF - [1.5, 0, 0, 0, 0, 0], 0.05, 0.13),
    "speedj of a wrist": lambda arm: arm.speedj([0, 0, 0, 0, 0, 0.1], 1.0),
    "movej of our joints": lambda arm: arm.movej(Q_REF + [0, -0.5, 0.2, 0, 0, 0], 1.0, 1.4),
    "a harder stop than ours": lambda arm: arm.stopj(20.0),
}


@pytest.mark.parametrize("told", ["stand", "speeds", "way"])
@pytest.mark.parametrize("program", FOREIGN)
def test_another_program_is_noticed_within_three_cycles(program, told):
    if told == "stand" and "stop" in program:
        return  # it stands all the same
    robot = Robot()
    robot.look()
    end = Q_REF + np.array([0, 0.3, -0.3, 0, 0, 0])
    if told == "way":
        robot.joints.movej(end, 0.6, 1.0)
        robot.reference.go(Move(Q_REF, end, 0.6, 1.0), 1.0)
    for _ in range(55):
        robot.step(1 if told == "speeds" else None)
        assert not robot.look()
        if told == "speeds":
            robot.send(np.array([0, 0.5, -0.5, 0, 0, 0]))
    if told != "stand":
        robot.joints.stopj(20.0)  # the program that ran ends
    FOREIGN[program](robot.joints)
    noticed = []
    for _ in range(PATIENCE):
        robot.step()
        noticed.append(bool(robot.look()))
    assert noticed[-1], noticed
    assert np.abs(robot.joints.q - Q_REF)[[0, 3, 4, 5]].max() < 0.001


@pytest.mark.parametrize("joint", [0, 3, 4, 5])
def test_a_joint_that_creeps_from_its_place_is_named(joint):
    robot = Robot()
    robot.send(np.array([0, 0.5, 0.5, 0, 0, 0]))
    assert not robot.look()
    q = Q_REF.copy()
    q[joint] += 1.01 * PLACE
    strange = robot.reference.look(PERIOD, q, Q_REF, np.zeros(6))
    assert strange.startswith(f"joint {joint + 1} is 0.010 rad from its place")
    q[1], q[joint] = q[1] + 0.5, Q_REF[joint]
    assert not robot.reference.look(2 * PERIOD, q, Q_REF, np.zeros(6))  # it was told to move


class Endless(Connection):
    """A robot whose program never answers."""

    def __init__(self):
        super().__init__(Settings("", BOUNDS))
        self.patience, self.seen = 0.0, 0

    def idle(self):
        self.seen += 1
        return Packet(self.seen * PERIOD, *[np.zeros(6)] * 4, 1)


def test_a_call_that_does_not_come_back_is_given_up_by_the_robot_s_time():
    from threading import Event

    connection, never = Endless(), Event()
    with pytest.raises(RobotFault, match="has not answered for 0.25 s"):
        connection.ask(never.wait, CALL)
    assert connection.seen == math.ceil(CALL / PERIOD) + 1 and connection.calls.busy
    never.set()
    assert connection.calls.done(60.0)  # the thread is free again, once it has come back
    assert connection.ask(lambda: 7, 1e9) == 7


def test_what_a_call_raises_is_raised_where_it_was_made():
    calls = Calls()
    calls.begin(lambda: 1 // 0)
    assert calls.done(60.0)
    with pytest.raises(ZeroDivisionError):
        calls.result()
