"""A packed sweep has the figures of the sweep itself, and is taken for finished by the next one."""

import sys
import tarfile

import numpy as np
import pytest
from test_plot import run

from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE
from scripts import pack, plot
from scripts.launchers import exit_code


def command(monkeypatch, capsys, main, *arguments):  # exit code, output, errors
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    return main(), *capsys.readouterr()


def make(folder):
    """Runs of which one diverged, one has empty bins and one ends after its planned length."""
    random = np.random.default_rng(0)
    for seed in range(3):
        for rate in (1e-3, 1e-2):
            steps = np.sort(random.integers(1, 1004, 2000 if seed else 40))
            episodes = [(int(step), random.normal()) for step in steps]
            ending = {"status": "diverged", "end": 640} if (seed, rate) == (2, 1e-2) else {"end": 1003}
            inside = [episode for episode in episodes if episode[0] <= ending["end"]]
            run(folder, f"run{seed}-{rate:g}", seed, inside, learning_rate=rate, run_dir="/home/me/x", **ending)


@pytest.mark.parametrize("kind, bins", [("curves", 100), ("sensitivity", 100), ("sensitivity", 7), ("profile", 7)])
def test_the_figures_are_the_same(tmp_path, monkeypatch, capsys, kind, bins):
    make(tmp_path / "runs")
    run(tmp_path / "runs", "going", 9, status="running")
    flags = () if bins == 100 else ("--bins", bins)
    code, out, err = command(monkeypatch, capsys, pack.main, tmp_path / "runs", tmp_path / "a/b.tar.xz", *flags)
    assert code == DONE and out.startswith(f"{tmp_path}/a/b.tar.xz: 6 runs, ")
    assert "1 of 7 runs are not finished" in err
    with tarfile.open(tmp_path / "a/b.tar.xz") as tar:
        tar.extractall(tmp_path / "packed", filter="data")
    assert not any(b"/home/me" in path.read_bytes() for path in (tmp_path / "packed").glob("*/*"))
    lines = [len((path / "metrics.jsonl").read_bytes().splitlines()) for path in (tmp_path / "packed").iterdir()]
    assert min(lines) > 0 and max(lines) == bins
    for folder in ("runs", "packed"):
        output = ("-o", tmp_path / f"{folder}-figure")
        assert command(monkeypatch, capsys, plot.main, kind, tmp_path / folder, *output, *flags)[0] == DONE
    assert (tmp_path / "runs-figure.csv").read_bytes() == (tmp_path / "packed-figure.csv").read_bytes()


def test_a_sweep_takes_its_runs_for_finished(tmp_path, monkeypatch, capsys):
    make(tmp_path / "runs")
    command(monkeypatch, capsys, pack.main, tmp_path / "runs", tmp_path / "b.tar.xz")
    with tarfile.open(tmp_path / "b.tar.xz") as tar:
        tar.extractall(tmp_path / "packed", filter="data")
    for path in (tmp_path / "packed").iterdir():
        assert exit_code(path) == (DIVERGED if path.name == "run2-0.01" else DONE)


def test_what_cannot_be_packed_is_one_line(tmp_path, monkeypatch, capsys):
    make(tmp_path / "runs")
    (tmp_path / "file").touch()
    supervised = {"task": "mnist-mlp", "epochs": 2, "data": "digits"}
    run(tmp_path / "other", "s", episodes=[], **supervised)
    for words, problem in {
        (tmp_path / "nothing", tmp_path / "b.tar.xz"): "no runs there",
        (tmp_path / "runs", tmp_path / "b.zip"): "b.zip: must end in .tar.xz",
        (tmp_path / "runs", tmp_path / "b.tar.xz", "--bins", 0): "--bins 0: must be at least 1",
        (tmp_path / "runs", tmp_path / "file/b.tar.xz"): "cannot be written",
        (tmp_path / "other", tmp_path / "b.tar.xz"): "a supervised run has no returns",
    }.items():
        code, out, err = command(monkeypatch, capsys, pack.main, *words)
        assert (code, out, err.count("\n")) == (BAD_INPUT, "", 1) and problem in err
    assert not list(tmp_path.glob("*.tar.xz"))
