"""The agents as their user meets them: commands, files, exit codes; and what their parts promise."""

import copy
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

import hesscale_rl as hs
from hesscale_rl import envs
from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.envs.vector import Envs, NextStep
from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE, InputError
from hesscale_rl.networks import Heads
from hesscale_rl.optim import find, names
from hesscale_rl.rl.rollout import Rollout

PPO = ppo.Args(env_id="Hopper-v5", total_timesteps=256, num_steps=128, num_minibatches=4, update_epochs=2, quiet=True)
A2C = a2c.Args(env_id="Hopper-v5", total_timesteps=256, log_interval=64, quiet=True)
TRPO = trpo.Args(
    env_id="Hopper-v5", total_timesteps=256, num_steps=128, num_minibatches=4, update_epochs=2, quiet=True
)
AGENTS = pytest.mark.parametrize("agent, small", [(ppo, PPO), (a2c, A2C), (trpo, TRPO)], ids=["ppo", "a2c", "trpo"])


def last_checkpoint(run: Path) -> dict:
    [path] = sorted((run / "checkpoints").glob("*.pt"))[-1:]
    return torch.load(path, weights_only=True)


def new_policy(agent, args):
    env = envs.make(args.env_id)
    return agent.make_policy(env.observation_space, env.action_space, args)


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "charts/SPS")} for line in lines]


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


@AGENTS
@pytest.mark.parametrize("optimizer", [*names()])
@pytest.mark.parametrize("std", ["parameter", "network"])
def test_every_optimizer_changes_every_network(tmp_path, agent, small, optimizer, std):
    args = replace(small, optimizer=optimizer, std=std, total_timesteps=128, iterations=3, run_dir=str(tmp_path))
    torch.manual_seed(args.seed)
    new = new_policy(agent, args)
    before, learned = new.state_dict(), [group["name"] for group in new.groups()]
    assert agent.train(args) == DONE
    saved = last_checkpoint(tmp_path)
    for name, value in saved["policy"].items():
        assert value.isfinite().all()
        if name.startswith(("actor", "critic")):
            assert not torch.equal(value, before[name]), name
    last = metrics(tmp_path)[-1]
    assert all(0 < last[f"optim/eta_{name}"] <= 1 for name in learned)
    found = find(optimizer)
    reads = found.scaled or found.declaration.always
    needs = reads and found.declaration.curvature_name == "hess_diag"
    assert all((f"curvature/frac_negative_{name}" in last) == needs for name in learned)


@AGENTS
def test_one_seed_gives_the_same_metrics_and_weights_and_another_seed_others(tmp_path, agent, small):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert agent.train(replace(small, seed=seed, run_dir=str(tmp_path / name))) == DONE
    a, b, c = (last_checkpoint(tmp_path / n)["policy"] for n in "abc")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != metrics(tmp_path / "c")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


@AGENTS
def test_files_and_returns(tmp_path, agent, small):
    assert agent.train(replace(small, run_dir=str(tmp_path))) == DONE
    names = {path.name for path in tmp_path.iterdir()}
    source = Path(agent.__file__).name
    assert {"config.json", "meta.json", "status.json", "metrics.jsonl", "checkpoints", source} <= names
    assert status(tmp_path)["status"] == "done"
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"] == small.optimizer
    episodes = [line for line in metrics(tmp_path) if "charts/episodic_return" in line]
    lengths = [line["charts/episodic_length"] for line in episodes]
    assert episodes and episodes[-1]["global_step"] == sum(lengths) <= 260


@AGENTS
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "FrozenLake-v1", "Pendulum-v1"])
def test_discrete_actions_and_several_environments(tmp_path, agent, small, env_id, num_envs):
    args = replace(small, env_id=env_id, num_envs=num_envs, total_timesteps=384, run_dir=str(tmp_path))
    assert agent.train(args) == DONE
    assert all(value.isfinite().all() for value in last_checkpoint(tmp_path)["policy"].values())


def test_a_rollout_of_one_step_leaves_its_advantage_as_it_is(tmp_path):
    args = replace(A2C, env_id="CartPole-v1", norm_adv=True, total_timesteps=400, run_dir=str(tmp_path / "run"))
    assert a2c.train(args) == DONE


@AGENTS
def test_both_backends_learn_and_the_compiled_one_is_refused_where_there_is_none(tmp_path, capsys, agent, small):
    for backend in ("auto", "torch"):
        assert agent.main(replace(small, backend=backend, run_dir=str(tmp_path / backend))) == DONE
    a, b = (last_checkpoint(tmp_path / name)["policy"] for name in ("auto", "torch"))
    for name, value in a.items():
        if name.startswith(("actor", "critic")):
            # A few updates in float32, with sums of other orders.
            assert float((value - b[name]).norm()) < 1e-2 * float(b[name].norm()) + 1e-3
    if agent.main(replace(small, backend="compiled", run_dir=str(tmp_path / "compiled"))) == DONE:
        c = last_checkpoint(tmp_path / "compiled")["policy"]
        assert all(torch.equal(value, c[name]) for name, value in a.items())
    else:
        assert "--backend compiled: no compiled update" in capsys.readouterr().err
    assert agent.main(replace(small, backend="numba", run_dir=str(tmp_path / "x"))) == BAD_INPUT
    assert "--backend numba" in capsys.readouterr().err


def test_an_environment_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_tasks.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('MyPole-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=50)\n"
    )
    args = replace(PPO, env_id="MyPole-v0", run_dir="run")
    assert ppo.main(args) == BAD_INPUT
    assert ppo.main(replace(args, env_module="my_tasks")) == DONE
    assert ppo.main(replace(args, env_module="no_tasks", run_dir="other")) == BAD_INPUT


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"env_id": "HalfCheeta-v5"}, ["--env-id", "HalfCheetah-v5"]),
        ({"env_id": "Blackjack-v1", "env_module": "no_such"}, ["--env-module no_such"]),
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
        ({"seed": 10**20}, ["--seed 1", "2^63"]),
        ({"torch_threads": 100_000}, ["--torch-threads 100000", "cores"]),
        ({"update_threads": 100_000}, ["--update-threads 100000", "cores"]),
        ({"env_threads": 2}, ["--env-threads 2", "between 1 and --num-envs 1"]),
        ({"env_threads": 2, "num_envs": 2, "env_id": "envpool:Hopper-v5"}, ["--env-threads 2", "num_threads=N"]),
        ({"profile": True}, ["--profile", "without --quiet"]),
        ({"run_dir": "new/" + 300 * "x"}, ["--run-dir new/xxx", "too long"]),
        ({"exp_name": 300 * "x"}, ["too long"]),
        ({"env_id": ".:Foo-v0"}, ["--env-id .:Foo-v0", "cannot import"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert ppo.main(replace(PPO, **flags)) == BAD_INPUT
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def test_a_full_run_directory_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        ppo.train(replace(PPO, run_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_diverged_run_keeps_its_curve(tmp_path):
    args = replace(PPO, optimizer="sgd", learning_rate=1e30, max_grad_norm=0.0, total_timesteps=1280)
    assert ppo.train(replace(args, run_dir=str(tmp_path))) == DIVERGED
    assert status(tmp_path)["status"] == "diverged" and "finite" in status(tmp_path)["reason"]
    assert any("charts/episodic_return" in line for line in metrics(tmp_path))


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


def corridors(mode, truncate):
    """One corridor, or two in either reset mode."""

    def make():
        env = Corridor()
        env.truncate = truncate
        return env

    if mode == "bare":
        return Envs(make())
    if mode == "same step":
        return Envs(make(), make())
    return NextStep(gym.vector.SyncVectorEnv([make, make], autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP))


@AGENTS
@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("mode", ["bare", "same step", "next step"])
def test_a_truncation_is_bootstrapped_with_the_final_observation_and_a_termination_is_not(
    agent, small, truncate, mode
):
    vector = corridors(mode, truncate)
    args = replace(small, gae_lambda=0.0, gamma=0.5, std="shared", num_envs=vector.num_envs)
    policy = agent.make_policy(vector.observation_space, vector.action_space, args)
    ended = []
    rollout = Rollout(vector, policy, np.random.SeedSequence(0))
    steps = rollout.collect(43 if mode == "next step" else 40, lambda *e: ended.append(e[1:]))
    batch = agent.prepare(policy, steps, args)
    assert ended == [(10.0, 10)] * 4 * vector.num_envs and rollout.step == 40 * vector.num_envs
    assert len(batch["obs"]) == 40 * vector.num_envs  # what is not a transition is left out
    last = np.flatnonzero(steps["terminated"][:, 0] | (steps["done"] & steps["valid"])[:, 0])
    assert list(last) == ([9, 20, 31, 42] if mode == "next step" else [9, 19, 29, 39])
    assert steps["next_obs"][9, 0] != steps["obs"][11 if mode == "next step" else 10, 0]  # not the next one's first
    with torch.no_grad():
        after = policy.critic(torch.from_numpy(steps["next_obs"][9]))[0, 0]
    expected = steps["rewards"][9, 0] + (0.5 * float(after) if truncate else 0.0)
    assert abs(float(after)) > 1e-3
    # float32 throughout
    assert float(batch["returns"][9 * vector.num_envs]) == pytest.approx(expected, rel=1e-5)


@AGENTS
def test_both_reset_modes_give_the_same_batch(agent, small):
    batches = []
    for mode, length in (("same step", 40), ("next step", 43)):
        torch.manual_seed(0)
        vector = corridors(mode, truncate=True)
        args = replace(small, num_envs=2)
        policy = agent.make_policy(vector.observation_space, vector.action_space, args)
        policy.obs_norm = policy.reward_norm = None  # they count the same observations in another order
        policy.noise = lambda random, *shape: np.zeros((*shape, 1), dtype=np.float32)
        steps = Rollout(vector, policy, np.random.SeedSequence(0)).collect(length, lambda *e: None)
        batches.append(agent.prepare(policy, steps, args))
    for name, rows in batches[0].items():
        torch.testing.assert_close(rows, batches[1][name], rtol=1e-6, atol=1e-6)


def test_log_probabilities_are_those_of_the_actions_taken():
    vector = envs.make_vector("Hopper-v5")
    for std in ppo.STDS:
        args = replace(PPO, std=std)
        policy = ppo.make_policy(vector.observation_space, vector.action_space, args)
        steps = Rollout(vector, policy, np.random.SeedSequence(0)).collect(64, lambda *e: None)
        batch = ppo.prepare(policy, steps, args)
        with torch.no_grad():
            mean, p = policy.actor(batch["obs"]).chunk(2, 1)
        deviation = p.sqrt() if std == "network" else (p / 2).exp() if std == "log-variance" else p.exp()
        expected = torch.distributions.Normal(mean, deviation).log_prob(batch["actions"]).sum(1)
        # float32 throughout
        assert torch.allclose(batch["logprob"], expected, atol=1e-4)


def test_neighbouring_seeds_share_no_stream():
    starts = set()
    for seed in (1, 2, 3):
        rollout_seed = np.random.SeedSequence(seed).spawn(2)[0]
        vector = envs.make_vector("Hopper-v5", 3)
        policy = ppo.make_policy(vector.observation_space, vector.action_space, replace(PPO, num_envs=3))
        policy.obs_norm = None
        rollout = Rollout(vector, policy, rollout_seed)
        starts |= {row.tobytes() for row in rollout.obs}
    assert len(starts) == 9


def test_the_paper_preset_yields_to_flags_and_gives_every_network_its_group():
    args = ppo.parse(ppo.Args, ppo.PRESETS, ["--preset", "paper", "--lr", "0.01"], "agent")
    assert (args.learning_rate, args.anneal_lr, args.max_grad_norm, args.std) == (0.01, False, 0.0, "network")
    policy = new_policy(ppo, replace(args, env_id="Hopper-v5"))
    args = a2c.parse(a2c.Args, a2c.PRESETS, ["--preset", "paper", "--env-id", "Hopper-v5"], "agent")
    other, raw = new_policy(a2c, args), new_policy(a2c, replace(args, normalize=False, std="log-variance"))
    assert isinstance(policy.actor, Heads) and isinstance(other.actor, Heads) and other.obs_norm is not None
    assert raw.obs_norm is None and raw.parametrization == "log_var"
    for each in (policy, other, raw):
        groups = each.groups()
        assert [group["name"] for group in groups] == ["mean", "variance", "critic"]
        params = [id(p) for group in groups for p in group["params"]]
        assert sorted(params) == sorted(id(p) for p in each.parameters())


def test_weights_and_biases_that_are_not_installed_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.chdir(tmp_path)
    assert ppo.main(replace(PPO, track=True)) == BAD_INPUT
    assert "pip install 'hesscale-rl[track]'" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_weights_and_biases_get_every_figure(monkeypatch, tmp_path):
    seen = []

    class Wandb:
        @staticmethod
        def init(**how):
            assert how["dir"] == tmp_path / "run" and how["config"]["track"]
            return Wandb

        @staticmethod
        def log(values, step):
            seen.append({"global_step": step, **values})

        @staticmethod
        def finish():
            seen.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    assert ppo.train(replace(PPO, track=True, run_dir=str(tmp_path / "run"))) == DONE
    assert seen[-1] == "finished" and [line["global_step"] for line in seen[:-1]] == [
        line["global_step"] for line in metrics(tmp_path / "run")
    ]


@AGENTS
def test_help_answers_before_torch_is_imported(agent, small):
    code = "import sys, runpy\nsys.argv = ['agent', '--help']\n"
    code += f"try:\n    runpy.run_path({agent.__file__!r}, run_name='__main__')\n"
    code += "except SystemExit:\n    print('torch' in sys.modules)\n"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "--optimizer" in out.stdout and out.stdout.endswith("False\n"), out.stderr


@AGENTS
def test_a_real_command_leaves_no_traceback_and_exits_with_2(tmp_path, agent, small):
    for flags, word in ((["--env-id", "Hoper-v5"], "Hopper-v5"), (["--resume", "nowhere"], "nowhere")):
        command = [sys.executable, agent.__file__, *flags]
        out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert out.returncode == BAD_INPUT and out.stderr.count("\n") == 1 and word in out.stderr, out.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("agent", [ppo, a2c, trpo], ids=["ppo", "a2c", "trpo"])
def test_a_device_that_is_not_here_is_named_before_anything_is_made(agent, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for device in ("cuda:77", "meta", "gpu"):
        assert agent.main(agent.Args(device=device)) == BAD_INPUT
        assert f"--device {device}: " in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("agent", [ppo, a2c, trpo], ids=["ppo", "a2c", "trpo"])
def test_it_trains_and_goes_on_with_its_networks_on_cuda(agent, tmp_path):
    args = agent.Args(
        env_id="Hopper-v5", total_timesteps=4096, device="cuda", run_dir=str(tmp_path / "run"), quiet=True
    )
    assert agent.main(args) == 0
    assert agent.main(replace(args, resume=args.run_dir, total_timesteps=8192, accept_changes=True)) == 0


# torch 2.13 warns of deprecated parts of its own when its compiler is imported
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_gives_the_tapes_gradient_and_curvature():
    torch.manual_seed(0)
    policy = new_policy(ppo, replace(PPO, env_id="Hopper-v5", std="network"))
    other, obs, data = copy.deepcopy(policy), torch.randn(16, 11), torch.randn(16)
    for side, backend in ((policy, "compile"), (other, "torch")):
        for net, loss in (
            (side.actor, hs.losses.GaussianPolicyGradient(torch.ones(16, 3), data, parametrization="var")),
            (side.critic, hs.losses.ValueLoss(data)),
        ):
            hs.backward(net, obs, loss, hs.HesScale(), backend=backend)
    for p, q in zip(policy.parameters(), other.parameters(), strict=True):
        # float32: operations are fused, sums have other orders
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(p.hess_diag, q.hess_diag, rtol=1e-4, atol=1e-6)
