import io
import json
import socket
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("rtde_control")
from ursim import Ursim

from hesscale_rl.envs.ur import rtde
from hesscale_rl.envs.ur.drivers import KinematicDriver
from hesscale_rl.envs.ur.rtde import UrRtdeDriver
from hesscale_rl.envs.ur.shared import ProtectiveStop
from hesscale_rl.errors import BAD_INPUT, DONE, FAULT
from hesscale_rl.scripts import cli
from hesscale_rl.scripts.ur import controllers, supervision
from hesscale_rl.scripts.ur import deploy as deploy_ur

TRAIN = ["--env-id", "URReacher-v0", "--quiet", "--optimizer", "adam", "--lr", "3e-4", "--preset", "paper"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run directory of a policy that has learned a little on the model."""
    from hesscale_rl.agents import ppo
    from hesscale_rl.runs.arguments import parse

    directory = tmp_path_factory.mktemp("runs") / "model"
    flags = ["--num-steps", "500", "--num-minibatches", "10", "-n", "1000", "--run-dir", str(directory)]
    assert ppo.main(parse(ppo.Args, ppo.PRESETS, [*TRAIN, *flags], "agent")) == DONE
    return directory


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    started = Ursim(tmp_path_factory.mktemp("ursim"), stepped=True).ready()
    yield started
    started.end()


@pytest.fixture
def robot(running, monkeypatch):
    """A robot in lock step, as the programs do not know: time stands while a policy thinks or learns."""
    monkeypatch.setattr(rtde, "UrRtdeDriver", lambda settings: UrRtdeDriver(replace(settings, clock=running.clock)))
    return running.calm()


def ur(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["hesscale-rl", "ur", *map(str, words)])
    return cli.main()


def test_a_dry_run_gets_the_return_of_the_model(monkeypatch, capsys, tmp_path, learned, robot):
    """The same policy, seeds and targets, within 2 % of the scale, which ends at 500; and the log tells it again."""
    flags = ["--robot-ip", robot.host, "--episodes", 2, "--slow-episodes", 0, "--log", tmp_path / "log"]
    assert ur(monkeypatch, "run", learned, *flags) == DONE
    out = capsys.readouterr().out
    assert "simulated controller" in out and "REAL" not in out
    returns = [float(line.split()[3]) for line in out.splitlines() if line.startswith("episode")]
    from hesscale_rl.playing import read_run
    from hesscale_rl.rl.episode import episode

    policy, env, _, _ = read_run(learned)
    expected = [episode(policy, env, 1000 + i)[0] for i in range(2)]
    np.testing.assert_allclose(returns, expected, atol=10)
    steps = [json.loads(line) for line in (tmp_path / "log" / "steps.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in steps].count("step") == 200
    stamps = [event["stamp"] for event in steps[:101]]
    assert not any("late" in event for event in steps[2:101])
    assert stamps[-1] - stamps[1] == pytest.approx(99 * 0.04)
    assert ur(monkeypatch, "replay", tmp_path / "log") == DONE
    told = capsys.readouterr().out
    assert f"episode 1  return {returns[0]:.1f}" in told and "cycles in" in told


def test_training_goes_on_where_it_stopped_with_the_arm_at_its_start(monkeypatch, capsys, tmp_path, robot):
    flags = ["--robot-ip", robot.host, "--slow-episodes", 0]
    agent = ["--num-steps", 50, "--num-minibatches", 1, "--update-epochs", 1, "--run-dir", tmp_path / "run"]
    agent += ["--checkpoint-interval", 50]
    assert ur(monkeypatch, "train", *flags, "--log", tmp_path / "a", *TRAIN[2:], *agent, "-n", 50) == DONE
    resumed = ["--resume", tmp_path / "run", "-n", 100, "--accept-changes"]
    assert ur(monkeypatch, "train", *flags, "--log", tmp_path / "b", *resumed) == DONE
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["status"] == "done" and status["global_step"] == 100
    # While it learned, after the 50th step, the arm stood at its start: the rollout's end had ended the episode.
    events = [json.loads(line)["kind"] for line in (tmp_path / "a" / "steps.jsonl").read_text().splitlines()]
    assert events == ["reset", *["step"] * 50, "reset"]
    assert isinstance(gym.make("URReacher-v0").unwrapped.driver, KinematicDriver)  # the name is the model's again


def test_a_real_robot_needs_an_answer(monkeypatch, capsys, tmp_path, learned, robot):
    monkeypatch.setattr(controllers, "is_simulated", lambda host: False)
    flags = ["--robot-ip", robot.host, "--log", tmp_path / "log"]
    began, events = robot.state()["stamp"], robot.events
    assert ur(monkeypatch, "run", learned, *flags) == BAD_INPUT
    said = capsys.readouterr().err
    assert "This is a real robot: UR5" in said and "not confirmed, and nothing has moved" in said
    log = robot.log()
    assert not log["qd"][log["stamp"] > began].any() and robot.events == events  # no program was loaded either


def test_without_an_address_the_controller_is_one_of_our_own_whatever_runs_already(robot):
    with controllers.controller(None, "UR5") as (host, simulated, what):
        assert simulated and host != robot.host and "started for this run" in what
        assert controllers.is_simulated(host)
    assert not controllers.listens(host, controllers.RTDE)


def test_a_foreign_controller_is_taken_where_it_is_named_and_said_to_be_one(robot):
    with controllers.controller(robot.host, "UR5") as (host, simulated, what):
        assert host == robot.host and simulated and "not ours" in what


@pytest.mark.parametrize(("typed", "yes"), [("unlock", True), (" unlock ", True), ("Unlock", False), ("", False)])
def test_consent_is_typed(monkeypatch, typed, yes):
    terminal = io.StringIO(typed + "\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    assert supervision.ask("?", "unlock") is yes


def test_nobody_at_the_terminal_is_a_no(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("unlock\n"))
    assert not supervision.ask("?", "unlock")


@pytest.mark.slow
def test_a_protective_stop_ends_the_run_without_consent_and_the_episode_with_it(
    monkeypatch, capsys, tmp_path, learned, robot
):
    """After five seconds of robot time, with the program loaded again."""
    flags = ["--robot-ip", robot.host, "--episodes", 2, "--slow-episodes", 0]
    robot.tell("pstop")
    robot.tell("clear")
    stop_once = iter([True])
    step = supervision.Operated.step

    def stopping(self, action):
        if self.steps == 20 and next(stop_once, False):
            robot.tell("pstop")
        return step(self, action)

    monkeypatch.setattr(supervision.Operated, "step", stopping)
    assert ur(monkeypatch, "run", learned, *flags, "--log", tmp_path / "a") == FAULT
    assert "protective stop" in capsys.readouterr().err
    robot.tell("clear")
    stop_once = iter([True])
    assert ur(monkeypatch, "run", learned, *flags, "--auto-unlock", "--log", tmp_path / "b") == DONE
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "b" / "steps.jsonl").read_text().splitlines()]
    assert kinds.count("fault") == kinds.count("unlocked") == 1 and kinds.count("reset") == 2


def test_another_client_s_movej_ends_the_run_and_the_arm_stands(monkeypatch, capsys, tmp_path, learned, robot):
    step = supervision.Operated.step

    def meddling(self, action):
        if self.steps == 20:
            with socket.create_connection((robot.host, 30003)) as other:
                other.sendall(b"movej([0.09, -2.4, 1.5, -0.72, 1.64, 1.01], a=1.4, v=1.05)\n")
        return step(self, action)

    monkeypatch.setattr(supervision.Operated, "step", meddling)
    assert ur(monkeypatch, "run", learned, "--robot-ip", robot.host, "--log", tmp_path / "a") == FAULT
    said = capsys.readouterr().err.splitlines()
    assert "another program has taken the robot over" in said[-2] and said[-1] == deploy_ur.STANDS
    assert np.ptp(robot.log()["q"][:, 0]) < 0.05 and not robot.wait(0.5)["program_running"]


def test_an_infinite_action_is_refused_before_it_is_clipped(monkeypatch, capsys, tmp_path, learned, robot):
    from hesscale_rl.rl.policy import Policy

    monkeypatch.setattr(Policy, "act", lambda self, obs, noise: np.full((1, 2), np.inf, np.float32))
    before = len(robot.log())
    assert ur(monkeypatch, "run", learned, "--robot-ip", robot.host, "--log", tmp_path / "a") == BAD_INPUT
    assert "the policy's action is not finite" in capsys.readouterr().err
    assert not robot.log()["qd"][before:].any() and not (tmp_path / "a").exists()


def test_unlocking_alone_has_a_budget(monkeypatch, tmp_path):
    class Driver:
        unlocked = 0

        def unlock(self):
            self.unlocked += 1

    driver = Driver()
    arm = supervision.Operated(gym.make("CartPole-v1"), driver, tmp_path / "log", auto_unlock=True)
    for _ in range(supervision.UNLOCKS):
        arm._release(ProtectiveStop("bump"))
    with pytest.raises(ProtectiveStop):
        arm._release(ProtectiveStop("bump"))
    assert driver.unlocked == supervision.UNLOCKS
    arm._log.close()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["run", "nowhere"], "not a run directory"),
        (["run", "{learned}", "--episodes", "0"], "--episodes 0: must be at least 1"),
        (["run", "{learned}", "--sped"], "--sped: no such flag"),
        (["run", "{learned}", "--robot-ip", "127.200.200.200"], "nothing listens"),
        (["run", "{learned}", "--robot-ip", "a" * 300], "a... (300 letters): nothing listens"),
        (["run", "{learned}", "--log", "{learned}"], "exists already"),
        (["run", "{learned}", "--log", "/proc/no"], "--log /proc/no: No such file"),
        (["train", "--num-envs", "2", "-n", "4000"], "there is one arm"),
        (["train", "--eval-interval", "2000"], "--eval-interval 2000: there is one arm"),
        (["train", "--env-id", "Hopper-v5"], "on an arm it is URReacher-v0"),
        (["train", "--learning-rate", "-1"], "must be a positive number"),
        (["train", "--agent", "trpo", "--target-kl", "0"], "--target-kl 0.0: must be a positive number"),
        (["train", "--agent", "a2c", "--num-envs", "2"], "there is one arm"),
        (["train", "--agent", "topr"], "trpo"),
        (["replay", "nowhere"], "no log of a robot"),
    ],
)
def test_bad_input(monkeypatch, capsys, tmp_path, learned, words, problem):
    monkeypatch.chdir(tmp_path)
    words = [word.format(learned=learned) for word in words]
    assert ur(monkeypatch, *words) == BAD_INPUT
    said = capsys.readouterr().err
    assert problem in said and said.count("\n") == 1
