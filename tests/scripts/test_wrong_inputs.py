"""Wrong inputs to every command: one line on stderr, exit code 2, nothing created, and torch is not waited for."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wrong_inputs import COMMANDS, SPECS, WITH_TORCH

ROOT = Path(__file__).parents[2]


def rows(table):
    """Every line of a table: the module, what is its argv, and the words that are in the answer."""
    for command, lines in table.items():
        for line in filter(None, lines.splitlines()):
            flags, words = line.split("=>")
            module, *before = shlex.split(command)
            argv = [word.replace("EMPTY", "") for word in [*before, *shlex.split(flags)]]
            yield "hesscale_rl.scripts.cli" if module == "hesscale-rl" else module, argv, words.strip()


# Runs every row of a table in one process, and prints what came of each.
PROGRAM = """
import contextlib, importlib, io, json, pathlib, sys
answers = []
for module, argv in json.load(sys.stdin):
    sys.argv = ["command", *argv]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = importlib.import_module(module).main()
        except SystemExit as leave:
            code = leave.code
    there = sorted(map(str, pathlib.Path().rglob("*")))
    answers.append((code, out.getvalue(), err.getvalue(), "torch" in sys.modules, there))
print(json.dumps(answers))
"""
THERE = ["broken", "broken/config.json", "broken/meta.json", "empty", "file", "foreign", "foreign/config.json"]
THERE = sorted([*THERE, "foreign/meta.json", *SPECS])


@pytest.mark.parametrize("table, torch", [(COMMANDS, False), (WITH_TORCH, True)], ids=["torch-free", "with torch"])
def test_a_wrong_input_is_one_line_and_creates_nothing(table, torch, tmp_path):
    for name in ("broken", "empty", "foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    for name, text in SPECS.items():
        (tmp_path / name).write_text("[[settings]]\n" + text)
    for name in ("config.json", "meta.json"):
        (tmp_path / "broken" / name).write_text("{")
        (tmp_path / "foreign" / name).write_text('{"agent": "os"}')
    wanted = [*rows(table)]
    given = json.dumps([row[:2] for row in wanted])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PROGRAM}"]
    done = subprocess.run(command, cwd=tmp_path, input=given, capture_output=True, text=True, check=True, timeout=300)
    wrong = []
    for (module, argv, words), (code, out, err, imported, there) in zip(wanted, json.loads(done.stdout), strict=True):
        one_line = err.count("\n") == 1 and len(err.strip()) > 0 and "Traceback" not in err
        if not (code == 2 and out == "" and one_line and words in err and there == THERE and imported <= torch):
            wrong.append(f"{module} {argv}: wanted {words!r}, got {code} {out!r} {err!r} {imported} {there != THERE}")
    assert not wrong, "\n".join(wrong)


def test_there_are_as_many_wrong_inputs_as_commands_deserve():
    assert len([*rows(COMMANDS)]) + len([*rows(WITH_TORCH)]) >= 230


def test_a_mistake_is_answered_long_before_torch_could_be_imported(tmp_path):
    began = time.perf_counter()
    line = [sys.executable, "-m", "hesscale_rl.scripts.cli", "train", "ppo", "--optimizer", "nope"]
    told = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert told.returncode == 2 and told.stderr.count("\n") == 1
    assert time.perf_counter() - began < 20  # 0.2 s on a machine with nothing else to do
