"""The simulated controller's protocols against bytes laid out by hand, and against rubbish."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesscale_rl.envs.ur.arms import ARMS
from hesscale_rl.envs.ur.arms import START as Q_REF
from hesscale_rl.envs.ur.kinematics import pose
from hesscale_rl.envs.ur.motion import Joints
from hesscale_rl.envs.ur.simulator.client import ProtocolError
from hesscale_rl.envs.ur.simulator.dashboard import Dashboard
from hesscale_rl.envs.ur.simulator.faults import Fault, scheduled
from hesscale_rl.envs.ur.simulator.realtime import Realtime, packet_size
from hesscale_rl.envs.ur.simulator.robot import SimulatedRobot
from hesscale_rl.envs.ur.simulator.rtde import Rtde
from hesscale_rl.errors import InputError

# What ur_rtde's receiver asks for, with the types of UR's guide as struct's letters.
ASKED = {
    "timestamp": "d",
    "target_q": "6d", "target_qd": "6d", "target_qdd": "6d", "target_current": "6d", "target_moment": "6d",
    "actual_q": "6d", "actual_qd": "6d", "actual_current": "6d", "joint_control_output": "6d",
    "actual_TCP_pose": "6d", "actual_TCP_speed": "6d", "actual_TCP_force": "6d",
    "target_TCP_pose": "6d", "target_TCP_speed": "6d",
    "actual_digital_input_bits": "Q", "joint_temperatures": "6d", "actual_execution_time": "d", "robot_mode": "i",
    "joint_mode": "6i", "safety_mode": "i", "actual_tool_accelerometer": "3d",
    "speed_scaling": "d", "target_speed_fraction": "d", "actual_momentum": "d", "actual_main_voltage": "d",
    "actual_robot_voltage": "d", "actual_robot_current": "d",
    "actual_joint_voltage": "6d", "actual_digital_output_bits": "Q", "runtime_state": "I",
    **dict.fromkeys((f"standard_analog_{way}put{n}" for way in ("in", "out") for n in (0, 1)), "d"),
    "robot_status_bits": "I", "safety_status_bits": "I", "payload": "d", "payload_cog": "3d", "payload_inertia": "6d",
    **dict.fromkeys((f"output_int_register_{n}" for n in (2, *range(12, 20))), "i"),
    **dict.fromkeys((f"output_double_register_{n}" for n in range(12, 20)), "d"),
}  # fmt: skip
WORDS = {"d": "DOUBLE", "i": "INT32", "I": "UINT32", "Q": "UINT64", "3d": "VECTOR3D", "6d": "VECTOR6D"}
WORDS |= {"6i": "VECTOR6INT32"}


def robot(name="UR5"):
    arm = ARMS[name]
    return SimulatedRobot(Joints(Q_REF, arm.period), arm)


def outputs(names, frequency=125.0):
    payload = struct.pack(">d", frequency) + names.encode()
    return struct.pack(">H", 3 + len(payload)) + b"O" + payload


def test_versions():
    client = Rtde(robot(), {})
    assert client.feed(b"\x00\x05V\x00\x02") == b"\x00\x04V\x01"
    assert client.feed(b"\x00\x05V\x00\x01") == b"\x00\x04V\x00"
    assert client.feed(b"\x00\x03v") == b"\x00\x13v" + bytes.fromhex("00000003 0000000f 00000008 00019f63")
    assert Rtde(robot("UR5e"), {}).feed(b"\x00\x03v")[3:7] == b"\x00\x00\x00\x05"


def test_outputs_byte_by_byte():
    bot = robot()
    client = Rtde(bot, {})
    assert client.feed(outputs("timestamp,actual_q,robot_mode,")) == b"\x00\x19O\x01DOUBLE,VECTOR6D,INT32"
    assert client.cycle() == b""  # not before it is started
    assert client.feed(b"\x00\x03S") == b"\x00\x04S\x01"
    bot.step()
    joints = b"".join(struct.pack(">d", x) for x in Q_REF)
    # 0.008 is 3f80624dd2f1a9fc in IEEE 754.
    assert client.cycle() == b"\x00\x40U\x01" + bytes.fromhex("3f80624dd2f1a9fc") + joints + b"\x00\x00\x00\x07"
    assert client.feed(b"\x00\x03P") == b"\x00\x04P\x01"
    assert client.cycle() == b""


@pytest.mark.parametrize("arm", ARMS)
def test_everything_that_ur_rtde_asks_for(arm):
    bot, links = robot(arm), ARMS[arm].links
    bot.joints.speedj(np.full(6, 0.5), 100.0)
    client = Rtde(bot, {})
    answer = client.feed(outputs(",".join(ASKED)))
    assert answer[4:].decode().split(",") == [WORDS[form] for form in ASKED.values()]
    client.feed(b"\x00\x03S")
    for _ in range(20):
        bot.step()
    data = client.cycle()
    values, at = {}, 4
    for name, form in ASKED.items():
        values[name] = struct.unpack_from(">" + form, data, at)
        at += struct.calcsize(">" + form)
    assert at == len(data) == struct.unpack_from(">H", data)[0]
    assert values["timestamp"] == (20 * ARMS[arm].period,)
    np.testing.assert_array_equal(values["actual_q"], bot.joints.q)
    np.testing.assert_array_equal(values["actual_qd"], np.full(6, 0.5))
    np.testing.assert_allclose(values["actual_TCP_pose"], pose(links, bot.joints.q))
    ahead = bot.joints.q + bot.joints.qd * 1e-6
    speed = (pose(links, ahead)[:3] - pose(links, bot.joints.q)[:3]) / 1e-6
    np.testing.assert_allclose(values["actual_TCP_speed"][:3], speed, atol=1e-5)
    assert values["joint_mode"] == (253,) * 6 and values["safety_mode"] == (1,)
    assert values["robot_status_bits"] == (1,) and values["runtime_state"] == (1,)


def test_unknown_outputs_and_frequencies():
    bot = robot()
    client = Rtde(bot, {})
    assert client.feed(outputs("timestamp,nonsense")) == b"\x00\x14O\x00DOUBLE,NOT_FOUND"
    assert client.feed(b"\x00\x03S") == b"\x00\x04S\x00" and client.cycle() == b""
    assert client.feed(outputs("ft_raw_wrench")) == b"\x00\x0dO\x00NOT_FOUND"
    assert Rtde(robot("UR5e"), {}).feed(outputs("ft_raw_wrench")) == b"\x00\x0cO\x01VECTOR6D"
    for frequency in (0.0, 126.0, float("nan")):
        assert client.feed(outputs("timestamp", frequency))[3] == 0
    assert client.feed(outputs("timestamp", 50.0))[3] == 1  # every second cycle: 125 / 50, rounded down
    client.feed(b"\x00\x03S")
    sent = []
    for _ in range(6):
        bot.step()
        sent.append(bool(client.cycle()))
    assert sent == [False, True] * 3


def test_inputs_and_who_holds_them():
    bot, holders = robot(), {}
    first, second = Rtde(bot, holders), Rtde(bot, holders)
    names = b"input_int_register_0,input_double_register_0,standard_digital_output_mask,external_force_torque"
    answer = first.feed(struct.pack(">H", 3 + len(names)) + b"I" + names)
    assert answer == b"\x00\x1fI\x01INT32,DOUBLE,UINT8,VECTOR6D"
    again = b"\x00\x17Iinput_int_register_0"
    assert first.feed(again) == b"\x00\x09I\x02INT32"
    assert second.feed(again) == b"\x00\x0aI\x00IN_USE"
    assert second.feed(b"\x00\x0bInonsense") == b"\x00\x0dI\x00NOT_FOUND"
    values = b"\xff\xff\xff\xfe" + struct.pack(">d", 0.5) + b"\x03" + struct.pack(">6d", 1, 2, 3, 4, 5, 6)
    assert first.feed(b"\x00\x41U\x01" + values) == b""
    assert bot.inputs["input_int_register_0"] == -2 and bot.inputs["input_double_register_0"] == 0.5
    assert bot.inputs["external_force_torque"] == (1, 2, 3, 4, 5, 6)
    told = first.feed(b"\x00\x05U\x01\x00")  # too short
    size, kind, length = struct.unpack_from(">HcB", told)
    assert (size, kind) == (len(told), b"M") and told[4 + length :] == b"\x04RTDE\x02"
    assert b"M" in first.feed(b"\x00\x04U\x09") and bot.inputs["input_int_register_0"] == -2
    first.close()
    assert second.feed(again) == b"\x00\x09I\x01INT32"
    assert Rtde(bot, {}).feed(outputs("input_int_register_0"))[3:] == b"\x01INT32"


def test_packages_in_pieces():
    client = Rtde(robot(), {})
    stream = b"\x00\x05V\x00\x02\x00\x03v\x00\x03S"
    assert b"".join(client.feed(stream[n : n + 1]) for n in range(len(stream))) == Rtde(robot(), {}).feed(stream)


@pytest.mark.parametrize(
    "rude",
    [b"\x00\x02V", b"\x00\x00\x00", b"\x00\x03V", b"\x00\x03x", b"\x00\x03U", b"\x00\x04O\x00"]
    + [b"GET / HTTP/1.1\r\n" * 2000],
)  # fmt: skip
def test_rude_packages(rude):
    with pytest.raises(ProtocolError):
        Rtde(robot(), {}).feed(rude)
    with pytest.raises(ProtocolError):  # an answer that no package could hold
        Rtde(robot(), {}).feed(outputs("a," * 32000))


# Where UR's table of the real-time interface has them, in bytes.
OFFSETS = {"time": 4, "q_target": 12, "q_actual": 252, "qd_actual": 300, "tool": 444, "robot_mode": 756}
OFFSETS |= {"safety_mode": 812, "speed_scaling": 940, "program_state": 1052}


@pytest.mark.parametrize("size", [1060, 1108, 1116, 1140, 1220])
def test_the_stream_packet(size):
    bot = robot()
    bot.joints.speedj(np.full(6, 0.5), 100.0)
    for _ in range(3):
        bot.step()
    data = Realtime(bot, size).cycle()
    assert len(data) == size and struct.unpack_from(">i", data) == (size,)
    at = {name: struct.unpack_from(">6d", data.ljust(1300, b"\0"), offset) for name, offset in OFFSETS.items()}
    assert at["time"][0] == 0.024 and at["q_target"] == at["q_actual"] == tuple(bot.joints.q)
    assert at["qd_actual"] == (0.5,) * 6
    np.testing.assert_allclose(at["tool"], pose(bot.arm.links, bot.joints.q))
    assert at["robot_mode"] == (7, 253, 253, 253, 253, 253) and at["safety_mode"][0] == 1
    assert at["speed_scaling"][0] == 1 and at["program_state"][0] == 1


def test_scripts_arrive_in_pieces():
    text = "\n".join(
        [
            "def rtde_control():",
            "    global reg_offset_int = # int register offset",
            "24",
            "  if x:",
            "  end",
            "end",
            "",
        ]
    )
    bot = robot()
    port = Realtime(bot, 1060)
    for letter in text[:-1]:
        port.feed(letter.encode())
        assert bot.program is None
    port.feed(b"\n")
    bot.step()
    assert bot.program is not None and bot.integers[24] == 1 and bot.integers[0] == 0
    port.feed(b"sec other():\n  set_tool_voltage(0)\nend\n")
    assert bot.program is not None
    port.feed(b"def other():\n  force_mode(1)\nend\n")
    assert bot.program is None
    with pytest.raises(ProtocolError):
        port.feed(b"def f():\n" + b" x\n" * (1 << 19))


def test_packet_sizes_by_firmware():
    sizes = {(3, 2): 1060, (3, 5): 1108, (3, 15, 8): 1116, (5, 3): 1108, (5, 8): 1116, (5, 9): 1140, (5, 12): 1220}
    assert {version: packet_size(version) for version in sizes} == sizes


def test_dashboard_lines():
    bot = robot()
    client = Dashboard(bot)
    assert client.greeting() == b"Connected: Universal Robots Dashboard Server\n"
    dialogue = {
        "PolyscopeVersion": "URSoftware 3.15.8.106339 (Jun 01 2022)",
        "running": "Program running: false",
        "robotmode": "Robotmode: RUNNING",
        "safetymode": "Safetymode: NORMAL",
        "stop": "Stopped",
        "play": "Failed to execute: play",
        "unlock protective stop": "Protective stop releasing",
        "close safety popup": "closing safety popup",
        "popup hello": "showing popup",
        "get robot model": "UR5",
        "is in remote control": "true",
        "is simulated": "true",
        "sing": "could not understand: 'sing'",
        "quit": "Disconnected",
    }
    for line, answer in dialogue.items():
        assert client.feed(line.encode() + b"\r\n") == answer.encode() + b"\n"
    assert client.over and client.feed(b"running\n") == b""
    assert Dashboard(bot).feed(b"get serial number\n").strip().isdigit()
    with pytest.raises(ProtocolError):
        Dashboard(bot).feed(b"x" * 5000)


def test_faults_are_read_with_care():
    time, fault = scheduled("latency@2.5:0.02,0.01")
    assert time == 2.5 and (fault.name, fault.numbers) == ("latency", [0.02, 0.01])
    for text in ("freeze", "freeze@x:1", "freeze@1", "nonsense@1", "latency@1:1", "freeze@1:-1", "pstop@nan", "@"):
        with pytest.raises(InputError, match="--fault"):
            scheduled(text)
    for line in ("packet 1061", "threads maybe", "estop now", "", "drop 1", "shift inf"):
        with pytest.raises(InputError):
            Fault(line)


HEADERS = st.builds(
    lambda kind, payload: struct.pack(">HB", 3 + len(payload), kind) + payload,
    st.sampled_from(b"VvOISPUMx"),
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from([b"input_int_register_0", b"\x01\x00\x00\x00\x09", struct.pack(">d", 125) + b"timestamp"]),
    ),
)  # fmt: skip
LINES = st.one_of(
    st.text(max_size=80),
    st.builds(
        "{}([{}], {})".format,
        st.sampled_from(["speedj", "movej", "servoj", "def f", "sec f"]),
        st.lists(st.floats(), min_size=6, max_size=6).map(lambda xs: ",".join(map(repr, xs))),
        st.lists(st.floats(), max_size=4).map(lambda xs: ",".join(map(repr, xs))),
    ),
    st.sampled_from(["end", "stopj(1)", "unlock protective stop", "def rtde_control():", "state", "stop"]),
).map(lambda line: line.encode("utf-8", "replace") + b"\n")


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.one_of(st.binary(max_size=200), HEADERS, LINES)), max_size=12),
    st.lists(st.floats(), min_size=18, max_size=18),
    st.lists(st.integers(0, 256), max_size=6),
)
def test_no_bytes_upset_the_robot(messages, doubles, commands):
    """Whatever comes, a client is cut off or answered, and joints and stamps stay in order."""
    bot, holders = robot(), {}
    kinds = (lambda: Rtde(bot, holders), lambda: Dashboard(bot), lambda: Realtime(bot, 1220))
    clients = [kind() for kind in kinds]
    bot.take({f"input_double_register_{n}": x for n, x in enumerate(doubles)})
    for n, message in messages:
        try:
            clients[n].feed(message)
        except ProtocolError:
            clients[n].close()
            clients[n] = kinds[n]()
        bot.step()
        for client in clients:
            client.cycle()
    clients[2] = kinds[2]()
    clients[2].feed(b"def rtde_control():\nend\n")
    for command in commands:
        bot.take({"input_int_register_0": command})
        for _ in range(3):
            bot.step()
    assert np.isfinite(bot.joints.q).all() and np.isfinite(bot.joints.qd).all()
    assert bot.cycle == len(messages) + 3 * len(commands)
