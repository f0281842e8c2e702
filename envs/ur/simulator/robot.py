"""The simulated robot: an arm, the modes that let it move or not, one program at a time, and a clock."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from hesscale_rl.envs.ur.arms import DEFAULT, JOINTS, RANGE, Arm
from hesscale_rl.envs.ur.kinematics import ELBOW, TCP, frames, rotation_vector
from hesscale_rl.envs.ur.log import Record
from hesscale_rl.envs.ur.motion import Joints
from hesscale_rl.envs.ur.simulator.poses import POSE, jacobian, matrix

VERSIONS = {"cb3": (3, 15, 8, 106339), "e": (5, 12, 2, 1101534)}  # the second number of e decides packet sizes
POWER_OFF, IDLE, RUNNING = 3, 5, 7  # robot modes
NORMAL, REDUCED, PROTECTIVE_STOP, SAFEGUARD_STOP, SYSTEM_STOP, ROBOT_STOP = 1, 2, 3, 5, 6, 7  # safety modes
STOPPED, PLAYING, PAUSED = 1, 2, 4  # runtime states
# Bits of safety_status_bits by safety mode; 7 is any emergency stop, 10 says that safety is why the robot stands.
_SAFETY_BITS = {NORMAL: 1, REDUCED: 2, PROTECTIVE_STOP: 1 << 2, SAFEGUARD_STOP: 1 << 4}
_SAFETY_BITS |= {SYSTEM_STOP: 1 << 5 | 1 << 7, ROBOT_STOP: 1 << 6 | 1 << 7}

UNLOCK_AFTER = 5.0  # s of a protective stop before it may be unlocked
HARD = 20.0  # rad/s^2: of safety stops and of programs that end while the arm moves; UR publishes no figure
FOREARM = 2  # of the links
STILL, STEADY = 1e-3, 0.5  # rad/s, and s below that until the arm counts as standing


class Program(Protocol):
    """What runs on a robot; `step` is one cycle and returns whether there is another.

    `busy`: it carries something out, and does not look for what a client may say.
    """

    busy: bool

    def step(self) -> bool:
        """Let one control cycle pass."""

    def close(self) -> None:
        """Be stopped."""


class ScriptError(Exception):
    """A program does what the controller does not allow, and ends."""


class SimulatedRobot:
    """An arm and its controller, without the network. `step` is one control cycle, at the end of `stamp` seconds.

    model: what the dashboard calls it, if not by the arm's name.
    shift: the forearm is longer than the DH table says, by these metres, in all poses that are reported.
    say: told of programs and stops, one line each. thread_rule: a program that moves the arm from two threads ends.
    """

    def __init__(
        self,
        joints: Joints,
        arm: Arm = DEFAULT,
        model: str | None = None,
        serial: str = "2018350001",
        shift: float = 0.0,
        thread_rule: bool = True,
        say: Callable[[str], None] = lambda line: None,
        record: Record | None = None,
    ):
        self.joints, self.arm, self.version = joints, arm, VERSIONS[arm.series]
        self.model, self.serial = model or arm.name, serial
        self.shift, self.thread_rule, self._say, self._record = shift, thread_rule, say, record
        self.frequency = round(1 / joints.period)
        self.cycle = 0
        self.robot_mode, self.safety_mode, self.runtime_state = RUNNING, NORMAL, STOPPED
        self.program: Program | None = None
        self._stopped_at, self._still_since = 0.0, -STEADY
        self.slider, self.remote = 1.0, True  # remote: programs from outside may run
        self.payload, self.cog, self.inertia, self.tool = 0.0, np.zeros(3), np.zeros(6), np.zeros(POSE)
        self.digital_outputs, self.analog_outputs = 0, [0.004, 0.004]  # bits; A or V
        self.inputs: dict[str, Any] = {}  # by RTDE name, what clients have written
        self.written: dict[str, float] = {}  # and when, in stamps
        self.integers, self.doubles = [0] * 48, [0.0] * 48  # output registers
        self._watched: tuple[str, float, float] | None = None
        self._known: dict[str, Any] = {}

    # -- the clock

    @property
    def stamp(self) -> float:
        """Seconds of robot time: whole cycles, whatever the host's clock does."""
        return self.cycle / self.frequency

    def step(self) -> None:
        """Let one control cycle pass: the program, then the arm, then the safety system."""
        self.cycle += 1
        if self._watched is not None:
            variable, since, seconds = self._watched
            if self.stamp - max(self.written.get(variable, 0.0), since) > seconds + 1e-9:
                self.stop(f"watchdog: no {variable} for {seconds:g} s")
        if self.program is not None:
            try:
                if not self.program.step():
                    self.stop()
            except ScriptError as error:
                self.stop(str(error))
        self.joints.step()
        self._known.clear()
        if np.abs(self.joints.qd).max() > STILL:
            self._still_since = self.stamp
        target, speed = self.joints.q_target, self.joints.qd_target
        if self._too_fast(speed):
            self.halt(PROTECTIVE_STOP, "a joint is too fast")
        elif ((np.abs(target) > RANGE) & (target * speed > 0)).any():
            self.halt(PROTECTIVE_STOP, "a joint leaves its range")
        if self._record is not None:
            joints = self.joints
            running = self.program is not None
            reference = joints.q_target, joints.qd_target
            self._record.add(self.stamp, joints.q, joints.qd, *reference, self.safety_mode, running)

    # -- programs

    def run(self, program: Program, name: str = "") -> bool:
        """Start a program in place of the one that runs, and tell of it if it has a name; False if that cannot be."""
        if not self.may_run:
            why = "stopped" if self.remote else "in local control"
            self._say(f"{name or 'program'} not started: the robot is {why}")
            return False
        self._end()
        self.joints.stopj(HARD)  # unless the new program goes on with the motion in its first cycle
        self.program, self.runtime_state = program, PLAYING
        if name:
            self._say(f"{name} runs")
        return True

    @property
    def may_run(self) -> bool:
        """Whether a program from outside may start."""
        return self.remote and self.robot_mode == RUNNING and self.safety_mode in (NORMAL, REDUCED)

    def tell(self, line: str) -> None:
        """Say what is for the robot's log alone."""
        self._say(line)

    def stop(self, why: str = "") -> None:
        """End the program, and the motion with it."""
        if self.program is not None:
            self._end()
            self.runtime_state = STOPPED
            self.joints.stopj(HARD)
            if why:
                self._say(f"program stopped: {why}")

    def _end(self) -> None:
        if self.program is not None:
            self.program.close()
        self.program = self._watched = None  # a stopped program takes its watchdog with it

    def watch(self, variable: str, seconds: float) -> None:
        """Stop the program when this input has not been written for so long; 0 ends the watch."""
        self._watched = (variable, self.stamp, seconds) if seconds > 0 else None

    @property
    def watched(self) -> tuple[str, float, float] | None:
        """The watchdog that is set: input, since which stamp, after how many seconds it bites."""
        return self._watched

    @property
    def unheard(self) -> str:
        """The input that a watchdog looks for, if the program waits for it and it was not written in this cycle."""
        if self._watched is None or self.program is None or self.program.busy:
            return ""
        variable = self._watched[0]
        return variable if self.written.get(variable, -1.0) < self.stamp else ""

    # -- motion, for programs; speeds follow the slider

    def speedj(self, qd: Sequence[float], acceleration: float) -> None:
        """Go to these speeds [rad/s, rad/s^2]; too much of it is a protective stop."""
        goal = self._checked("speedj", qd, acceleration)
        if self._too_fast(goal):
            return self.halt(PROTECTIVE_STOP, f"speedj asks for {np.abs(goal).max():.3g} rad/s")
        self.joints.speedj(goal * self.slider, acceleration)

    def stopj(self, acceleration: float) -> None:
        """Come to a stand."""
        self._checked("stopj", [0.0], acceleration)
        self.joints.stopj(acceleration)

    def movej(self, q: Sequence[float], speed: float, acceleration: float, duration: float = 0.0) -> None:
        """Go to q [rad] in a straight line of joint space."""
        goal = self._checked("movej", [*q, duration], acceleration)[:JOINTS]
        if not speed > 0 or self._too_fast(speed):
            raise ScriptError(f"movej: a speed of {speed:g} rad/s")
        if np.abs(goal).max() > RANGE:
            return self.halt(PROTECTIVE_STOP, "movej asks for a joint out of its range")
        if duration > 0 and (np.abs(goal - self.joints.q_target) > self.arm.max_speed * duration).any():
            return self.halt(PROTECTIVE_STOP, "movej has too little time")
        self.joints.movej(goal, speed * self.slider, acceleration, duration / self.slider)

    def servoj(self, q: Sequence[float], lookahead: float) -> None:
        """Follow q [rad]; a jump that the joints cannot follow is a protective stop."""
        goal = self._checked("servoj", q, lookahead)
        # Three time constants in `lookahead`: the slope at which the reference sets out.
        if self._too_fast((goal - self.joints.q_target) / (max(lookahead, self.joints.period) / 3)):
            return self.halt(PROTECTIVE_STOP, "servoj asks for a jump")
        self.joints.servoj(goal, lookahead)

    def _too_fast(self, speed: np.ndarray | float) -> bool:
        """Whether a joint cannot do this, rad/s."""
        return bool((np.abs(speed) > self.arm.max_speed + 1e-9).any())

    @staticmethod
    def _checked(name: str, values: Sequence[float], positive: float) -> np.ndarray:
        if not (np.isfinite(values).all() and 0 < positive < math.inf):
            raise ScriptError(f"{name}: an argument is no usable number")
        return np.asarray(values, dtype=np.float64)

    @property
    def steady(self) -> bool:
        """Whether the arm has been standing for STEADY seconds."""
        return self.stamp - self._still_since >= STEADY

    # -- stops

    def halt(self, mode: int, why: str) -> None:
        """Go to a safety mode that stops the arm: PROTECTIVE_STOP, SAFEGUARD_STOP, SYSTEM_STOP or ROBOT_STOP."""
        if mode <= self.safety_mode:
            return
        self._end()
        self.runtime_state = PAUSED if mode in (PROTECTIVE_STOP, SAFEGUARD_STOP) else STOPPED
        if mode in (SYSTEM_STOP, ROBOT_STOP):
            self.robot_mode = POWER_OFF
        self.safety_mode, self._stopped_at = mode, self.stamp
        self.joints.stopj(HARD)
        self._say(f"{safety_name(mode)}: {why}")

    def unlock(self) -> bool:
        """End a protective stop, if it has lasted long enough; return False if it has not."""
        if self.safety_mode == PROTECTIVE_STOP:
            if self.stamp - self._stopped_at < UNLOCK_AFTER - 1e-9:
                return False
            self.safety_mode, self.runtime_state = NORMAL, STOPPED
            self._say("protective stop unlocked")
        return True

    def clear(self) -> None:
        """End every stop, as somebody at the robot would: button out, power on, brakes off."""
        self.safety_mode, self.robot_mode = NORMAL, RUNNING
        if self.program is None:
            self.runtime_state = STOPPED

    def power(self, mode: int) -> None:
        """Go to POWER_OFF, IDLE (power on) or, from IDLE, RUNNING (brakes released)."""
        if self.safety_mode in (SYSTEM_STOP, ROBOT_STOP) or (mode == RUNNING and self.robot_mode < IDLE):
            return
        if mode == POWER_OFF:
            self.stop("power off")
        if mode != IDLE or self.robot_mode == POWER_OFF:
            self.robot_mode = mode

    # -- what the robot tells of itself

    @property
    def status_bits(self) -> int:
        """robot_status_bits: 0 power on, 1 program running."""
        return (self.robot_mode >= 4) | (self.program is not None) << 1

    @property
    def safety_bits(self) -> int:
        """safety_status_bits."""
        return _SAFETY_BITS[self.safety_mode] | (self.safety_mode > REDUCED) << 10

    def pose(self, target: bool = False) -> np.ndarray:
        """Return the tool's pose [6] that the joints, or their targets, make."""
        return self._once("pose", target)

    def speed(self, target: bool = False) -> np.ndarray:
        """Return the tool's speed [6], m/s and rad/s."""
        return self._once("speed", target)

    def elbow(self) -> np.ndarray:
        """Return the elbow's position and speed [6]."""
        chain, qd = self._chain(False), self.joints.qd
        point = chain[ELBOW, :, 3]
        return np.concatenate([point, jacobian(chain, point)[:3, :2] @ qd[:2]])

    def forward(self, q: np.ndarray) -> np.ndarray:
        """Return the tool's pose [6] at q."""
        return self._pose_of(frames(self.arm.links, np.asarray(q, dtype=np.float64)))

    def _once(self, what: str, target: bool) -> np.ndarray:
        """Each is worked out at most once in a cycle, and only if a client wants it."""
        key = f"{what} {target}"
        if key not in self._known:
            chain = self._chain(target)
            if what == "pose":
                self._known[key] = self._pose_of(chain)
            else:
                qd = self.joints.qd_target if target else self.joints.qd
                self._known[key] = jacobian(chain, self.pose(target)[:3]) @ qd
        return self._known[key]

    def _chain(self, target: bool) -> np.ndarray:
        key = f"frames {target}"
        if key not in self._known:
            self._known[key] = frames(self.arm.links, self.joints.q_target if target else self.joints.q)
        return self._known[key]

    def _pose_of(self, chain: np.ndarray) -> np.ndarray:
        turn = chain[TCP, :, :3]
        # The forearm lies along the negative x axis of its frame.
        point = chain[TCP, :, 3] - self.shift * chain[FOREARM, :, 0] + turn @ self.tool[:3]
        return np.concatenate([point, rotation_vector(turn @ matrix(self.tool[3:]))])

    def lengthen(self, millimetres: float) -> None:
        """Let the forearm be longer than the DH table says."""
        self.shift = millimetres / 1000
        self._known.clear()

    # -- what clients write

    def set_digital(self, bit: int, on: bool) -> None:
        """Switch a digital output, given as a power of two."""
        self.digital_outputs = self.digital_outputs | bit if on else self.digital_outputs & ~bit

    def take(self, values: dict[str, Any]) -> None:
        """Take RTDE inputs by name; masks say which of the outputs are meant."""
        self.inputs.update(values)
        self.written.update(dict.fromkeys(values, self.stamp))
        for group, first in (("standard", 0), ("configurable", 8), ("tool", 16)):
            name = f"{group}_digital_output"
            mask = values.get(f"{name}_mask", 0)
            bits = (self.inputs.get(name, 0) & mask) << first
            self.digital_outputs = self.digital_outputs & ~(mask << first) | bits
        if values.get("speed_slider_mask", 0) & 1:
            fraction = self.inputs.get("speed_slider_fraction", 1.0)
            if math.isfinite(fraction):
                self.slider = min(max(fraction, 0.01), 1.0)
        for n in range(2):
            if values.get("standard_analog_output_mask", 0) >> n & 1:
                share = self.inputs.get(f"standard_analog_output_{n}", 0.0)
                voltage = self.inputs.get("standard_analog_output_type", 0) >> n & 1
                self.analog_outputs[n] = share * 10.0 if voltage else 0.004 + share * 0.016


def safety_name(mode: int) -> str:
    """Return the dashboard's word for a safety mode."""
    words = {
        NORMAL: "NORMAL",
        REDUCED: "REDUCED",
        PROTECTIVE_STOP: "PROTECTIVE_STOP",
        SAFEGUARD_STOP: "SAFEGUARD_STOP",
    }
    return (words | {SYSTEM_STOP: "SYSTEM_EMERGENCY_STOP", ROBOT_STOP: "ROBOT_EMERGENCY_STOP"})[mode]


def robot_name(mode: int) -> str:
    """Return the dashboard's word for a robot mode."""
    return {POWER_OFF: "POWER_OFF", IDLE: "IDLE", RUNNING: "RUNNING"}[mode]
