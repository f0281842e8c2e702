"""What step-size scaling leaves of the step size: the table is computed here by hand."""

import json
import sys

import numpy as np
import pytest
import torch
from test_plot import LADDER, run

import hesscale_rl as hs
from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.scripts.analysis import effective_steps


def command(monkeypatch, capsys, *arguments):  # exit code, output, errors
    monkeypatch.setattr(sys, "argv", ["effective_steps.py", *map(str, arguments)])
    return effective_steps.main(), *capsys.readouterr()


def write(folder, rate, seed, etas, returns=0.0, optimizer="scaled-adam", annealed=None):
    path = run(folder, f"{optimizer}{rate}{seed}", seed, add=returns, learning_rate=rate, optimizer=optimizer)
    with open(path / "metrics.jsonl", "a") as file:
        for k, eta in enumerate(etas):
            row = {"global_step": 200 * (k + 1), "optim/eta_actor": eta, "optim/eta_critic": 1.0}
            row |= {} if annealed is None else {"charts/learning_rate": rate * annealed[k]}
            file.write(json.dumps(row) + "\n")
    return path


def test_the_steps_and_which_runs_are_the_same(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        write(tmp_path / "runs", 1e-4, seed, (1.0, 1.0, 1.0))
        write(tmp_path / "runs", 1e-2, seed, (0.9, 0.03, 0.01), returns=seed)
        write(tmp_path / "runs", 1.0, seed, (0.0009, 0.0004, 0.0001))
        write(tmp_path / "runs", 1.0, seed, (1.0, 1.0, 1.0), optimizer="adam")
    code, out, err = command(monkeypatch, capsys, tmp_path / "runs")
    assert (code, err) == (DONE, "")
    assert out.splitlines()[2:] == [
        "| ppo | Hopper-v5, scaled-adam | actor 0.0003 to 0.0004; critic 0.01 to 1 | 0.01: 1 of 2 as at 1 |"
    ]
    code, out, err = command(monkeypatch, capsys, tmp_path / "runs", "--least", 10)
    assert (code, out) == (BAD_INPUT, "") and "no run of a scaled optimizer with a step size from 10 on" in err


def test_an_annealed_step_size_counts_as_it_was(tmp_path, monkeypatch, capsys):
    write(tmp_path, 1.0, 0, (0.1, 0.2, 0.9), annealed=(1.0, 0.4, 0.1))
    assert "| actor 0.09 to 0.09; critic 0.4 to 0.4 |  |" in command(monkeypatch, capsys, tmp_path)[1]


def test_one_more_episode_makes_another_run(tmp_path, monkeypatch, capsys):
    write(tmp_path, 0.1, 0, (0.1, 0.1, 0.1))
    write(tmp_path, 1.0, 0, (0.1, 0.1, 0.1))
    _, out, _ = command(monkeypatch, capsys, tmp_path)
    assert "0.1: 1 of 1 as at 1 |" in out
    with open(tmp_path / "scaled-adam0.10" / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"global_step": 1000, "charts/episodic_return": LADDER[-1][1]}) + "\n")
    _, out, _ = command(monkeypatch, capsys, tmp_path)
    assert "0.1: 0 of 1 as at 1 |" in out


def test_runs_without_an_episode_are_not_the_same_and_none_counts_twice(tmp_path, monkeypatch, capsys):
    for rate in (0.1, 1.0):
        path = write(tmp_path, rate, 0, (0.1, float("nan"), 0.1))
        lines = [line for line in (path / "metrics.jsonl").read_text().splitlines() if "episodic" not in line]
        (path / "metrics.jsonl").write_text("\n".join(lines).replace('critic": 1.0', 'critic": NaN'))
    _, out, _ = command(monkeypatch, capsys, tmp_path)
    assert "| actor 0.01 to 0.1 | 0.1: 0 of 1 as at 1 |" in out  # the critic's factors never were finite
    (tmp_path / "scaled-adam1.00").rename(tmp_path / "other")
    write(tmp_path, 1.0, 0, (0.1, 0.1, 0.1))
    code, out, err = command(monkeypatch, capsys, tmp_path)
    assert code == DONE and out.count("0.1: 0 of 1 as at 1") == 1
    assert "seed 0 is there 2 times with one setting" in err


@pytest.mark.parametrize("name", ["scaled-adam", "scaled-adahesscale"])
def test_where_the_trust_region_acts_the_step_size_drops_out(name):
    """What the table is about: eta lr is the root of 2 delta over u'Hu at step size 1."""
    ends = []
    for lr in (0.1, 1.0, 1e3):
        torch.manual_seed(0)
        net = torch.nn.Linear(5, 3, dtype=torch.float64)
        optimizer, curvature = hs.make_optimizer(name, net.parameters(), lr=lr, delta=1e-8)
        for _ in range(3):
            optimizer.zero_grad()
            hs.backward(
                net, torch.randn(4, 5).double(), hs.losses.MeanSquaredError(torch.zeros(4, 3).double()), curvature
            )
            optimizer.step()
            assert float(optimizer.eta[0]) < 1
        ends.append(net.weight.detach().numpy())
    np.testing.assert_allclose(ends[1:], ends[:1] * 2, rtol=1e-13)
