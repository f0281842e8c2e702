"""The simulated robot as a process: its ports, its flags and its log, whoever the client is."""

import os
import signal
import socket
import struct
import sys
import time

import numpy as np
import pytest
from ursim import Ursim

from hesscale_rl.scripts.ur import simulator as command

PORTS = (29999, 30003, 30004)


@pytest.fixture(scope="module")
def robots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ursim")
    faults = ("--fault", "pstop@0.5", "--fault", "estop@0.7", "--dh-offset", "2", "--physics")
    found = {"cb3": Ursim(folder), "faulty": Ursim(folder, "--arm", "UR5e", *faults)}
    yield {name: robot.ready() for name, robot in found.items()}
    for robot in found.values():
        robot.end(signal.SIGTERM)
        assert "Traceback" not in robot.events


@pytest.fixture
def cb3(robots):
    return robots["cb3"].calm()


def test_rude_clients(cb3):
    polite = socket.create_connection((cb3.host, 29999), 5)
    answers = polite.makefile("r")
    assert answers.readline().startswith("Connected")

    def answered():
        polite.sendall(b"running\n")
        return answers.readline() == "Program running: false\n"

    rubbish = [
        b"", b"\x00", b"\x00\x01O", b"\xff\xffOabc", b"\x00\x03U" * 9, os.urandom(3000), b"\n" * 3000,
        b"def rtde_control():\n" * 100, b"x" * (1 << 21),
    ]  # fmt: skip
    clients = [socket.create_connection((cb3.host, port), 5) for port in PORTS for _ in range(2 * len(rubbish))]
    for n, client in enumerate(clients):
        client.settimeout(0.5)
        try:
            client.sendall(rubbish[n % len(rubbish)])
            if n % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                client.close()
        except OSError:
            pass
    cb3.wait(0.2)
    assert answered() and cb3.state()["clients"] > 1
    for client in clients:
        client.close()
    cb3.until(lambda s: s["clients"] == 1)
    # What a flood of connections gets beyond the limit is a closed door.
    flood = [socket.create_connection((cb3.host, 30004), 5) for _ in range(130)]
    cb3.wait(0.1)
    assert answered() and cb3.state()["clients"] <= 100
    for client in flood:
        client.close()
    cb3.until(lambda s: s["clients"] == 1)
    assert answered()
    answers.close()
    polite.close()


def test_the_stream(cb3):
    """As SenseAct reads and writes it: fixed packets, a line of script in answer to each."""
    with socket.create_connection((cb3.host, 30003), 5) as client:
        stream = client.makefile("rb")
        for _ in range(60):
            packet = stream.read(1116)
            assert struct.unpack_from(">i", packet) == (1116,)
            client.sendall(b"speedj([0, -0.2, 0, 0, 0, 0], 1.4, 0.1)\n")
        assert struct.unpack_from(">6d", packet, 300)[1] == pytest.approx(-0.2)
        stream.close()
    cb3.until(lambda s: not s["program_running"] and not any(s["qd"]))
    cb3.tell("packet 1060")
    with socket.create_connection((cb3.host, 30003), 5) as client:
        assert struct.unpack(">i", client.recv(4, socket.MSG_WAITALL)) == (1060,)
    cb3.tell("packet 1116")


def test_the_control_port(cb3):
    for line in ("", "nonsense", "freeze", "freeze x", "latency 1", "packet 3", "threads", "\x00"):
        assert cb3.tell(line).startswith("error: ")
    assert cb3.tell("safeguard") == "ok" and cb3.state()["safety_mode"] == 5
    assert cb3.tell("clear") == "ok" and cb3.state()["safety_mode"] == 1


@pytest.mark.real_time
def test_stamps_are_whole_periods_even_if_the_host_stands_still(cb3):
    before = cb3.state()["stamp"]
    os.kill(cb3.process.pid, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(cb3.process.pid, signal.SIGCONT)
    after = cb3.state()["stamp"]
    assert after - before < 0.4  # time that was lost is not made up for, but for a tenth of a second
    cb3.wait(0.1)
    stamps = cb3.log()["stamp"]
    np.testing.assert_allclose(np.diff(stamps), 0.008, atol=1e-9)


def test_faults_at_set_times_and_the_log_after_a_kill(robots):
    sim = robots["faulty"]
    sim.until(lambda s: s["safety_mode"] == 7, 10)
    seen = sim.wait(0.05)
    assert sim.end(signal.SIGKILL) == -signal.SIGKILL
    rows = sim.log()
    assert rows["stamp"][-1] >= seen["stamp"]
    np.testing.assert_allclose(np.diff(rows["stamp"]), 0.002, atol=1e-9)
    for mode, at in ((3, 0.5), (7, 0.7)):
        assert at < rows["stamp"][rows["safety_mode"] == mode][0] <= at + 2 * 0.002


def test_the_first_line_says_where_it_is(robots):
    for sim, name in ((robots["cb3"], "UR5 CB3 3.15.8"), (robots["faulty"], "UR5e e-Series 5.12.2")):
        ports = "RTDE 30004, dashboard 29999, script and stream 30003"
        assert sim.events.startswith(f"ursim: {name} at {sim.host}: {ports}; Ctrl-C ends it\n")


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (("--host", "{host}"), "port 30004 at {host} is taken"),
        (("--host", "192.0.2.1"), "add --listen-anywhere"),
        (("--host", "192.0.2.1", "--listen-anywhere"), "cannot listen at 192.0.2.1"),
        (("--host", "robot"), "no IPv4 address"),
        (("--fault", "nonsense@1"), "write NAME@TIME"),
        (("--packet-size", "7"), "packets have"),
        (("--q", *("9",) * 6), "--q"),
        (("--log", "/nonexistent/log"), "--log /nonexistent/log"),
    ],
)
def test_what_cannot_be_served(cb3, flags, answer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ursim", *(flag.format(host=cb3.host) for flag in flags)])
    assert command.main() == 2
    out, err = capsys.readouterr()
    assert answer.format(host=cb3.host) in err and err.count("\n") == 1 and not out
