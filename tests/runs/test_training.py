"""`hesscale_rl.train`: what the command does, from Python, with a policy that acts."""

import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

import hesscale_rl as hs
from hesscale_rl.agents import ppo
from hesscale_rl.errors import DONE, InputError
from hesscale_rl.playing import read_run
from hesscale_rl.runs.progress import Progress

NOTEBOOK = Path(__file__).parents[2] / "docs" / "examples" / "train.ipynb"
SMALL = dict(total_timesteps=128, num_steps=64, num_minibatches=2, update_epochs=1, quiet=True)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Grid(gym.Env):
    """A Dict of what is seen, and a number that `step` raises at."""

    observation_space = gym.spaces.Dict({"at": gym.spaces.Discrete(4), "wind": gym.spaces.Box(-1, 1, (2,))})
    action_space = gym.spaces.Discrete(2)
    closed, fails = 0, None

    def __init__(self, size=4):
        self.size, self.steps = size, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self.seen(), {}

    def seen(self):
        return {"at": self.at, "wind": np.zeros(2, np.float32)}

    def step(self, action):
        self.steps += 1
        if self.steps == self.fails:
            raise ZeroDivisionError("the wind")
        self.at = (self.at + int(action)) % 4
        return self.seen(), float(action), self.at == 3, self.steps % 10 == 0, {}

    def close(self):
        Grid.closed += 1


def numbers(run):
    rows = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in ("time", "charts/SPS")} for row in rows]


def test_it_is_the_command(capsys):
    seen = []
    result = hs.train("ppo", env_id="CartPole-v1", callback=lambda *told: seen.append(told), run_dir="py", **SMALL)
    assert ppo.train(ppo.Args(env_id="CartPole-v1", run_dir="cli", **SMALL)) == DONE
    assert numbers("py") == numbers("cli") and capsys.readouterr().out == ""
    assert (result.status, result.step, result.directory) == ("done", 128, Path("py"))
    assert [step for step, _ in seen] == [row["global_step"] for row in result.metrics]
    steps, values = result.curve("losses/value_loss")
    assert steps.tolist() == [64, 128] and values.tolist() == [f["losses/value_loss"] for _, f in seen if len(f) > 5]
    with pytest.raises(KeyError, match="did you mean 'losses/value_loss'"):
        result.curve("losses/valu_loss")


def test_the_policy_acts_as_evaluation_does():
    result = hs.train(env_id="Pendulum-v1", **SMALL)
    policy, env, _, saved = read_run(result.directory)
    assert result.policy.step == 128 and result.policy.returns == saved["recent"]
    obs, _ = env.reset(seed=3)
    action = result.policy.act(obs.astype(np.float32))
    assert action == policy.to_env(policy.act(policy.obs_norm.normalize(obs.astype(np.float32))[None], None))[0]
    assert env.action_space.contains(action) and env.action_space.contains(result.policy.act(obs, sampled=True))
    with pytest.raises(ValueError, match=r"an array of shape \(2,\).*expected: Box of shape \(3,\)"):
        result.policy.act(np.zeros(2))


def test_an_environment_or_what_makes_one_takes_the_place_of_a_name():
    env = Grid()
    one = hs.train(env=env, **SMALL)
    assert one.directory.name.startswith("Grid__ppo__1__") and Grid.closed == 0
    two = hs.train(env=lambda **given: Grid(**given), env_kwargs={"size": 4}, num_envs=2, eval_interval=64, **SMALL)
    assert two.directory.name.startswith("own__ppo") and Grid.closed > 2
    three = hs.train(env=Grid, run_dir=Path("three"), **SMALL)
    assert numbers(three.directory) == numbers(one.directory)
    for result in (one, two):
        assert result.policy.act(env.reset()[0]) in (0, 1)
    assert two.best.step in (64, 128)


def test_a_callback_ends_it_and_it_goes_on():
    whole = hs.train(env=Grid, run_dir="whole", **SMALL)
    half = hs.train(env=Grid, run_dir="half", callback=lambda step, figures: step < 64, **SMALL)
    assert (half.status, half.step) == ("interrupted", 64)
    again = hs.train("ppo", env=Grid, resume="half", quiet=True)
    assert (again.status, again.step) == ("done", 128) and again.directory == Path("half")
    assert len(again.metrics) >= len(whole.metrics)


def test_an_environment_that_fails_is_an_error_and_what_was_learnt_is_kept():
    env = Grid()
    env.fails = 100
    with pytest.raises(RuntimeError, match=r"step\(\) raised ZeroDivisionError: the wind.*resume='here'"):
        hs.train(env=env, run_dir="here", **SMALL)
    assert hs.load("here").step == 99
    env.steps, env.fails = 0, 1
    with pytest.raises(InputError, match="the wind"):
        hs.train(env=env, run_dir="there", **SMALL)
    assert not Path("there").exists()


@pytest.mark.parametrize(
    "agent, flags, words",
    [
        ("pppo", {}, "agent 'pppo': did you mean 'ppo'"),
        ("ppo", {"env": "CartPole-v1", "env_id": "Mine"}, "a name is env_id"),
        ("ppo", {"env": Grid(), "env_id": "CartPole-v1"}, "Gymnasium knows another by this name"),
        (
            "ppo",
            {"env": Grid(), "env_id": None, "num_envs": 2},
            "is a single environment; give a function that makes one",
        ),
        ("ppo", {"env": Grid(), "env_id": None, "eval_interval": 64}, "is a single environment; give a function"),
        ("ppo", {"env": lambda: 3, "env_id": "Three"}, "returned int, which is no gymnasium.Env"),
        ("ppo", {"env": lambda: 1 / 0, "env_id": "Zero"}, "cannot be made: division by zero"),
        ("ppo", {"total_timestep": 3}, "total_timestep: ppo has no such argument; did you mean 'total_timesteps'"),
        ("ppo", {"seed": "one"}, "seed 'one': must be int"),
        ("ppo", {"seed": 1.5}, "seed 1.5: must be int"),
        ("ppo", {"env_kwargs": {"size": object()}}, "env_kwargs {'size':"),
        ("ppo", {"preset": "papr"}, "did you mean 'paper'"),
        ("ppo", {"env_id": "Hoper-v5"}, "did you mean Hopper-v5"),
        ("ppo", {"learning_rate": 0}, "--learning-rate 0.0: must be a positive number"),
        ("ppo", {"resume": "nowhere"}, "--resume nowhere: not a run directory"),
    ],
)
def test_what_cannot_be_is_a_line_and_leaves_nothing(agent, flags, words):
    with pytest.raises(InputError, match=".") as error:
        hs.train(agent, **{k: v for k, v in (SMALL | {"env_id": "CartPole-v1"} | flags).items() if v is not None})
    assert words in str(error.value) and not [*Path().iterdir()]


def test_numbers_of_every_kind_are_taken():
    given = SMALL | {"total_timesteps": 128.0, "seed": np.int64(3), "learning_rate": 1, "betas": (0.9, 0.99)}
    result = hs.train(
        "a2c",
        env_id="CartPole-v1",
        optimizer_kwargs={"average": 0.9},
        preset="paper",
        **{name: value for name, value in given.items() if name not in ("num_minibatches", "update_epochs")},
    )
    config = json.loads((result.directory / "config.json").read_text())
    assert (config["seed"], config["preset"], config["optimizer_kwargs"]) == (3, "paper", '{"average": 0.9}')


def test_a_notebook_has_one_line_that_changes(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    display, shell = ModuleType("IPython.display"), SimpleNamespace(kernel=1)
    display.display = lambda data, raw, display_id: handle
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    out = io.StringIO()
    with Progress(100, console=Console(file=out)) as progress:
        progress.update(50, 3.0)
        progress.update(100, 5.0)
    assert shown[0].startswith(" 50%  50/100  return 3") and shown[-1].startswith("100%  100/100  return 4")
    assert out.getvalue() == "" and len(shown) == 2
    del shell.kernel  # IPython in a terminal
    assert Progress(100, console=Console(file=out)).cell is None


def test_the_example_notebook_runs_as_printed():
    """Its cells in one namespace, by Python itself; a kernel would take ten seconds to start."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    names = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    assert names["result"].status == "done" and names["steps"] > 0
