"""The programs of docs/examples learn."""

import importlib.util
from pathlib import Path
from statistics import mean

import pytest
import torch

import hesscale_rl as hs

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What is left of the loss at the end, the mean of the last five updates in parts of the first five's.
@pytest.mark.parametrize(("name", "left"), [("lstm", 0.7), ("transformer", 0.95), ("cnn", 0.7)])
def test_an_example_lowers_its_loss(name, left):
    losses = loaded(name).main()
    assert mean(losses[-5:]) < left * mean(losses[:5])


def test_an_agent_of_the_usual_shape_learns_by_three_lines():
    text = (EXAMPLES / "ppo_cleanrl.py").read_text()
    assert text.count("# HesScale") == 3
    rewards = loaded("ppo_cleanrl").main(8)
    assert rewards[-1] > rewards[0] + 0.5


def test_an_agent_of_stable_baselines3_learns_with_its_own_loop():
    pytest.importorskip("stable_baselines3", reason="needs stable_baselines3, the extra sb3")
    module = loaded("sb3_ppo")
    settings = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "device": "cpu", "seed": 1}
    kinds = {"optimizer_class": hs.AdaHesScale}
    model = module.HesScalePPO("MlpPolicy", "CartPole-v1", policy_kwargs=kinds, **settings).learn(64)
    start = module.PPO("MlpPolicy", "CartPole-v1", **settings).policy
    for p, before in zip(model.policy.parameters(), start.parameters(), strict=True):
        assert p.hess_diag.shape == p.shape and p.hess_diag.isfinite().all() and not torch.equal(p, before)
