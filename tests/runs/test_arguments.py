"""The optimizer's flags: what cannot be is refused, and what the command has reaches make_optimizer."""

from dataclasses import replace

import pytest

from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.errors import BAD_INPUT, DONE, InputError
from hesscale_rl.runs.arguments import check_optimizer, optimizer_settings, parse
from hesscale_rl.scripts import supervised


@pytest.mark.parametrize("agent", [ppo, a2c, trpo], ids=["ppo", "a2c", "trpo"])
@pytest.mark.parametrize(
    "flags, words",
    [
        ({"optimizer": "kfac", "damping": 0.0}, "--damping 0.0: must be a positive number"),
        ({"optimizer": "scaled-newton-cg", "damping": 1.5}, "--damping 1.5: must be from 0 to 1"),
        ({"optimizer": "hessian-free", "damping": -0.1}, "--damping -0.1: must be zero or a positive number"),
        ({"optimizer": "hessian-free", "iterations": 0}, "--iterations 0: must be at least 1"),
        ({"optimizer": "hessian-free", "curvature_of": "value"}, "--curvature-of value: must be one of loss, kl"),
        (
            {"optimizer": "kfac", "curvature_of": "kl"},
            "--curvature-of kl: must be loss; kl is for --optimizer hessian",
        ),
        ({"optimizer": "scaled-newton-cg", "backend": "compiled"}, "--backend compiled: no compiled update"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path, monkeypatch, capsys, agent, flags, words):
    monkeypatch.chdir(tmp_path)
    assert agent.main(replace(agent.Args(env_id="CartPole-v1"), **flags)) == BAD_INPUT
    line = capsys.readouterr().err
    assert line.startswith(words) and line.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_newton_methods_may_do_without_damping():
    for name in ("hessian-free", "newton-cg"):
        check_optimizer(ppo.Args(optimizer=name, damping=0.0, curvature_of="kl"))


def test_flags_reach_the_optimizer_and_those_that_are_none_are_left_to_it():
    settings = optimizer_settings(ppo.Args(optimizer="newton-cg", learning_rate=0.5, iterations=3, curvature_of="kl"))
    assert settings["lr"] == 0.5 and settings["iterations"] == 3 and settings["curvature_of"] == "kl"
    assert "splits" not in settings
    args = supervised.fill(supervised.Args(data="digits", optimizer="newton-cg", splits=4))
    assert optimizer_settings(args)["splits"] == 4 and "momentum" not in optimizer_settings(args)
    with pytest.raises(InputError, match="--splits 0: must be at least 1"):
        check_optimizer(replace(args, splits=0))


def test_a_rollout_larger_than_the_memory_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ppo.Args(env_id="CartPole-v1", num_steps=10**12, total_timesteps=10**12, num_minibatches=1)
    assert ppo.main(args) == BAD_INPUT
    line = capsys.readouterr().err
    assert line.startswith("--num-steps 1000000000000: a rollout would take 74,505.8 GiB, and this machine has")
    assert line.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_steps_that_are_no_whole_rollouts_are_told_at_the_start(tmp_path, capsys):
    args = ppo.Args(env_id="CartPole-v1", num_steps=64, total_timesteps=150, update_epochs=1)
    assert ppo.main(replace(args, run_dir=str(tmp_path / "a"))) == DONE
    assert "steps 128 of the 150 asked for: 2 whole rollouts of 64\n" in capsys.readouterr().out
    assert ppo.main(replace(args, run_dir=str(tmp_path / "b"), total_timesteps=128)) == DONE
    assert "asked for" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, flag, value",
    [
        (["-n", "1e6"], "total_timesteps", 1_000_000),
        (["--num-steps", "2.5e3"], "num_steps", 2500),
        (["--num_envs=1_0"], "num_envs", 10),
        (["--betas", "0", "9e-1"], "betas", (0.0, 0.9)),
        (["--target-kl", "None"], "target_kl", None),
        (["--no-anneal-lr"], "anneal_lr", False),
        (["--run-dir", "~/run"], "run_dir", "/home/me/run"),
    ],
)
def test_words_are_read_as_their_flags_type(monkeypatch, words, flag, value):
    monkeypatch.setenv("HOME", "/home/me")
    assert getattr(parse(ppo.Args, ppo.PRESETS, words, "train"), flag) == value


def test_without_a_home_variable_the_home_directory_is_still_found(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    run_dir = parse(ppo.Args, ppo.PRESETS, ["--run-dir", "~/run"], "train").run_dir
    assert run_dir is not None and "~" not in run_dir
