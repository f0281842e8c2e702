"""Faults of test_ur_faults.py at the robot's own pace, at random moments from outside; judged by the robot's stamps.

FAULTS=20 injects each fault twenty times, instead of some once; FIGURES=FILE adds a line of JSON for each injection:
the last line of a fault and its `number` counts, since a test is repeated where the machine stood still.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rtde_control")
from ursim import Ursim

from hesscale_rl.envs.ur.presets import PRESETS
from hesscale_rl.envs.ur.safety import clearance

pytestmark = pytest.mark.real_time
TIMES = int(os.environ.get("FAULTS", "0"))


def some(names, *few):
    """Those that are injected: a few, once, unless FAULTS asks for all."""
    return [(name, number) for name in (names if TIMES else few) for number in range(TIMES or 1)]


STILL = 0.01  # rad/s
PATIENCE = 90.0  # s of the host
CLIENT = Path(__file__).with_name("ur_client.py")
# Seconds of robot time from the fault until no joint moves. A policy that is silent is stopped after 0.2 s, one that
# has ended at once; a silent driver after the watchdog's 0.1 s; stopping from 1 rad/s with 2 rad/s^2 takes 0.5 s.
# Then some cycles for the way there and back, and for a host that runs other things.
BOUND = {
    "nan": 0.9, "shape": 0.9, "exception": 0.9, "SIGINT": 0.9, "SIGTERM": 0.9, "SIGHUP": 0.9, "policy SIGKILL": 0.9,
    "policy SIGSTOP": 1.1, "driver SIGKILL": 0.6, "driver SIGSTOP": 0.6, "freeze 20": 0.6, "drop": 0.6,
    "pstop": 0.5, "safeguard": 0.5, "estop": 0.5, "takeover": 0.5, "inf": 0.9,
}  # fmt: skip
MARGIN = 0.005  # rad or m by which a bound may be left: none is left without a fault


class Client:
    """The policy's process, in a group of its own."""

    def __init__(self, host, seed, *wrong):
        command = [sys.executable, str(CLIENT), host, "-", str(seed), *map(str, wrong)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.said = []

    def until(self, word):
        while not any(word in line for line in self.said):
            line = self.process.stdout.readline()
            assert line, f"the client has ended: {self.said}"
            self.said.append(line.strip())
        return self

    def end(self):
        """Wait for its end; return the exit code."""
        with self.process.stdout:
            code = self.process.wait(PATIENCE)
            self.said += self.process.stdout.read().splitlines()
        return code

    @property
    def driver(self):
        return int(next(line for line in self.said if line.startswith("driver")).split()[1])

    def alive(self):
        """The processes of its group that are left."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


def gone(client):
    deadline = time.monotonic() + 20
    while client.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def robots(tmp_path):
    started = []

    def start(*flags):
        started.append(Ursim(tmp_path, *flags).ready())
        return started[-1]

    yield start
    for robot in started:
        robot.end(signal.SIGKILL)


def judge(name, robot, fault, bound, number=None):
    """Seconds of robot time from the fault to the stand, and the smallest clearance ever; `number`: to be noted."""
    log, bounds = robot.log(), PRESETS["v2"].bounds()
    moving = np.abs(log["qd"]).max(1) > STILL
    after = log["stamp"] >= fault
    assert after.any()
    last = log["stamp"][after & moving].max(initial=fault)
    seconds, least = last - fault, min(clearance(q, bounds) for q in log["q"][log["stamp"] >= fault - 1])
    speed = float(np.abs(log["qd"][np.searchsorted(log["stamp"], fault) - 1]).max())
    if number is not None and (path := os.environ.get("FIGURES")):
        figures = {"fault": name, "number": number, "seconds": seconds, "clearance": least, "speed": speed}
        with open(path, "a") as file:
            file.write(json.dumps(figures) + "\n")
    assert seconds <= bound, f"{name}: the arm moved for {seconds:.3f} s more"
    assert least > -MARGIN, f"{name}: out of the bounds by {-least:.4f}"


SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "policy SIGKILL", "policy SIGSTOP", "driver SIGKILL", "driver SIGSTOP"]


@pytest.mark.parametrize(("name", "time_"), some(SIGNALS, "SIGTERM", "policy SIGSTOP", "driver SIGKILL"))
def test_a_signal_stops_the_arm(name, time_, robots):
    chance = random.Random(f"{name} {time_}")
    robot = robots()
    client = Client(robot.host, time_).until("go")
    robot.wait(chance.uniform(0.3, 3.0))
    robot.until(lambda state: max(map(abs, state["qd"])) > 0.3, 10)
    who = client.driver if name.startswith("driver") else client.process.pid
    stamp = robot.state()["stamp"]
    os.kill(who, getattr(signal, name.split()[-1]))
    robot.wait(3.0)
    judge(name, robot, stamp, BOUND[name], time_)
    if name == "policy SIGSTOP":
        os.kill(who, signal.SIGCONT)
    code = client.end()
    assert gone(client), "a process is left behind"
    if name == "policy SIGSTOP":  # and it does not move again by itself
        judge(name, robot, stamp, BOUND[name])
        assert code == 4 and any(line.startswith("PolicySilent") for line in client.said), client.said
    if name in ("SIGINT", "SIGTERM", "SIGHUP"):
        assert code == 130 and "interrupted" in client.said
    elif name.startswith("driver"):
        assert code == 4 and any(line.startswith("Silent") for line in client.said)


@pytest.mark.skipif(not TIMES, reason="only with FAULTS: in lock step it is the same")
@pytest.mark.parametrize(("name", "time_"), some(["nan", "inf", "shape", "exception"], "nan"))
def test_a_bad_action_stops_the_arm(name, time_, robots):
    chance, robot = random.Random(f"{name} {time_}"), robots()
    client = Client(robot.host, time_, chance.randrange(15, 80), name).until("go")
    code = client.end()
    if not any(line.startswith("fault") for line in client.said):
        robot.nothing_injected()
    assert gone(client) and code == (1 if name == "exception" else 4)
    robot.wait(1.0)
    # The fault is the last word to the robot: from there on, its reference slows down in every cycle.
    log = robot.log()
    speed = np.abs(log["qd_target"]).max(1)
    falling = int(np.flatnonzero(speed)[-1]) + 1
    while falling > 0 and speed[falling - 1] > speed[falling]:
        falling -= 1
    judge(name, robot, log["stamp"][falling], BOUND[name], time_)


FAILURES = {"freeze 20": "Silent", "drop": "", "pstop": "ProtectiveStop", "safeguard": "Stopped", "estop": "Stopped"}
FAILURES |= {"takeover": "TakenOver"}


@pytest.mark.parametrize(("name", "time_"), some([*FAILURES], "freeze 20", "takeover"))
def test_a_robot_that_fails_stops_the_arm(name, time_, robots):
    chance, robot = random.Random(f"{name} {time_}"), robots()
    client = Client(robot.host, time_).until("go")
    robot.wait(chance.uniform(0.3, 3.0))
    stamp = robot.until(lambda state: max(map(abs, state["qd"])) > 0.3, 10)["stamp"]
    if name == "takeover":
        with socket.create_connection((robot.host, 30003), PATIENCE) as other:
            other.sendall(b"movej([0.09, -2.4, 1.5, -0.72, 1.64, 1.01], a=1.4, v=1.05)\n")
    else:
        robot.tell(name)
    code = client.end()
    assert gone(client) and code == 4, client.said
    robot.wait(2.0)
    judge(name, robot, stamp, BOUND[name], time_)
    assert any(line.startswith(FAILURES[name]) for line in client.said), client.said
    assert name != "takeover" or np.ptp(robot.log()["q"][:, 0]) < 0.05


@pytest.mark.parametrize("time_", range(TIMES or 1))
def test_a_machine_that_stands_still_is_nobody_s_fault(time_, robots):
    robot = robots()
    client = Client(robot.host, time_).until("go")
    everybody = [robot.process.pid, client.driver, client.process.pid]
    chance = random.Random(time_)
    for seconds in (0.09, 0.3, 1.5):
        robot.until(lambda state: max(map(abs, state["qd"])) > 0.3, 10)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in chance.sample(everybody, 3):
                os.kill(pid, number)
            time.sleep(seconds)
        robot.wait(0.5)
    assert "stopped" not in robot.events
    os.kill(client.process.pid, signal.SIGINT)
    assert client.end() == 130 and gone(client), client.said
