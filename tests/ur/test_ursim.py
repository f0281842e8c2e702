"""Clients made for a real robot on a simulated one in a process of its own. Times are the robot's stamps."""

import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ursim import Ursim

from hesscale_rl.envs.ur.arms import ARMS, DEFAULT
from hesscale_rl.envs.ur.kinematics import pose

rtde_control = pytest.importorskip("rtde_control")
rtde_receive = pytest.importorskip("rtde_receive")
rtde_io = pytest.importorskip("rtde_io")
dashboard_client = pytest.importorskip("dashboard_client")

FLAGS = rtde_control.RTDEControlInterface
SIMULATED = ("UR5", "UR10e")  # once at 125 Hz, once at 500
UPPER = FLAGS.FLAG_UPLOAD_SCRIPT | FLAGS.FLAG_UPPER_RANGE_REGISTERS | FLAGS.FLAG_NO_EXT_FT


@pytest.fixture(scope="module")
def robots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ursim")
    found = {name: Ursim(folder, "--arm", name) for name in SIMULATED}
    yield {name: robot.ready() for name, robot in found.items()}
    assert found["UR5"].end(signal.SIGTERM) == 0 and found["UR10e"].end(signal.SIGINT) == 130
    assert not any("Traceback" in robot.events for robot in found.values())


@pytest.fixture(params=SIMULATED)
def sim(request, robots):
    """A robot that is at peace: once at 125 Hz, once at 500."""
    robot = robots[request.param].calm()
    robot.arm = ARMS[request.param]
    return robot


@pytest.fixture
def cb3(robots):
    robot = robots["UR5"].calm()
    robot.arm = DEFAULT
    return robot


@pytest.fixture
def receive(request):
    sim = request.getfixturevalue("sim" if "sim" in request.fixturenames else "cb3")
    client = rtde_receive.RTDEReceiveInterface(sim.host)
    yield client
    client.disconnect()


@pytest.fixture
def control(request):
    sim = request.getfixturevalue("sim" if "sim" in request.fixturenames else "cb3")
    client = rtde_control.RTDEControlInterface(sim.host)
    yield client
    client.disconnect()


def upload(sim, control):
    """Start the script again with a clear register, and wait until it runs."""
    control.kickWatchdog()
    assert control.reuploadScript()
    sim.until(lambda s: s["program_running"])
    deadline = time.monotonic() + 30
    while not control.isProgramRunning():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def speeds(sim, control, speed, seconds):
    """Send speedJ once in a while, as a driver does, for so long in robot time."""
    end = sim.state()["stamp"] + seconds
    while sim.state()["stamp"] < end:
        assert control.speedJ([0, speed, 0, 0, 0, 0], 2.0, sim.arm.period)
        time.sleep(sim.arm.period)


def test_receive(sim, receive):
    state = sim.until(lambda s: s["stamp"] > 0.1)
    assert receive.isConnected() and receive.getTimestamp() > 0
    np.testing.assert_array_equal(receive.getActualQ(), state["q"])
    np.testing.assert_allclose(receive.getActualTCPPose(), pose(sim.arm.links, np.array(state["q"])), atol=1e-12)
    assert receive.getRobotMode() == 7 and receive.getSafetyMode() == 1 and receive.getSpeedScaling() == 1
    assert receive.getJointMode() == [253] * 6 and not receive.isProtectiveStopped()
    few = rtde_receive.RTDEReceiveInterface(sim.host, -1.0, ["timestamp", "actual_q"])
    np.testing.assert_array_equal(few.getActualQ(), state["q"])
    few.disconnect()
    with pytest.raises(RuntimeError, match="nonsense"):
        rtde_receive.RTDEReceiveInterface(sim.host, -1.0, ["timestamp", "nonsense"])


def test_control(sim, receive, control):
    start = sim.state()
    goal = np.array(start["q"]) + [0, 0.2, 0, 0, 0, 0]
    assert control.moveJ(goal.tolist(), 0.5, 1.0)
    rows = sim.log()[-3000:]
    moving = rows["stamp"][(rows["stamp"] > start["stamp"]) & rows["qd"].any(1)]
    # Up and down again at 1 rad/s^2, and speed in all cycles but the first and the last.
    assert np.ptp(moving) + 2 * sim.arm.period == pytest.approx(2 * math.sqrt(0.2), abs=1.01 * sim.arm.period)
    np.testing.assert_allclose(sim.state()["q"], goal, atol=1e-12)
    assert control.getForwardKinematics() == pytest.approx(pose(sim.arm.links, goal).tolist(), abs=1e-9)
    assert control.isJointsWithinSafetyLimits(goal.tolist())
    speeds(sim, control, 0.3, 0.4)
    assert sim.state()["qd"][1] == pytest.approx(0.3)
    assert control.speedStop(2.0) and not any(sim.state()["qd"])
    assert control.moveJ(start["q"], 0.5, 1.0, True)
    sim.until(lambda s: s["qd"][1] < -0.1)
    assert (
        control.getAsyncOperationProgress() >= 0 and control.getAsyncOperationProgressEx().isAsyncOperationRunning()
    )
    control.stopJ(4.0)
    assert not any(sim.state()["qd"]) and sim.state()["program_running"]
    here = sim.state()["q"]
    for n in range(30):
        assert control.servoJ([*here[:1], here[1] + n * 0.001, *here[2:]], 0, 0, sim.arm.period, 0.1, 300)
        time.sleep(sim.arm.period)
    sim.until(lambda s: s["q"][1] > here[1] + 0.028)
    assert control.servoStop(4.0)
    assert control.setPayload(1.2, [0, 0, 0.1])
    sim.wait(0.1)
    assert receive.getPayload() == 1.2 and receive.getPayloadCog() == [0, 0, 0.1]
    control.stopScript()
    sim.until(lambda s: not s["program_running"])
    upload(sim, control)


def test_from_the_call_to_the_motion(sim, control):
    before = sim.wait(0.1)["stamp"]
    control.speedJ([0, 0.1, 0, 0, 0, 0], 2.0, sim.arm.period)
    after = sim.state()["stamp"]
    sim.until(lambda s: s["qd"][1] > 0.09)
    control.speedStop(2.0)
    rows = sim.log()
    first = rows["stamp"][(rows["stamp"] > before) & rows["qd"].any(1)][0]
    assert before + 1.9 * sim.arm.period < first < after + 2.1 * sim.arm.period


@pytest.mark.real_time
def test_the_watchdog(sim, control):
    assert control.setWatchdog(2)
    end = sim.state()["stamp"] + 0.5
    while True:
        before = sim.state()["stamp"]
        control.speedJ([0, 0.1, 0, 0, 0, 0], 2.0, sim.arm.period)
        after = sim.state()["stamp"]
        if before > end:
            break
        time.sleep(0.005)
    sim.until(lambda s: not s["program_running"])
    sim.wait(0.1)
    rows = sim.log()
    late = rows[rows["stamp"] >= before]
    assert late["program_running"][0]  # kicked, it was alive
    stopped = late["stamp"][~late["program_running"]][0]
    assert before + 0.5 < stopped < after + 0.5 + 2.1 * sim.arm.period
    assert not late["qd"][late["stamp"] > stopped + 2 * sim.arm.period].any()
    assert not control.speedJ([0, 0.1, 0, 0, 0, 0], 2.0, sim.arm.period)


def test_two_threads_end_the_program(sim, control):
    speeds(sim, control, 0.1, 0.1)
    assert not control.moveJ(sim.state()["q"], 0.5, 1.0)
    assert not sim.state()["program_running"]
    sim.tell("threads off")
    upload(sim, control)
    speeds(sim, control, 0.1, 0.1)
    here = sim.state()["q"]
    assert control.servoJ(here, 0, 0, sim.arm.period, 0.1, 300)
    assert sim.wait(0.1)["program_running"]
    sim.tell("threads on")


def test_a_protective_stop(cb3, receive, control):
    speeds(cb3, control, 0.5, 0.4)
    control.triggerProtectiveStop()
    stopped = cb3.until(lambda s: s["safety_mode"] == 3)["stamp"]
    cb3.wait(0.1)
    assert receive.isProtectiveStopped() and receive.getRuntimeState() == 4
    assert not control.speedJ([0, 0.1, 0, 0, 0, 0], 2.0, 0.008)
    rows = cb3.log()
    rows = rows[rows["stamp"] > stopped - 0.2]
    since = rows["stamp"][rows["safety_mode"] == 3][0]
    assert rows["qd"][rows["stamp"] < since][-1, 1] == pytest.approx(0.5)
    assert not rows["qd"][rows["stamp"] > since + 0.5 / 20].any()
    dashboard = dashboard_client.DashboardClient(cb3.host)
    dashboard.connect()
    assert "PROTECTIVE_STOP" in dashboard.safetystatus()
    cb3.until(lambda s: s["stamp"] > since + 4.5, 6)
    with pytest.raises(RuntimeError, match="Cannot unlock protective stop until 5s"):
        dashboard.unlockProtectiveStop()
    cb3.until(lambda s: s["stamp"] > since + 5.02)
    dashboard.unlockProtectiveStop()
    assert cb3.state()["safety_mode"] == 1 and not dashboard.running()
    cb3.wait(0.05)
    upload(cb3, control)
    assert dashboard.running() and not any(cb3.state()["qd"])
    dashboard.disconnect()


def test_an_emergency_stop(cb3, receive):
    cb3.tell("estop")
    cb3.wait(0.1)
    assert receive.isEmergencyStopped() and receive.getSafetyMode() == 7 and receive.getRobotMode() == 3
    cb3.tell("clear")
    cb3.wait(0.1)
    assert not receive.isEmergencyStopped()


def test_io(sim, receive):
    io = rtde_io.RTDEIOInterface(sim.host)
    assert io.setStandardDigitalOut(3, True) and io.setToolDigitalOut(0, True) and io.setSpeedSlider(0.5)
    sim.until(lambda s: s["speed_scaling"] == 0.5)
    sim.wait(0.1)
    assert receive.getDigitalOutState(3) and receive.getActualDigitalOutputBits() == 1 << 16 | 1 << 3
    assert receive.getTargetSpeedFraction() == 0.5 and receive.getSpeedScaling() == 1.0
    io.setSpeedSlider(1.0)
    io.setStandardDigitalOut(3, False)
    io.setToolDigitalOut(0, False)
    sim.until(lambda s: s["speed_scaling"] == 1.0 and s["digital_outputs"] == 0)
    io.disconnect()


def test_programs_of_one_s_own(cb3, control):
    """The client waits for the program to say that it is done, whether it is simulated or not."""
    goal = cb3.state()["q"][:1] + [q + 0.05 for q in cb3.state()["q"][1:]]
    assert control.sendCustomScriptFunction("mine", f"movej({goal}, a=4, v=1)\n")
    np.testing.assert_allclose(cb3.state()["q"], goal)
    assert control.isProgramRunning()
    assert control.sendCustomScriptFunction("other", "x = 1\nmovej(get_actual_joint_positions())\n")
    assert "other: 'x = 1' is not simulated" in cb3.events and control.isProgramRunning()


def test_inputs_have_one_writer(cb3, control):
    with pytest.raises(RuntimeError, match="input registers are already in use"):
        rtde_control.RTDEControlInterface(cb3.host)
    control.stopScript()
    other = rtde_control.RTDEControlInterface(cb3.host, -1.0, UPPER)
    assert other.isProgramRunning()
    other.disconnect()


def test_the_dashboard(sim):
    client = dashboard_client.DashboardClient(sim.host)
    client.connect()
    assert client.polyscopeVersion().startswith({"cb3": "3.15.8", "e": "5.12.2"}[sim.arm.series])
    assert client.getRobotModel() == sim.arm.name and "RUNNING" in client.robotmode() and not client.running()
    client.stop()
    client.closeSafetyPopup()
    with pytest.raises(RuntimeError):
        client.play()
    client.quit()


def test_packages_that_are_late(cb3, receive):
    cb3.tell("latency 0.1 0.01")
    cb3.wait(0.5)
    lags = []
    for _ in range(10):  # one of them is less where the host, and with it robot time, stood still
        stamp = receive.getTimestamp()
        lags.append(cb3.state()["stamp"] - stamp)
        cb3.wait(0.01)
    assert max(lags) > 0.08
    cb3.tell("latency 0 0")
    cb3.tell("shift 3")
    cb3.wait(0.3)
    off = np.array(receive.getActualTCPPose()) - pose(cb3.arm.links, np.array(receive.getActualQ()))
    assert np.linalg.norm(off[:3]) == pytest.approx(0.003)
    cb3.tell("shift 0")


FROZEN = """
import sys, time, rtde_control, rtde_receive
receive = rtde_receive.RTDEReceiveInterface(sys.argv[1])
control = rtde_control.RTDEControlInterface(sys.argv[1])
print(control.setWatchdog(2), flush=True)
control.speedJ([0, 0.1, 0, 0, 0, 0], 2.0, 0.008)
while input() != "end":
    print(control.speedJ([0, 0.1, 0, 0, 0, 0], 2.0, 0.008), receive.getTimestamp(), flush=True)
"""
DROPPED = """
import sys, time, rtde_receive
receive = rtde_receive.RTDEReceiveInterface(sys.argv[1])
print(receive.isConnected(), flush=True)
while input() != "end":
    if not receive.isConnected():
        receive.reconnect()
    print(receive.isConnected(), receive.getTimestamp(), flush=True)
"""


class Child:
    """A client in a process of its own: ur_rtde may crash when its link fails."""

    def __init__(self, script, host):
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline().strip() == "True"

    def ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().split()

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.mark.real_time
def test_a_frozen_link_and_the_watchdog(cb3):
    child = Child(FROZEN, cb3.host)
    for _ in range(10):
        child.ask()
        cb3.wait(0.02)
    frozen = cb3.state()["stamp"]
    cb3.tell("freeze 1.0")
    cb3.wait(0.05)
    answers = []
    while cb3.state()["stamp"] < frozen + 0.9:
        answers.append(child.ask())
        time.sleep(0.02)
    assert len({stamp for _, stamp in answers}) == 1  # the client sees old data
    assert cb3.state()["stamp"] > frozen + 0.8 and not cb3.state()["program_running"]
    rows = cb3.log()
    stopped = rows["stamp"][~rows["program_running"] & (rows["stamp"] > frozen)][0]
    assert frozen < stopped < frozen + 0.5 + 0.02
    cb3.until(lambda s: s["stamp"] > frozen + 1.1)
    assert cb3.until(lambda s: float(child.ask()[1]) > frozen + 1.0, 10)  # and new data afterwards
    child.end()


def test_a_dropped_connection(cb3):
    child = Child(DROPPED, cb3.host)
    dropped = cb3.state()["stamp"]
    assert cb3.tell("drop") == "ok" and cb3.state()["clients"] == 0
    cb3.until(lambda s: float(child.ask()[1]) > dropped + 0.1, 10)
    child.end()
