"""Optimizers of other packages in the agents: what they do in torch they do here, and a run with them is resumed."""

import importlib
from dataclasses import replace

import pytest
import torch
from comparing import assert_equal
from torch import nn

from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.networks import mlp
from hesscale_rl.optim import make_optimizer
from hesscale_rl.optim.peers import MuonAdamW
from hesscale_rl.runs.checkpoint import newest_checkpoint

SMALL = {"env_id": "Pendulum-v1", "num_steps": 64, "total_timesteps": 256, "anneal_lr": False, "quiet": True}
PPO = ppo.Args(**SMALL, num_minibatches=2, update_epochs=2, checkpoint_interval=64)
FREE = "schedulefree:AdamWScheduleFree"
# Each with the flags that its users would give.
PEERS = {
    "torch.optim:AdamW": {"optimizer_kwargs": "weight_decay=0.01"},
    "torch.optim:SGD": {"optimizer_kwargs": "momentum=0.9,nesterov=True", "learning_rate": 1e-3},
    "hesscale_rl.optim.peers:MuonAdamW": {},
    FREE: {"optimizer_kwargs": '{"warmup_steps": 4}', "learning_rate": 2.5e-3},
    "prodigyopt:Prodigy": {"learning_rate": 1.0},
}


@pytest.fixture
def installed():
    def check(name):
        pytest.importorskip(name.partition(":")[0])

    return check


@pytest.mark.parametrize("name", PEERS)
def test_a_run_goes_on_to_the_same_numbers(tmp_path, installed, name):
    installed(name)
    args = replace(PPO, optimizer=name, **PEERS[name])
    assert ppo.train(replace(args, run_dir=str(tmp_path / "whole"))) == DONE
    half = str(tmp_path / "half")
    assert ppo.train(replace(args, run_dir=half, total_timesteps=128)) == DONE
    assert ppo.train(replace(args, run_dir=half, resume=half, accept_changes=True)) == DONE
    saved = [newest_checkpoint(tmp_path / run) | {"logs": None} for run in ("whole", "half")]
    assert_equal(*saved)
    assert saved[0]["global_step"] == 256


@pytest.mark.parametrize("agent", [a2c, trpo], ids=["a2c", "trpo"])
def test_every_agent_takes_them(tmp_path, agent):
    args = agent.Args(**SMALL, optimizer="torch.optim:RMSprop", run_dir=str(tmp_path / "run"))
    assert agent.train(args) == DONE
    assert any("square_avg" in state for state in newest_checkpoint(tmp_path / "run")["optimizer"]["state"].values())


def test_a_step_is_torchs_own():
    nets = [mlp([3, 8, 8, 2]) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    ours, curvature = make_optimizer(
        "torch.optim:AdamW", [{"params": list(nets[0].parameters()), "name": "net"}], lr=0.01, flags={"eps": 1e-3}
    )
    theirs = torch.optim.AdamW(nets[1].parameters(), lr=0.01, eps=1e-3)
    assert curvature is None and ours.eta == [1.0] and ours.param_groups[0]["name"] == "net"
    for _ in range(3):
        x = torch.randn(5, 3)
        for net, optimizer in zip(nets, (ours, theirs), strict=True):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_schedule_free_acts_with_its_average_and_learns_with_the_other(installed):
    """What it acts with is the mean of the iterates z, which start at the weights and move by -lr g for SGD."""
    installed(FREE)
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    ours, _ = make_optimizer(
        "schedulefree:SGDScheduleFree", [{"params": [w], "name": "w"}], lr=0.1, momentum=0.9, weight_decay=0.0
    )
    z, x, learns = 1.0, 1.0, []
    for t in range(1, 5):
        ours.zero_grad()
        y = 0.1 * z + 0.9 * x
        assert w.item() == pytest.approx(y, rel=1e-12)
        learns.append(w.item())
        (w.square() / 2).sum().backward()
        ours.step()
        z -= 0.1 * y
        x += (z - x) / t
        ours.acts()
        assert w.item() == pytest.approx(x, rel=1e-12)
    assert len({*learns}) == 4


def test_muon_takes_the_hidden_matrices_alone():
    net = mlp([3, 8, 8, 8, 2])
    optimizer = MuonAdamW([{"params": list(net.parameters()), "name": "net"}], lr=0.1)
    muon, adamw = optimizer._parts
    assert [tuple(p.shape) for p in muon.param_groups[0]["params"]] == [(8, 8), (8, 8)]
    assert len(adamw.param_groups[0]["params"]) == 6
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.param_groups[0]["lr"] = 0.0
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))  # the group's step size


class Rooted(torch.optim.SGD):
    def state_dict(self):
        return {"param_groups": object()}


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("torch.optim:AdamX", {}, "torch.optim has no class AdamX; did you mean torch.optim:Adam"),
        ("torch.optimm:Adam", {}, "cannot import torch.optimm"),
        ("torch.optim:", {}, "must be a name, or module:Class"),
        ("torch.optim:LBFGS", {}, "does not fit: cannot be made: LBFGS doesn't support per-parameter options"),
        ("torch.optim:SparseAdam", {}, "does not fit: its step() fails"),
        ("torch.optim:Muon", {}, "take hesscale_rl.optim.peers:MuonAdamW"),
        ("torch.optim:AdamW", {"optimizer_kwargs": "weight_dacay=1"}, "unexpected keyword argument 'weight_dacay'"),
        ("torch.optim:AdamW", {"optimizer_kwargs": "weight_decay=-1"}, "Invalid weight_decay value"),
        ("torch.nn:ReLU", {}, "does not fit: cannot be made"),
        (f"{__name__}:Rooted", {}, "its state cannot be saved and loaded"),
    ],
)
def test_a_class_that_does_not_fit_is_a_line_and_leaves_nothing(tmp_path, capsys, name, flags, words):
    assert ppo.main(replace(PPO, optimizer=name, run_dir=str(tmp_path / "run"), **flags)) == BAD_INPUT
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_run_does_not_import_a_module_of_anybodys_when_it_goes_on(tmp_path, capsys):
    """Its config.json is a file that may come from anywhere; packages of optimizers that are known may be named."""
    args = replace(PPO, run_dir=str(tmp_path), total_timesteps=64)
    assert ppo.train(args) == DONE
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"scaled-adahesscale"', '"evil_module:Adam"'))
    with pytest.raises(SystemExit) as stop:
        ppo.parse(ppo.Args, ppo.PRESETS, ["--resume", str(tmp_path)], "agent")
    assert stop.value.code == BAD_INPUT and "has the module evil_module imported" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("evil_module")
