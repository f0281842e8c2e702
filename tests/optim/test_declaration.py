"""An optimizer is one file: what a user's own declares is all that the library needs, its compiled step included."""

import importlib
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import hesscale_rl as hs
from hesscale_rl import backend
from hesscale_rl.agents import ppo
from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.optim import declaration
from hesscale_rl.runs.checkpoint import newest_checkpoint

CLIPPED = '''
import numpy as np
from hesscale_rl.compiled.steps import OFF, Kernel, floats, larger, smaller
from hesscale_rl.jit import FAST
from hesscale_rl.optim.declaration import declare
from hesscale_rl.optim.diagonal import DiagonalOptimizer
from hesscale_rl.optim.settings import BETAS, EPS, NOT_NEGATIVE


@declare(names={"clipped-newton": lambda hs: hs.HesScale()}, ranges=BETAS | EPS | {"gamma": NOT_NEGATIVE})
class ClippedNewton(DiagonalOptimizer):
    """u = lr clip(m/max(gamma h, eps)) to at most 1, m and h the averages of gradient and curvature."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), gamma=0.01, eps=1e-12, delta=None, **options):
        own = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "delta": delta}
        super().__init__(params, own | options)

    def averages(self, group):
        return ("exp_avg", "exp_hess")

    def update(self, grad, curvature, averages, t, group):
        (b1, b2), m, h = group["betas"], averages["exp_avg"], averages["exp_hess"]
        m.copy_(b1 * m + (1 - b1) * grad)
        h.copy_(b2 * h + (1 - b2) * curvature)
        u = group["lr"] * (m / (group["gamma"] * h).clamp(min=group["eps"])).clamp(-1, 1)
        return u, h.abs()


@FAST
def measure(tensors, n, t, s, delta):
    lr, beta1, beta2, gamma, eps = s
    g, d, m, h = floats(tensors[1], n), floats(tensors[2], n), floats(tensors[3], n), floats(tensors[4], n)
    b1, rest1, b2, rest2 = np.float32(beta1), np.float32(1 - beta1), np.float32(beta2), np.float32(1 - beta2)
    total = 0.0
    for i in range(n):
        m[i] = b1 * m[i] + rest1 * g[i]
        h[i] = b2 * h[i] + rest2 * d[i]
        if delta != OFF:
            u = lr * clipped(m[i], h[i], gamma, eps)
            total += abs(h[i]) * u * u
    return total


@FAST
def apply(tensors, n, t, s, delta, eta):
    lr, _, _, gamma, eps = s
    p, m, h = floats(tensors[0], n), floats(tensors[3], n), floats(tensors[4], n)
    for i in range(n):
        p[i] -= np.float32(eta * lr * clipped(m[i], h[i], gamma, eps))


@FAST
def clipped(m, h, gamma, eps):
    return larger(smaller(m / larger(gamma * h, eps), 1.0), -1.0)


ClippedNewton.kernel = Kernel(measure, apply, ("exp_avg", "exp_hess"), ("lr", "betas", "gamma", "eps"))
'''
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


@pytest.mark.parametrize("delta", [None, 1e-6])
def test_its_compiled_step_equals_its_readable_one(clipped, delta):
    g = torch.Generator().manual_seed(0)
    nets = [[torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 4), (5,))] for _ in range(2)]
    optimizers = [clipped.ClippedNewton(net, lr=0.1, gamma=0.5, delta=delta, weight_decay=0.1) for net in nets]
    for _ in range(20):
        for p, q in zip(*nets, strict=True):
            for name in ("grad", "hess_diag"):
                setattr(p, name, torch.randn(p.shape, generator=g))
                setattr(q, name, getattr(p, name).clone())
        for optimizer, way in zip(optimizers, ("auto", "torch"), strict=True):
            with backend.use(way):
                optimizer.step()
        assert float(optimizers[0].eta[0]) == pytest.approx(float(optimizers[1].eta[0]), rel=1e-5)
    for p, q in zip(*nets, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


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
