"""evaluate, export and doctor: what a run has learned, outside of training."""

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from hesscale_rl import agents, envs
from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.playing import read_run
from hesscale_rl.rl.episode import episode
from hesscale_rl.rl.rollout import Rollout
from hesscale_rl.runs.checkpoint import checkpoints
from hesscale_rl.scripts import cli, doctor, evaluate, export
from hesscale_rl.scripts.sweeping import spec as grid

PPO = ppo.Args(env_id="Hopper-v5", total_timesteps=512, num_steps=256, num_minibatches=4, update_epochs=2, quiet=True)
TRPO = trpo.Args(
    env_id="Hopper-v5", total_timesteps=512, num_steps=256, num_minibatches=4, update_epochs=2, quiet=True
)
A2C = a2c.Args(env_id="CartPole-v1", total_timesteps=512, quiet=True)
RUNS = {
    "ppo-parameter": (ppo, PPO),
    "ppo-network": (ppo, replace(PPO, std="network")),
    "ppo-shared": (ppo, replace(PPO, std="shared")),
    "a2c-categorical": (a2c, A2C),
    "trpo-network": (trpo, replace(TRPO, std="network")),
    "a2c-raw": (a2c, replace(A2C, env_id="Pendulum-v1", std="log-variance", normalize=False)),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Gives the run directory of a name of RUNS, trained when it is first asked for."""
    directories = {}

    def directory(name):
        if name not in directories:
            (agent, args), path = RUNS[name], tmp_path_factory.mktemp(name) / "run"
            assert agent.train(replace(args, run_dir=str(path))) == DONE
            directories[name] = path
        return directories[name]

    return directory


@pytest.fixture(params=RUNS)
def run(request, runs):
    return runs(request.param)


def call(module, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, flags)])
    return module.main()


def test_a_loaded_policy_plays_as_the_live_one(run, monkeypatch, capsys):
    policy, env, args, _ = read_run(run)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    assert call(evaluate, monkeypatch, run, "--episodes", 3, "--seed", 7) == DONE
    assert capsys.readouterr().out.startswith("return ")
    written = json.loads((run / "evaluation.json").read_text())
    live = [episode(policy, env, seed)[0] for seed in (7, 8, 9)]
    assert written["returns"] == live and written["seeds"] == [7, 8, 9]
    # The normaliser has not moved, and an episode does not depend on those before it.
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert episode(policy, env, 8)[0] == live[1]
    assert call(evaluate, monkeypatch, run, "--episodes", 1, "--sampled") == DONE


def test_an_agent_is_one_file_that_every_command_finds(monkeypatch, capsys, tmp_path):
    (tmp_path / "newton.py").write_text(Path(trpo.__file__).read_text())
    monkeypatch.setattr(agents, "__path__", [*agents.__path__, str(tmp_path)])
    (tmp_path / "spec.toml").write_text("[[settings]]\nagent = 'newton'\ntarget_kl = [0.01, 0.02]\n")
    names = [run.name.split("__")[0] for run in grid.read(tmp_path / "spec.toml")]
    assert names == ["newton", "newton"] and cli.run(["--help"]) == DONE
    assert "agents: a2c, newton, ppo, trpo" in capsys.readouterr().out
    newton, run = importlib.import_module("hesscale_rl.agents.newton"), tmp_path / "run"
    args = newton.Args(**{**asdict(TRPO), "run_dir": str(run)})
    assert newton.main(replace(args, total_timesteps=256)) == DONE
    assert newton.main(replace(args, resume=str(run), accept_changes=True)) == DONE
    assert call(evaluate, monkeypatch, run, "--episodes", 1) == DONE
    assert call(export, monkeypatch, run) == DONE
    sys.modules.pop("hesscale_rl.agents.newton")
    with pytest.raises(SystemExit) as stop:
        cli.run(["train", "newton", "--cg-damping", "-1"])
    assert stop.value.code == BAD_INPUT and "--cg-damping -1.0: must be" in capsys.readouterr().err


def test_the_live_agents_policy_gives_the_same_returns(tmp_path):
    """The policy object that training ends with, against the one that is read from its checkpoint."""
    kept = []
    make = ppo.make_policy

    def keep(*args):
        kept.append(make(*args))
        return kept[-1]

    ppo.make_policy, run = keep, tmp_path / "run"
    try:
        assert ppo.train(replace(PPO, run_dir=str(run))) == DONE
    finally:
        ppo.make_policy = make
    loaded, env, _, _ = read_run(run)
    for sampled in (False, True):
        played = [
            episode(policy, env, 3, np.random.default_rng(0) if sampled else None) for policy in (kept[0], loaded)
        ]
        assert played[0] == played[1]


ACT = """
import sys, numpy, torch
for folder in sys.argv[1:]:
    act = torch.export.load(folder + "/policy.pt2").module()
    obs = torch.from_numpy(numpy.load(folder + "/obs.npy"))
    numpy.save(folder + "/actions.npy", torch.cat([act(obs[:1]), act(obs[1:])]).numpy())
assert not {"hesscale_rl", "gymnasium"} & sys.modules.keys()
"""


@pytest.mark.slow
def test_exported_files_act_as_the_policy_with_torch_alone(runs, monkeypatch, capsys, tmp_path):
    expected = {}
    for run in map(runs, RUNS):
        assert call(export, monkeypatch, run) == DONE
        assert capsys.readouterr().out.count("largest difference") == 2
        policy, env, _, _ = read_run(run)
        obs = np.stack([env.reset(seed=seed)[0] for seed in range(5)]).astype(np.float64)
        np.save(run / "export" / "obs.npy", obs)
        expected[run / "export"] = export.act(policy, obs)
    command = [sys.executable, "-c", ACT, *map(str, expected)]
    subprocess.run(command, check=True, cwd=tmp_path, env={"PATH": "/usr/bin"})
    for folder, actions in expected.items():
        np.testing.assert_allclose(np.load(folder / "actions.npy"), actions, rtol=0, atol=1e-6, err_msg=folder)


class Wide(gym.Env):
    """Takes actions of any size."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1e4, 1e4, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, bool(self.np_random.random() < 0.1), {}


def test_a_policy_is_exported_whatever_the_size_of_its_actions(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(gym.registry, "Wide-v0", gym.envs.registration.EnvSpec("Wide-v0", Wide))
    run = tmp_path / "run"
    assert ppo.train(replace(PPO, env_id="Wide-v0", run_dir=str(run))) == DONE
    path = checkpoints(run / "checkpoints")[-1]
    saved = torch.load(path, weights_only=True)
    saved["policy"]["actor.4.bias"] += 7000.0
    torch.save(saved, path)
    assert call(export, monkeypatch, run) == DONE
    assert "largest difference" in capsys.readouterr().out


def test_actions_stay_within_the_bounds_also_when_exported(run):
    policy, env, _, _ = read_run(run)
    wild = torch.randn(50, *env.observation_space.shape, dtype=torch.float64) * 1e3
    for action in policy(wild).detach().numpy():
        assert env.action_space.contains(np.asarray(action, dtype=env.action_space.dtype))


def test_a_start_of_discrete_actions_is_counted():
    import gymnasium as gym

    class Counted(gym.Env):
        observation_space, action_space = gym.spaces.Box(0, 1, (2,)), gym.spaces.Discrete(3, start=5)
        taken = set()

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(2, dtype=np.float32), {}

        def step(self, action):
            self.taken.add(int(action))
            return np.zeros(2, dtype=np.float32), 0.0, False, False, {}

    vector = envs.vector.Envs(Counted())
    policy = ppo.make_policy(vector.observation_space, vector.action_space, PPO)
    Rollout(vector, policy, np.random.SeedSequence(0)).collect(60, lambda *e: None)
    assert Counted.taken == {5, 6, 7}
    assert int(policy(torch.zeros(1, 2, dtype=torch.float64))[0]) in Counted.taken


@pytest.mark.parametrize("module", [evaluate, export])
def test_what_is_no_run_is_named(module, monkeypatch, capsys, tmp_path):
    assert call(module, monkeypatch, tmp_path) == BAD_INPUT
    assert f"{tmp_path}: not a run directory" in (line := capsys.readouterr().err) and line.count("\n") == 1
    (tmp_path / "meta.json").write_text('{"agent": "os"}')
    assert call(module, monkeypatch, tmp_path) == BAD_INPUT
    assert "made by the agent 'os'" in capsys.readouterr().err


def test_a_missing_extra_is_named(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert call(evaluate, monkeypatch, run, "--video") == BAD_INPUT
    assert "pip install 'hesscale-rl[video]'" in capsys.readouterr().err
    assert call(export, monkeypatch, run, "--onnx") == BAD_INPUT
    assert "pip install 'hesscale-rl[export]'" in capsys.readouterr().err


def test_the_doctor_says_what_works(capsys, monkeypatch):
    def broken():
        raise RuntimeError("no such thing")

    monkeypatch.setattr(doctor, "CHECKS", doctor.CHECKS | {"GL": (broken, False)})
    assert doctor.examine(argparse.Namespace()) == 0
    out = capsys.readouterr().out
    assert "torch" in out and "GL         no: RuntimeError: no such thing" in out and "equals autodiff's" in out
    monkeypatch.setattr(doctor, "CHECKS", doctor.CHECKS | {"MuJoCo": (broken, True)})
    assert doctor.examine(argparse.Namespace()) == 1
