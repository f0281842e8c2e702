"""hesscale-rl check, and what is said of normalisers: lines that an environment's author can work with."""

import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from test_checking import GOOD, Point

from hesscale_rl.agents import a2c, ppo
from hesscale_rl.errors import BAD_INPUT, DONE, FAILED
from hesscale_rl.scripts import check, evaluate


class Right(Point):
    """All that one could ask for."""

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.x.copy(), {}

    def step(self, action):
        self.t += 1
        return (self.x / self.t).astype(np.float32), float(self.x[0]), False, self.t >= 10, {}

    def save_state(self):
        return {"x": self.x, "t": self.t}

    def load_state(self, state):
        self.x, self.t = state["x"], state["t"]


class Forgets(Right):
    def save_state(self):
        return {"x": self.x}

    def load_state(self, state):
        self.x = state["x"]


class Longer(Right):
    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {}


class Far(Right):
    action_space = gym.spaces.Box(100, 200, (1,), np.float32)

    def step(self, action):
        return GOOD * 20, 0.0, False, False, {}


def called(monkeypatch, capsys, module, *line):
    monkeypatch.setattr(sys, "argv", ["hesscale-rl", *line])
    return module.main(), capsys.readouterr()


@pytest.fixture
def mine():
    names = []

    def register(make):
        gym.register("Mine-v0", make)
        names.append("Mine-v0")

    yield register
    for name in names:
        del gym.registry[name]


@pytest.mark.parametrize(
    "kind, code, wrong, words",
    [
        (Right, DONE, 0, ["goes on to the same numbers", "Gymnasium's checker passes", "2 episodes, 20 steps"]),
        (Forgets, FAILED, 1, ["goes on to other numbers"]),
        (Longer, FAILED, 1, ["step() returned an observation: an array of shape (3,)", "Gymnasium's checker: "]),
        (
            Far,
            DONE,
            0,
            ["between 100 and 200", "2 episodes did not end within", "2,000 of 2,000 observations lie outside"],
        ),
    ],
)
def test_what_an_environment_is_told(mine, monkeypatch, capsys, kind, code, wrong, words):
    mine(kind)
    result, told = called(monkeypatch, capsys, check, "Mine-v0", "--episodes", "2")
    assert result == code and told.err == ""
    kinds = [line.split()[0] for line in told.out.splitlines()]
    assert {*kinds} <= {"good", "wrong", "note"} and kinds.count("wrong") == wrong, told.out
    assert all(word in told.out for word in words), told.out


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "CliffWalking-v1"])
def test_gymnasiums_own_are_good(monkeypatch, capsys, env_id):
    result, told = called(monkeypatch, capsys, check, env_id, "--episodes", "1")
    assert result == DONE, told.out


@pytest.mark.parametrize(
    "line, words",
    [
        (["Nope-v0"], "--env-id Nope-v0: no such environment"),
        (["CartPole-v1", "--episodes", "0"], "--episodes 0: must be at least 1"),
        (["CartPole-v1", "--env-kwargs", "wings=2"], "wings"),
        (["CartPole-v1", "--env-module", "no_such_module"], "cannot import no_such_module"),
    ],
)
def test_what_is_no_environment_is_a_line(monkeypatch, capsys, line, words):
    result, told = called(monkeypatch, capsys, check, *line)
    assert result == BAD_INPUT and words in told.err and told.err.count("\n") == 1 and told.out == ""


@pytest.mark.parametrize("wrapper", [gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward])
@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("agent", [ppo, a2c], ids=["ppo", "a2c"])
def test_a_normaliser_inside_is_told_by_training_and_evaluation(
    mine, tmp_path, monkeypatch, capsys, agent, num_envs, wrapper
):
    mine(lambda: wrapper(Right()))
    run = str(tmp_path / "run")
    args = replace(agent.Args(num_steps=8, total_timesteps=16), env_id="Mine-v0", num_envs=num_envs, run_dir=run)
    assert agent.main(replace(args, **({"num_minibatches": 1} if agent is ppo else {}))) == DONE
    words = f"--env-id Mine-v0: its {wrapper.__name__} keeps statistics that no checkpoint has"
    assert capsys.readouterr().err.count(words) == 1
    code, told = called(monkeypatch, capsys, evaluate, run, "--episodes", "1")
    assert code == DONE and told.err.count(words) == 1 and Path(run, "evaluation.json").exists()
