"""Plots of supervised runs: a loss is better when lower, by epoch, update or second."""

import json

import pytest
from test_plot import command, figure, gather, run

from hesscale_rl.errors import BAD_INPUT, InputError
from hesscale_rl.scripts import plot


def supervised(folder, optimizer, seed=0, losses=(2.0, 1.0, 0.5), rate=1e-3, status="done", pace=1.5, **settings):
    """Write a run of the task mnist-mlp on digits: three epochs of ten updates, `pace` seconds each."""
    config = {"task": "mnist-mlp", "data": "digits", "optimizer": optimizer, "learning_rate": rate, "seed": seed}
    path = folder / f"{optimizer}{rate}{seed}{len(settings)}"
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({**config, "epochs": 3, "damping": None, **settings}))
    end = {"status": status, "global_step": 30 if status == "done" else 10 * len(losses) + 5, "total_steps": 30}
    (path / "status.json").write_text(json.dumps(end))
    rows = [(0, 4.0), *enumerate(losses, 1)]
    lines = [
        {
            "global_step": 10 * k,
            "charts/epoch": k,
            "charts/seconds": k * pace,
            "loss/validation": v,
            "accuracy/test": v / 4,
        }
        for k, v in rows
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_run_that_has_but_begun_is_no_curve(tmp_path, capsys):
    begun = supervised(tmp_path, "adam", 1, losses=(), status="running")
    with pytest.raises(InputError, match="no loss/validation in any of 1 runs"):
        gather(begun, unfinished=True)
    supervised(tmp_path, "adam", 0)
    (group,) = gather(tmp_path, unfinished=True)
    assert group.curves.tolist() == [[-2.0, -1.0, -0.5]]
    assert f"{begun}: no loss/validation" in capsys.readouterr().err


def test_of_supervised_runs_the_lowest_loss_is_best_and_counts_by_epoch(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        supervised(tmp_path / "runs", "adam", seed)
        supervised(tmp_path / "runs", "adam", seed, losses=(3.0, 3.0, 3.0), rate=1e-2)
        supervised(tmp_path / "runs", "hessian-free", seed, losses=(1.0, 0.1, 0.05), damping=0.1)
    supervised(tmp_path / "runs", "adam", 2, losses=(1.0,), status="diverged")
    supervised(tmp_path / "runs", "adam", 3, losses=(), status="diverged")
    rows, _ = figure(tmp_path / "new", monkeypatch, capsys, "curves", tmp_path / "runs")
    adam = [row for row in rows if row["optimizer"] == "adam" and not row["seed"]]
    assert {row["learning_rate"] for row in adam} == {"0.001"} and {row["task"] for row in rows} == {
        "mnist-mlp, digits"
    }
    # Two whole curves; one that had 1 and ended in the second epoch; and one with the loss before training alone,
    # which is the worst that a diverged run can have here.
    expected = [(2 + 2 + 1 + 4) / 4, (1 + 1 + 1 + 4) / 4, (0.5 + 0.5 + 4 + 4) / 4]
    assert [(float(row["epoch"]), float(row["value"])) for row in adam] == list(zip((1, 2, 3), expected, strict=True))
    rows, _ = figure(tmp_path / "errors", monkeypatch, capsys, "curves", tmp_path / "runs", "--error", "se")
    adam = [row for row in rows if row["optimizer"] == "adam" and not row["seed"]]
    assert all(float(row["low"]) < float(row["value"]) < float(row["high"]) for row in adam)
    crosses = [(row["epoch"], row["value"], row["seed"]) for row in rows if row["seed"]]
    assert crosses == [("2.0", "1.0", "2"), ("1.0", "4.0", "3")]
    rows, _ = figure(tmp_path / "points", monkeypatch, capsys, "sensitivity", tmp_path / "runs", "--normalized")
    scores = {(row["optimizer"], row["learning_rate"]): float(row["value"]) for row in rows}
    assert scores.pop(("hessian-free", "0.001")) == 1
    assert scores == {
        ("adam", "0.01"): 0.0,
        ("adam", "0.001"): pytest.approx((3 - sum(expected) / 3) / (3 - 1.15 / 3)),
    }


def test_supervised_runs_have_other_metrics_and_axes(tmp_path, monkeypatch, capsys):
    for seed, pace in ((0, 1.0), (1, 2.0)):
        supervised(tmp_path / "runs", "adam", seed, pace=pace)
    supervised(tmp_path / "runs", "adam", 2, losses=(1.0,), status="diverged", pace=1.0)
    drawn, draw = [], plot.draw
    monkeypatch.setattr(plot, "draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    seconds = ("--x", "seconds")
    rows, _ = figure(tmp_path / "a", monkeypatch, capsys, "curves", tmp_path / "runs", *seconds)
    # In the three seconds that the fastest run took, the slower one got through its first epoch: at two seconds.
    values = [float(row["value"]) for row in rows if not row["seed"]]
    assert values == pytest.approx([4, (2 + 4 + 1) / 3, (2 + 4 + 1) / 3, (1 + 2 + 4) / 3, (0.5 + 2 + 4) / 3])
    assert [float(row["second"]) for row in rows] == pytest.approx([0.6, 1.2, 1.8, 2.4, 3, 1.5])
    how = ("curves", tmp_path / "runs", "--metric", "accuracy/test", "--x", "steps")
    rows, _ = figure(tmp_path / "b", monkeypatch, capsys, *how)
    assert float(rows[-2]["step"]) == 30 and float(rows[-2]["value"]) == pytest.approx((0.125 + 0.125 + 0.25) / 3)
    labels = [(f.axes[0].get_xlabel(), f.axes[0].get_ylabel(), f.axes[0].get_yscale()) for f in drawn]
    assert labels == [("seconds of training", "validation loss", "log"), ("updates", "test accuracy", "linear")]
    supervised(tmp_path / "runs", "adam", 0, losses=(3.0, 3.0, 3.0), rate=1e-2, pace=9.0)
    rows, _ = figure(tmp_path / "best", monkeypatch, capsys, "curves", tmp_path / "runs", *seconds)
    assert {row["learning_rate"] for row in rows} == {"0.001"}  # though the other one takes longer
    code, _, err = command(monkeypatch, capsys, *how[:2], "--metric", "loss/tset")
    assert code == BAD_INPUT and "no loss/tset in any of 4 runs" in err and "loss/validation" in err
    run(tmp_path, "ppo")
    code, _, err = command(monkeypatch, capsys, "curves", tmp_path / "ppo", "--x", "epochs")
    assert code == BAD_INPUT and err.startswith("--x epochs: is for supervised runs")


def test_a_diverged_run_never_counts_with_a_small_loss(tmp_path, monkeypatch, capsys):
    """One that ends in its first epoch has logged nothing but the loss before training."""
    for seed in (0, 1):
        supervised(tmp_path / "runs", "adam", seed)
        supervised(tmp_path / "runs", "adam", seed, losses=(9.0, 9.0, 9.0), rate=1.0)
        supervised(tmp_path / "runs", "sgd", seed, losses=(), rate=1.0, status="diverged")
    rows, _ = figure(tmp_path / "a", monkeypatch, capsys, "sensitivity", tmp_path / "runs")
    values = {(row["optimizer"], row["learning_rate"]): float(row["value"]) for row in rows if not row["seed"]}
    # It has the loss before training in its epoch, then the worst of the task.
    assert values == pytest.approx({("adam", "0.001"): 3.5 / 3, ("adam", "1.0"): 9, ("sgd", "1.0"): (4 + 9 + 9) / 3})
    rows, _ = figure(tmp_path / "b", monkeypatch, capsys, "sensitivity", tmp_path / "runs", "--normalized")
    scores = {(row["optimizer"], row["learning_rate"]): float(row["value"]) for row in rows}
    assert scores == {
        ("adam", "0.001"): 1,
        ("adam", "1.0"): 0,
        ("sgd", "1.0"): 0,
    }  # none is below the loss before training


def test_a_damaged_config_is_counted_and_left_out(tmp_path, monkeypatch, capsys):
    supervised(tmp_path / "runs", "adam")
    path = supervised(tmp_path / "runs", "adam", 1) / "config.json"
    path.write_text(path.read_text().replace('"epochs": 3', '"epochs": "three"'))
    rows, err = figure(tmp_path / "a", monkeypatch, capsys, "curves", tmp_path / "runs")
    assert {row["n"] for row in rows} == {"1"} and "1 of 2 runs cannot be read" in err and "epochs is 'three'" in err
