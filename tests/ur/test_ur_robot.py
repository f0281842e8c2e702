"""The arm as lerobot's robots are: its contract, on the model and on the simulated controller."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest

from hesscale_rl.envs.ur import Robot, RobotConfig
from hesscale_rl.envs.ur.arms import ARMS, START
from hesscale_rl.envs.ur.safety import RobotFault, clearance
from hesscale_rl.errors import InputError

CONTRACT = {  # of lerobot.robots.Robot as published with 0.4.4: methods with their parameters, properties without
    "connect": ["calibrate"], "calibrate": [], "configure": [], "get_observation": [], "send_action": ["action"],
    "disconnect": [], "is_connected": None, "is_calibrated": None, "observation_features": None,
    "action_features": None,
}  # fmt: skip


def test_it_has_everything_that_lerobot_asks_of_a_robot():
    for name, parameters in CONTRACT.items():
        found = inspect.getattr_static(Robot, name)
        if parameters is not None:
            assert [*inspect.signature(found).parameters][1:] == parameters, name
    assert Robot.name == "ur" and Robot.config_class is RobotConfig
    try:
        from lerobot.robots import Robot as Published
    except ImportError:
        return
    assert Published.__abstractmethods__ <= CONTRACT.keys()


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_observed_and_sent_is_as_described(arm):
    robot = Robot(RobotConfig(arm=arm))
    features = robot.observation_features, robot.action_features  # known before there is a connection
    with robot:
        at = robot.go_to_start()
        np.testing.assert_allclose([*at.values()][:6], START)
        sent = robot.send_action(dict.fromkeys(features[1], 0.0) | {"elbow.vel": 0.2, "shoulder_lift.vel": -0.1})
        assert sent == pytest.approx(dict.fromkeys(features[1], 0.0) | {"elbow.vel": 0.2, "shoulder_lift.vel": -0.1})
        seen = robot.get_observation()
        for values, described in ((seen, features[0]), (sent, features[1])):
            assert values.keys() == described.keys() and all(type(values[name]) is described[name] for name in values)
    assert not robot.is_connected


def test_what_cannot_be_is_refused_by_name_and_moves_nothing():
    for config, words in (
        (RobotConfig(arm="UR7"), "UR7"),
        (RobotConfig(preset="v3"), "preset 'v3': must be one of"),
        (RobotConfig(fps=100), "fps 100: must be from 1 to 62"),
    ):
        with pytest.raises(InputError, match=words):
            Robot(config)
    with pytest.raises(InputError, match="confirmed=True says that somebody stands by"):
        Robot(RobotConfig(host="192.168.0.2")).connect()
    robot = Robot(RobotConfig(id="left"))
    still = dict.fromkeys(robot.action_features, 0.0)
    for act in (robot.get_observation, robot.disconnect, robot.go_to_start, lambda: robot.send_action(still)):
        with pytest.raises(ConnectionError, match="left UR5: not connected; call connect"):
            act()
    with robot:
        with pytest.raises(ConnectionError, match="connected already"):
            robot.connect()
        for action, words in (
            (still | {"elbow.pos": 1.0}, "action elbow.pos: no such speed"),
            ({"elbow.vel": 1.0}, "action shoulder_lift.vel: missing"),
            ({}, "action elbow.vel: missing"),
        ):
            with pytest.raises(ValueError, match=words):
                robot.send_action(action)
        before = robot.get_observation()
        for number in (math.nan, math.inf):
            with pytest.raises(RobotFault, match="finite"):
                robot.send_action(still | {"elbow.vel": number})
        assert robot.get_observation() == before


def dashed(robot, steps):
    """Full speed towards one bound; return what was sent, and the least clearance."""
    sent, least = [], math.inf
    fast = dict.fromkeys(robot.action_features, 0.0) | {"shoulder_lift.vel": 1.0, "elbow.vel": 1.0}
    for _ in range(steps):
        sent.append(robot.send_action(fast)["elbow.vel"])
        q = np.array([*robot.get_observation().values()][:6])
        least = min(least, clearance(q, robot.task.bounds()))
    return np.array(sent), least


def test_the_guard_stands_between_an_action_and_the_arm():
    with Robot() as robot:
        robot.go_to_start()
        sent, least = dashed(robot, 60)
    assert sent[0] == 1.0 and (sent[-5:] == 0).all() and least > 0


def test_it_is_the_same_over_a_controller(tmp_path, monkeypatch):
    pytest.importorskip("rtde_control")
    from ursim import Ursim

    from hesscale_rl.envs.ur import rtde

    running = Ursim(tmp_path, stepped=True).ready()
    kind = rtde.UrRtdeDriver
    monkeypatch.setattr(rtde, "UrRtdeDriver", lambda settings: kind(replace(settings, clock=running.clock)))
    try:
        with Robot(RobotConfig(host=running.host, confirmed=True)) as robot:
            np.testing.assert_allclose([*robot.go_to_start().values()][:6], START, atol=1e-3)
            sent, least = dashed(robot, 100)
            assert sent[0] == 1.0 and (sent[-5:] == 0).all() and least > 0
        assert not any(running.state()["qd"])
    finally:
        running.end()
