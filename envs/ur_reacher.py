"""UR-Reacher: move the hand of a UR arm in a plane to a point, with the speeds of two joints, 25 times a second.

Mahmood et al. 2018 (SenseAct's UR-Reacher-2) and Elsayed et al. 2024, figure 7. `ur/presets.py` has the settings,
`ur/drivers.py` the arms: the environment is the same over a model, over MuJoCo and over a robot.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np

from hesscale_rl.errors import InputError

from .ur.arms import DEFAULT, JOINTS, START, Arm, find_arm
from .ur.drivers import NO_DELAY, USUAL, Driver, InProcess, KinematicDriver, State
from .ur.kinematics import tcp
from .ur.presets import ACTUATED, HALF_TURN, PRESETS, Preset
from .ur.safety import OVERRIDES, RobotFault

PLANE = (1, 2)  # y and z of SenseAct's frame: the task does not look at x
_JOINTS, _PLANE = [*ACTUATED], [*PLANE]


class URReacher(gym.Env):
    """Actions [2]: speeds of shoulder lift and elbow, 1 being the preset's greatest.

    Observations [8]: both angles [rad], both speeds and the last action as shares of the greatest speed, and, before
    that action, the hand's y and z less the target's [m]. Reward: 5 (exp(-d^2/0.01) - d) for a distance of d metres,
    at most 5. Episodes of 100 steps of 0.04 s, each ended by the time limit alone.

    preset: stock or v2. driver: kinematic, mujoco, or a Driver of your own. delays: whether the arm senses and
    follows a few control cycles late, drawn for each episode. guarded: whether commands are kept from leaving the
    preset's bounds; an override is told in `info`. legacy_obs: SenseAct's last action, which is random after a reset
    and not clipped, for comparison with its results. arm: a name of ARMS (ur/arms.py); positions and bounds are the
    preset's, moved to where that arm reaches.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}

    def __init__(
        self,
        preset: str = "v2",
        driver: str | Driver = "kinematic",
        delays: bool = True,
        guarded: bool = True,
        legacy_obs: bool = False,
        render_mode: str | None = None,
        arm: str = DEFAULT.name,
    ):
        if preset not in PRESETS:
            raise InputError(f"preset {preset!r}: must be one of {', '.join(PRESETS)}")
        self.arm: Arm = find_arm(arm)
        self.preset, self.task = preset, PRESETS[preset].on(self.arm)
        self.legacy_obs, self.render_mode = legacy_obs, render_mode
        self.driver = _driver(driver, self.task, delays, guarded) if isinstance(driver, str) else driver
        bounds = self.driver.bounds
        if not np.array_equal(bounds.links, self.arm.links):
            raise InputError(f"arm {arm!r}: the driver's is another one")
        turn = 2 * math.pi / self.task.speed_max
        far = math.inf if legacy_obs else 1.0
        high = np.array([2 * math.pi] * 2 + [turn] * 2 + [2.0] * 2 + [far] * 2)
        self.observation_space = gym.spaces.Box(-high, high, dtype=np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)
        self._low, self._high = bounds.joint_low[_JOINTS], bounds.joint_high[_JOINTS]
        self._target, self._last = np.zeros(2), np.zeros(2)
        self._stamp = 0.0
        self._scene: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Choose a target, go to the start, and stand there."""
        super().reset(seed=seed)
        self._target = self._draw_target()
        self._last = np.zeros(2)
        if self.legacy_obs:
            self._last = self.np_random.uniform(-1.0, 1.0, 2)
        state = self.driver.movej(START)
        if isinstance(self.driver, InProcess):
            self.driver.draw(self.np_random)
            state = self.driver.read()
        self._stamp = state.stamp
        return self._observe(state)[0], self._info(state)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Move for 0.04 s."""
        action = np.array(action, dtype=np.float64)
        if action.shape != (2,):
            self.driver.speedj(np.zeros(JOINTS))
            raise RobotFault(f"an action must be two numbers, not an array of shape {action.shape}")
        lift, elbow = action.tolist()
        if not (math.isfinite(lift) and math.isfinite(elbow)):  # before clipping: an infinite one would be full speed
            self.driver.speedj(np.zeros(JOINTS))
            raise RobotFault(f"an action must be finite, not {action.tolist()}")
        clipped = np.minimum(np.maximum(action, -1.0), 1.0)
        command = np.zeros(JOINTS)
        command[_JOINTS] = clipped * self.task.speed_max
        self._last = action if self.legacy_obs else clipped
        # After a reset, an update or a slow policy, a step begins with its command and has its whole length.
        late = 0.0 if isinstance(self.driver, InProcess) else self.driver.read().stamp - self._stamp
        late = late if late > self.task.dt / 2 else 0.0
        self._stamp += late
        self.driver.speedj(command)
        self._stamp += self.task.dt
        state = self.driver.wait(self._stamp)
        obs, distance = self._observe(state)
        info = self._info(state)
        over = state.stamp - self._stamp  # a step may also end late; the next one then begins there
        if over > 1.5 * self.driver.bounds.period:
            self._stamp = state.stamp
            late += over
        if late:
            info["late"] = late
        reward = (math.exp(-distance * distance / 0.01) - distance) * (self.task.dt / 0.008)
        return obs, reward, False, False, info

    def _observe(self, state: State) -> tuple[np.ndarray, float]:
        at, speed = tcp(self.arm.links, state.q), self.task.speed_max
        y, z = HALF_TURN[1] * at[1] - self._target[0], HALF_TURN[2] * at[2] - self._target[1]
        (a, b), (u, v) = ACTUATED, self._last
        q, qd = state.q, state.qd
        return np.array([q[a], q[b], qd[a] / speed, qd[b] / speed, y, z, u, v]), math.hypot(y, z)

    def _info(self, state: State) -> dict[str, Any]:
        """Return what was really executed, as an action, and whether the guard had a hand in it."""
        executed = state.executed[_JOINTS] / self.task.speed_max
        return {"executed": executed, "override": OVERRIDES[state.override], "stamp": state.stamp}

    def _draw_target(self) -> np.ndarray:
        """Joint angles are drawn until the hand is in the target box: not uniform in space, as in SenseAct."""
        low, high = np.array(self.task.target_low) + 0.001, np.array(self.task.target_high) - 0.001
        joints = np.radians([self.task.joint_low, self.task.joint_high])
        q = START.copy()
        while True:
            q[_JOINTS] = self.np_random.uniform(*joints)
            at = tcp(self.arm.links, q) * HALF_TURN
            if (low < at).all() and (at < high).all():
                return at[_PLANE]

    def render(self) -> np.ndarray | None:
        """Return a picture [480, 640, 3] of the arm and its target."""
        if self.render_mode is None:
            return None
        if self._scene is None:
            from .ur.dynamics import Scene

            self._scene = Scene(self.arm)
        q = self.driver.read().q
        x = tcp(self.arm.links, q)[0]
        return self._scene.draw(q, np.array([x, *(self._target * HALF_TURN[_PLANE])]))

    def close(self) -> None:
        """Stop the arm and let it go."""
        if self._scene is not None:
            self._scene.close()
            self._scene = None
        self.driver.close()

    def save_state(self) -> dict[str, Any] | None:
        """Return all that decides the next steps, or None over a robot, which cannot be saved."""
        if not isinstance(self.driver, InProcess):
            return None
        own = {"target": self._target, "last": self._last, "stamp": self._stamp}
        return own | {"driver": self.driver.save_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `save_state` returned."""
        assert isinstance(self.driver, InProcess)
        self._target, self._last, self._stamp = state["target"], state["last"], state["stamp"]
        self.driver.load_state(state["driver"])


def _driver(name: str, task: Preset, delays: bool, guarded: bool) -> Driver:
    bounds, late = task.bounds(guarded=guarded), USUAL if delays else NO_DELAY
    if name == "kinematic":
        return KinematicDriver(bounds, late)
    if name == "mujoco":
        from .ur.dynamics import MujocoDriver

        return MujocoDriver(bounds, late, arm=task.arm)
    raise InputError(f"driver {name!r}: must be kinematic or mujoco, or a Driver")
