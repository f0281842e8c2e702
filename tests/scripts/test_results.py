"""The table of returns: what counts, what is left out, what stands apart."""

import json

import pytest

from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.scripts.analysis import returns_table as results


def run(folder, name, seed, value, status="done", lr=3e-4):
    path = folder / name
    path.mkdir()
    config = {"env_id": "Hopper-v5", "exp_name": "ppo", "optimizer": "adam", "seed": seed, "learning_rate": lr}
    (path / "config.json").write_text(json.dumps(config))
    (path / "status.json").write_text(json.dumps({"status": status, "total_steps": 1000}))
    lines = [
        {"global_step": step, "charts/episodic_return": r} for step, r in ((100, 1.0), (950, value), (999, value))
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def table(monkeypatch, capsys, *runs, code=DONE):
    monkeypatch.setattr("sys.argv", ["results.py", *runs])
    assert results.main() == code
    return capsys.readouterr()


def test_seeds_interval_divergence_and_what_is_left_out(tmp_path, monkeypatch, capsys):
    runs = [run(tmp_path, "a", 1, 10.0), run(tmp_path, "b", 2, 20.0), run(tmp_path, "c", 3, 30.0, "diverged")]
    out = table(monkeypatch, capsys, *runs, run(tmp_path, "d", 4, 999.0, "running"))
    # mean 20, standard deviation 10, t of 2 degrees of freedom 4.303: 4.303 * 10 / sqrt(3) = 24.8
    assert "| Hopper-v5 | ppo | adam | 1, 2, 3 | 10, 20, 30 (diverged) | 20 ± 25 |" in out.out
    assert "1 of 4 runs are not finished, the first: d (running); left out" in out.err
    assert out.out == table(monkeypatch, capsys, str(tmp_path)).out  # a folder of them does, too


def test_other_settings_have_a_row_of_their_own_and_a_seed_counts_once(tmp_path, monkeypatch, capsys):
    runs = [run(tmp_path, "a", 1, 10.0), run(tmp_path, "b", 1, 20.0, lr=1e-3)]
    out = table(monkeypatch, capsys, *runs).out
    assert (
        "adam (learning_rate 0.0003) | 1 | 10 | 10 |" in out and "adam (learning_rate 0.001) | 1 | 20 | 20 |" in out
    )
    again = run(tmp_path, "c", 1, 5.0)
    for path, day in ((again, 2), (runs[0], 1)):
        (tmp_path / path / "meta.json").write_text(json.dumps({"started": f"2026-01-0{day}T00:00:00+00:00"}))
    out = table(monkeypatch, capsys, *runs, again)
    assert "adam (learning_rate 0.0003) | 1 | 5 | 5 |" in out.out
    assert f"seed 1 is there 2 times with one setting: {again}, the newest, counts" in out.err


def test_supervised_and_damaged_runs_are_told(tmp_path, monkeypatch, capsys):
    good, broken = run(tmp_path, "a", 1, 10.0), run(tmp_path, "b", 2, 20.0)
    with open(f"{broken}/metrics.jsonl", "a") as file:
        file.write('{"global_step": 10')
    assert "| 1, 2 | 10, 20 | 15 ± 64 |" in (out := table(monkeypatch, capsys, good, broken)).out
    assert "b/metrics.jsonl: 1 of 4 lines are broken and skipped" in out.err
    config = json.dumps({"task": "mnist-mlp", "epochs": 1, "optimizer": "adam", "seed": 0, "learning_rate": 0.1})
    (tmp_path / "a" / "config.json").write_text(config)
    assert "a: a supervised run has no returns" in table(monkeypatch, capsys, good, code=BAD_INPUT).err
    out = table(monkeypatch, capsys, good, broken)
    assert (
        "| 2 | 20 | 20 |" in out.out
        and "a supervised run has no returns; hesscale-rl plot takes it; left out" in out.err
    )


def test_the_best_step_size_is_that_of_the_highest_average_of_a_task(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    rows = ["task,optimizer,settings,learning_rate,value,low,high,n,diverged,seed"]
    rows += ["A,adam,,0.1,5,4,6,3,0,", "A,adam,,0.01,7,6,8,3,1,", "A,adam,,0.1,9,,,1,1,2"]
    rows += ["B,adam,,0.1,-3,-4,-2,3,0,", "A,sgd,,1,-1,-2,0,3,0,", '"all tasks, normalised",adam,,0.1,1,0,1,3,0,']
    (tmp_path / "one.csv").write_text("\n".join(rows))
    assert results.best_rates("one.csv") == {("A", "adam"): 0.01, ("B", "adam"): 0.1, ("A", "sgd"): 1.0}
    with pytest.raises(OSError, match=r"none\.csv"):
        results.best_rates("one.csv", "none.csv")
    (tmp_path / "two.csv").write_text("\n".join([rows[0], "A,adam,delta 1e-06,0.1,5,4,6,3,0,"]))
    with pytest.raises(ValueError, match=r"two\.csv: adam with delta 1e-06"):
        results.best_rates("two.csv")
