"""The driver of a real arm on the simulated controller: what is not a fault, and must work all the same.

In lock step: time stands still but for `driver.wait` and the driver's motions.
"""

import time

import numpy as np
import pytest

pytest.importorskip("rtde_control")
from test_ur_kinematics import Q_REF
from ursim import Ursim

from hesscale_rl.envs.ur.presets import PRESETS
from hesscale_rl.envs.ur.rtde import UrRtdeDriver
from hesscale_rl.envs.ur.shared import PolicySilent, Settings, Silent
from hesscale_rl.envs.ur_reacher import URReacher

BOUNDS = PRESETS["v2"].bounds()


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    started = Ursim(tmp_path_factory.mktemp("ursim"), stepped=True).ready()
    yield started
    assert started.end() == 0


@pytest.fixture(scope="module")
def shared(robot):
    driver = UrRtdeDriver(Settings(robot.host, BOUNDS, clock=robot.clock))
    yield driver
    driver.close()


@pytest.fixture
def arm(robot, shared):
    shared.limit_speed(BOUNDS.speed)
    shared.movej(Q_REF)
    return robot, shared


def speeds(lift, elbow):
    return np.array([0, lift, elbow, 0, 0, 0])


def moved(robot, since):
    """Whether a joint moved after a stamp."""
    log = robot.log()
    return bool(log["qd"][log["stamp"] > since].any())


def test_an_arm_that_stands_almost_at_its_start_can_begin(arm):
    robot, driver = arm
    driver.movej(Q_REF + speeds(0.1, 0))
    began = driver.movej(Q_REF + speeds(0.003, 0)).stamp
    assert driver.movej(Q_REF).stamp < began + 0.1 and not moved(robot, began)
    driver.speedj(speeds(0.2, 0))
    assert driver.wait(driver.read().stamp + 0.1).qd[1] > 0.1
    assert "stopped" not in robot.events


def test_an_answer_to_an_interrupted_request_is_not_taken_for_the_next_one(arm):
    _, driver = arm
    driver._asked += 1
    driver._connection.send((driver._asked, "movej", (Q_REF + speeds(0.8, 0),)))
    driver.wait(driver.read().stamp + 0.5)  # whoever asked has been interrupted while the arm moves
    state = driver.movej(Q_REF)
    np.testing.assert_allclose(state.q, Q_REF, atol=0.006)
    assert np.abs(state.qd).max() < 0.01


def test_a_limit_that_is_no_speed_is_refused_and_moves_nothing(arm):
    robot, driver = arm
    began = driver.read().stamp
    for speed in (0.0, -0.5, np.nan):
        with pytest.raises(ValueError, match="must be a positive number"):
            driver.limit_speed(speed)
        driver._command["speed"] = speed  # past the check
        driver.speedj(speeds(0.5, 0.5))
        driver.wait(driver.read().stamp + 0.2)
        assert not moved(robot, began), speed


def test_the_way_to_the_start_is_as_slow_as_the_rest(arm):
    robot, driver = arm
    driver.limit_speed(0.1)
    began = driver.read().stamp
    driver.movej(Q_REF + speeds(0.1, 0))
    log = robot.log()
    assert 0.09 < np.abs(log["qd"][log["stamp"] > began]).max() <= 0.1 + 1e-9


def test_a_step_after_a_pause_has_its_whole_length(arm):
    _, driver = arm
    env = URReacher(driver=driver)
    env.reset(seed=0)
    began = driver.wait(driver.read().stamp + 0.3).stamp
    *_, info = env.step(np.array([0.5, 0.0]))
    assert info["late"] == pytest.approx(0.304, abs=0.009) and info["stamp"] - began == pytest.approx(0.04)
    assert all("late" not in env.step(np.array([0.5, 0.0]))[4] for _ in range(5))


def test_in_lock_step_every_run_is_the_same_to_the_last_bit(arm):
    """However long the policy thinks: nothing moves until it has spoken."""
    robot, driver = arm
    runs = []
    for _ in range(2):
        driver.movej(Q_REF)
        random, states = np.random.default_rng(0), []
        began = driver.read().stamp
        for k in range(1, 26):
            if k == 10:
                time.sleep(0.3)
            driver.speedj(speeds(*random.uniform(-1, 1, 2)))
            states.append(driver.wait(began + 0.04 * k))
        runs.append(states)
        driver.stop()
    for one, other in zip(*runs, strict=True):
        np.testing.assert_allclose(one.q - runs[0][0].q, other.q - runs[1][0].q, atol=1e-12)
    assert np.ptp([state.q[1] for state in runs[0]]) > 0.1


def test_a_policy_that_says_nothing_is_stopped_after_its_time_and_goes_on_by_consent_alone(arm):
    robot, driver = arm
    driver.speedj(speeds(0.3, 0))
    given = driver.read().stamp
    for _ in range(3):  # however often it speaks from then on
        with pytest.raises(PolicySilent):
            driver.wait(given + 1.0)
        driver.speedj(speeds(0.3, 0))
    with pytest.raises(PolicySilent):
        driver.movej(Q_REF)
    stood = robot.wait(1.0)["stamp"] - 0.5
    assert not moved(robot, stood)
    driver.unlock()
    driver.movej(Q_REF)
    assert moved(robot, stood)
    cycles = robot.log()
    cycles = cycles[cycles["stamp"] > given]
    falling = cycles["stamp"][1:][np.diff(cycles["qd_target"][:, 1]) < 0]
    # The state 0.2 s later is the last one that it is heard for; two cycles from there the joints' reference falls.
    assert falling[0] == pytest.approx(given + 0.2 + 3 * BOUNDS.period)


def test_a_dropped_connection_leaves_no_program_behind(arm):
    robot, driver = arm  # the last test: there is no driver any more
    driver.speedj(speeds(0.3, 0))
    driver.wait(driver.read().stamp + 0.1)
    robot.tell("drop")
    with pytest.raises(Silent):
        for _ in range(200):
            driver.speedj(speeds(0.3, 0))
            driver.wait(driver.read().stamp + 0.04)
    robot.wait(1.0)
    state = robot.state()
    assert not state["program_running"] and not any(state["qd"])
