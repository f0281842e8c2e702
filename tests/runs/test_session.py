"""What every agent's run has around its algorithm, whatever the algorithm is."""

import json
from dataclasses import replace

import gymnasium as gym
import pytest
import torch

from hesscale_rl import envs
from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.envs import making
from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE, INTERRUPTED, Diverged
from hesscale_rl.runs.arguments import answer
from hesscale_rl.runs.session import Session

SMALL = ppo.Args(
    env_id="CartPole-v1", total_timesteps=128, num_steps=32, num_minibatches=2, update_epochs=1, quiet=True
)


def status(run):
    return json.loads((run / "status.json").read_text())


class Closing(gym.Wrapper):
    """Counts how often it is closed, and raises then if it is told to; `step` raises what it is given."""

    closed, wrong, raises = 0, None, None

    def step(self, action):
        if Closing.raises is not None:
            raise Closing.raises
        return super().step(action)

    def close(self):
        Closing.closed += 1
        super().close()
        if Closing.wrong is not None:
            raise Closing.wrong


@pytest.fixture
def closing(monkeypatch):
    make = envs.make
    monkeypatch.setattr(making, "make", lambda *given: Closing(make(*given)))
    for name, value in (("closed", 0), ("wrong", None), ("raises", None)):
        monkeypatch.setattr(Closing, name, value)


def test_an_agent_needs_no_more_than_its_algorithm(tmp_path):
    """Random search: the loop of the module's docstring, with an update that learns nothing."""

    def update(policy, optimizer, curvature, fast, steps):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        return {"losses/reward": float(steps["rewards"].mean())}

    def train(args):
        with Session(args, __file__, envs, ppo.make_policy) as session:
            for _ in session.iterations():
                session.log(update(*session.learner, session.collect()), "")
        return session.exit_code

    for name, steps in (("whole", 128), ("half", 64)):
        given = replace(SMALL, anneal_lr=False, total_timesteps=steps, run_dir=str(tmp_path / name))
        assert train(given) == DONE
    half = str(tmp_path / "half")
    assert train(replace(given, run_dir=half, resume=half, total_timesteps=128, accept_changes=True)) == DONE
    saved = [torch.load(tmp_path / n / "checkpoints" / "step_128.pt", weights_only=True) for n in ("whole", "half")]
    for name, value in saved[0]["policy"].items():
        assert torch.equal(value, saved[1]["policy"][name])


@pytest.mark.parametrize(
    "raises, code, verdict",
    [
        (None, DONE, "done"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
        (Diverged("the sky falls"), DIVERGED, "diverged"),
        (ZeroDivisionError("by zero"), ZeroDivisionError, "failed"),
        (SystemExit(7), RuntimeError, "failed"),
    ],
    ids=lambda value: getattr(type(value), "__name__", ""),
)
@pytest.mark.parametrize("wrong", [None, ValueError("no window")], ids=["closes", "close raises"])
def test_environments_are_closed_once_whatever_happens(
    closing, tmp_path, capsys, monkeypatch, raises, code, verdict, wrong
):
    Closing.wrong = wrong
    if isinstance(code, int):
        Closing.raises = raises
    else:  # what an environment raises, the run answers for

        def fail(*given):
            raise raises

        monkeypatch.setattr(ppo, "prepare", fail)
    args = replace(SMALL, run_dir=str(tmp_path / "run"))
    if isinstance(code, int):
        assert ppo.main(args) == code
    else:
        with pytest.raises(code):
            ppo.main(args)
    assert Closing.closed == 1 and status(tmp_path / "run")["status"] == verdict
    assert ("its close() raised ValueError: no window" in capsys.readouterr().err) == (wrong is not None)


@pytest.mark.parametrize(
    "change, made",
    [({"run_dir": "."}, 0), ({"device": "meta"}, 0), ({"optimizer": "kfac", "backend": "compiled"}, 1)],
)
def test_environments_of_a_run_that_cannot_begin_are_closed(closing, tmp_path, monkeypatch, change, made):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()
    assert ppo.main(replace(SMALL, **{"run_dir": "run", **change})) == BAD_INPUT
    assert Closing.closed == made and [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("agent, size", [(ppo, 64), (a2c, 5), (trpo, 64)], ids=["ppo", "a2c", "trpo"])
def test_fewer_steps_than_are_done_cannot_be_asked_for(tmp_path, capsys, agent, size):
    given = agent.Args(
        env_id="CartPole-v1", num_steps=size, total_timesteps=128, anneal_lr=False, quiet=True, run_dir=str(tmp_path)
    )
    assert agent.main(given) == DONE
    done = status(tmp_path)["global_step"]
    again = replace(given, resume=str(tmp_path), accept_changes=True)
    before = (tmp_path / "status.json").read_bytes()
    assert agent.main(replace(again, total_timesteps=64)) == BAD_INPUT
    line = capsys.readouterr().err
    assert f"--total-timesteps 64: {tmp_path} has done {done} already" in line and line.count("\n") == 1
    assert (tmp_path / "status.json").read_bytes() == before
    assert agent.main(again) == DONE  # the same again: there is nothing left to do


def test_a_fault_before_a_run_is_one_line(capsys):
    def train(args):
        raise KeyboardInterrupt

    assert answer(train, SMALL) == INTERRUPTED and capsys.readouterr().err == ""
