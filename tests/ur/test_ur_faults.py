"""Whatever goes wrong, the arm stops in time and inside its bounds, and nobody is left behind: cycle by cycle.

In lock step (envs/ur/clock.py), so that the figures are the same on every machine; test_ur_real_time.py has others.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("rtde_control")
import ur_client
from ursim import PATIENCE, Ursim

from hesscale_rl.envs.ur.arms import ARMS, DEFAULT
from hesscale_rl.envs.ur.presets import PRESETS
from hesscale_rl.envs.ur.rtde import UrRtdeDriver
from hesscale_rl.envs.ur.safety import RobotFault, clearance
from hesscale_rl.envs.ur.shared import Settings
from hesscale_rl.envs.ur_reacher import URReacher

BOUNDS = PRESETS["v2"].bounds()
STILL = 0.01  # rad/s
BRAKE, HARD = BOUNDS.acceleration, 20.0  # rad/s^2, of the driver and of the controller
CYCLES = 4 * BOUNDS.period  # s: there and back
DEAD_MAN, WATCHDOG = PRESETS["v2"].timeout, 0.1  # s

# By what goes wrong: exit code, what is said, s until the arm begins to brake, and with what.
HERE = {
    "nan": (4, "RobotFault: an action must be finite", 0, BRAKE),
    "inf": (4, "RobotFault: an action must be finite", 0, BRAKE),
    "shape": (4, "RobotFault: an action must be two numbers", 0, BRAKE),
    "driver SIGKILL": (4, "Silent: the process that talks to the robot has died", WATCHDOG, HARD),
    "driver SIGSTOP": (4, "Silent: the process that talks to the robot hangs", WATCHDOG, HARD),
    "freeze 20": (4, "Silent: no news from the robot for 0.2", WATCHDOG, HARD),
    "drop": (4, "Silent", WATCHDOG, HARD),  # at the latest: the driver also asks the dashboard for a stop
    "pstop": (4, "ProtectiveStop", 0, HARD),
    "safeguard": (4, "Stopped", 0, HARD),
    "estop": (4, "Stopped", 0, HARD),
}
ELSEWHERE = {
    "exception": (1, "", 0, BRAKE),
    "policy SIGINT": (130, "interrupted", 0, BRAKE),
    "policy SIGTERM": (130, "interrupted", 0, BRAKE),
    "policy SIGKILL": (-signal.SIGKILL, "", 0, BRAKE),
    "policy SIGSTOP": (-signal.SIGKILL, "", DEAD_MAN, BRAKE),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    started = Ursim(tmp_path_factory.mktemp("ursim"), stepped=True).ready()
    yield started
    assert started.end() == 0 and "Traceback" not in started.events


@pytest.fixture
def robot(running):
    return running.calm()


def fault(said):
    """The stamp at which it went wrong, as the client told it."""
    return float(next(line.split()[1] for line in said if line.startswith("fault")))


def judge(robot, since, reaction, deceleration, bounds=BOUNDS):
    log = robot.log()
    log = log[log["stamp"] >= since - bounds.period / 2]
    moving = np.abs(log["qd"]).max(1) > STILL
    lasted = log["stamp"][moving].max() - since
    speed = np.abs(log["qd"])[log["stamp"] <= since + reaction + CYCLES].max()
    assert speed > 0.3 and lasted <= reaction + speed / deceleration + CYCLES
    assert min(clearance(q, bounds) for q in log["q"]) > 0


def suffers(robot, what, capfd, arm=DEFAULT):
    code, word, reaction, deceleration = HERE[what]
    assert ur_client.play(robot.host, robot.clock, 1, 20, what, arm) == code
    said = capfd.readouterr().out.splitlines()
    assert any(line.startswith(word) for line in said), said
    assert not multiprocessing.active_children(), "a process is left behind"
    robot.wait(1.0)
    judge(robot, fault(said), reaction, deceleration, PRESETS["v2"].on(arm).bounds())


@pytest.mark.parametrize("what", HERE)
def test_what_goes_wrong_stops_the_arm(what, robot, capfd):
    suffers(robot, what, capfd)


@pytest.mark.parametrize("name", ["UR3e", "UR10e"])
def test_what_goes_wrong_stops_another_arm(name, tmp_path, capfd):
    robot = Ursim(tmp_path, "--arm", name, stepped=True).ready()
    for what in ("nan", "driver SIGKILL", "freeze 20", "pstop"):
        suffers(robot.calm(), what, capfd, ARMS[name])
    robot.end()


@pytest.mark.parametrize("what", ELSEWHERE)
def test_a_policy_that_ends_stops_the_arm(what, robot):
    code, word, reaction, deceleration = ELSEWHERE[what]
    command = [sys.executable, ur_client.__file__, robot.host, robot.clock, "1", "20", what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as client:
        said = [client.stdout.readline()]
        while not said[-1].startswith("fault"):
            assert said[-1], f"the client has ended: {said}"
            said.append(client.stdout.readline())
        if what == "policy SIGSTOP":
            robot.wait(1.0)
            client.kill()
        said += client.communicate(timeout=PATIENCE)[0].splitlines()
    assert client.returncode == code and any(line.startswith(word) for line in said), said
    assert ended(client.pid), "a process is left behind"
    robot.wait(1.0)
    judge(robot, fault(said), reaction, deceleration)


def ended(group):
    """Whether all processes of a group end."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_an_action_out_of_range_is_cut(robot):
    driver = UrRtdeDriver(Settings(robot.host, BOUNDS, PRESETS["v2"].timeout, clock=robot.clock))
    with contextlib.closing(driver):
        env = URReacher(driver=driver)
        env.reset(seed=0)
        began = driver.read().stamp
        for sign in (1.0, -1.0, 1.0):
            for _ in range(20):
                env.step(np.array([sign, -sign]) * 1e9)
    log = robot.log()
    log = log[log["stamp"] >= began]
    assert 0.5 < np.abs(log["qd"]).max() <= 1.0 + 1e-9
    assert min(clearance(q, BOUNDS) for q in log["q"]) > 0


def refused(robot, word):
    began = robot.state()["stamp"]
    with pytest.raises(RobotFault, match=word):
        UrRtdeDriver(Settings(robot.host, BOUNDS, PRESETS["v2"].timeout, clock=robot.clock))
    for process in multiprocessing.active_children():
        process.join(PATIENCE)
        assert not process.is_alive(), "a process is left behind"
    robot.wait(0.2)
    log = robot.log()
    assert not log["qd"][log["stamp"] > began].any()


@pytest.mark.parametrize(
    ("line", "word"),
    [("shift 3", "mm from where our model has it"), ("pstop", "protective stop"), ("estop", "not ready")],
)
def test_a_robot_that_is_not_as_it_must_be_is_not_moved(line, word, robot):
    robot.tell(line)
    refused(robot, word)
    robot.tell("shift 0")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--tcp", "0", "0", "0.1", "0", "0", "0"), "a TCP is set on the pendant"),
        (("--arm", "UR10"), "this is a UR10"),
        (("--arm", "UR5e"), "cycles of 0.002 s"),
        (("--q", "1.587", "-0.1", "1.5", "-0.718", "1.637", "1.009"), "stands where it must not"),
    ],
)
def test_another_robot_is_not_moved(flags, word, tmp_path):
    robot = Ursim(tmp_path, *flags, stepped=True).ready()
    refused(robot, word)
    robot.end()
