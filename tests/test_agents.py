"""The PPO agent as its user meets it: commands, files, exit codes; and what its parts promise."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import ppo
from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE, INTERRUPTED, InputError
from hesscale_rl.networks import Heads
from hesscale_rl.optim import OPTIMIZER_NAMES

AGENT = Path(ppo.__file__)
SMALL = ppo.Args(
    env_id="Hopper-v5", total_timesteps=256, num_steps=128, num_minibatches=4, update_epochs=2, quiet=True
)


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "charts/SPS")} for line in lines]


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


@pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
@pytest.mark.parametrize("std", ["parameter", "network"])
def test_every_optimizer_changes_every_network(tmp_path, optimizer, std):
    args = replace(SMALL, optimizer=optimizer, std=std, run_dir=str(tmp_path))
    torch.manual_seed(args.seed)
    before = ppo.Policy(gym.make(args.env_id), args).state_dict()
    assert ppo.train(args) == DONE
    saved = torch.load(tmp_path / "checkpoints" / "step_256.pt", weights_only=True)
    for name, value in saved["policy"].items():
        assert value.isfinite().all()
        if name.startswith(("actor", "critic")):
            assert not torch.equal(value, before[name]), name
    last = metrics(tmp_path)[-1]
    network = "mean" if std == "network" else "actor"
    assert 0 < last[f"optim/eta_{network}"] <= 1
    needs = optimizer.startswith("scaled-") or optimizer.startswith("ada") and optimizer != "adam"
    assert (f"curvature/frac_negative_{network}" in last) == needs


def test_one_seed_gives_the_same_metrics_and_weights_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert ppo.train(replace(SMALL, seed=seed, run_dir=str(tmp_path / name))) == DONE
    a, b, c = (torch.load(tmp_path / n / "checkpoints" / "step_256.pt", weights_only=True)["policy"] for n in "abc")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != metrics(tmp_path / "c")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_files_and_returns(tmp_path):
    assert ppo.train(replace(SMALL, run_dir=str(tmp_path))) == DONE
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "meta.json", "status.json", "metrics.jsonl", "checkpoints", "ppo.py"} <= names
    assert status(tmp_path)["status"] == "done"
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"] == SMALL.optimizer
    episodes = [line for line in metrics(tmp_path) if "charts/episodic_return" in line]
    lengths = [line["charts/episodic_length"] for line in episodes]
    assert episodes and episodes[-1]["global_step"] == sum(lengths) <= 256


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"env_id": "HalfCheeta-v5"}, ["--env-id", "HalfCheetah-v5"]),
        ({"env_id": "CartPole-v1"}, ["--env-id", "Discrete"]),
        ({"num_minibatches": 5}, ["--num-minibatches 5", "--num-steps 128"]),
        ({"num_minibatches": 128}, ["--num-minibatches 128", "advantages"]),
        ({"learning_rate": -1e-3}, ["--learning-rate -0.001", "positive"]),
        ({"learning_rate": math.nan}, ["--learning-rate nan", "positive"]),
        ({"delta": 0.0}, ["--delta 0.0", "positive"]),
        ({"delta": -1e-8}, ["--delta -1e-08", "positive"]),
        ({"optimizer": "adamw"}, ["--optimizer adamw", "scaled-adahesscale"]),
        ({"preset": "papr"}, ["--preset papr", "paper"]),
        ({"std": "fixed"}, ["--std fixed", "network"]),
        ({"betas": (0.9, 1.0)}, ["--betas", "[0, 1)"]),
        ({"gamma": 1.5}, ["--gamma 1.5", "between 0 and 1"]),
        ({"total_timesteps": 100}, ["--total-timesteps 100", "128"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert ppo.main(replace(SMALL, **flags)) == BAD_INPUT
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def test_a_full_run_directory_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        ppo.train(replace(SMALL, run_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_diverged_run_keeps_its_curve(tmp_path):
    args = replace(SMALL, optimizer="sgd", learning_rate=1e30, max_grad_norm=0.0, total_timesteps=1280)
    assert ppo.train(replace(args, run_dir=str(tmp_path))) == DIVERGED
    assert status(tmp_path)["status"] == "diverged" and "finite" in status(tmp_path)["reason"]
    assert any("charts/episodic_return" in line for line in metrics(tmp_path))


@pytest.mark.parametrize("broken", ["observation", "reward"])
def test_a_broken_environment_ends_as_diverged(tmp_path, monkeypatch, broken):
    make = ppo.envs.make

    class Broken(gym.Wrapper):
        steps = 0

        def step(self, action):
            obs, reward, *rest = super().step(action)
            self.steps += 1
            if self.steps == 150:
                obs, reward = (obs * np.nan, reward) if broken == "observation" else (obs, math.nan)
            return obs, reward, *rest

    monkeypatch.setattr(ppo.envs, "make", lambda env_id: Broken(make(env_id)))
    assert ppo.train(replace(SMALL, run_dir=str(tmp_path))) == DIVERGED
    assert broken in status(tmp_path)["reason"]


def test_an_interrupted_run_saves_its_weights(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ppo, "update", interrupt)
    assert ppo.train(replace(SMALL, run_dir=str(tmp_path))) == INTERRUPTED
    assert status(tmp_path)["status"] == "interrupted"
    assert torch.load(tmp_path / "checkpoints" / "step_128.pt", weights_only=True)["global_step"] == 128


class Corridor(gym.Env):
    """Reward 1 a step for ten steps, then the end that `truncate` says; the observation is the time."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))
    truncate = True

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1), {}

    def step(self, action):
        self.t += 1
        over = self.t == 10
        return np.full(1, float(self.t)), 1.0, over and not self.truncate, over and self.truncate, {}


@pytest.mark.parametrize("truncate", [True, False])
def test_a_truncation_is_bootstrapped_with_the_final_observation_and_a_termination_is_not(truncate):
    env = Corridor()
    env.truncate = truncate
    args = replace(SMALL, gae_lambda=0.0, gamma=0.5, num_steps=40, std="shared")
    policy = ppo.Policy(env, args)
    ended = []
    steps = ppo.Rollout(env, policy, args, np.random.SeedSequence(0)).collect(lambda *e: ended.append(e))
    batch = ppo.prepare(policy, steps, args)
    assert ended == [(10, 10.0, 10), (20, 10.0, 10), (30, 10.0, 10), (40, 10.0, 10)]
    assert list(np.flatnonzero(steps["done"])) == [9, 19, 29, 39]
    assert steps["next_obs"][9] != steps["obs"][10]  # the final observation, not the next episode's first
    with torch.no_grad():
        after = policy.critic(torch.from_numpy(steps["next_obs"]))[9, 0]
    expected = steps["rewards"][9] + (0.5 * float(after) if truncate else 0.0)
    assert abs(float(after)) > 1e-3
    # float32 throughout
    assert float(batch["returns"][9]) == pytest.approx(expected, rel=1e-5)


def test_log_probabilities_are_those_of_the_actions_taken():
    env = gym.make("Hopper-v5")
    for std in ("parameter", "shared", "network"):
        args = replace(SMALL, std=std)
        policy = ppo.Policy(env, args)
        batch = ppo.prepare(policy, ppo.Rollout(env, policy, args, np.random.SeedSequence(0)).collect(print), args)
        with torch.no_grad():
            mean, p = policy.actor(batch["obs"]).chunk(2, 1)
        deviation = p.sqrt() if std == "network" else p.exp()
        expected = torch.distributions.Normal(mean, deviation).log_prob(batch["actions"]).sum(1)
        # float32 throughout
        assert torch.allclose(batch["logprob"], expected, atol=1e-4)


def test_the_paper_preset_yields_to_flags_and_gives_every_network_its_group():
    args = ppo.parse(["--preset", "paper", "--lr", "0.01"])
    assert (args.learning_rate, args.anneal_lr, args.max_grad_norm, args.std) == (0.01, False, 0.0, "network")
    policy = ppo.Policy(gym.make("Hopper-v5"), args)
    assert isinstance(policy.actor, Heads)
    assert [group["name"] for group in policy.groups()] == ["mean", "variance", "critic"]
    params = [id(p) for group in policy.groups() for p in group["params"]]
    assert sorted(params) == sorted(id(p) for p in policy.parameters())


def test_help_answers_before_torch_is_imported():
    code = "import sys, runpy\nsys.argv = ['ppo.py', '--help']\n"
    code += f"try:\n    runpy.run_path({str(AGENT)!r}, run_name='__main__')\n"
    code += "except SystemExit:\n    print('torch' in sys.modules)\n"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "--optimizer" in out.stdout and out.stdout.endswith("False\n"), out.stderr


def test_a_real_command_leaves_no_traceback_and_exits_with_2(tmp_path):
    command = [sys.executable, str(AGENT), "--env-id", "Hoper-v5"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert out.returncode == BAD_INPUT and out.stderr.count("\n") == 1 and "Hopper-v5" in out.stderr
    assert list(tmp_path.iterdir()) == []
