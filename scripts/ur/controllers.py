"""Which controller a policy is put on: one that was named, or a simulated one of its own."""

import contextlib
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

from hesscale_rl.errors import InputError

RTDE, DASHBOARD = 30004, 29999
ATTEMPTS = 5  # at an address that nobody has


class Controller(NamedTuple):
    """A controller's address, and what is known of it before anything is asked of its robot."""

    host: str
    simulated: bool
    what: str  # in words


def listens(host: str, port: int) -> bool:
    """Return whether somebody listens there."""
    with contextlib.suppress(OSError, UnicodeError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False


def dashboard(host: str, *questions: str) -> list[str]:
    """Return the controller's answers; none if it does not talk."""
    with contextlib.suppress(OSError), socket.create_connection((host, DASHBOARD), timeout=2.0) as desk:
        lines = desk.makefile("rw", encoding="latin-1", newline="\n")
        lines.readline()
        answers = []
        for question in questions:
            lines.write(f"{question}\n")
            lines.flush()
            answers.append(lines.readline().strip())
        return answers
    return []


def is_simulated(host: str) -> bool:
    """Return whether the controller says itself that it is ours: a tunnel to a real one would not."""
    return dashboard(host, "is simulated") == ["true"]


@contextlib.contextmanager
def controller(robot_ip: str | None, arm: str) -> Iterator[Controller]:
    """Give the controller at an address, or without one a simulated one of our own, which is ended again.

    arm: the name of the simulated one's. Nobody else's controller is taken that was not named, simulated or not.
    InputError if there is none.
    """
    if robot_ip is None:
        with _own(arm) as host:
            yield Controller(host, True, "a simulated controller, started for this run alone")
        return
    if not listens(robot_ip, RTDE):
        name = robot_ip if len(robot_ip) < 60 else f"{robot_ip[:50]}... ({len(robot_ip)} letters)"
        raise InputError(f"--robot-ip {name}: nothing listens at port {RTDE}; is it on, is this its address?")
    simulated = is_simulated(robot_ip)
    yield Controller(robot_ip, simulated, "a simulated controller, not ours" if simulated else "REAL ROBOT")


@contextlib.contextmanager
def _own(arm: str) -> Iterator[str]:
    """Start a simulated controller at a free address of this machine, and give the address."""
    chance = random.SystemRandom()
    serial, said = str(chance.randrange(10**9, 10**10)), ""  # the number tells ours from any other
    for _ in range(ATTEMPTS):
        host = f"127.{chance.randrange(1, 255)}.{chance.randrange(1, 255)}.{chance.randrange(1, 255)}"
        command = [
            sys.executable,
            "-m",
            "hesscale_rl.scripts.ur.simulator",
            "--host",
            host,
            "--arm",
            arm,
            "--serial",
            serial,
        ]
        pipe = subprocess.PIPE  # of its input, which also closes if this program is killed
        with subprocess.Popen(
            [*command, "--end-with-stdin"], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        ) as own:  # fmt: skip
            try:
                assert own.stdout is not None
                said = own.stdout.readline().strip()
                if "Ctrl-C" in said and dashboard(host, "get serial number") == [serial]:
                    # What else it says is for nobody, but it must not wait for us to read it.
                    threading.Thread(target=own.stdout.read, daemon=True).start()
                    yield host
                    return
            finally:
                own.terminate()
    raise InputError(f"the simulated controller did not start ({said}); try hesscale-rl ur sim")
