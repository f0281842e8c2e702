"""Nothing that is printed ends a program, wherever its output goes."""

import ast
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from hesscale_rl.runs.progress import Progress
from hesscale_rl.system import console

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("hesscale_rl", "agents", "envs", "scripts", "studies")
    for path in (ROOT / folder).rglob("*.py")
]


class Broken(io.StringIO):
    """A stream that fails, on `when`."""

    encoding = "ascii"

    def __init__(self, error, when):
        super().__init__()
        self.error, self.when = error, when

    def write(self, text):
        if self.when == "write":
            raise self.error
        return super().write(text)

    def flush(self):
        if self.when == "flush":
            raise self.error


@pytest.fixture(autouse=True)
def lost(monkeypatch):
    monkeypatch.setattr(console, "lost", {})
    return console.lost


@pytest.mark.parametrize("when", ["write", "flush"])
@pytest.mark.parametrize(
    "error, known",
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), {"stdout": "Broken pipe"}),
        (OSError(errno.ENOSPC, "No space left on device"), {"stdout": "No space left on device"}),
        (OSError(errno.EIO, "Input/output error"), {"stdout": "Input/output error"}),
        (ValueError("I/O operation on closed file"), {"stdout": "I/O operation on closed file"}),
        (BlockingIOError(errno.EAGAIN, "not now"), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_written_is_dropped_and_known(monkeypatch, lost, error, known, when):
    monkeypatch.setattr(sys, "stdout", Broken(error, when))
    console.say("a line", "another")
    with Progress(10) as shown:
        shown.update(5)
    console.guard()
    print("of an environment", flush=True)
    Console().print("of a library")
    assert lost == known


def test_what_an_encoding_does_not_have_is_spelled_out(monkeypatch, lost):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    console.complain("run läuft", "\udcff")
    assert stream.buffer.getvalue() == b"run l\\xe4uft\n\\udcff\n" and lost == {}


def test_a_stream_that_was_closed_before_is_no_reason_to_fail(monkeypatch, lost):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(console, "_nowhere", io.StringIO)
    console.say("nobody hears this")
    console.guard()
    console.guard()
    print("nor this")
    assert type(sys.stdout) is console.Guarded and sys.stdout.writable() and lost == {"stdout": "closed"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_there_is_no_other_way_to_print(path):
    if path.name == "console.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert call not in ("print", "sys.stdout.write", "sys.stderr.write"), f"line {node.lineno}"


def test_what_was_closed_before_is_open_to_no_place_for_children_too():
    child = "import os; os.fstat(2)"
    code = "import subprocess, sys; from hesscale_rl.system.console import guard; guard(); "
    code += f"sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)"
    assert subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("out", ["a closed pipe", "/dev/full", "nothing"])
@pytest.mark.parametrize("command", [["--help"], ["train", "ppo", "--help"], ["sweep", "--help"], ["nonsense"]])
def test_a_command_ends_the_same_wherever_its_output_goes(command, out):
    line = [sys.executable, "-c", "import sys; from hesscale_rl.scripts.cli import main; sys.exit(main())", *command]
    expected = 2 if command == ["nonsense"] else 0
    if out == "a closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
    elif out == "nothing":
        line, writer = ["sh", "-c", 'exec "$@" >&-', "sh", *line], subprocess.DEVNULL
    else:
        writer = os.open(out, os.O_WRONLY)
    ended = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert ended.returncode == expected
    assert ended.stderr.count("\n") == (1 if expected else 0) and "Traceback" not in ended.stderr, ended.stderr
    if writer != subprocess.DEVNULL:
        os.close(writer)
