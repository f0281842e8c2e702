"""NUMBA_DISABLE_JIT=1, which people debug with: every loop is Python then, and learns the same."""

import os
import subprocess
import sys

import pytest
import torch

from hesscale_rl.agents import a2c, ppo
from hesscale_rl.errors import DONE
from hesscale_rl.runs.checkpoint import newest_checkpoint

RUNS = """
from hesscale_rl.agents import a2c, ppo
SMALL = dict(quiet=True, num_envs=2, num_steps=4, total_timesteps=16, optimizer="scaled-adahesscale")
def runs(where):
    for env_id in ("Pendulum-v1", "CartPole-v1"):
        for backend in ("auto", "torch"):
            how = SMALL | dict(env_id=env_id, backend=backend)
            yield ppo, ppo.Args(**how, run_dir=f"{where}/ppo-{env_id}-{backend}", num_minibatches=1, update_epochs=2)
            yield a2c, a2c.Args(**how, run_dir=f"{where}/a2c-{env_id}-{backend}")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    plain, compiled = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("compiled")
    code = f"{RUNS}\nassert [agent.main(args) for agent, args in runs({str(plain)!r})] == 8 * [0]"
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    line = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    space: dict = {}
    exec(RUNS, space)
    assert [agent.main(args) for agent, args in space["runs"](compiled)] == [DONE] * 8
    return plain, compiled


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("agent", [ppo, a2c], ids=["ppo", "a2c"])
def test_without_a_compiler_a_run_learns_the_same(folders, agent, env_id, backend):
    name = f"{agent.__name__.removeprefix('hesscale_rl.agents.')}-{env_id}-{backend}"
    one, other = (newest_checkpoint(folder / name)["policy"] for folder in folders)
    for key, values in one.items():
        torch.testing.assert_close(
            values, other[key], rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
