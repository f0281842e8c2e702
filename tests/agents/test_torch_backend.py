"""--backend torch: a run in which no compiled code runs at all."""

import numba
import pytest

from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.errors import DONE
from hesscale_rl.optim import names

FEW = ("scaled-adahesscale", "adam", "scaled-sgd")


@pytest.fixture
def without_numba(monkeypatch):
    """Every call of compiled code from Python raises."""

    def forbidden(self, *args, **kwargs):
        raise AssertionError(f"compiled code was called: {self.py_func.__qualname__}")

    monkeypatch.setattr(numba.core.dispatcher.Dispatcher, "__call__", forbidden)


def args(agent, env_id, name, path, **more):
    small = dict(num_envs=2, num_steps=8, total_timesteps=32, quiet=True, run_dir=str(path / name))
    rest = {} if agent is a2c else dict(num_minibatches=2, update_epochs=2)
    return agent.Args(env_id=env_id, optimizer=name, **small, **rest, **more)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("agent", [ppo, a2c, trpo], ids=["ppo", "a2c", "trpo"])
def test_a_run_calls_nothing_compiled(agent, env_id, tmp_path, without_numba):
    for name in names() if agent is ppo and env_id == "Pendulum-v1" else FEW:
        assert agent.main(args(agent, env_id, name, tmp_path, backend="torch")) == DONE


@pytest.mark.parametrize("agent", [ppo, a2c, trpo], ids=["ppo", "a2c", "trpo"])
def test_else_it_does(agent, tmp_path, without_numba):
    with pytest.raises(AssertionError, match="compiled code was called"):
        agent.main(args(agent, "Pendulum-v1", "adam", tmp_path))
