"""The comparison of optimizers: differences, intervals and probabilities are computed here by hand."""

import sys

import numpy as np
import pytest
from test_plot import LADDER, run

from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.scripts.analysis import compare


def command(monkeypatch, capsys, *arguments):  # exit code, output, errors
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
    return compare.main(), *capsys.readouterr()


def make(folder, returns, **settings):
    """Runs whose average over the whole ladder is what `returns` says; its last fifth is 2 above."""
    for seed, value in enumerate(returns):
        name = "-".join(map(str, (*settings.values(), seed, value)))
        run(folder, name, seed, add=value - 3.0, **settings)


def welch(a, b, t):  # half the width of the interval, for a quantile `t` from a table, and its degrees of freedom
    parts = [np.var(x, ddof=1) / len(x) for x in (a, b)]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (a, b), strict=True))
    return t * np.sqrt(sum(parts)), freedom


def test_the_table_against_numbers_by_hand(tmp_path, monkeypatch, capsys):
    adam, other = (100.0, 200.0, 300.0), (250.0, 350.0, 450.0)
    make(tmp_path, adam, optimizer="adam")
    make(tmp_path, other, optimizer="adahesscale")
    make(tmp_path, (0.0, 1.0, 2.0), optimizer="adahesscale", learning_rate=1e-5)  # not the best
    code, out, err = command(monkeypatch, capsys, tmp_path, "--bins", 5)
    half, freedom = welch(adam, other, 2.776)
    assert freedom == pytest.approx(4) and half == pytest.approx(226.7, abs=0.1)
    # 248 = 4.303 * 100 / sqrt(3); of nine pairs only 250 against 300 is not above
    assert (code, err) == (DONE, "") and out.splitlines() == [
        "| task | optimizer | n | return | difference to adam | P(above) |",
        "|---|---|---|---|---|---|",
        "| Hopper-v5 | adahesscale, lr 0.001 | 3 | 350 [102, 598] | 150 [-77, 377] | 0.89 |",
        "| Hopper-v5 | adam, lr 0.001 | 3 | 200 [-48, 448] |  |  |",
        "",
        "learning rates: of 1 to 2 each the best by the averages of these same runs, which flatters",
    ]
    code, out, _ = command(monkeypatch, capsys, tmp_path, "--bins", 5, "--last", 0.2, "--to", "adahesscale")
    assert "| 352 [104, 600] |  |  |" in out and "| 202 [-46, 450] | -150 [-377, 77] | 0.11 |" in out


def test_the_probability_over_tasks_and_its_interval(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    tasks = ("Ant-v5", "Hopper-v5")
    values = {(name, env): random.normal(name == "sgd", 1.0, 5) * 100 for name in ("adam", "sgd") for env in tasks}
    for (optimizer, env), each in values.items():
        make(tmp_path, each, optimizer=optimizer, env_id=env)
    make(tmp_path, (5.0,), optimizer="adahessian", env_id="Ant-v5")
    out, *more = command(monkeypatch, capsys, tmp_path)[1].splitlines()[-1:]

    def probability(x, y):
        return np.mean([(np.sign(x[e][:, None] - y[e][None]) + 1).mean() / 2 for e in x])

    x, y = ({env: values[name, env] for env in tasks} for name in ("sgd", "adam"))
    drawn = [probability(*({e: random.choice(v[e], 5) for e in v} for v in (x, y))) for _ in range(4000)]
    assert not more and out.startswith(f"| 2 tasks: Ant-v5, Hopper-v5 | sgd |  |  |  | {probability(x, y):.2f} [")
    ends = [float(end) for end in out.split("[")[1].rstrip("] |").split(",")]
    # two bootstraps of a few thousand draws, each to a hundredth
    np.testing.assert_allclose(ends, np.percentile(drawn, [2.5, 97.5]), atol=0.03)


def test_a_single_run_has_no_interval_and_a_diverged_one_is_counted(tmp_path, monkeypatch, capsys):
    make(tmp_path, (10.0,), optimizer="adam")
    run(tmp_path, "lost", 0, LADDER[:2], optimizer="sgd", status="diverged", end=400)
    code, out, _ = command(monkeypatch, capsys, tmp_path, "--bins", 5)
    # 1 in the first fifth, 2 in the second, then the worst: 1.2
    assert code == DONE and "| sgd, lr 0.001 | 1, 1 diverged | 1.2 | -8.8 | 0.00 |" in out
    for optimizer in ("adam", "sgd"):
        make(tmp_path, (10.0, 12.0), optimizer=optimizer, env_id="Ant-v5")
    # nor have several tasks one: how far other seeds would be on the first of them nobody knows
    out = command(monkeypatch, capsys, tmp_path)[1]
    assert out.endswith("| 2 tasks: Ant-v5, Hopper-v5 | sgd |  |  |  | 0.25 |\n")


@pytest.mark.parametrize("size, cells", [(1e4, "12,000 [11,000, 13,000]"), (1e-4, "0.000120 [0.000110, 0.000130]")])
def test_small_returns_keep_three_digits(tmp_path, monkeypatch, capsys, size, cells):
    step = 0.1 / 4.303 * 3**0.5
    make(tmp_path, [size * (1.2 + step * k) for k in (-1, 0, 1)], optimizer="adam")
    assert f"| {cells} |" in command(monkeypatch, capsys, tmp_path, "--bins", 5)[1].replace("999", "000")


def test_equal_runs_have_intervals_of_no_width(tmp_path, monkeypatch, capsys):
    make(tmp_path, (500.0, 500.0), optimizer="adam")
    make(tmp_path, (400.0, 400.0), optimizer="sgd")
    _, out, err = command(monkeypatch, capsys, tmp_path, "--bins", 5)
    assert "| 400 [400, 400] | -100 [-100, -100] | 0.00 |" in out and not err


def test_agents_have_tables_and_one_without_the_optimizer_is_told(tmp_path, monkeypatch, capsys):
    make(tmp_path, (1.0, 2.0), optimizer="adam")
    make(tmp_path, (1.0, 2.0), optimizer="sgd", exp_name="a2c")
    code, out, err = command(monkeypatch, capsys, tmp_path)
    assert code == DONE and out.startswith("ppo:\n") and err == "a2c: --to adam: there is sgd; left out\n"
    code, out, err = command(monkeypatch, capsys, tmp_path, "--to", "kfac")
    assert (code, out) == (BAD_INPUT, "") and err.endswith("there is nothing to compare\n")


def test_what_cannot_be_compared_is_one_line(tmp_path, monkeypatch, capsys):
    make(tmp_path, (1.0, 2.0), optimizer="adam")
    make(tmp_path, (1.0, 2.0), optimizer="sgd", gamma=0.9)
    make(tmp_path, (1.0, 3.0), optimizer="sgd", gamma=0.99)
    for words, problem in {
        ("--to", "adm"): "--to adm: did you mean 'adam'?",
        ("--to", "kfac"): "--to kfac: there is adam; sgd, gamma 0.9; sgd, gamma 0.99",
        ("--to", "sgd"): "--to sgd: it is there with several settings, name one of sgd, gamma 0.9; sgd, gamma 0.99",
        ("--last", 0.25, "--bins", 5): "--last 0.25: is no whole number of 5 bins",
        ("--last", 0): "--last 0: must be above 0 and at most 1",
        ("--bins", 0): "--bins 0: must be at least 1",
    }.items():
        code, out, err = command(monkeypatch, capsys, tmp_path, *words)
        assert (code, out) == (BAD_INPUT, "") and problem in err
    assert "difference to sgd, gamma 0.9 |" in command(monkeypatch, capsys, tmp_path, "--to", "sgd, gamma 0.9")[1]
    run(tmp_path / "other", "s", episodes=[], task="mnist-mlp", epochs=2, data="digits")
    code, out, err = command(monkeypatch, capsys, tmp_path / "other")
    assert (code, out) == (BAD_INPUT, "") and "a supervised run has no returns" in err
