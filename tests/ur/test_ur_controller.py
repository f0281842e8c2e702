"""The simulated robot and the scripts on it, cycle by cycle, without a network."""

import math

import numpy as np
import pytest

from hesscale_rl.envs.ur.arms import ARMS, DEFAULT
from hesscale_rl.envs.ur.arms import START as Q_REF
from hesscale_rl.envs.ur.kinematics import frames, pose
from hesscale_rl.envs.ur.log import Record
from hesscale_rl.envs.ur.motion import Joints
from hesscale_rl.envs.ur.simulator import robot
from hesscale_rl.envs.ur.simulator.dashboard import Dashboard
from hesscale_rl.envs.ur.simulator.poses import compose, jacobian, solve
from hesscale_rl.envs.ur.simulator.record import RECORD, read_log
from hesscale_rl.envs.ur.simulator.robot import SimulatedRobot
from hesscale_rl.envs.ur.simulator.script import Control
from hesscale_rl.envs.ur.simulator.variables import OUTPUTS


class Client:
    """What ur_rtde does with the registers, one cycle after the other."""

    def __init__(self, arm=DEFAULT, offset=0, **settings):
        self.said = []
        self.robot = SimulatedRobot(Joints(Q_REF, arm.period), arm, say=self.said.append, **settings)
        self.offset = offset
        self.upload()

    def upload(self):
        self.command(0)
        assert self.robot.run(Control(self.robot, self.offset), "rtde_control")
        self.cycles(1)

    def command(self, number, *doubles, integer=0):
        values = {f"input_double_register_{n + self.offset}": float(x) for n, x in enumerate(doubles)}
        self.robot.take(
            values | {f"input_int_register_{self.offset}": number, f"input_int_register_{1 + self.offset}": integer}
        )

    def cycles(self, count):
        for _ in range(count):
            self.robot.step()

    def seconds(self, seconds):
        self.cycles(round(seconds * self.robot.frequency))

    def blocking(self, number, *doubles, integer=0):
        """Give a command, wait for its end, clear it; return the cycles that it took."""
        self.command(number, *doubles, integer=integer)
        cycles = 0
        while self.robot.integers[self.offset] != 2:
            self.cycles(1)
            cycles += 1
            assert cycles < 5000 and self.running
        self.command(0)
        self.cycles(1)
        assert self.robot.integers[self.offset] == 1
        return cycles

    def speedj(self, qd, a=2.0, t=0.008):
        self.command(9, *([0, qd, 0, 0, 0, 0] if np.isscalar(qd) else qd), a, t)

    @property
    def running(self):
        return self.robot.program is not None

    @property
    def qd(self):
        return self.robot.joints.qd[1]


@pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)
def test_a_speed_is_on_the_joints_two_cycles_after_the_command(arm):
    client = Client(arm)
    client.speedj(0.5)
    client.cycles(1)
    assert client.qd == 0
    client.cycles(1)
    assert client.qd == pytest.approx(2.0 * client.robot.joints.period)
    client.seconds(0.3)
    client.speedj(-0.5)
    client.cycles(2)
    assert client.qd == pytest.approx(0.5 - 2.0 * client.robot.joints.period)


def test_the_last_speed_is_held_for_ever_unless_a_watchdog_bites():
    client = Client()
    client.speedj(0.1)
    client.seconds(4)
    assert client.running and client.qd == pytest.approx(0.1)
    client.blocking(35, 10.0)
    client.speedj(0.1)
    client.cycles(12)  # 0.096 s
    assert client.running
    client.speedj(0.1)
    client.cycles(12)
    assert client.running
    client.cycles(1)
    assert not client.running and client.robot.runtime_state == robot.STOPPED
    assert client.qd == 0  # 0.1 rad/s is less than one cycle of hard braking
    assert "watchdog" in client.said[-1]


def test_a_stopped_program_takes_its_watchdog_with_it():
    client = Client()
    client.blocking(35, 10.0)
    client.robot.stop()
    client.upload()
    client.seconds(1)
    assert client.running


def test_a_long_time_in_speedj_holds_back_the_next_target():
    client = Client()
    client.speedj(0.1, t=0.5)
    client.seconds(0.1)
    client.speedj(-0.1, t=0.5)
    client.seconds(0.3)
    assert client.qd == pytest.approx(0.1)
    client.seconds(0.3)
    assert client.qd == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((9, 0, 0.1, 0, 0, 0, 0, 1, 0.008), (1, *Q_REF, 0.5, 1)),
        ((9, 0, 0.1, 0, 0, 0, 0, 1, 0.008), (34, 2)),
        ((9, 0, 0.1, 0, 0, 0, 0, 1, 0.008), (11, *Q_REF, 0, 0, 0.008, 0.1, 300)),
        ((11, *Q_REF, 0, 0, 0.008, 0.1, 300), (9, 0, 0.1, 0, 0, 0, 0, 1, 0.008)),
    ],
)
def test_two_threads_that_move_the_arm_end_the_program(first, second):
    for rule in (True, False):
        client = Client(thread_rule=rule)
        client.command(*first)
        client.cycles(3)
        client.command(*second)
        client.cycles(3)
        assert client.running is not rule
        if rule:
            assert "another thread" in client.said[-1] and client.robot.status_bits == 1


def test_speed_stop_ends_the_thread_and_the_motion():
    client = Client()
    client.speedj(0.3)
    client.seconds(1)
    assert client.blocking(15, 2.0) * 0.008 == pytest.approx(0.15, abs=0.02)
    assert client.qd == 0
    client.blocking(1, *Q_REF, 0.5, 1.0)
    np.testing.assert_allclose(client.robot.joints.q, Q_REF, atol=1e-12)
    client.command(11, *(Q_REF + [0, 0.01, 0, 0, 0, 0]), 0, 0, 0.008, 0.1, 300)
    client.seconds(1)
    np.testing.assert_allclose(client.robot.joints.q[1], Q_REF[1] + 0.01, atol=1e-6)
    client.blocking(16, 5.0)
    client.blocking(34, 5.0)


def test_movej_and_its_asynchronous_twin():
    client = Client(offset=24)
    goal = Q_REF + [0, 0.2, 0, 0, 0, 0]
    assert client.blocking(1, *goal, 0.5, 1.0) * 0.008 == pytest.approx(0.9, abs=0.03)
    np.testing.assert_array_equal(client.robot.joints.q, goal)
    word = client.robot.integers[26]
    assert client.blocking(1, *Q_REF, 0.5, 1.0, integer=1) == 1
    client.cycles(2)
    begun = client.robot.integers[26]
    assert begun & 0xFFFF == 1 << 15 and begun >> 24 == (word >> 24) + 1
    assert begun >> 16 & 127 == (word >> 16 & 127) + 1
    client.seconds(1)
    over = client.robot.integers[26]
    assert over & 0xFFFF == 0 and over >> 24 == begun >> 24 and over >> 16 & 127 == (begun >> 16 & 127) + 1
    np.testing.assert_array_equal(client.robot.joints.q, Q_REF)
    client.blocking(1, *goal, 0.5, 1.0, integer=1)
    client.seconds(0.3)
    client.blocking(1, *Q_REF, 0.5, 1.0)  # takes the place of the one under way, without a jump
    np.testing.assert_array_equal(client.robot.joints.q, Q_REF)


def test_questions():
    client = Client(ARMS["UR5e"])
    robot_ = client.robot
    client.blocking(29, 0.01, 0, 0.1, 0, 0, 0.5)
    client.blocking(40)
    assert robot_.doubles[:6] == [0.01, 0, 0.1, 0, 0, 0.5]
    client.blocking(43)
    flange = pose(robot_.arm.links, Q_REF)
    np.testing.assert_allclose(robot_.doubles[:6], compose(flange, robot_.tool), atol=1e-12)
    here = robot_.doubles[:6]
    client.blocking(30, *here, *(Q_REF + 0.1), 1e-10, 1e-10)
    np.testing.assert_allclose(robot_.doubles[:6], Q_REF, atol=1e-8)
    client.blocking(46, *here)
    np.testing.assert_allclose(robot_.doubles[:6], Q_REF, atol=1e-8)
    for far, reachable in ((0, 1), (2, 0)):
        client.blocking(36, here[0] + far, *here[1:])
        assert robot_.integers[1] == reachable
    client.blocking(37, *Q_REF)
    assert robot_.integers[1] == 1
    client.blocking(37, 7.0, *Q_REF[1:])
    assert robot_.integers[1] == 0
    client.seconds(0.5)
    client.blocking(47)
    assert robot_.integers[1] == 1
    client.blocking(65, 1.5, 0, 0, 0.1, 1, 2, 3, 4, 5, 6)
    assert robot_.payload == 1.5 and list(robot_.inertia) == [1, 2, 3, 4, 5, 6]
    client.command(26)
    client.cycles(1)
    assert robot_.doubles[0] == 0.002


@pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)
def test_the_jacobian_and_the_inverse(arm):
    small, here = 1e-6, pose(arm.links, Q_REF)
    there = pose(arm.links, Q_REF + small)
    j = jacobian(frames(arm.links, Q_REF), here[:3])
    np.testing.assert_allclose((there - here)[:3], j[:3] @ np.full(6, small), atol=1e-11)
    np.testing.assert_allclose(solve(arm.links, there, Q_REF - 0.02, np.zeros(6)), Q_REF + small, atol=1e-8)
    assert solve(arm.links, np.array([3.0, 0, 0, 0, 0, 0]), Q_REF, np.zeros(6)) is None


def test_stop_script_and_what_is_not_simulated():
    client = Client()
    client.command(255)
    client.cycles(1)
    assert not client.running
    client.upload()
    client.command(3, *pose(DEFAULT.links, Q_REF), 0.1, 0.1)
    client.cycles(1)
    assert not client.running and "not simulated" in client.said[-1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_ends_the_program(bad):
    client = Client()
    client.speedj(bad)
    client.cycles(2)
    assert not client.running and client.robot.safety_mode == robot.NORMAL
    assert np.isfinite(client.robot.joints.q).all()


def test_more_than_the_joints_can_do_is_a_protective_stop():
    client = Client()
    client.speedj(3.2)
    client.cycles(2)
    assert client.robot.safety_mode == robot.PROTECTIVE_STOP and client.qd == 0
    client = Client()
    client.command(11, *(Q_REF + [0, 0.3, 0, 0, 0, 0]), 0, 0, 0.008, 0.1, 300)
    client.cycles(2)
    assert client.robot.safety_mode == robot.PROTECTIVE_STOP and (client.robot.joints.q == Q_REF).all()
    client = Client()
    client.speedj([3, 0, 0, 0, 0, 0], 10)
    client.seconds(2.5)
    assert client.robot.safety_mode == robot.PROTECTIVE_STOP
    assert 2 * math.pi < client.robot.joints.q[0] < 2 * math.pi + 0.3 and not client.robot.joints.qd.any()


def test_a_protective_stop_and_its_five_seconds():
    client = Client()
    dashboard = Dashboard(client.robot)
    client.speedj(1.0)
    client.seconds(1)
    assert client.qd == 1.0
    client.command(31)
    client.cycles(1)
    assert client.robot.safety_bits == 1 << 2 | 1 << 10 and client.robot.status_bits == 1
    assert client.robot.runtime_state == robot.PAUSED
    client.cycles(6)  # 20 rad/s^2
    assert client.qd == 0
    assert dashboard.feed(b"safetystatus\n") == b"Safetystatus: PROTECTIVE_STOP\n"
    assert not client.robot.run(Control(client.robot))
    since = client.robot.stamp
    assert dashboard.feed(b"unlock protective stop\n").startswith(b"Cannot unlock protective stop until 5s")
    while dashboard.feed(b"unlock protective stop\n") != b"Protective stop releasing\n":
        client.cycles(1)
    assert client.robot.stamp - since == pytest.approx(5.0, abs=0.06)
    assert client.robot.safety_bits == 1 and not client.running
    client.upload()
    client.seconds(1)
    assert client.qd == 0


def test_an_emergency_stop_needs_hands():
    client = Client()
    client.robot.halt(robot.ROBOT_STOP, "pressed")
    assert client.robot.safety_bits == 1 << 6 | 1 << 7 | 1 << 10 and client.robot.status_bits == 0
    dashboard = Dashboard(client.robot)
    client.seconds(6)
    for line in (b"unlock protective stop\n", b"power on\n", b"brake release\n"):
        dashboard.feed(line)
    assert dashboard.feed(b"robotmode\nsafetymode\n") == b"Robotmode: POWER_OFF\nSafetymode: ROBOT_EMERGENCY_STOP\n"
    client.robot.halt(robot.PROTECTIVE_STOP, "less than what is there")
    assert client.robot.safety_mode == robot.ROBOT_STOP
    client.robot.clear()
    client.upload()


def test_power():
    client = Client()
    dashboard = Dashboard(client.robot)
    assert dashboard.feed(b"power off\n") == b"Powering off\n" and not client.running
    for line, mode in ((b"brake release\n", 3), (b"power on\n", 5), (b"brake release\n", 7)):
        dashboard.feed(line)
        assert client.robot.robot_mode == mode


def test_the_slider_scales_speeds():
    client = Client()
    client.robot.take({"speed_slider_mask": 1, "speed_slider_fraction": 0.5})
    client.speedj(0.4)
    client.seconds(1)
    assert client.qd == pytest.approx(0.2)
    client.robot.take({"speed_slider_mask": 1, "speed_slider_fraction": 1.0})
    client.seconds(1)
    assert client.qd == pytest.approx(0.4)


def test_a_longer_forearm_shifts_the_pose_by_its_length():
    right, wrong = Client().robot, Client(shift=0.003).robot
    assert np.linalg.norm(wrong.pose()[:3] - right.pose()[:3]) == pytest.approx(0.003)
    right.lengthen(3.0)
    np.testing.assert_array_equal(right.pose(), wrong.pose())


def test_digital_outputs_by_mask():
    bot = Client().robot
    bot.take({"standard_digital_output_mask": 0b1010, "standard_digital_output": 0b0011})
    assert bot.digital_outputs == 0b0010
    bot.take({"tool_digital_output_mask": 1, "tool_digital_output": 1})
    bot.take({"standard_digital_output_mask": 2, "standard_digital_output": 0})
    assert bot.digital_outputs == 1 << 16
    bot.take({"standard_analog_output_mask": 3, "standard_analog_output_type": 2, "standard_analog_output_1": 0.5})
    assert bot.analog_outputs == [0.004, 5.0]


def test_the_record_survives_a_cut(tmp_path):
    path = tmp_path / "log"
    record = Record(path, RECORD)
    client = Client(record=record)
    client.speedj(0.1)
    client.cycles(9)
    rows = read_log(path)  # while it is still open
    np.testing.assert_allclose(rows["stamp"], np.arange(1, 11) * 0.008)
    assert rows["program_running"].all() and (rows["safety_mode"] == 1).all()
    np.testing.assert_array_equal(rows["q"][-1], client.robot.joints.q)
    np.testing.assert_array_equal(rows["qd_target"][-1], client.robot.joints.qd_target)
    record.close()
    path.write_bytes(path.read_bytes()[:-1])
    assert len(read_log(path)) == 9 and RECORD.itemsize == 205


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("DOUBLE", "joint_position_deviation_ratio tcp_force_scalar io_current euromap67_24V_voltage "
                   "tool_analog_input0 tool_analog_input1 tool_output_current tool_temperature"),
        ("INT32", "safety_status tool_output_voltage time_scale_source"),
        ("UINT32", "tool_mode tool_analog_input_types euromap67_input_bits euromap67_output_bits "
                   "input_bit_registers0_to_31 input_bit_registers32_to_63 script_control_line analog_io_types"),
        ("UINT8", "tool_output_mode tool_digital_output0_mode tool_digital_output1_mode"),
        ("BOOL", "output_bit_register_64 output_bit_register_127"),
    ],
)  # fmt: skip
def test_outputs_that_a_recording_asks_for_exist(kind, names):
    bot = Client().robot
    bot.take({"input_bit_register_33": True})
    for name in names.split():
        assert OUTPUTS[name][0] == kind and OUTPUTS[name][1](bot) == {
            "safety_status": 1, "tool_temperature": 30.0, "tool_mode": 253, "input_bit_registers32_to_63": 2,
        }.get(name, 0), name  # fmt: skip
