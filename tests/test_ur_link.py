"""The driver of a real arm on the simulated controller: what is not a fault, and must work all the same."""

import time

import numpy as np
import pytest

pytest.importorskip("rtde_control")
from test_ur_kinematics import Q_REF
from ursim import Ursim

from envs.ur.link import Settings, Silent
from envs.ur.rtde import UrRtdeDriver
from envs.ur.tasks import TASKS
from envs.ur_reacher import URReacher

BOUNDS = TASKS["v2"].bounds()


@pytest.fixture
def arm(tmp_path, request):
    flags = getattr(request, "param", ())
    robot = Ursim(tmp_path, *flags).ready()
    driver = UrRtdeDriver(Settings(robot.host, BOUNDS))
    yield robot, driver
    driver.close()
    robot.end()


def speeds(lift, elbow):
    return np.array([0, lift, elbow, 0, 0, 0])


@pytest.mark.parametrize("arm", [["--q", *map(str, Q_REF + [0, 0.003, 0, 0, 0, 0])]], indirect=True)
def test_an_arm_that_stands_almost_at_its_start_can_begin(arm):
    robot, driver = arm
    driver.movej(Q_REF)
    driver.speedj(speeds(0.2, 0))
    robot.until(lambda state: state["qd"][1] > 0.1, 2)
    assert "stopped" not in robot.events


def test_an_answer_to_an_interrupted_request_is_not_taken_for_the_next_one(arm):
    _, driver = arm
    driver._asked += 1
    driver._connection.send((driver._asked, "movej", (Q_REF + speeds(0.8, 0),)))
    time.sleep(0.5)  # whoever asked has been interrupted while the arm moves
    state = driver.movej(Q_REF)
    np.testing.assert_allclose(state.q, Q_REF, atol=0.006)
    assert np.abs(state.qd).max() < 0.01


def test_a_limit_that_is_no_speed_is_refused_and_moves_nothing(arm):
    robot, driver = arm
    for speed in (0.0, -0.5, np.nan):
        with pytest.raises(ValueError, match="must be a positive number"):
            driver.limit_speed(speed)
        driver._command["speed"] = speed  # past the check
        driver.speedj(speeds(0.5, 0.5))
        robot.wait(0.5)
        assert not robot.log()["qd"].any(), speed


def test_the_way_to_the_start_is_as_slow_as_the_rest(arm):
    robot, driver = arm
    driver.limit_speed(0.1)
    driver.movej(Q_REF + speeds(0.1, 0))
    assert np.abs(robot.log()["qd"]).max() <= 0.1 + 1e-9


def test_a_step_after_a_pause_has_its_whole_length(arm):
    _, driver = arm
    env = URReacher(driver=driver)
    env.reset(seed=0)
    time.sleep(0.3)
    began = driver.read().stamp
    *_, info = env.step(np.array([0.5, 0.0]))
    assert info["late"] >= 0.2 and info["stamp"] - began == pytest.approx(0.04, abs=0.0121)
    # A busy host ends a step late now and then; a pause that was carried on would make all of them late.
    assert any("late" not in env.step(np.array([0.5, 0.0]))[4] for _ in range(5))


def test_a_dropped_connection_leaves_no_program_behind(arm):
    robot, driver = arm
    driver.speedj(speeds(0.3, 0))
    robot.wait(0.1)
    robot.tell("drop")
    with pytest.raises(Silent):
        for _ in range(200):
            driver.speedj(speeds(0.3, 0))
            driver.wait(driver.read().stamp + 0.04)
    robot.wait(1.0)
    state = robot.state()
    assert not state["program_running"] and not any(state["qd"])
