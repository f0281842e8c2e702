"""What a person at the robot must be able to rely on: consent before motion, and a full account of what happened."""

import contextlib
import json
import signal
import sys
import termios
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from hesscale_rl.envs.ur.rtde import UrRtdeDriver
from hesscale_rl.envs.ur.safety import Bounds, RobotFault
from hesscale_rl.envs.ur.shared import Held
from hesscale_rl.envs.ur_reacher import URReacher
from hesscale_rl.errors import InputError
from hesscale_rl.system.console import complain

UNLOCKS, WITHIN = 10, 600.0  # protective stops that may be released without a person, and in how many seconds


def ask(question: str, answer: str) -> bool:
    """Return whether the person at the terminal types exactly `answer`; nobody there is a no."""
    if not sys.stdin.isatty():
        complain(f"{question}\nnobody is at the terminal to type {answer!r}")
        return False
    with contextlib.suppress(OSError, ValueError, termios.error):
        termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before the question is no answer to it
    try:
        return input(f"{question}\ntype {answer} to go on: ").strip() == answer
    except EOFError:
        return False


class Operated(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """UR-Reacher over a robot, with an operator. The arm stands whenever somebody thinks, learns or decides.

    A protective stop, or a policy that was silent while the arm moved, ends the episode as a truncation, after the
    operator has agreed to go on; any other fault is raised. `rollout`: steps after which an agent learns; the episode
    that they would cut is ended with them, so that the arm stands at its start meanwhile. `slow`: episodes with at
    most `slow_speed` rad/s. `log`: a file, for a JSON object for every reset, step and fault; RobotFault, with its
    name, where it cannot be written.
    """

    def __init__(
        self,
        env: URReacher,
        driver: UrRtdeDriver,
        log: Path,
        slow: int = 0,
        slow_speed: float = 0.3,
        rollout: int = 0,
        auto_unlock: bool = False,
        max_minutes: float = np.inf,
    ):
        super().__init__(env)
        self.driver, self.rollout, self.auto_unlock = driver, rollout, auto_unlock
        self.slow, self.slow_speed = slow, slow_speed
        self.until = time.monotonic() + 60 * max_minutes
        self.episodes = self.steps = 0
        self._unlocked: deque[float] = deque()
        self._path = log
        with self._writing():
            self._log = open(log, "ab", buffering=0)  # noqa: SIM115 - until close
        self._last = np.zeros(8)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RobotFault(f"{self._path}: the log of the steps cannot be written: {error.strerror}") from None

    def _write(self, kind: str, **content: Any) -> None:
        event = {"kind": kind, "time": time.time(), **content}
        line = json.dumps(event, default=lambda value: value.tolist()) + "\n"  # arrays as lists
        rest = line.encode()
        with self._writing():
            while rest:  # a disk that is almost full takes a part, and says why at the next one
                rest = rest[self._log.write(rest) :]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Move the arm to its start."""
        end_at_once()  # an agent would end at its next update when it is told to; an arm must not move until then
        if time.monotonic() > self.until:
            raise KeyboardInterrupt("the time for this robot is over")
        self.driver.limit_speed(self.slow_speed if self.episodes < self.slow else self.driver.bounds.speed)
        while True:
            try:
                self._last, info = self.env.reset(seed=seed, options=options)
                break
            except Held as stop:
                self._release(stop)
            except RobotFault as fault:
                self._write("fault", text=str(fault))
                raise
        self.episodes += 1
        inner: Any = self.env.unwrapped
        self._write("reset", episode=self.episodes, target=inner._target, obs=self._last, seed=seed, **info)
        return self._last, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Move for one step."""
        self.steps += 1
        cut = self.rollout > 0 and self.steps % self.rollout == 0
        try:
            self._last, reward, terminated, truncated, info = self.env.step(action)
        except Held as stop:
            self._release(stop)
            return self._last, 0.0, False, True, {"fault": str(stop), "override": "", "executed": np.zeros(2)}
        except RobotFault as fault:
            self._write("fault", text=str(fault))
            raise
        self._write("step", action=action, obs=self._last, reward=float(reward), **info)
        return self._last, float(reward), terminated, truncated or cut, info

    def _release(self, stop: Held) -> None:
        """Release what holds the arm if that is agreed to; else raise it."""
        self._write("fault", text=str(stop))
        now = time.monotonic()
        while self._unlocked and now - self._unlocked[0] > WITHIN:
            self._unlocked.popleft()
        alone = self.auto_unlock and len(self._unlocked) < UNLOCKS
        complain(f"\n{stop}")
        if not alone and not ask("The arm will move again. Look why it stopped, and step back.", "unlock"):
            raise stop
        self._unlocked.append(now)
        self.driver.unlock()
        self._write("unlocked", by="program" if alone else "operator")

    def close(self) -> None:
        """Stop the arm and let it go."""
        try:
            super().close()
        finally:
            self._log.close()


def end_at_once() -> None:
    """Let Ctrl-C, SIGTERM and the end of the terminal, unless nohup has it ignored, interrupt the program."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def confirm(host: str, about: str, bounds: Bounds) -> None:
    """Ask whether this robot may move; InputError if not."""
    low, high = bounds.tcp_low.tolist(), bounds.tcp_high.tolist()
    question = (
        f"\nThis is a real robot: {about} at {host}\n"
        f"joints up to {bounds.speed:g} rad/s; tool between {low} and {high} m of its base\n"
        "Safety planes, joint limits and force limits on the pendant are at least as tight as these; nobody is in\n"
        "its reach; a hand is on the emergency stop. A program that runs on it is ended."
    )
    if not ask(question, host):
        raise InputError(f"--robot-ip {host}: not confirmed, and nothing has moved")
