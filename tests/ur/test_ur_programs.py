"""What the simulated controller makes of text on its real-time port: lines, and programs of one's own."""

import numpy as np
import pytest
from test_ur_controller import Client

from hesscale_rl.envs.ur.arms import START as Q_REF
from hesscale_rl.envs.ur.motion import Joints
from hesscale_rl.envs.ur.simulator import realtime
from hesscale_rl.envs.ur.simulator.dashboard import Dashboard
from hesscale_rl.envs.ur.simulator.realtime import Realtime
from hesscale_rl.envs.ur.simulator.robot import SimulatedRobot
from hesscale_rl.envs.ur.simulator.script import Control
from hesscale_rl.envs.ur.simulator.variables import OUTPUTS


def test_lines_of_text_move_the_arm_and_braking_follows_the_last():
    bot = SimulatedRobot(Joints(Q_REF))
    port = Realtime(bot, 1060)
    for _ in range(50):
        port.feed(b"speedj([0, 0.3, 0, 0, 0, 0], 1.4, 0.008)\n")
        bot.step()
    assert bot.joints.qd[1] == pytest.approx(0.3)
    bot.step()
    assert bot.joints.qd[1] == pytest.approx(0.3)  # a line that is late by a cycle is not missed
    bot.step()
    bot.step()
    assert bot.joints.qd[1] == 0 and bot.program is None
    port.feed(f"movej({(Q_REF + 0.1).tolist()}, a=1.4, v=1.05, t=1.0, r=0)\n".encode())
    for _ in range(127):
        bot.step()
    assert bot.program is None
    np.testing.assert_allclose(bot.joints.q, Q_REF + 0.1)
    port.feed(f"servoj({Q_REF.tolist()}, t=0.5, lookahead_time=0.2, gain=300)\nstopj(a=2.0)\n".encode())
    bot.step()
    assert bot.joints.qd[1] == 0
    bot.step()
    assert bot.program is None


@pytest.mark.parametrize(
    "line",
    [
        "speedj([0,0,0], 1, 1)", "speedj([0,0.1,0,0,0,0])", "speedj([0,0.1,0,0,0,0], b=1)", "movej()", "stopj(x)",
        "speedj([0,0.1,0,0,0,0], 1, 1, 1)", "stopj([0,0.1,0,0,0,0])", "set_digital_out(9, True)", "\x00\xff",
        "movel(p[0.1, 0.2, 0.3, 0, 0, 0], a=1.2, v=0.25)", "sleep(-1)", "write_output_integer_register(0, x)",
    ],
)  # fmt: skip
def test_other_lines_are_told_of_and_change_nothing(line):
    client = Client()
    client.speedj(0.1)
    client.seconds(1)
    Realtime(client.robot, 1060).feed(line.encode("latin-1") + b"\n")
    client.seconds(1)
    assert client.running and client.qd == pytest.approx(0.1)
    assert "not simulated" in client.said[-1]


def test_lines_switch_outputs_and_write_registers():
    client = Client()
    port = Realtime(client.robot, 1060)
    port.feed(b"set_digital_out(1, True)\n")
    client.cycles(2)
    assert client.robot.digital_outputs == 2 and not client.running  # a line is a program of its own
    for line in (b"set_tool_digital_out(0, True)\n", b"set_digital_out(1, False)\n"):
        port.feed(line)
        client.cycles(2)
    assert client.robot.digital_outputs == 1 << 16
    port.feed(b"write_output_float_register(3, 0.5)\n")
    client.cycles(2)
    assert client.robot.doubles[3] == 0.5


PROGRAM = b"def mine():\n  # a comment\n  movej([%s], a=4, v=1)\n%s  write_output_integer_register(0, 7)\nend\n"


def test_a_program_of_simulated_statements_runs():
    client = Client()
    goal = ",".join(map(str, Q_REF + [0, 0.1, 0, 0, 0, 0])).encode()
    Realtime(client.robot, 1060).feed(PROGRAM % (goal, b'  sleep(0.5)\n  textmsg("done")\n'))
    began = client.robot.stamp
    client.seconds(0.2)
    assert client.running and client.robot.integers[0] != 7
    while client.running:
        client.cycles(1)
    assert client.robot.integers[0] == 7 and client.robot.stamp - began > 0.8
    np.testing.assert_allclose(client.robot.joints.q[1], Q_REF[1] + 0.1)


def test_of_a_program_that_is_not_simulated_only_outputs_are_written():
    client = Client()
    goal = ",".join(map(str, Q_REF + 0.1)).encode()
    Realtime(client.robot, 1060).feed(PROGRAM % (goal, b"  while True:\n  end\n  force_mode()\n"))
    client.seconds(1)
    assert not client.running and client.robot.integers[0] == 7
    assert "mine: 'while True:' is not simulated" in client.said[-1]
    np.testing.assert_array_equal(client.robot.joints.q, Q_REF)


@pytest.mark.parametrize("beginning", [b"def mine():\n", b"# "])
def test_what_is_unfinished_is_looked_through_once(beginning, monkeypatch):
    """Bytes that are looked at, not seconds: a pattern that counts."""
    client, looked, end = Client(), [], realtime._END

    class Counting:
        def search(self, text, at=0):
            looked.append(len(text) - at)
            return end.search(text, at)

    monkeypatch.setattr(realtime, "_END", Counting())
    port = Realtime(client.robot, 1060)
    port.feed(beginning)
    for _ in range(1000):
        port.feed(b"  sleep(1)  # and so on\n" if beginning.startswith(b"def") else b"x" * 24)
    assert sum(looked) < 100_000
    port.feed(b"end\n")
    client.cycles(1)
    assert client.running


def test_in_local_control_no_program_starts():
    client = Client()
    dashboard = Dashboard(client.robot)
    client.robot.stop()
    client.robot.remote = False
    assert dashboard.feed(b"is in remote control\n") == b"false\n"
    Realtime(client.robot, 1060).feed(b"stopj(a=2)\n")
    assert not client.running and "in local control" not in client.said[0]
    assert not client.robot.run(Control(client.robot), "rtde_control") and "in local control" in client.said[-1]
    client.robot.remote = True
    client.upload()


def test_the_slider_counts_once():
    client = Client()
    client.robot.take({"speed_slider_mask": 1, "speed_slider_fraction": 0.5})
    scaling, fraction = (OUTPUTS[name][1](client.robot) for name in ("speed_scaling", "target_speed_fraction"))
    assert scaling * fraction == 0.5


def test_a_line_takes_the_place_of_the_uploaded_script():
    client = Client()
    client.speedj(0.1)
    client.seconds(1)
    Realtime(client.robot, 1060).feed(b"stopj(a=2)\n")
    client.cycles(1)
    assert client.qd == pytest.approx(0.1 - 2 * 0.008)
    client.seconds(1)
    assert not client.running
