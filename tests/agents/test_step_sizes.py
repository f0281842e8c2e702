"""The step sizes that scaled optimizers set themselves, in whole runs."""

import json
from dataclasses import replace
from statistics import median

import pytest
import torch

from hesscale_rl.agents import a2c, ppo
from hesscale_rl.errors import DONE

PPO = ppo.Args(
    env_id="InvertedPendulum-v5",
    total_timesteps=4096,
    num_steps=128,
    num_minibatches=4,
    update_epochs=4,
    anneal_lr=False,
    desired_kl=0.03,
    quiet=True,
)
A2C = a2c.Args(
    env_id="InvertedPendulum-v5", total_timesteps=4096, log_interval=64, anneal_lr=False, desired_kl=0.03, quiet=True
)
AGENTS = pytest.mark.parametrize("agent, small", [(ppo, PPO), (a2c, A2C)], ids=["ppo", "a2c"])


@pytest.fixture(autouse=True)
def short_windows(monkeypatch):
    monkeypatch.setattr(a2c, "WINDOW", 128)


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "charts/SPS")} for line in lines]


def last(run, tag):
    return [line[tag] for line in metrics(run) if tag in line][-1]


def groups(run):
    saved = [torch.load(path, weights_only=True) for path in (run / "checkpoints").glob("*.pt")]
    return max(saved, key=lambda state: state["global_step"])["optimizer"]["param_groups"]


def late(run, tag):
    """The median of the run's last quarter."""
    values = [line[tag] for line in metrics(run) if tag in line]
    return median(values[-len(values) // 4 :])


@AGENTS
@pytest.mark.parametrize("optimizer", ["scaled-adahesscale", "scaled-adam"])
@pytest.mark.parametrize("start", [3e-7, 3e-4, 0.3])
def test_the_policy_soon_goes_as_far_as_it_should_wherever_the_step_size_begins(
    tmp_path, agent, small, optimizer, start
):
    args = replace(small, optimizer=optimizer, learning_rate=start, desired_kl=0.01, run_dir=str(tmp_path))
    assert agent.train(args) == DONE
    assert 0.01 / 2.5 < late(tmp_path, "losses/kl") < 0.01 * 2.5


@AGENTS
@pytest.mark.parametrize(
    "given", [{"desired_kl": None}, {"optimizer": "adahesscale"}, {"optimizer": "adam"}], ids=str
)
def test_a_step_size_is_kept_without_a_divergence_or_without_scaling(tmp_path, agent, small, given):
    args = replace(small, total_timesteps=256, run_dir=str(tmp_path), **given)
    assert agent.train(args) == DONE
    radius = None if "optimizer" in given else 1e-8
    assert [(g["lr"], g["delta"]) for g in groups(tmp_path)] == [(3e-4, radius)] * len(groups(tmp_path))
    assert not any("losses/kl" in line for line in metrics(tmp_path))


@AGENTS
def test_a_resumed_run_sets_the_step_sizes_that_it_would_have_set(tmp_path, agent, small):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    args = replace(small, total_timesteps=1024)
    assert agent.train(replace(args, run_dir=str(whole))) == DONE
    first = replace(args, total_timesteps=640, run_dir=str(parts))  # in the middle of a window of A2C's
    assert agent.train(first) == DONE
    assert agent.train(replace(args, run_dir=str(parts), resume=str(parts), accept_changes=True)) == DONE
    assert groups(whole) == groups(parts) and last(whole, "losses/kl") == last(parts, "losses/kl")


@AGENTS
def test_annealing_lets_the_divergence_fall(tmp_path, agent, small):
    ends = []
    for anneal in (False, True):
        run = tmp_path / str(anneal)
        assert agent.train(replace(small, anneal_lr=anneal, run_dir=str(run))) == DONE
        ends.append(late(run, "losses/kl"))
    assert ends[1] < ends[0] / 2  # an eighth is left in the midst of the last quarter


def test_the_radii_follow_from_the_desired_divergence(tmp_path):
    assert ppo.train(replace(PPO, total_timesteps=256, desired_kl=0.01, run_dir=str(tmp_path))) == DONE
    actor = next(group for group in groups(tmp_path) if group["name"] == "actor")
    assert actor["delta"] == pytest.approx(4 * 0.01 / 16**2)  # 4 epochs of 4 minibatches
