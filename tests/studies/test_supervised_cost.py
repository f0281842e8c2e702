"""The cost of the supervised tasks: rows that are kept and gone on from, reasons, divergence, limits, refusals."""

import contextlib
import csv
import operator
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.optim import declaration
from hesscale_rl.scripts.supervised_tasks import data
from hesscale_rl.scripts.supervised_tasks.tasks import TASKS
from hesscale_rl.studies import memory as cost_memory
from hesscale_rl.studies import supervised_cost

LSTM = "sequential-mnist-lstm"


@pytest.fixture(scope="module")
def measure():
    warm = [partial(supervised_cost.trial, "mnist-mlp", True, name, 2, 1) for name in ("adam", "adahesscale")]
    with cost_memory.fresh_processes(warm, operator.call) as function:
        yield function


@pytest.fixture
def asked(monkeypatch, measure):
    """What is measured, (task, optimizer) in turn, by the processes of `measure`: twice, for time and for memory."""
    found = []

    def noting(job):
        found.append((job.args[0], job.args[2]))
        return measure(job)

    monkeypatch.setattr(supervised_cost, "fresh_processes", lambda first, how: contextlib.nullcontext(noting))
    return found


def command(monkeypatch, capsys, *arguments):  # exit code, output, errors
    monkeypatch.setattr(sys, "argv", ["supervised_cost", *map(str, arguments)])
    return supervised_cost.main(), *capsys.readouterr()


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_same_command_goes_on_where_it_stopped(monkeypatch, capsys, tmp_path, asked):
    out = tmp_path / "cost.csv"
    how = ("--small", "--updates", 2, "-o", out, "--tasks", "mnist-mlp", LSTM, "--optimizers")
    code, _, errors = command(monkeypatch, capsys, *how, "adam")
    first = out.read_text()
    assert (code, errors) == (DONE, "") and asked == 2 * [("mnist-mlp", "adam")] + 2 * [(LSTM, "adam")]
    code, output, _ = command(monkeypatch, capsys, *how, "adam", "adahesscale")
    assert code == DONE and asked[4:] == 2 * [("mnist-mlp", "adahesscale")] + [(LSTM, "adahesscale")]
    assert out.read_text().startswith(first) and [path.name for path in tmp_path.iterdir()] == ["cost.csv"]
    adam, recurrent, ours, refused = table(out)
    for row in (adam, recurrent, ours):
        assert (row["data"], row["batch"], row["updates"], row["diverged"], row["reason"]) == (
            "digits",
            "64",
            "2",
            "",
            "",
        )
        assert 0 < float(row["seconds"]) == float(row["mean_seconds"]) < 5 and 0 < float(row["mib"]) < 500
        assert 2 < float(row["first_loss"]) <= float(row["largest_loss"]) < 3
    assert adam["parameters"] == "13085" and refused["seconds"] == ""
    assert "HesScale, needs a rule for every layer" in refused["reason"]
    ratio = float(ours["seconds"]) / float(adam["seconds"])
    assert f"| adahesscale | {float(ours['seconds']):.3g} ({ratio:.2f}) |  |" in output
    assert f"| adam | {float(adam['seconds']):.3g} | {float(recurrent['seconds']):.3g} |" in output
    assert f"* {LSTM}, adahesscale: {refused['reason']}" in output
    code, again, _ = command(monkeypatch, capsys, *how, "adam", "adahesscale")
    assert len(asked) == 7 and again.partition("\n\n")[2] == output.partition("\n\n")[2]


def test_commands_share_a_file(monkeypatch, capsys, tmp_path, measure):
    """What another one measured meanwhile is kept, and not measured again."""
    out, jobs = tmp_path / "cost.csv", []
    how = ("--small", "--updates", 2, "-o", out, "--tasks", "mnist-mlp", "--optimizers")

    def meanwhile(job):
        if not jobs:
            (row,) = table(theirs)
            supervised_cost.save(out, [*supervised_cost.read(out, 2), row])
        jobs.append(job.args[2])
        return measure(job)

    monkeypatch.setattr(supervised_cost, "fresh_processes", lambda *_: contextlib.nullcontext(measure))
    theirs = tmp_path / "theirs.csv"
    assert command(monkeypatch, capsys, *how[:4], theirs, *how[5:], "sgd")[0] == DONE
    monkeypatch.setattr(supervised_cost, "fresh_processes", lambda *_: contextlib.nullcontext(meanwhile))
    code, output, _ = command(monkeypatch, capsys, *how, "adam", "sgd")
    assert code == DONE and jobs == ["adam", "adam"] and [row["optimizer"] for row in table(out)] == ["sgd", "adam"]
    assert f"| sgd | {float(table(theirs)[0]['seconds']):.3g} (" in output


@pytest.mark.parametrize(
    "task, optimizer, gib, words",
    [
        ("cifar100-allcnnc", "newton-cg", 12, "its curvature, HBP, would take"),
        ("hbp-cifar10-mlp", "adam", 0.02, "out of memory: more than 0.02 GiB"),
    ],
)
def test_what_cannot_be_at_full_size_is_a_row_with_the_reason(measure, task, optimizer, gib, words):
    row = measure(partial(supervised_cost.trial, task, False, optimizer, 2, gib))
    assert words in row["reason"] and "seconds" not in row and row["batch"] == TASKS[task].batch_size


def test_memory_is_counted_from_the_network_and_the_images_on(measure):
    row = measure(partial(supervised_cost.trial, "hbp-cifar10-mlp", False, "adam", 2, 1, True))
    own = 4 * row["parameters"] / 2**20
    assert 3 * own < row["mib"] < 5 * own  # gradient and two averages; images and weights are 38 MiB more


def test_a_run_that_diverges_begins_anew_and_is_timed(monkeypatch):
    monkeypatch.setattr(supervised_cost, "limit", lambda mib: 0.0)
    usual = declaration.names()["sgd"].declaration.supervised
    monkeypatch.setitem(usual, "learning_rate", 1e30)
    row = supervised_cost.trial("autoencoder", True, "sgd", 4, 1)
    assert row["diverged"] == 2 and row["seconds"] > 0 and row["largest_loss"] < 1
    row = supervised_cost.trial("autoencoder", True, "sgd", 2, 1)
    assert row["diverged"] == 2 and row["reason"] == "no update but the first could be timed"
    monkeypatch.setitem(usual, "learning_rate", 1e-3)
    assert "diverged" not in supervised_cost.trial("autoencoder", True, "sgd", 2, 1)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--tasks", "mnist"], "--tasks mnist: there is mnist-mlp"),
        (["--optimizers", "adamw"], "--optimizers adamw: there is adabl89, adaggn-mc, adahesscale"),
        (["--updates", "1"], "at least 2"),
        (["--memory", "0"], "a positive number"),
        (["--memory", "nan"], "a positive number"),
        (["--updates", "x"], "--help"),
        (["-o", f"{__file__}/x"], "cannot be written"),
        (["-o", __file__], "holds another table"),
        (["--updates", "3", "-o", "two.csv"], "its rows are of 2 updates"),
    ],
)
def test_bad_input_is_refused_in_one_line(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    row = dict.fromkeys(supervised_cost.COLUMNS, "") | {"updates": "2"}
    supervised_cost.save(tmp_path / "two.csv", [row])
    code, output, errors = command(monkeypatch, capsys, *arguments)
    assert (code, output) == (BAD_INPUT, "") and errors.count("\n") == 1 and words in errors


@pytest.mark.parametrize("name", data.SHAPES)
def test_noise_has_the_shape_of_the_data(name):
    torch.manual_seed(0)
    found = data.noise(name, 2000)
    assert found.inputs.shape == (2000, *data.SHAPES[name]) and found.inputs.dtype == torch.float32
    assert 0 <= found.inputs.min() < 0.01 and 0.99 < found.inputs.max() < 1
    assert found.labels.unique().tolist() == list(range(100 if name == "cifar100" else 10))
    if name == "digits":
        assert data.split(name).train.inputs.shape[1:] == found.inputs.shape[1:]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_is_measured_ends_with_the_command(number):
    job = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"
    program = "import operator, functools; from hesscale_rl.studies.memory import fresh_processes\n"
    program += f"with fresh_processes([], operator.call) as measure: measure(functools.partial(exec, {job!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        child = int(process.stdout.readline())
        process.send_signal(number)
        began = time.monotonic()
        while os.path.exists(f"/proc/{child}") and time.monotonic() - began < 300:
            time.sleep(0.05)
        assert not os.path.exists(f"/proc/{child}")
