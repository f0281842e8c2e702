"""Plots show what the runs say: their numbers are computed here a second time, by hand, by scipy or by rliable."""

import csv
import json
import sys

import numpy as np
import pytest
import scipy.stats

from hesscale_rl.errors import BAD_INPUT, DONE, InputError
from hesscale_rl.scripts import plot
from hesscale_rl.scripts.analysis import curves
from hesscale_rl.scripts.analysis import read_runs as runs
from hesscale_rl.scripts.analysis.panels import DOWN, EVERYWHERE, Line, look

LADDER = ((200, 1.0), (400, 2.0), (600, 3.0), (800, 4.0), (1000, 5.0))  # one episode in each of five bins


def run(folder, name, seed=0, episodes=LADDER, add=0.0, status="done", end=1000, total=1000, **settings):
    """Write a run directory; `add` is added to all returns."""
    config = {"exp_name": "ppo", "env_id": "Hopper-v5", "optimizer": "adam", "learning_rate": 1e-3, "seed": seed}
    rows = [{"global_step": step, "charts/episodic_return": value + add} for step, value in episodes]
    rows.insert(len(rows) // 2, {"global_step": 300, "time": 1.5, "losses/policy_loss": "nan"})
    path = folder / name
    path.mkdir(parents=True)
    meta = {"versions": {"torch": "2.9", "gymnasium": "1.4", "mujoco": "3.3"}, "cpu": "abacus"}
    (path / "meta.json").write_text(json.dumps(meta))
    (path / "config.json").write_text(json.dumps(config | settings))
    (path / "status.json").write_text(json.dumps({"status": status, "global_step": end, "total_steps": total}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gather(folder, bins=5, together=False, unfinished=False):
    return curves.gather(runs.read([folder], unfinished), bins, together)


def command(monkeypatch, capsys, *arguments):  # exit code, output, errors
    monkeypatch.setattr(sys, "argv", ["plot", *map(str, arguments)])
    return plot.main(), *capsys.readouterr()


def test_a_bin_holds_its_right_end_and_an_empty_one_takes_the_value_before(tmp_path):
    run(tmp_path, "a", 0, [(150, 1.0), (200, 3.0), (201, 10.0), (800, 7.0)])
    run(tmp_path, "b", 1, [(600, 4.0), (601, 8.0), (1000, 6.0), (1001, 99.0)])
    (group,) = gather(tmp_path)
    assert group.curves.tolist() == [[2, 10, 10, 7, 7], [4, 4, 4, 8, 6]] and group.averages.tolist() == [7.2, 5.2]


@pytest.mark.parametrize("bins, length", [(7, 1000), (100, 299_008), (3, 2_000_000)])
def test_bins_agree_with_a_plain_loop(tmp_path, bins, length):
    random = np.random.default_rng(bins)
    episodes = [(int(step), random.normal()) for step in np.sort(random.integers(1, length + 1, 40))]
    run(tmp_path, "a", 0, episodes, total=length)
    inside = [[v for step, v in episodes if k * length < step * bins <= (k + 1) * length] for k in range(bins)]
    last = next(values for values in inside if values)
    expected = [np.mean(last := values or last) for values in inside]
    np.testing.assert_allclose(gather(tmp_path, bins)[0].curves[0], expected)


def test_a_diverged_run_counts_with_its_worst_from_its_end_on(tmp_path, capsys):
    run(tmp_path, "a", 0, [(100, 5.0), (200, -3.0), (300, 4.0)], status="diverged", end=350)
    run(tmp_path, "b", 1)
    run(tmp_path, "c", 2, [], status="diverged", end=50)  # no episode at all: the worst that any run had
    run(tmp_path, "d", 3, [(200, -8.0), (1000, 2.0)], learning_rate=0.1)
    run(tmp_path, "e", 4, [(200, -99.0)], env_id="Ant-v5")
    run(tmp_path, "f", 5, [])
    run(tmp_path / "bare", "g", 0, [], status="diverged")
    _, group, other = gather(tmp_path)
    assert group.curves.tolist() == [[1, 4, 1, 1, 1], [1, 2, 3, 4, 5], [-8] * 5]
    assert [r.path.name for r in group.diverged] == ["a", "c"] and not other.diverged
    assert "f: no charts/episodic_return in 1,000 steps; left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="nothing to plot"):
        gather(tmp_path / "bare")
    assert capsys.readouterr().err == ""  # what was raised says it all


def test_unequal_lengths_are_cut_and_told(tmp_path, capsys):
    run(tmp_path, "a", 0)
    run(tmp_path, "b", 1, LADDER[:3], status="running")
    run(tmp_path, "c", 2, add=-9.0, learning_rate=0.1)
    short, long = gather(tmp_path, 3, unfinished=True)
    assert short.curves.tolist() == [[1, 2, 3]] * 2 and (short.length, long.length) == (600, 1000)
    assert "Hopper-v5: 2 runs of 600 to 1,000 steps are cut to 600, the length of b" in capsys.readouterr().err
    assert curves.best([short, long]) == [long]  # averages over other steps do not compare
    assert [group.length for group in gather(tmp_path, 3, together=True, unfinished=True)] == [600, 600]


def test_groups_are_what_differs_in_more_than_seeds(tmp_path):
    run(tmp_path, "a", 0, delta=1e-8, torch_threads=1, total_timesteps=1000)
    run(tmp_path, "b", 1, delta=1e-8, torch_threads=4, total_timesteps=1001, damping=0.01)  # a newer flag
    run(tmp_path, "c", 0, delta=1e-6)
    run(tmp_path, "d", 0, delta=1e-8, learning_rate=0.1)
    run(tmp_path, "f", 0, delta=1e-4, env_id="Ant-v5")
    assert {(g.env, *g.method, g.rate): [r.path.name for r in g.runs] for g in gather(tmp_path)} == {
        ("Hopper-v5", "adam", "delta 1e-08", 0.001): ["a", "b"],
        ("Hopper-v5", "adam", "delta 1e-06", 0.001): ["c"],
        ("Hopper-v5", "adam", "delta 1e-08", 0.1): ["d"],
        ("Ant-v5", "adam", "delta 0.0001", 0.001): ["f"],
    }
    run(tmp_path, "g", 1, delta=1e-8)
    assert ["a", "g"] in [[r.path.name for r in g.runs] for g in gather(tmp_path)]


def test_a_preset_speaks_for_what_it_decides_and_annealing_for_the_length(tmp_path):
    run(tmp_path, "a", preset="paper", eps=1e-5, gamma=0.9)
    run(tmp_path, "b", preset="default", eps=1e-8, gamma=0.9)
    run(tmp_path, "c", preset="default", eps=1e-8, gamma=0.99)
    labels = sorted(curves.apart(runs.read([tmp_path], False)).values())
    assert labels == ["preset default, gamma 0.9", "preset default, gamma 0.99", "preset paper, gamma 0.9"]
    for steps in (1000, 2000):
        run(tmp_path / "anneal", str(steps), anneal_lr=True, total_timesteps=steps)
    assert [g.method[1][-4:] for g in gather(tmp_path / "anneal")] == ["1000", "2000"]


@pytest.fixture
def sweep(tmp_path):
    """Two environments, three seeds; of Adam's two learning rates, 1 lets two of the seeds diverge."""
    for env, scale in (("Hopper-v5", 1.0), ("Ant-v5", 10.0)):
        for optimizer, rate, base in (("adam", 0.001, 8), ("adam", 1.0, 0), ("scaled-adam", 0.001, 4)):
            for seed in range(3):
                bad = rate == 1.0 and seed < 2
                how = {"status": "diverged", "end": 600, "episodes": LADDER[:3]} if bad else {}
                how |= {"env_id": env, "optimizer": optimizer, "learning_rate": rate}
                run(tmp_path / "grid", f"{env}{optimizer}{rate}{seed}", seed, add=scale * (base + seed), **how)
    return tmp_path / "grid"


def figure(folder, monkeypatch, capsys, *arguments):
    """The table of a figure whose three files were written and named, and what was said."""
    code, out, err = command(monkeypatch, capsys, *arguments, "--bins", 5, "-o", folder / "fig")
    paths = [folder / f"fig.{kind}" for kind in ("png", "pdf", "csv")]
    assert (code, out.split()) == (DONE, [str(path) for path in paths]), err
    assert paths[0].read_bytes()[:4] == b"\x89PNG" and paths[1].read_bytes()[:5] == b"%PDF-"
    assert sorted(folder.iterdir()) == sorted(paths)  # and no part of one
    with open(paths[2], newline="") as file:
        return list(csv.DictReader(file)), err


def test_curves(sweep, tmp_path, monkeypatch, capsys):
    rows, _ = figure(tmp_path / "new", monkeypatch, capsys, "curves", sweep)
    assert len(rows) == 2 * 2 * 5 and {row["learning_rate"] for row in rows} == {"0.001"}  # the best of Adam's
    own = [row for row in rows if (row["task"], row["optimizer"]) == ("Ant-v5", "adam")]
    assert [(float(row["step"]), float(row["value"])) for row in own] == [(200 * k, k + 90) for k in range(1, 6)]
    assert [own[0][name] for name in ("value", "low", "high", "n")] == [
        "91.0",
        "",
        "",
        "3",
    ]  # too few for an interval
    before = (tmp_path / "new" / "fig.pdf").read_bytes()
    figure(tmp_path / "new", monkeypatch, capsys, "curves", sweep)
    assert (tmp_path / "new" / "fig.pdf").read_bytes() == before  # the same runs, the same figure
    rows, _ = figure(tmp_path / "new", monkeypatch, capsys, "curves", sweep, "--all", "--error", "se")
    crosses = [row for row in rows if row["seed"] and row["task"] == "Ant-v5"]
    assert [(r["step"], r["value"], r["seed"]) for r in crosses] == [("600.0", "3.0", "0"), ("600.0", "13.0", "1")]
    last = next(row for row in rows if row["learning_rate"] == "1" and row["step"] == "1000.0")
    # Ant: two runs ended at step 600 and count with their worst, 1 and 11; the third goes on, from 21 to 25.
    assert [float(last[name]) for name in ("value", "n", "diverged")] == pytest.approx([(1 + 11 + 25) / 3, 3, 2])
    assert float(last["high"]) == pytest.approx((1 + 11 + 25) / 3 + scipy.stats.sem([1, 11, 25]))
    path = sweep / "Ant-v5adam1.02" / "metrics.jsonl"  # the worst there counts for those that diverged
    path.write_text(path.read_text().replace("21.0", "-9"))
    rows, _ = figure(tmp_path / "new", monkeypatch, capsys, "curves", sweep, "--all", "--diverged", "env")
    last = next(row for row in rows if row["learning_rate"] == "1" and row["step"] == "1000.0")
    assert float(last["value"]) == pytest.approx((-9 - 9 + 25) / 3)


SINGLE = [("1", 1.6), ("1", 2.6), ("0", 11), ("0", 12), ("0", 13), ("0", 5), ("0", 7), ("0", 8), ("0", 9)]


def test_sensitivity(sweep, tmp_path, monkeypatch, capsys):
    rows, _ = figure(tmp_path / "new", monkeypatch, capsys, "sensitivity", sweep)
    points = {(r["task"], r["optimizer"], r["learning_rate"]): r for r in rows if not r["seed"]}
    # The average of 1 to 5 is 3, of 1, 2, 3, 1, 1 it is 1.6; to them come the base and the seed.
    hopper, ant = (12, (1.6 + 2.6 + 5) / 3, 8), (93, (1.6 + 11.6 + 23) / 3, 53)
    score = np.mean([(scaled - bad) / (good - bad) for good, bad, scaled in (hopper, ant)])
    for env, values in (("Hopper-v5", hopper), ("Ant-v5", ant), (EVERYWHERE, (1, 0, score))):
        own = [points[env, *key] for key in (("adam", "0.001"), ("adam", "1.0"), ("scaled-adam", "0.001"))]
        assert [float(row["value"]) for row in own] == pytest.approx(values)
    assert [own[1]["n"], own[1]["diverged"]] == ["6", "4"]
    single = [(r["diverged"], float(r["value"])) for r in rows if r["seed"] and r["task"] == "Hopper-v5"]
    # Each run has a row, as they are too few for intervals: those that diverged first.
    assert single == [(kind, pytest.approx(value)) for kind, value in SINGLE]
    for path in sweep.glob("Ant-v5scaled*"):
        (path / "status.json").unlink()
    rows, err = figure(tmp_path / "new", monkeypatch, capsys, "sensitivity", sweep, "--normalized", "--statistic=iqm")
    assert [(row["task"], row["optimizer"]) for row in rows] == [(EVERYWHERE, "adam")] * 2
    assert "not on all 2 tasks, so left out of what is normalised: scaled-adam 0.001" in err


def test_profile(sweep, tmp_path, monkeypatch, capsys):
    rows, _ = figure(tmp_path / "new", monkeypatch, capsys, "profile", sweep)
    shares = {name: [float(r["value"]) for r in rows if r["optimizer"] == name] for name in ("adam", "scaled-adam")}
    assert len(shares["adam"]) == 101 and rows[0]["learning_rate"] == "0.001 on Ant-v5; 0.001 on Hopper-v5"
    ranges = ((12, 9.2 / 3, 1), (93, 36.2 / 3, 10))  # best and worst average, and what a seed adds
    best, scores = (
        [(3 + scale * (base + seed) - bad) / (good - bad) for good, bad, scale in ranges for seed in range(3)]
        for base in (8, 4)
    )
    taus = np.linspace(0, max(best), 101)
    assert max(best) > 1 and [float(r["tau"]) for r in rows[:101]] == pytest.approx(taus)
    assert shares["scaled-adam"] == pytest.approx([np.mean(np.array(scores) > tau) for tau in taus])
    assert shares["adam"][-2:] == [pytest.approx(1 / 6), 0]  # of two tasks with three seeds, one run is the best


def test_agents_have_figures_optimizers_a_look_and_figures_a_caption(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(sweep, "other", exp_name="a2c", optimizer="muon")
    said, draw = [], plot.draw
    monkeypatch.setattr(plot, "draw", lambda *given: said.append(given[-1]) or draw(*given))
    code, out, _ = command(monkeypatch, capsys, "curves", *sorted(sweep.iterdir()), "--statistic", "iqm")
    names = [f"curves_{agent}.{kind}" for agent in ("a2c", "ppo") for kind in ("png", "pdf", "csv")]
    assert (code, out.split()) == (DONE, names) and all((tmp_path / name).exists() for name in names)
    assert (
        "1,000 environment steps; 3 runs a group, seeds 0, 1, 2; learning rates: the best of these runs; torch 2.9"
        in said[1]
    )
    runs = f"({len(list(sweep.iterdir()))} run directories)"
    assert "abacus" in said[1] and said[1].endswith(f"hesscale-rl plot curves {runs} --statistic iqm")
    assert command(monkeypatch, capsys, "curves", *sorted(sweep.iterdir()), "--all")[0] == DONE
    one = [
        path
        for path in sorted(sweep.iterdir())
        if json.loads((path / "config.json").read_text())["learning_rate"] == 1e-3
    ]
    assert command(monkeypatch, capsys, "curves", *one)[0] == DONE
    assert len(said) > 4 and not any("the best of" in caption for caption in said[2:])  # where nothing was chosen
    cells, none = [gather(sweep)[:1]], (np.empty(0), np.empty((3, 0)))
    lines = [Line("", (name, ""), cells, *none) for name in ("adam", "scaled-adam", "muon")]
    adam, scaled, muon = (look(line, lines) for line in lines)
    assert adam["color"] == scaled["color"] == pytest.approx((0, 0x72 / 255, 0xB2 / 255)) != muon["color"]
    assert adam == look(lines[0], lines[:1]) and "linestyle" in scaled and "linestyle" not in adam


def test_damaged_files_are_counted_and_left_out(tmp_path, monkeypatch, capsys):
    """Each in a run of its own: what is written instead, and how that is told."""
    for name in ("good", "other", "step", "total", "end", "rate", "versions", "config"):
        run(tmp_path / "runs", name, ord(name[0]))

    def damage(name, file, old, new):
        path = tmp_path / "runs" / name / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    damage("step", "metrics.jsonl", '"global_step": 1000', '"global_step": 1e400')
    damage("total", "status.json", '"total_steps": 1000', '"total_steps": null')
    damage("end", "status.json", '"global_step": 1000', '"global_step": "x"')
    damage("rate", "config.json", "0.001", '"fast"')
    damage("versions", "meta.json", '"versions": {', '"versions": null, "was": {')
    damage("config", "config.json", "{", "")
    (tmp_path / "runs" / "sweep.json").write_text('{"runs": 5}')
    _, err = figure(tmp_path / "new", monkeypatch, capsys, "curves", tmp_path / "runs")
    assert "sweep.json: runs is 5, no list of names; so all 8 runs there are taken" in err
    assert "step/metrics.jsonl: 1 of 6 lines are broken and skipped" in err
    assert "4 of 8 runs cannot be read, the first: " in err and "config.json: cannot be read" in err
    assert "1 of 4 runs have no versions in meta.json, the first: versions; taken without" in err
    for name, told in (("total", "total_steps is None"), ("end", "is 'x'"), ("rate", "learning_rate is 'fast'")):
        code, _, err = command(monkeypatch, capsys, "curves", tmp_path / "runs" / name)
        assert code == BAD_INPUT and told in err and err.count("\n") == 1


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are left empty: what is told and written beside them is the same."""
    monkeypatch.setattr(plot, "draw", lambda *given: type("", (), {"savefig": lambda self, file, **how: None})())


def test_a_star_takes_in_logs_and_files_without_a_word(sweep, tmp_path, monkeypatch, capsys, undrawn):
    (sweep / "logs").mkdir()
    (sweep / "sweep.json").write_text("{}")
    output = ("-o", tmp_path / "new" / "fig")
    code, _, err = command(monkeypatch, capsys, "curves", *sorted(sweep.iterdir()), *output)
    assert (code, err) == (DONE, "")
    (sweep / "begun").mkdir()
    code, _, err = command(monkeypatch, capsys, "curves", *sorted(sweep.iterdir()), *output)
    assert code == DONE and "1 of 21 folders hold no runs, the first: " in err and "begun; left out" in err


@pytest.mark.parametrize("output", ["new/", "new", "new/curves", "new/curves.png", "new/curves.csv"])
def test_names_of_figures(sweep, tmp_path, monkeypatch, capsys, undrawn, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    assert command(monkeypatch, capsys, "curves", sweep, "-o", output)[0] == DONE
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["curves.csv", "curves.pdf", "curves.png"]


def test_figures_say_how_many_runs_they_show_and_which_diverged(sweep, monkeypatch, capsys):
    drawn, draw = [], plot.draw
    monkeypatch.setattr(plot, "draw", lambda *given: drawn.append((draw(*given), given[-1])) or drawn[-1][0])
    monkeypatch.setattr(plot, "write", lambda contents: None)
    run(sweep, "going", 3, status="running")
    for path in sweep.glob("Hopper-v5adam1.0[01]"):  # they exploded
        lines = (path / "metrics.jsonl").read_text().replace('_return": ', '_return": -1e7, "was": ')
        (path / "metrics.jsonl").write_text(lines)
    for line in ("sensitivity", "curves --all --diverged env"):
        assert command(monkeypatch, capsys, line.split()[0], sweep, *line.split()[1:])[0] == DONE
    (points, caption), (bands, other) = drawn
    assert all("; left out: 1 not finished; " in text for text in (caption, other))
    names = [text.get_text() for text in points.legends[0].get_texts()]
    marks = ["diverged run", "diverged run, outside"]
    assert sorted(names) == ["adam (n = 3)", *marks, "scaled-adam (n = 3)", "single run"]
    hopper = next(axes for axes in points.axes if "Hopper" in axes.get_title())
    note = "outside: points 1, diverged runs 2; -1e+07 to"
    assert any(note in text.get_text() for text in hopper.texts) and hopper.get_ylim()[0] > -100
    marks = [line for line in hopper.lines if line.get_marker() in ("x", DOWN) and len(line.get_xdata())]
    assert [line.get_marker() for line in marks] == [DOWN, DOWN]  # no cross where no return was
    assert all(hopper.get_ylim()[0] < line.get_ydata()[0] for line in marks)
    assert "counts, from its end on, with the worst that its own curve had;" in caption
    assert "from its end on, with the worst that any run on its task had;" in other
    ant = next(axes for axes in bands.axes if "Ant" in axes.get_title())
    ends = [(*line.get_xdata(), *line.get_ydata()) for line in ant.lines if line.get_marker() == "x"]
    assert ends[:2] == [(600, 3), (600, 13)]


def test_what_one_agent_lacks_is_not_told_of_another(tmp_path, monkeypatch, capsys, undrawn):
    said, of = [], plot.caption_of
    monkeypatch.setattr(plot, "caption_of", lambda *given: said.append(of(*given)) or said[-1])
    for agent, status in (("ppo", "done"), ("a2c", "running")):
        run(tmp_path / "runs", f"{agent}0", exp_name=agent)
        run(tmp_path / "runs", f"{agent}1", 1, exp_name=agent, status=status)
    run(tmp_path / "runs", "bare", 2, [], status="diverged")
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "config.json").touch()
    assert command(monkeypatch, capsys, "curves", tmp_path / "runs", "-o", tmp_path / "fig")[0] == DONE
    assert "; left out: 1 cannot be read, 1 not finished; " in said[0]
    assert "; left out: 1 cannot be read; " in said[1]
    assert "with the worst that its own curve had or, without an episode, that any run on its task had;" in said[1]


BAD = {
    "curves nowhere": "nowhere: no runs there",
    "curve grid": "kind curve: did you mean 'curves'? must be one of curves, ",
    "curves grid --bins 0": "--bins 0",
    "curves grid --statistic iqm --error se": "--error se",
    "curves single -o file/fig": "-o file/fig: cannot be written",
    "profile single": "profile: nothing to normalise among the runs of ppo; it needs two groups",
    "sensitivity single --normalized": "sensitivity: nothing to normalise among the runs of ppo",
    "curves going": "going: no finished run among 1",
    "curves broken": "config.json: cannot be read",
    "curves strange": "no 'optimizer'",
}


@pytest.mark.parametrize("line", BAD)
def test_what_cannot_be_is_told_in_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "single", "a")
    run(tmp_path / "going", "a", status="running")
    (run(tmp_path / "broken", "a") / "config.json").write_text('{"seed": ')
    (run(tmp_path / "strange", "a") / "config.json").write_text('{"seed": 1, "exp_name": "ppo", "env_id": "x"}')
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command(monkeypatch, capsys, *line.split())
    assert code == BAD_INPUT and BAD[line] in err.splitlines()[-1] and not out
    assert sorted(tmp_path.rglob("*")) == before
    if line == "curves single -o file/fig":
        monkeypatch.setitem(sys.modules, "scipy", None)
        assert "pip install 'hesscale-rl[plot]'" in command(monkeypatch, capsys, *line.split())[2]
