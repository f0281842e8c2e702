"""A packed sweep has the figures of the sweep itself, and is taken for finished by the next one."""

import json
import sys
import tarfile

import numpy as np
import pytest
from test_plot import run

from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE
from hesscale_rl.scripts import plot
from hesscale_rl.scripts.analysis import compare, effective_steps
from hesscale_rl.scripts.analysis import returns_table as results
from hesscale_rl.scripts.sweeping import pack
from hesscale_rl.scripts.sweeping.launchers import exit_code


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
            places = {"run_dir": "/home/me/x", "resume": "/home/me/x"}
            run(folder, f"run{seed}-{rate:g}", seed, inside, learning_rate=rate, **places, **ending)


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
    assert json.loads((tmp_path / "packed/run0-0.01/meta.json").read_text())["packed_bins"] == bins
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


def test_what_needs_more_than_the_bins_is_refused(tmp_path, monkeypatch, capsys):
    make(tmp_path / "runs")
    for path in (tmp_path / "runs").iterdir():
        config = (path / "config.json").read_text()
        (path / "config.json").write_text(config.replace('"adam"', '"scaled-adam"'))
    command(monkeypatch, capsys, pack.main, tmp_path / "runs", tmp_path / "b.tar.xz", "--bins", 10)
    with tarfile.open(tmp_path / "b.tar.xz") as tar:
        tar.extractall(packed := tmp_path / "packed", filter="data")
    again = command(monkeypatch, capsys, pack.main, packed, tmp_path / "c.tar.xz", "--bins", 10)
    assert again[0] == DONE and (tmp_path / "b.tar.xz").read_bytes() == (tmp_path / "c.tar.xz").read_bytes()
    run(tmp_path / "shorter", "a", 9, total=500, end=500, optimizer="scaled-adam")
    for main, words, problem in (
        (plot.main, ("curves", packed), "is packed in 10 bins of 1,000 steps, not in 100 of 1,000; take --bins 10"),
        (compare.main, (packed, tmp_path / "shorter", "--to", "scaled-adam", "--bins", 10), "not in 10 of 500"),
        (pack.main, (packed, tmp_path / "d.tar.xz"), "--bins 100: "),
        (results.main, (packed,), "is packed, without its episodes; hesscale-rl compare --last 0.1 takes it"),
        (effective_steps.main, (packed,), "no optim/eta_... in metrics.jsonl: it is packed"),
    ):
        monkeypatch.chdir(tmp_path)
        code, _, err = command(monkeypatch, capsys, main, *words)
        assert code == BAD_INPUT and problem in err.splitlines()[-1]


def test_runs_that_are_missing_are_missing_in_the_archive_too(tmp_path, monkeypatch, capsys):
    make(tmp_path / "runs")
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    asked = json.dumps({"spec": "/home/me/x.toml", "runs": [*names[:-1], "another"]})
    (tmp_path / "runs" / "sweep.json").write_text(asked)
    code, _, err = command(monkeypatch, capsys, pack.main, tmp_path / "runs", tmp_path / "b.tar.xz")
    assert code == DONE and "1 of 6 planned runs are missing, the first: another" in err
    with tarfile.open(tmp_path / "b.tar.xz") as tar:
        tar.extractall(tmp_path / "packed", filter="data")
    assert json.loads((tmp_path / "packed/sweep.json").read_text()) == {"runs": [*names[:-1], "another"]}
    assert {path.parent.name for path in (tmp_path / "packed").glob("*/config.json")} == set(names[:-1])


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
