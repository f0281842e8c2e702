"""However a run ends, its status is true: the exit code says the same, and nothing is left "running"."""

import errno
import io
import json
import os
import signal
import sys
from dataclasses import replace

import gymnasium as gym
import pytest

from hesscale_rl import envs
from hesscale_rl.agents import ppo
from hesscale_rl.envs import making
from hesscale_rl.envs.ur.safety import RobotFault
from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE, FAILED, INTERRUPTED, Diverged
from hesscale_rl.runs import directory as run_module
from hesscale_rl.runs import session
from hesscale_rl.system import console, locks

SMALL = ppo.Args(
    env_id="CartPole-v1", total_timesteps=96, num_steps=32, num_minibatches=2, update_epochs=1, run_dir="läuft"
)
SMALL = replace(SMALL, checkpoint_interval=32)
LATER = 40  # a step of the second rollout: there is a checkpoint already


class Acting(gym.Wrapper):
    """Does something at one step, and when it is closed."""

    steps, at, act, closes = 0, LATER, staticmethod(lambda: None), staticmethod(lambda: None)

    def step(self, action):
        Acting.steps += 1
        if Acting.steps == Acting.at:
            Acting.act()
        return super().step(action)

    def close(self):
        super().close()
        Acting.closes()


class Gone(io.StringIO):
    """An output that fails."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


def throw(error):
    def act(*_, **__):
        raise error

    return act


def send(*numbers):
    def act():
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


def acts(act, at=LATER):
    def arrange(patch):
        patch.setattr(Acting, "act", staticmethod(act))
        patch.setattr(Acting, "at", at)

    return arrange


def full(part, after=0):
    """A disk that has no room for the files with `part` in their names, from the n-th time on."""

    def arrange(patch):
        count, write, opened = [0], run_module.atomic_write, open

        class Full(io.BytesIO):
            name = part

            def write(self, content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def atomic_write(path, data):
            count[0] += part in path.name
            if part in path.name and count[0] > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            write(path, data)

        def fake(path, mode="r"):
            return Full() if part in str(path) and mode == "ab" else opened(path, mode)

        patch.setattr(run_module, "atomic_write", atomic_write)
        patch.setattr(run_module, "open", fake, raising=False)

    return arrange


def output(stream):
    return lambda patch: patch.setattr(sys, "stdout", stream)


def nothing(patch):
    pass


ENDINGS = {
    "done": (nothing, DONE, "done"),
    "SIGINT": (acts(send(signal.SIGINT)), INTERRUPTED, "interrupted"),
    "SIGINT twice": (acts(send(signal.SIGINT, signal.SIGINT)), INTERRUPTED, "interrupted"),
    "SIGTERM": (acts(send(signal.SIGTERM)), INTERRUPTED, "interrupted"),
    "SIGTERM twice": (acts(send(signal.SIGTERM, signal.SIGTERM)), INTERRUPTED, "interrupted"),
    "SIGHUP": (acts(send(signal.SIGHUP)), INTERRUPTED, "interrupted"),
    "SIGHUP in the last rollout": (acts(send(signal.SIGHUP), at=80), DONE, "done"),
    "Ctrl-C in the environment": (acts(throw(KeyboardInterrupt())), INTERRUPTED, "interrupted"),
    "the environment fails": (acts(throw(ZeroDivisionError("by zero"))), FAILED, "failed"),
    "the environment fails at first": (acts(throw(ZeroDivisionError("by zero")), at=3), BAD_INPUT, None),
    "the environment leaves": (acts(throw(SystemExit(0))), (FAILED, RuntimeError), "failed"),
    "closing fails": (lambda patch: patch.setattr(Acting, "closes", throw(OSError("no window"))), DONE, "done"),
    "closing exits": (lambda patch: patch.setattr(Acting, "closes", throw(SystemExit(5))), DONE, "done"),
    "closing and the environment": (
        lambda patch: (patch.setattr(Acting, "closes", throw(OSError())), acts(throw(OSError("a")))(patch)),
        FAILED,
        "failed",
    ),
    "diverged": (lambda patch: patch.setattr(ppo, "update", throw(Diverged("so"))), DIVERGED, "diverged"),
    "no memory": (lambda patch: patch.setattr(ppo, "update", throw(MemoryError())), MemoryError, "failed"),
    "a callback fails": (
        lambda patch: patch.setattr(session.Session, "_ended", throw(ZeroDivisionError())),
        ZeroDivisionError,
        "failed",
    ),
    "full disk: metrics": (full("metrics"), FAILED, "failed"),
    "full disk: events": (full("events"), FAILED, "failed"),
    "full disk: checkpoints": (full("step_", after=1), FAILED, "failed"),
    "full disk: status": (full("status", after=2), FAILED, "failed"),
    "full disk at the start": (
        lambda patch: patch.setattr(run_module, "write_json", throw(OSError(errno.ENOSPC, "No space left", "x"))),
        FAILED,
        None,
    ),
    "no right to write": (
        lambda patch: patch.setattr(run_module, "write_json", throw(OSError(errno.EACCES, "Permission denied", "x"))),
        BAD_INPUT,
        None,
    ),
    "a closed pipe": (output(Gone(errno.EPIPE)), DONE, "done"),
    "/dev/full": (output(Gone(errno.ENOSPC)), DONE, "done"),
    "a terminal that is gone": (output(Gone(errno.EIO)), DONE, "done"),
    "no stdout": (output(None), DONE, "done"),
    "an ASCII terminal": (output(io.TextIOWrapper(io.BytesIO(), encoding="ascii")), DONE, "done"),
    "no locks": (lambda patch: patch.setattr(locks.fcntl, "flock", throw(OSError(errno.ENOLCK, "-"))), DONE, "done"),
}


@pytest.mark.parametrize("arrange, code, verdict", ENDINGS.values(), ids=ENDINGS)
def test_the_status_is_true_whatever_happens(tmp_path, monkeypatch, capsys, arrange, code, verdict):
    make, handlers = envs.make, [signal.getsignal(number) for number in run_module.SIGNALS]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(making, "make", lambda *given: Acting(make(*given)))
    monkeypatch.setattr(Acting, "steps", 0)
    monkeypatch.setattr(console, "lost", {})
    monkeypatch.setattr(run_module, "lost", console.lost)
    monkeypatch.setattr(console, "_nowhere", io.StringIO)
    with monkeypatch.context() as patch:
        arrange(patch)
        codes = code if isinstance(code, tuple) else (code,)
        try:
            assert ppo.main(SMALL) in codes
        except tuple(kind for kind in codes if isinstance(kind, type)):
            pass
        told = capsys.readouterr().err
    path = tmp_path / "läuft" / "status.json"
    status = json.loads(path.read_text()) if path.exists() else {}
    assert status.get("status") == (verdict or status.get("status")) != "running", told
    assert [signal.getsignal(number) for number in run_module.SIGNALS] == handlers
    assert not locks.held(tmp_path / "läuft")
    if code == BAD_INPUT:
        assert list(tmp_path.iterdir()) == [] and told.count("\n") == 1
    assert status.get("output", {}) == console.lost
    if verdict == "interrupted":
        assert status["checkpoint"] in (32, LATER - 1, 64)


class Leaves(BaseException):
    """What no `except Exception` sees."""


@pytest.fixture
def acting(tmp_path, monkeypatch):
    make = envs.make
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(making, "make", lambda *given: Acting(make(*given)))
    monkeypatch.setattr(Acting, "steps", 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Leaves("so"), RobotFault("a cable"), OSError("no window")])
def test_what_the_last_update_has_learnt_is_kept_whatever_ends_the_next_rollout(
    acting, tmp_path, monkeypatch, capsys, error
):
    acts(throw(error))(monkeypatch)
    args, ends = replace(SMALL, checkpoint_interval=10**6), isinstance(error, KeyboardInterrupt | OSError)
    if ends:
        assert ppo.main(args) == (INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)
    else:
        with pytest.raises(type(error)):
            ppo.main(args)
    out, status = capsys.readouterr().out, json.loads((tmp_path / "läuft" / "status.json").read_text())
    assert status["status"] == ("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
    assert status["checkpoint"] == LATER - 1 and "run  läuft" in out
    assert ("interrupted  39 steps" in out) == isinstance(error, KeyboardInterrupt)
    assert ppo.main(replace(args, run_dir="läuft", resume="läuft", quiet=True)) == DONE


def test_a_run_that_leaves_nothing_says_nowhere_that_it_is_there(acting, tmp_path, monkeypatch, capsys):
    acts(throw(ZeroDivisionError("by zero")), at=3)(monkeypatch)
    assert ppo.main(SMALL) == BAD_INPUT
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and not [*tmp_path.iterdir()]


class Breaks(gym.Env):
    """Fails in a function of its own, behind Gymnasium's wrappers."""

    observation_space, action_space, steps = gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Discrete(2), 0

    def reset(self, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 1.0 / (LATER - self.steps), False, False, {}


def test_the_traceback_of_an_environment_begins_with_its_own_frames(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gym.register("Breaks-v0", Breaks, max_episode_steps=100)
    try:
        assert ppo.main(replace(SMALL, env_id="Breaks-v0", quiet=True)) == FAILED
    finally:
        del gym.registry["Breaks-v0"]
    lines = capsys.readouterr().err.splitlines()
    places = [line for line in lines if line.startswith("  File ")]
    assert len(places) == 1 and __file__ in places[0] and "in step" in places[0]
    assert lines[0] == "Traceback (most recent call last):" and "--resume läuft" in lines[-1]


def test_a_full_disk_is_one_line_with_the_file_and_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    full("step_", after=1)(monkeypatch)
    assert ppo.main(replace(SMALL, quiet=True)) == FAILED
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "läuft/checkpoints/step_64.pt: cannot be written (No space left" in line
    assert "the last good checkpoint is läuft/checkpoints/step_32.pt" in line
    assert json.loads((tmp_path / "läuft" / "status.json").read_text())["reason"] in line


def test_who_started_it_with_nohup_keeps_it_running(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make = envs.make
    monkeypatch.setattr(making, "make", lambda *given: Acting(make(*given)))
    monkeypatch.setattr(Acting, "steps", 0)
    monkeypatch.setattr(Acting, "act", staticmethod(send(signal.SIGHUP)))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert ppo.main(replace(SMALL, quiet=True)) == DONE
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_next_command_can_be_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ppo.main(replace(SMALL, run_dir="two words/run")) == DONE
    assert capsys.readouterr().out.splitlines()[-1].endswith("--logdir 'two words'")
