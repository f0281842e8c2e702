"""Evaluation while training: it changes nothing, it is resumed, and the best policy is kept."""

import json
import signal
import sys
import types
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from comparing import assert_equal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE, FAILED, INTERRUPTED
from hesscale_rl.playing import read_run
from hesscale_rl.rl.episode import episode
from hesscale_rl.runs.checkpoint import checkpoints, chosen_checkpoint, newest_checkpoint

EVALUATED = {"eval_interval": 128, "eval_episodes": 3}
SMALL = {"env_id": "Walking-v0", "total_timesteps": 512, "anneal_lr": False, "quiet": True}
ARGS = {
    "ppo": (ppo, ppo.Args(**SMALL, num_steps=64, num_minibatches=2, update_epochs=1, optimizer="adahessian")),
    "a2c": (a2c, a2c.Args(**SMALL, num_envs=2, num_steps=16, optimizer="adahessian")),
    "trpo": (trpo, trpo.Args(**SMALL, num_steps=64, num_minibatches=2, update_epochs=1)),
}
PPO = ARGS["ppo"][1]


class Walking(gym.Env):
    """A walk on a line, with wind from NumPy's own generator, which every environment of a process shares.

    `act`, if there is one, is called with the number of an evaluation's step.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space, action_space = gym.spaces.Box(-9, 9, (2,)), gym.spaces.Box(-1, 1, (1,))
    act, seeds = None, ()

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        Walking.seeds = (*Walking.seeds, seed)
        self.x, self.steps = self.np_random.uniform(-1, 1), 0
        return self.seen(), {}

    def seen(self):
        return np.array([self.x, self.steps / 10], np.float32)

    def step(self, action):
        frame = sys._getframe()
        while frame is not None and frame.f_code is not episode.__code__:
            frame = frame.f_back
        if frame is not None and Walking.act is not None:
            Walking.act()
        self.x, self.steps = float(np.clip(self.x + action[0] + np.random.normal() / 9, -9, 9)), self.steps + 1
        return self.seen(), -abs(self.x), False, self.steps == 10, {}

    def render(self):
        return np.full((16, 16, 3), self.steps, np.uint8)

    def save_state(self):
        return {"x": self.x, "steps": self.steps, "wind": np.random.get_state(legacy=False)["state"]["key"]}

    def load_state(self, state):
        self.x, self.steps = state["x"], state["steps"]


@pytest.fixture(autouse=True)
def walking(monkeypatch):
    spec = gym.envs.registration.EnvSpec("Walking-v0", Walking)
    monkeypatch.setitem(gym.registry, "Walking-v0", spec)
    monkeypatch.setattr(Walking, "act", None)
    monkeypatch.setattr(Walking, "seeds", ())
    np.random.seed(0)


def trained(name, path, **changes):
    agent, args = ARGS[name]
    np.random.seed(0)
    assert agent.train(replace(args, run_dir=str(path), **changes)) == DONE
    return path


def lines(run, evaluations):
    """The metrics of evaluations, or all others."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    kept = [{k: v for k, v in row.items() if k not in ("time", "charts/SPS")} for row in rows]
    return [row for row in kept if ("eval/episodic_return" in row) == evaluations]


@pytest.mark.parametrize("name", ARGS)
def test_training_is_the_same_to_the_last_bit_with_and_without(tmp_path, name):
    with_them, without = trained(name, tmp_path / "with", **EVALUATED), trained(name, tmp_path / "without")
    evaluated = lines(with_them, True)
    assert [row["global_step"] for row in evaluated] == [128, 256, 384, 512]
    assert set(evaluated[0]) == {"global_step", *(f"eval/episodic_{x}" for x in ("return", "return_std", "length"))}
    assert lines(with_them, False) == lines(without, False)
    one, other = newest_checkpoint(with_them), newest_checkpoint(without)
    assert one.pop("evaluation")["step"] == 512 and one.pop("logs") and other.pop("logs")
    assert_equal(one, other)
    scalars = EventAccumulator(str(with_them)).Reload().Scalars("eval/episodic_return")
    assert [event.value for event in scalars] == [pytest.approx(row["eval/episodic_return"]) for row in evaluated]


def test_every_evaluation_plays_the_same_episodes_and_no_other_seed_does(tmp_path):
    trained("ppo", tmp_path / "one", **EVALUATED)
    played = [seed for seed in Walking.seeds if seed is not None][1:]  # the first is training's own
    assert len(played) == 12 and played == played[:3] * 4 and len({*played}) == 3
    Walking.seeds = ()
    trained("ppo", tmp_path / "two", seed=2, **EVALUATED)
    assert not {*played} & {*Walking.seeds}


def test_the_best_policy_is_kept_and_plays_as_it_did(tmp_path):
    run = trained("ppo", tmp_path / "run", env_id="CartPole-v1", **EVALUATED | {"eval_interval": 64})
    rows = lines(run, True)
    best = max(row["eval/episodic_return"] for row in rows)
    first = next(row["global_step"] for row in rows if row["eval/episodic_return"] == best)
    assert [path.name for path in checkpoints(run / "checkpoints", "best")] == [f"best_{first}.pt"]
    policy, env, _, saved = read_run(run, checkpoint="best")
    assert saved["global_step"] == first and saved["evaluation"]["best"] == best
    draws = np.random.default_rng(np.random.SeedSequence(PPO.seed).spawn(3)[2])
    assert np.mean([episode(policy, env, int(draws.integers(2**31)))[0] for _ in range(3)]) == best
    assert chosen_checkpoint(run, str(first))["global_step"] == first


def test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on(tmp_path):
    whole, run = trained("ppo", tmp_path / "whole", env_id="CartPole-v1", **EVALUATED), tmp_path / "run"
    args, plays = replace(PPO, env_id="CartPole-v1", run_dir=str(run), **EVALUATED), 0

    def stops(*given, **how):
        nonlocal plays
        plays += 1
        if plays == 5:
            signal.raise_signal(signal.SIGTERM)
        return episode(*given, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hesscale_rl.runs.evaluation.episode", stops)
        assert ppo.train(args) == INTERRUPTED
    assert newest_checkpoint(run)["global_step"] == 256 and len(lines(run, True)) == 1
    assert ppo.train(replace(args, resume=str(run))) == DONE
    for evaluations in (True, False):
        assert lines(run, evaluations) == lines(whole, evaluations)
    assert_equal(chosen_checkpoint(run, "best") | {"logs": 0}, chosen_checkpoint(whole, "best") | {"logs": 0})


def test_the_best_of_steps_that_are_taken_anew_is_gone(tmp_path):
    run = trained("ppo", tmp_path / "run", env_id="CartPole-v1", **EVALUATED)
    (path,) = checkpoints(run / "checkpoints", "best")
    path.rename(path.with_name("best_513.pt"))
    again = replace(PPO, env_id="CartPole-v1", run_dir=str(run), resume=str(run))
    assert ppo.train(replace(again, total_timesteps=576, accept_changes=True)) == DONE
    assert not checkpoints(run / "checkpoints", "best")


@pytest.mark.parametrize(
    "act, code, status",
    [(lambda: 1 / 0, FAILED, "failed"), (lambda: signal.raise_signal(signal.SIGINT), INTERRUPTED, "interrupted")],
    ids=["raises", "Ctrl-C twice"],
)
def test_what_was_learnt_outlives_an_evaluation(tmp_path, act, code, status):
    Walking.act = staticmethod(act)
    run = tmp_path / "run"
    assert ppo.main(replace(PPO, run_dir=str(run), **EVALUATED)) == code
    assert newest_checkpoint(run)["global_step"] == 128
    assert json.loads((run / "status.json").read_text())["status"] == status
    Walking.act = None
    assert ppo.main(replace(PPO, run_dir=str(run), resume=str(run), **EVALUATED)) == DONE
    assert [row["global_step"] for row in lines(run, True)] == [128, 256, 384, 512]


def test_an_action_that_is_not_finite_is_a_divergence(tmp_path, monkeypatch):
    monkeypatch.setattr(ppo.Policy, "choose", lambda self, outputs, noise: np.full((1, 1), np.nan))
    monkeypatch.setattr("hesscale_rl.rl.rollout.sampler", lambda policy: lambda *given: True)
    assert ppo.main(replace(PPO, run_dir=str(tmp_path / "run"), backend="torch", **EVALUATED)) == DIVERGED


@pytest.fixture
def films(monkeypatch):
    """What would have been filmed, by path: the film itself needs ffmpeg."""
    made = {}

    class Writer:
        def __init__(self, path, **how):
            self.pictures = made.setdefault(path.name, [])
            path.touch()

        def append_data(self, picture):
            self.pictures.append(int(picture[0, 0, 0]))

        def close(self):
            pass

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", types.ModuleType("imageio_ffmpeg"))
    monkeypatch.setitem(sys.modules, "imageio", types.SimpleNamespace(get_writer=Writer))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    return made


def test_the_first_episode_is_filmed_at_its_own_interval(tmp_path, films):
    filmed = trained("ppo", tmp_path / "filmed", capture_video_interval=200)
    assert sorted(path.name for path in (filmed / "videos").iterdir()) == [
        "step_256.mp4",
        "step_448.mp4",
        "step_512.mp4",
    ]
    assert films[".step_448.mp4"] == [*range(10)]
    plain = trained("ppo", tmp_path / "plain")
    assert lines(filmed, False) == lines(plain, False) and not (plain / "videos").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"eval_interval": -1}, "--eval-interval -1: must be zero or a number of steps"),
        ({"eval_episodes": 0}, "--eval-episodes 0: must be at least 1"),
        ({"capture_video_interval": -5}, "--capture-video-interval -5: must be zero or a number of steps"),
        ({"capture_video_interval": 100, "env_id": "Blind-v0"}, "--capture-video-interval 100: Blind-v0 "),
    ],
)
def test_what_cannot_be_is_a_line_and_leaves_nothing(tmp_path, capsys, monkeypatch, films, changes, words):
    class Blind(Walking):
        render = None

    monkeypatch.setitem(gym.registry, "Blind-v0", gym.envs.registration.EnvSpec("Blind-v0", Blind))
    assert ppo.main(replace(PPO, run_dir=str(tmp_path / "run"), **changes)) == BAD_INPUT
    assert words in (line := capsys.readouterr().err) and line.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_there_is_not_is_named_with_those_there_are(tmp_path, capsys, monkeypatch):
    run = trained("ppo", tmp_path / "run", env_id="CartPole-v1")
    from hesscale_rl.scripts import evaluate

    for which, words in (("best", "has none; train with --eval-interval"), ("511", "has last, best, 512")):
        monkeypatch.setattr(sys, "argv", ["evaluate", str(run), "--checkpoint", which])
        assert evaluate.main() == BAD_INPUT
        assert words in (line := capsys.readouterr().err) and line.count("\n") == 1


def test_generators_that_a_process_shares_are_left_as_they_were():
    from hesscale_rl.runs.evaluation import untouched_random

    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with untouched_random():
        torch.rand(3), np.random.rand(3)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
