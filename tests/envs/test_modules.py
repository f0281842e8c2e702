"""A user's own modules, whatever they are called and whatever they do."""

import os
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import pytest

from hesscale_rl import envs
from hesscale_rl.agents import ppo
from hesscale_rl.errors import BAD_INPUT, DONE, InputError
from hesscale_rl.runs.command_line import read_kwargs

MINE = """
import gymnasium as gym, numpy as np
class Mine(gym.Env):
    observation_space, action_space = gym.spaces.Box(-5, 5, (2,)), gym.spaces.Discrete(2)
    def __init__(self, size=1):
        self.size = size
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.full(2, self.size, np.float32), {}
    def step(self, action):
        return np.full(2, self.size, np.float32), 1.0, True, False, {}
"""
TEXT = "import gymnasium as gym\ngym.register('Mine-v0', entry_point='NAME:Mine')\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder where a user stands, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before, path = {*sys.modules}, [*sys.path]
    yield tmp_path
    sys.path[:] = path
    gym.registry.pop("Mine-v0", None)
    for name in {*sys.modules} - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_text_entry_point_is_found_where_the_user_stands(place):
    (place / "my_point.py").write_text(MINE)
    (place / "my_names.py").write_text(TEXT.replace("NAME", "my_point"))
    assert envs.make("Mine-v0", "my_names", None, "size=3").reset(seed=0)[0].tolist() == [3, 3]
    assert envs.make_vector("Mine-v0", 2, "my_names", 0, '{"size": 2}').reset([0, 1]).tolist() == [[2, 2]] * 2


def test_a_users_own_packages_may_have_the_commonest_names(place):
    for name in ("agents", "envs", "scripts", "studies"):
        (place / name).mkdir()
        (place / name / "__init__.py").touch()
    (place / "envs" / "points.py").write_text(MINE)
    (place / "envs" / "mine.py").write_text("import envs.points\n" + TEXT.replace("NAME", "envs.points"))
    for _ in range(2):
        assert envs.make("Mine-v0", "envs.mine").reset(seed=0)[0].tolist() == [1, 1]
    assert sys.modules["envs.points"].__file__ == str(place / "envs" / "points.py")
    assert envs.make("URReacher-v0").observation_space.shape == (8,)


@pytest.mark.parametrize(
    "code, words",
    [
        ("import sys; sys.exit(3)", "sys.exit(3) while it was imported; keep it under if __name__"),
        (
            "import argparse; argparse.ArgumentParser().parse_args(['--run-dir', 'a'])",
            "unrecognized arguments: --run",
        ),
        ("raise KeyError", "KeyError"),
        ("import no_such_thing", "No module named 'no_such_thing'"),
        ("def", "invalid syntax"),
    ],
)
def test_a_module_that_cannot_be_imported_is_a_line(place, capsys, code, words):
    (place / "my_odd.py").write_text(code)
    assert ppo.main(ppo.Args(env_id="CartPole-v1", env_module="my_odd", total_timesteps=2048)) == BAD_INPUT
    line = capsys.readouterr().err
    assert line.startswith("--env-module my_odd: cannot import my_odd: ") and words in line and line.count("\n") == 1


def test_a_module_that_goes_elsewhere_leaves_us_where_we_are(place):
    (place / "my_point.py").write_text("import os; os.chdir('/')\n" + MINE)
    (place / "my_names.py").write_text("import my_point\n" + TEXT.replace("NAME", "my_point"))
    assert envs.make("Mine-v0", "my_names").unwrapped.size == 1
    assert os.getcwd() == str(place)


def test_folders_called_as_ours_on_the_path_break_nothing(tmp_path):
    for name in ("envs", "agents", "scripts", "studies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')")
    how = dict(cwd=tmp_path, capture_output=True, text=True, timeout=120)
    how["env"] = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "hesscale_rl", "train", "ppo", "--num-steps", "7"], **how)
    assert done.returncode == BAD_INPUT and "--num-minibatches" in done.stderr and done.stderr.count("\n") == 1
    done = subprocess.run([sys.executable, "-m", "hesscale_rl", "train", "ppo", "--env-id", "Nope-v0"], **how)
    assert done.returncode == BAD_INPUT and "--env-id Nope-v0: no such environment" in done.stderr


@pytest.mark.parametrize(
    "text, value",
    [
        (None, {}),
        ("", {}),
        ('{"a": 1, "b": [1, 2], "c": {"d": null}}', {"a": 1, "b": [1, 2], "c": {"d": None}}),
        ("a=1", {"a": 1}),
        ("a=1.5, b = word,c=true,d=False,e=None", {"a": 1.5, "b": "word", "c": True, "d": False, "e": None}),
    ],
)
def test_arguments_of_environments(text, value):
    assert read_kwargs(text) == value


@pytest.mark.parametrize("text", ["a", "{a: 1}", "=1", "a=1,,b=2", "{", "1a=2", "{} {}"])
def test_arguments_that_are_none(text, capsys):
    assert ppo.main(ppo.Args(env_id="CartPole-v1", env_kwargs=text)) == BAD_INPUT
    line = capsys.readouterr().err
    assert line.startswith(f"--env-kwargs {text}: ") and line.count("\n") == 1


def test_arguments_that_an_environment_does_not_take():
    with pytest.raises(InputError, match="--env-id CartPole-v1 --env-kwargs wings=2: cannot be made: .*wings"):
        envs.make("CartPole-v1", env_kwargs="wings=2")


def test_arguments_of_the_environment_are_recorded_and_resumed(tmp_path, place):
    (place / "my_point.py").write_text(MINE)
    (place / "my_names.py").write_text(TEXT.replace("NAME", "my_point"))
    args = ppo.Args(env_id="Mine-v0", env_module="my_names", env_kwargs="size=2", quiet=True, run_dir="run")
    args = replace(args, num_steps=16, total_timesteps=16, num_minibatches=1, update_epochs=1)
    assert ppo.main(args) == DONE
    from hesscale_rl.runs.checkpoint import read_config

    assert read_config("run", ppo.Args) == args
    from hesscale_rl.playing import read_run

    assert read_run(place / "run", None, None, True)[1].unwrapped.size == 2
    config = (place / "run" / "config.json").read_text()
    (place / "run" / "config.json").write_text(config.replace('"env_kwargs": "size=2",', ""))
    assert read_config("run", ppo.Args) == replace(args, env_kwargs=None)  # of an earlier version
