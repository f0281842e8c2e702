"""A robot that another client takes over, actions that are not finite, a disk that is full, a terminal that ends.

At the robot's own pace, since a robot that is taken over waits for nobody.
"""

import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rtde_control")
import ur_client
from ursim import PATIENCE, Ursim

from hesscale_rl.envs.ur.arms import START as Q_REF
from hesscale_rl.envs.ur.drivers import KinematicDriver
from hesscale_rl.envs.ur.log import Record, read_records
from hesscale_rl.envs.ur.presets import PRESETS
from hesscale_rl.envs.ur.rtde import UrRtdeDriver
from hesscale_rl.envs.ur.safety import RobotFault
from hesscale_rl.envs.ur.shared import CYCLE, Settings, TakenOver
from hesscale_rl.envs.ur_reacher import URReacher
from hesscale_rl.scripts.ur.supervision import Operated

pytestmark = pytest.mark.real_time
BOUNDS = PRESETS["v2"].bounds()
MOVEJ = "movej([0.09, -2.4, 1.5, -0.72, 1.64, 1.01], a=1.4, v=1.05)"  # the base by 1.5 rad


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    started = Ursim(tmp_path_factory.mktemp("ursim")).ready()
    yield started
    assert started.end() == 0 and "Traceback" not in started.events


@pytest.fixture
def robot(running):
    return running.calm()


@pytest.fixture
def driver(robot, tmp_path):
    made = UrRtdeDriver(Settings(robot.host, BOUNDS, log=str(tmp_path / "cycles.bin")))
    yield made
    made.close()


def send(robot, program):
    with socket.create_connection((robot.host, 30003), PATIENCE) as other:
        other.sendall(program.encode() + b"\n")


@pytest.mark.parametrize("when", ["the arm stands", "it moves", "it goes to its start"])
def test_another_client_s_program_is_a_fault_and_ended_within_cycles(when, robot, driver, tmp_path):
    env = URReacher(driver=driver)
    env.reset(seed=0)
    for _ in range(10 if when == "it moves" else 0):
        env.step(np.array([1.0, -1.0]))
    if when == "it goes to its start":
        driver._asked += 1
        driver._connection.send((driver._asked, "movej", (Q_REF + [0, 0.5, 0, 0, 0, 0],)))
        robot.until(lambda state: state["qd"][1] > 0.2)
    since = robot.state()["stamp"]
    send(robot, MOVEJ)
    with pytest.raises(TakenOver, match="another program has taken the robot over"):
        while True:
            driver.wait(driver.read().stamp + 0.008)
            driver.speedj(np.zeros(6))
    driver.close()
    assert driver.stands and not driver.process.is_alive()
    log, cycles = robot.log(), read_records(tmp_path / "cycles.bin", CYCLE)
    log = log[log["stamp"] > since]
    # The driver's last cycle is the third at most in which the base, or what it was told before, was another's.
    moved = log["stamp"][np.abs(log["qd"])[:, 0] > 0]
    if len(moved):
        assert cycles["stamp"][-1] < moved[0] + 3 * BOUNDS.period + 0.1  # of a host that runs other things
    assert np.ptp(log["q"][:, 0]) < 0.01 and not robot.wait(0.5)["program_running"]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 1])
def test_an_action_that_is_not_finite_is_refused_before_it_is_clipped_and_moves_nothing(place, bad):
    env = URReacher(driver=KinematicDriver(BOUNDS))
    env.reset(seed=0)
    action = np.zeros(2)
    action[place] = bad
    with pytest.raises(RobotFault, match="an action must be finite, not"):
        env.step(action)
    with pytest.raises(RobotFault, match="a command must be finite, not"):
        env.driver.speedj(np.array([0, *action, 0, 0, 0]))
    assert not env.driver.wait(1.0).qd.any()


def test_what_is_not_finite_moves_no_arm_past_the_driver_s_check_either(robot, driver):
    driver._give(np.full(6, np.inf))
    with pytest.raises(RobotFault, match="a command must be finite"):
        driver.wait(driver.read().stamp + 10)
    driver.close()
    assert driver.stands and not robot.log()["qd"][-100:].any()


def test_a_full_disk_is_a_fault_with_the_file_s_name_whichever_file_it_is(robot, tmp_path):
    with pytest.raises(RobotFault, match="/dev/full: the log of the control cycles cannot be written: No space"):
        UrRtdeDriver(Settings(robot.host, BOUNDS, log="/dev/full")).wait(1e9)
    env = URReacher(driver=KinematicDriver(BOUNDS))
    env.driver.limit_speed = lambda speed: None  # type: ignore[attr-defined]
    steps = Operated(env, env.driver, "/dev/full")  # type: ignore[arg-type]
    with pytest.raises(RobotFault, match="/dev/full: the log of the steps cannot be written: No space"):
        steps.reset(seed=0)
    steps.close()
    with pytest.raises(RobotFault, match="no/cycles: the log of the control cycles cannot be written: No such"):
        UrRtdeDriver(Settings(robot.host, BOUNDS, log=str(tmp_path / "no" / "cycles")))


def test_a_record_that_fits_in_part_is_finished_or_said(tmp_path, monkeypatch):
    kind = np.dtype([("stamp", "<f8", 4)])
    record = Record(tmp_path / "log", kind)
    write = record._file.write

    class Slow:
        def write(self, data):
            return write(data[:5])

        close = record._file.close

    record._file = Slow()
    record.add(np.arange(4.0))
    record.close()
    np.testing.assert_array_equal(read_records(tmp_path / "log", kind)["stamp"][0], range(4))


def test_the_guard_alone_is_real_time(robot, driver):
    """The library's threads spin while they wait: they would keep a single processor from all others."""
    threads = [int(name) for name in os.listdir(f"/proc/{driver.process.pid}/task")]
    policies = {thread: os.sched_getscheduler(thread) for thread in threads}
    others = {policies[thread] for thread in threads if thread != driver.process.pid}
    assert len(threads) > 2 and others == {os.SCHED_OTHER}
    if os.geteuid() == 0:
        assert policies[driver.process.pid] == os.SCHED_FIFO


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_the_end_of_the_terminal_brakes_the_arm_as_sigterm_does(number, robot):
    command = [sys.executable, ur_client.__file__, robot.host, "-", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as client:
        while "go" not in client.stdout.readline():
            pass
        since = robot.until(lambda state: max(map(abs, state["qd"])) > 0.3, 20)["stamp"]
        os.killpg(client.pid, number)  # a terminal's end reaches the driver's process, too
        said = client.communicate(timeout=PATIENCE)[0]
    assert client.returncode == 130 and "interrupted" in said
    state = robot.wait(0.3)
    assert not any(state["qd"]) and not state["program_running"]
    log = robot.log()
    log = log[log["stamp"] > since]
    assert np.abs(np.diff(log["qd_target"], axis=0)).max() <= BOUNDS.acceleration * BOUNDS.period + 1e-9  # braked
