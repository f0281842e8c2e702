"""A simulated robot in a process of its own, at an address of its own, for tests."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hesscale_rl.envs.ur.simulator.record import read_log

CONTROL_PORT = 30010
PATIENCE = 60.0  # s of the host until a robot that does not answer counts as dead
_numbers = itertools.count()


class Ursim:
    """The robot; `events` is what it has printed. `stepped`: in lock step, with its time in the file `clock`."""

    def __init__(self, folder: Path, *flags: str, stepped: bool = False):
        # One address for each process of pytest and each robot in it: 127.a.b.c.
        number = (os.getpid() * 16 + next(_numbers)) % (250 * 250 * 250)
        parts = [number // 62500 + 1, number // 250 % 250 + 1, number % 250 + 1]
        self.host = "127." + ".".join(map(str, parts))
        self.log_path, self._output = folder / f"{self.host}.log", folder / f"{self.host}.txt"
        self.clock = str(folder / f"{self.host}.clock") if stepped else None
        if self.clock:
            flags = (*flags, "--lock-step", self.clock)
        command = [
            sys.executable,
            "-m",
            "hesscale_rl.scripts.ur.simulator",
            "--host",
            self.host,
            "--control-port",
            str(CONTROL_PORT),
        ]
        with open(self._output, "w") as output:
            self.process = subprocess.Popen(
                [*command, "--log", str(self.log_path), *flags], stdout=output, stderr=subprocess.STDOUT
            )
        self._desk: socket.socket | None = None

    def ready(self) -> "Ursim":
        """Wait until it serves; nobody else would end one that does not."""
        deadline = time.monotonic() + PATIENCE
        while "Ctrl-C ends it" not in self.events:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end(signal.SIGKILL)
                raise AssertionError(f"the simulated robot did not begin: {self.events}")
            time.sleep(0.02)
        self._desk = socket.create_connection((self.host, CONTROL_PORT), PATIENCE)
        self._answers = self._desk.makefile("r")
        return self

    @property
    def events(self) -> str:
        return self._output.read_text()

    def tell(self, line: str) -> str:
        """Give a command to the control port and return the answer."""
        assert self._desk is not None
        self._desk.sendall(line.encode() + b"\n")
        return self._answers.readline().rstrip("\n")

    def state(self) -> dict:
        return json.loads(self.tell("state"))

    def until(self, condition: Callable[[dict], bool], seconds: float = 5.0) -> dict:
        """Return the first state that fulfils a condition, within so many seconds of robot time."""
        state = self.state()
        end = state["stamp"] + seconds
        while not condition(state):
            if state["stamp"] >= end:
                self.nothing_injected()
            assert state["stamp"] < end, f"not within {seconds} s: {state}\n{self.events}"
            time.sleep(0.004)
            state = self.state()
        return state

    def nothing_injected(self) -> None:
        """Take note that the test's fault has not come: where the watchdog has, the machine stood still."""
        if "program stopped: watchdog" in self.events:
            import pace  # of the tests; clients import this file, too

            pace.noticed.append(pace.WATCHDOG)

    def calm(self) -> "Ursim":
        """End all stops and programs."""
        self.tell("clear")
        with socket.create_connection((self.host, 29999), PATIENCE) as dashboard, dashboard.makefile("r") as answers:
            dashboard.sendall(b"stop\n")
            assert [answers.readline() for _ in range(2)][1] == "Stopped\n"
        self.until(lambda s: not any(s["qd"]) and s["clients"] == 0)
        return self

    def wait(self, seconds: float) -> dict:
        """Let robot time pass: in lock step as fast as it can."""
        end = self.state()["stamp"] + seconds
        if self.clock:
            self.tell(f"pass {seconds}")
        return self.until(lambda s: s["stamp"] >= end, seconds + 1)

    def log(self) -> np.ndarray:
        return read_log(self.log_path)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal and return its exit code."""
        if self._desk is not None:
            self._answers.close()
            self._desk.close()
            self._desk = None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)
