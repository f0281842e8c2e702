"""What a UR controller offers over RTDE: the names, the types, and where the values come from.

After UR's "Real-Time Data Exchange (RTDE) guide", tables of controller outputs and inputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hesscale_rl.envs.ur.arms import JOINTS
from hesscale_rl.envs.ur.simulator.robot import SimulatedRobot

FORMATS = {  # by type name, how struct packs it (big-endian)
    "DOUBLE": "d",
    "INT32": "i",
    "UINT32": "I",
    "UINT64": "Q",
    "UINT8": "B",
    "BOOL": "?",
    "VECTOR3D": "3d",
    "VECTOR6D": "6d",
    "VECTOR6INT32": "6i",
}
TEMPERATURE, VOLTAGE, CURRENT = 30.0, 48.0, 0.5  # degrees C, V, A: of a robot that stands in a cool room
JOINT_RUNNING = 253
_ZEROS = (0.0,) * JOINTS  # also of the six numbers of a pose

Get = Callable[[SimulatedRobot], Any]


def _register(values: str, n: int) -> Get:
    return lambda r: getattr(r, values)[n]


def _input(name: str) -> Get:
    zero = _ZEROS if INPUTS[name] == "VECTOR6D" else 0
    return lambda r: r.inputs.get(name, zero)


def _bits(robot: SimulatedRobot, first: int) -> int:
    names = (f"input_bit_register_{first + n}" for n in range(32))
    return sum(bool(robot.inputs.get(name)) << n for n, name in enumerate(names))


INPUTS = {  # name: type
    "speed_slider_mask": "UINT32",
    "speed_slider_fraction": "DOUBLE",
    **{
        f"{group}_digital_output{mask}": "UINT8"
        for group in ("standard", "configurable", "tool")
        for mask in ("", "_mask")
    },
    "standard_analog_output_mask": "UINT8",
    "standard_analog_output_type": "UINT8",
    "standard_analog_output_0": "DOUBLE",
    "standard_analog_output_1": "DOUBLE",
    **{f"input_bit_register_{n}": "BOOL" for n in range(128)},
    **{f"input_int_register_{n}": "INT32" for n in range(48)},
    **{f"input_double_register_{n}": "DOUBLE" for n in range(48)},
    "external_force_torque": "VECTOR6D",
}
SINCE_5 = {"ft_raw_wrench"}  # not offered by the older series
REGISTERS = [name for name in INPUTS if "_register_" in name]  # these can be read back

OUTPUTS: dict[str, tuple[str, Get]] = {  # name: type, value
    "timestamp": ("DOUBLE", lambda r: r.stamp),
    "target_q": ("VECTOR6D", lambda r: r.joints.q_target),
    "target_qd": ("VECTOR6D", lambda r: r.joints.qd_target),
    "target_qdd": ("VECTOR6D", lambda r: r.joints.qdd_target),
    "target_current": ("VECTOR6D", lambda r: _ZEROS),
    "target_moment": ("VECTOR6D", lambda r: r.joints.torque),
    "actual_q": ("VECTOR6D", lambda r: r.joints.q),
    "actual_qd": ("VECTOR6D", lambda r: r.joints.qd),
    "actual_current": ("VECTOR6D", lambda r: _ZEROS),
    "joint_control_output": ("VECTOR6D", lambda r: _ZEROS),
    "actual_TCP_pose": ("VECTOR6D", lambda r: r.pose()),
    "actual_TCP_speed": ("VECTOR6D", lambda r: r.speed()),
    "actual_TCP_force": ("VECTOR6D", lambda r: _ZEROS),
    "target_TCP_pose": ("VECTOR6D", lambda r: r.pose(target=True)),
    "target_TCP_speed": ("VECTOR6D", lambda r: r.speed(target=True)),
    "actual_digital_input_bits": ("UINT64", lambda r: 0),
    "joint_temperatures": ("VECTOR6D", lambda r: (TEMPERATURE,) * JOINTS),
    "actual_execution_time": ("DOUBLE", lambda r: 0.0),
    "robot_mode": ("INT32", lambda r: r.robot_mode),
    "joint_mode": ("VECTOR6INT32", lambda r: (JOINT_RUNNING,) * JOINTS),
    "safety_mode": ("INT32", lambda r: r.safety_mode),
    "actual_tool_accelerometer": ("VECTOR3D", lambda r: (0.0, 0.0, -9.81)),
    "speed_scaling": ("DOUBLE", lambda r: 1.0),  # of the trajectory limiter; the slider is target_speed_fraction
    "target_speed_fraction": ("DOUBLE", lambda r: r.slider),
    "actual_momentum": ("DOUBLE", lambda r: 0.0),
    "actual_main_voltage": ("DOUBLE", lambda r: VOLTAGE),
    "actual_robot_voltage": ("DOUBLE", lambda r: VOLTAGE),
    "actual_robot_current": ("DOUBLE", lambda r: CURRENT),
    "actual_joint_voltage": ("VECTOR6D", lambda r: (VOLTAGE,) * JOINTS),
    "actual_digital_output_bits": ("UINT64", lambda r: r.digital_outputs),
    "runtime_state": ("UINT32", lambda r: r.runtime_state),
    "elbow_position": ("VECTOR3D", lambda r: r.elbow()[:3]),
    "elbow_velocity": ("VECTOR3D", lambda r: r.elbow()[3:]),
    "robot_status_bits": ("UINT32", lambda r: r.status_bits),
    "safety_status_bits": ("UINT32", lambda r: r.safety_bits),
    "analog_io_types": ("UINT32", lambda r: 0),
    "standard_analog_input0": ("DOUBLE", lambda r: 0.0),
    "standard_analog_input1": ("DOUBLE", lambda r: 0.0),
    "standard_analog_output0": ("DOUBLE", lambda r: r.analog_outputs[0]),
    "standard_analog_output1": ("DOUBLE", lambda r: r.analog_outputs[1]),
    "ft_raw_wrench": ("VECTOR6D", lambda r: _ZEROS),
    "payload": ("DOUBLE", lambda r: r.payload),
    "payload_cog": ("VECTOR3D", lambda r: r.cog),
    "payload_inertia": ("VECTOR6D", lambda r: r.inertia),
    "tcp_offset": ("VECTOR6D", lambda r: r.tool),
    "safety_status": ("INT32", lambda r: r.safety_mode),
    "joint_position_deviation_ratio": ("DOUBLE", lambda r: 0.0),
    "collision_detection_ratio": ("DOUBLE", lambda r: 0.0),
    "tcp_force_scalar": ("DOUBLE", lambda r: 0.0),
    "time_scale_source": ("INT32", lambda r: 0),
    "script_control_line": ("UINT32", lambda r: 0),
    "io_current": ("DOUBLE", lambda r: 0.0),
    "tool_mode": ("UINT32", lambda r: JOINT_RUNNING),
    "tool_analog_input_types": ("UINT32", lambda r: 0),
    "tool_analog_input0": ("DOUBLE", lambda r: 0.0),
    "tool_analog_input1": ("DOUBLE", lambda r: 0.0),
    "tool_output_voltage": ("INT32", lambda r: 0),
    "tool_output_current": ("DOUBLE", lambda r: 0.0),
    "tool_temperature": ("DOUBLE", lambda r: TEMPERATURE),
    "tool_output_mode": ("UINT8", lambda r: 0),
    "tool_digital_output0_mode": ("UINT8", lambda r: 0),
    "tool_digital_output1_mode": ("UINT8", lambda r: 0),
    "euromap67_input_bits": ("UINT32", lambda r: 0),
    "euromap67_output_bits": ("UINT32", lambda r: 0),
    "euromap67_24V_voltage": ("DOUBLE", lambda r: 0.0),
    "euromap67_24V_current": ("DOUBLE", lambda r: 0.0),
    "input_bit_registers0_to_31": ("UINT32", lambda r: _bits(r, 0)),
    "input_bit_registers32_to_63": ("UINT32", lambda r: _bits(r, 32)),
    **{f"output_bit_register_{n}": ("BOOL", lambda r: False) for n in range(64, 128)},
    "output_bit_registers0_to_31": ("UINT32", lambda r: 0),
    "output_bit_registers32_to_63": ("UINT32", lambda r: 0),
    **{f"output_int_register_{n}": ("INT32", _register("integers", n)) for n in range(48)},
    **{f"output_double_register_{n}": ("DOUBLE", _register("doubles", n)) for n in range(48)},
    **{name: (INPUTS[name], _input(name)) for name in REGISTERS},
}


def flat(values: Sequence[Any]) -> list[Any]:
    """Return numbers and vectors of numbers as one list of numbers."""
    numbers: list[Any] = []
    for value in values:
        if isinstance(value, int | float):
            numbers.append(value)
        else:
            numbers.extend(value)
    return numbers
