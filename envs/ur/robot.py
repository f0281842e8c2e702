"""An arm with the interface that lerobot gives to robots: features, connect, get_observation, send_action."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from hesscale_rl.errors import InputError

from .arms import DEFAULT, JOINT_NAMES, START, find_arm
from .drivers import Driver, InProcess, KinematicDriver, State
from .presets import PRESETS, Preset

CYCLES = 2  # from a command until the robot has been sent what the guard made of it


@dataclass
class RobotConfig:
    """Which arm, and how it may move.

    host: of a controller, None for a model of the arm in this process. confirmed: whether a person has seen that
    the arm at `host` may move, stands beside it and has a hand on the emergency stop. preset: of the bounds that no
    motion leaves (presets.py). fps: actions a second; on a model, time goes on by one step with every action.
    payload: kg, as set on the pendant.
    """

    arm: str = DEFAULT.name
    host: str | None = None
    confirmed: bool = False
    preset: str = "v2"
    fps: int = 25
    payload: float = 0.0
    id: str | None = None


class Robot:
    """A UR arm, real, simulated or modelled; the names and the meaning of its methods are lerobot's.

    An observation has the angle [rad] and the speed [rad/s] of each joint, an action the speed of each: flat
    dictionaries of floats, `shoulder_pan.pos` and so on. Between `send_action` and the arm stands the guard of
    safety.py, in every control cycle: what would leave the bounds is slowed or stopped. RobotFault where the arm
    cannot go on; it has been stopped then. ConnectionError while it is not connected.

    >>> with Robot(RobotConfig(arm="UR5e")) as robot:
    ...     sent = robot.send_action({name: 0.0 for name in robot.action_features} | {"elbow.vel": 0.2})
    >>> round(sent["elbow.vel"], 3)
    0.2
    """

    config_class = RobotConfig
    name = "ur"
    is_calibrated = True  # a UR knows its own calibration, which `connect` compares with ours

    def __init__(self, config: RobotConfig | None = None):
        self.config = config or RobotConfig()
        if self.config.preset not in PRESETS:
            raise InputError(f"preset {self.config.preset!r}: must be one of {', '.join(PRESETS)}")
        most = round(1 / (CYCLES * self.task.arm.period))
        if not 1 <= self.config.fps <= most:
            raise InputError(f"fps {self.config.fps}: must be from 1 to {most}, {CYCLES} control cycles an action")
        self.id = self.config.id
        self._driver: Driver | None = None

    @property
    def task(self) -> Preset:
        """The preset on this arm: start, bounds, speeds."""
        return PRESETS[self.config.preset].on(find_arm(self.config.arm))

    @property
    def observation_features(self) -> dict[str, type]:
        """The names in an observation, with their type."""
        return {f"{joint}.{what}": float for what in ("pos", "vel") for joint in JOINT_NAMES}

    @property
    def action_features(self) -> dict[str, type]:
        """The names in an action, with their type."""
        return {f"{joint}.vel": float for joint in JOINT_NAMES}

    @property
    def is_connected(self) -> bool:
        """Whether there is an arm."""
        return self._driver is not None

    @property
    def driver(self) -> Driver:
        """The arm below: see drivers.py."""
        if self._driver is None:
            raise ConnectionError(f"{self}: not connected; call connect() first")
        return self._driver

    def connect(self, calibrate: bool = True) -> None:
        """Find and check the arm; nothing moves. `calibrate` says nothing: there is nothing to calibrate."""
        if self._driver is not None:
            raise ConnectionError(f"{self}: connected already")
        if self.config.host is None:
            self._driver = KinematicDriver(self.task.bounds())
        else:
            if not self.config.confirmed:
                raise InputError(
                    f"host {self.config.host}: an arm may move there; confirmed=True says that somebody stands by"
                )
            from . import rtde
            from .shared import Settings

            task = self.task
            settings = Settings(self.config.host, task.bounds(), task.timeout, task.arm, payload=self.config.payload)
            self._driver = rtde.UrRtdeDriver(settings)
        self.configure()

    def calibrate(self) -> None:
        """Do nothing."""

    def configure(self) -> None:
        """Do nothing: what must be set, on the pendant, was checked by `connect`."""

    def go_to_start(self) -> dict[str, float]:
        """Go to where the task's episodes begin, and return what is observed when standing there."""
        return _observation(self.driver.movej(START))

    def get_observation(self) -> dict[str, float]:
        """Return the newest angles [rad] and speeds [rad/s]."""
        return _observation(self.driver.read())

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        """Move with these speeds [rad/s] until told otherwise; return what was really sent to the arm.

        ValueError for names that are not those of `action_features`. A speed that is not finite stops the arm
        (RobotFault). A real arm brakes by itself where no action follows within the preset's time limit.
        """
        driver = self.driver
        if wrong := action.keys() ^ self.action_features.keys():
            what = "no such speed" if min(wrong) in action else "missing"
            raise ValueError(f"action {min(wrong)}: {what}; an action has {', '.join(self.action_features)}")
        period, now = driver.bounds.period, driver.read()
        driver.speedj(np.array([float(action[name]) for name in self.action_features]))
        cycles = round(1 / self.config.fps / period) if isinstance(driver, InProcess) else CYCLES
        state = driver.wait(now.stamp + cycles * period)
        return dict(zip(self.action_features, state.executed.tolist(), strict=True))

    def disconnect(self) -> None:
        """Stop the arm and let it go."""
        driver = self.driver
        self._driver = None
        driver.close()

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.is_connected:
            self.disconnect()

    def __str__(self) -> str:
        return " ".join(filter(None, [self.id, self.config.arm, self.config.host and f"at {self.config.host}"]))


def _observation(state: State) -> dict[str, float]:
    values = [*state.q.tolist(), *state.qd.tolist()]
    return dict(zip([f"{j}.{what}" for what in ("pos", "vel") for j in JOINT_NAMES], values, strict=True))
