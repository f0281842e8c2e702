"""Run directories as the plots read them: what is damaged, missing or not finished is told and counted."""

import json
from collections import Counter

from test_plot import command, figure, gather, run

from hesscale_rl.errors import BAD_INPUT
from hesscale_rl.scripts.analysis import read_runs as runs


def test_broken_lines_are_counted_and_returns_that_are_no_numbers_are_the_worst(tmp_path, capsys):
    with open(run(tmp_path, "a") / "metrics.jsonl", "ab") as file:
        file.write(b'[1]\n{"global_step": "x"}\n\xff\n{"global_step": 1000, "charts/episodic_re')
    path = run(tmp_path, "b", 1, [(200, 4.0), (400, 2.0), (1000, 3.0)]) / "metrics.jsonl"
    path.write_text(path.read_text().replace("4.0", '"nan"').replace("3.0", '"inf"'))
    path = run(tmp_path, "c", 2, [(200, 4.0)]) / "metrics.jsonl"
    path.write_text(path.read_text().replace("4.0", '"-inf"'))
    (group,) = gather(tmp_path)
    assert group.curves.tolist() == [[1, 2, 3, 4, 5], [2] * 5]
    errors = capsys.readouterr().err
    assert "metrics.jsonl: 4 of 10 lines are broken and skipped" in errors
    assert "metrics.jsonl: 2 values are not finite" in errors and "c: no charts/episodic_return" in errors


def test_missing_and_unfinished_runs_are_told(tmp_path, capsys):
    for name, status in (("a", "done"), ("b", "running"), ("c", "failed")):
        run(tmp_path, name, ord(name), status=status)
    (tmp_path / "c" / "status.json").unlink()
    (tmp_path / "d").mkdir()
    (tmp_path / "sweep.json").write_text(json.dumps({"spec": "x.toml", "runs": [*"abcdefg"]}))
    run(tmp_path, "short", ord("a"), total=500)  # of the spec before it was lengthened
    left = Counter()
    assert [r.path.name for r in runs.read([tmp_path], False, left=left)] == ["a"]
    assert left == {("", "missing"): 4, ("", "of an earlier spec"): 1, ("ppo", "not finished"): 2}
    errors = capsys.readouterr().err
    assert "4 of 7 planned runs are missing, the first: d, e, f\n" in errors
    assert "1 of 4 runs there are not in sweep.json, of an earlier spec, the first: short; left out" in errors
    assert "2 of 3 runs are not finished, the first: b (running), c (no status.json); left out" in errors
    assert sorted(r.path.name for r in runs.read([tmp_path, tmp_path / "a"], True)) == ["a", "b", "c"]


def test_of_losses_less_is_better_and_of_nothing_else(tmp_path):
    run(tmp_path, "a")
    lower = ("loss/validation", "loss/train", "losses/policy_loss", "losses/value_loss")
    for metric in (*lower, "losses/explained_variance", "losses/entropy", "charts/episodic_return"):
        (seen,) = runs.read([tmp_path], False, metric)
        assert seen.view.lower == (metric in lower)


def test_any_flag_of_numbers_takes_the_place_of_the_step_size(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        for i, (delta, rate) in enumerate(((1e-8, 0.1), (1e-6, 0.1), (1e-6, 1.0))):
            settings = {"delta": delta, "learning_rate": rate, "optimizer": "scaled-adam", "eps": 0.0}
            run(tmp_path / "runs", f"{i}{seed}", seed, add=10.0 * i + seed, **settings)
    how = ("sensitivity", tmp_path / "runs", "--over")
    rows, _ = figure(tmp_path / "a", monkeypatch, capsys, *how, "delta")
    own = [(row["settings"], float(row["delta"]), float(row["value"])) for row in rows if not row["seed"]]
    first, second = "learning_rate 0.1", "learning_rate 1.0"
    assert own == [(first, 1e-8, 3.5), (first, 1e-6, 13.5), (second, 1e-6, 23.5)]
    run(tmp_path / "runs", "none", 0, optimizer="sgd")
    _, err = figure(tmp_path / "b", monkeypatch, capsys, *how, "delta")
    assert "1 of 7 runs cannot be read" in err and "no flag 'delta': there is learning_rate, seed; left out" in err
    for kind, flag, words in (
        ("sensitivity", "eps", "eps is 0.0, no positive number"),
        ("sensitivity", "max-grad-norm", "no flag 'max_grad_norm': there is "),
        ("sensitivity", "delat", "no flag 'delat': did you mean 'delta'?"),
        ("curves", "delta", "--over delta: is for plot sensitivity"),
    ):
        code, _, err = command(monkeypatch, capsys, kind, tmp_path / "runs", "--over", flag)
        assert code == BAD_INPUT and words in err
