import csv
import sys

import numpy as np
import pytest
import torch
from torch import nn

import hesscale_rl as hs
from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.studies import rl_approximation


def test_the_errors_are_those_of_the_exact_diagonal():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), hs.networks.GaussianHead(2)).double()
    x, a = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    loss = hs.losses.GaussianPPO(torch.randn(6, 2, dtype=torch.float64), a - 3, a)
    found = rl_approximation.errors(net, x, loss)
    assert {method for _, method in found} == rl_approximation.methods().keys()
    params = dict(net.named_parameters())
    exact = hs.value_grad_curvature(net, params, x, loss, hs.ExactDiagonal()).curvature
    ours = hs.value_grad_curvature(net, params, x, loss, hs.HesScale()).curvature
    names = ("0.weight", "0.bias")
    expected = [sum(float(t) for t in ts) for ts in (
        [(ours[k] - exact[k]).abs().sum() for k in names], [exact[k].abs().sum() for k in names]
    )]  # fmt: skip
    assert found["0", "HesScale"] == pytest.approx(expected, rel=1e-9)
    assert found["2", "HesScale"][0] < 1e-10 < found["0", "exact behind a diagonal loss"][0]
    # Behind a loss that is diagonal, the same method is exact.
    critic = hs.losses.MeanSquaredError(torch.randn(6, 4, dtype=torch.float64))
    assert rl_approximation.errors(net, x, critic)["0", "exact behind a diagonal loss"][0] < 1e-10


def test_a_short_study_writes_its_figure_and_its_table(monkeypatch, tmp_path, capsys):
    name = tmp_path / "study"
    monkeypatch.setattr(rl_approximation, "MINIBATCHES", 1)
    flags = ["--env-id", "Pendulum-v1", "--seeds", "1", "2", "--total-timesteps", "4096", "--points", "2"]
    monkeypatch.setattr(sys, "argv", ["rl_approximation.py", *flags, "-o", str(name)])
    assert rl_approximation.main() == DONE
    assert "| HesScale |" in capsys.readouterr().out
    with open(f"{name}.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows} == {"2048", "4096"} and {row["seed"] for row in rows} == {"1", "2"}
    assert (tmp_path / "study.png").read_bytes()[:4] == b"\x89PNG"
    for row in rows:
        if row["method"] == "HesScale" and row["layer"] != "2":
            exact = row["layer"] in ("4", "5")
            assert (float(row["error"]) < 1e-9 * float(row["size"])) == exact
    values = [float(row["error"]) / float(row["size"]) for row in rows if row["method"] == "HesScale"]
    assert np.isfinite(values).all()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--env-id", "CartPole-v1"], "discrete actions"),
        (["--env-id", "NoSuchTask-v0"], "NoSuchTask"),
        (["--total-timesteps", "100"], "at least one rollout"),
    ],
)
def test_what_cannot_be_studied_is_refused(monkeypatch, capsys, tmp_path, flags, words):
    monkeypatch.setattr(sys, "argv", ["rl_approximation.py", *flags, "-o", str(tmp_path / "x")])
    assert rl_approximation.main() == BAD_INPUT
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())
