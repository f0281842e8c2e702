"""An optimizer is one file: what a user's own declares is all that the library needs, its compiled step included."""

import importlib
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from contributing import blocks

import hesscale_rl as hs
from hesscale_rl.agents import ppo
from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.optim import declaration
from hesscale_rl.runs.checkpoint import newest_checkpoint

[(_, CLIPPED), _] = blocks("An optimizer")
SMALL = ppo.Args(
    env_id="Pendulum-v1", num_steps=128, num_minibatches=4, update_epochs=2, total_timesteps=512, quiet=True
)


@pytest.fixture
def clipped(tmp_path, monkeypatch):
    """The module of one more optimizer, a file of a user's own."""
    (tmp_path / "clipped_newton.py").write_text(CLIPPED)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(declaration._outside), dict(declaration._outside_names)
    yield importlib.import_module("clipped_newton")
    sys.modules.pop("clipped_newton")
    for mine, kept in zip((declaration._outside, declaration._outside_names), before, strict=True):
        mine.clear()
        mine.update(kept)


@pytest.mark.parametrize("name", ["clipped-newton", "scaled-clipped-newton"])
def test_an_optimizer_of_a_users_own_trains_by_its_kernel_as_by_its_definition(tmp_path, clipped, name):
    args = replace(SMALL, optimizer=name, eps=1e-12, delta=1e-5, optimizer_kwargs="gamma=0.5", learning_rate=1e-3)
    nets = {}
    for way in ("compiled", "torch"):
        assert ppo.main(replace(args, backend=way, run_dir=str(tmp_path / way))) == DONE
        nets[way] = newest_checkpoint(tmp_path / way)["policy"]
    for key, values in nets["compiled"].items():
        torch.testing.assert_close(values, nets["torch"][key], rtol=1e-3, atol=1e-4)


def test_an_edited_kernel_is_compiled_anew(tmp_path, clipped):
    code = "import torch, clipped_newton as c\np = torch.nn.Parameter(torch.ones(2))\n"
    code += (
        "p.grad, p.hess_diag = torch.ones(2), torch.zeros(2)\nc.ClippedNewton([p], lr=0.5).step()\nprint(float(p[0]))"
    )

    def run():
        command = [sys.executable, "-c", code]
        return float(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)

    assert run() == 0.5
    path = tmp_path / "clipped_newton.py"
    path.write_text(path.read_text().replace("eps), 1.0), -1.0)", "eps), 0.5), -0.5)"))
    assert run() == 0.75


def test_the_command_line_knows_it_by_its_module(tmp_path, clipped, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = replace(SMALL, optimizer="clipped-newton", total_timesteps=128)
    for kwargs, words in (
        ("gamma=-1", "--optimizer-kwargs gamma=-1: must be zero or a positive number"),
        ("rho=1", "--optimizer-kwargs rho=1: clipped-newton has"),
    ):
        assert ppo.main(replace(args, optimizer_kwargs=kwargs)) == BAD_INPUT
        assert capsys.readouterr().err.startswith(words)
    with pytest.raises(ValueError, match="optimizer 'adam' of .*has one of that name"):

        @hs.optim.declare(names={"adam": lambda hs: hs.HesScale()}, ranges={})
        class Mine(hs.optim.CurvatureOptimizer):
            pass


def test_a_module_that_is_named_on_the_command_line_may_declare_one(tmp_path):
    (tmp_path / "clipped_newton.py").write_text(CLIPPED)
    flags = ["--env-id", "Pendulum-v1", "--env-module", "clipped_newton", "--num-steps", "8", "-n", "8", "--quiet"]
    flags += ["--num-minibatches", "2", "--update-epochs", "1", "--run-dir"]
    for name, code, words in (
        ("clipped-newton", DONE, ""),
        ("clipped-newtn", BAD_INPUT, "--optimizer clipped-newtn: did you mean 'clipped-newton'?"),
    ):
        command = [sys.executable, "-m", "hesscale_rl", "train", "ppo", *flags, name, "--optimizer", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code and done.stderr.startswith(words), done.stderr


def test_every_optimizer_that_stands_in_the_folder_is_known_without_being_run():
    for name, found in hs.optim.names().items():
        declared = found.find_class().declared
        assert found.plain in declared.names and found.scaled == name.startswith("scaled-")
        assert declared.ranges.keys() == found.declaration.ranges.keys()
        curvature = found.make_curvature({})
        assert declared.usual_curvature.startswith((type(curvature).__name__, "HesScale"))
    with pytest.raises(ValueError, match="'adam': rho=1, a setting that it does not have: lr, delta, weight_decay"):
        hs.make_optimizer("adam", [torch.nn.Parameter(torch.ones(1))], rho=1)
