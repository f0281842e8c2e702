"""Optimizers where curvature vanishes or is huge, and on tensors that no loop may read."""

import copy
import math
import os
import subprocess
import sys
from functools import partial

import literal_twins
import pytest
import torch
from torch import nn

import hesscale_rl as hs
from hesscale_rl import backend
from hesscale_rl.optim.diagonal import DiagonalOptimizer

TWINS = {
    "adahesscale": (hs.AdaHesScale, literal_twins.adahesscale),
    "adam": (hs.ScaledAdam, literal_twins.scaled_adam),
    "sgd": (hs.ScaledSGD, literal_twins.scaled_sgd),
    "momentum": (partial(hs.ScaledSGD, momentum=0.9), partial(literal_twins.scaled_sgd, momentum=0.9)),
}
every_twin = pytest.mark.parametrize("kind, twin", TWINS.values(), ids=TWINS)


@pytest.fixture(params=["compiled", "foreach", "definition"])
def path(request, monkeypatch):
    """All ways that a step can go on contiguous float32."""
    if request.param == "definition":
        for kind in (hs.AdaHesScale, hs.ScaledAdam, hs.ScaledSGD):
            monkeypatch.setattr(kind, "update_foreach", DiagonalOptimizer.update_foreach)
    with backend.use("auto" if request.param == "compiled" else "torch"):
        yield request.param


def follow(kind, twin, curvature, n=30, dtype=torch.float32, **settings):
    """The largest distance of parameters and eta from the literal twin in float64 after n random steps."""
    g = torch.Generator().manual_seed(0)
    fast = [nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in ((3, 4), (3,), (2, 2))]
    slow, state = [p.detach().double() for p in fast], {}
    optimizer, etas = kind(fast, **settings), []
    for step in range(n):
        for i, p in enumerate(fast):
            p.grad = torch.randn(p.shape, generator=g).to(dtype)
            p.hess_diag = curvature(torch.randn(p.shape, generator=g), step, i).to(dtype)
        grads, diagonals = ([getattr(p, name).double() for p in fast] for name in ("grad", "hess_diag"))
        eta = twin(slow, grads, diagonals, state, **settings)
        optimizer.step()
        assert all(p.isfinite().all() for p in fast)
        etas.append((float(optimizer.eta[0]), eta))
    return max(float((p.detach() - q).abs().max()) for p, q in zip(fast, slow, strict=True)), etas


@every_twin
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"reach": None},
        {"average": 0.9},
        {"average": 0.9, "bound": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("delta", [None, 1e-4])
def test_steps_equal_the_literal_twin_with_every_setting(kind, twin, path, delta, settings):
    apart, etas = follow(kind, twin, lambda d, *_: d, lr=0.01, delta=delta, **settings)
    assert apart < 1e-5
    assert [a for a, _ in etas] == pytest.approx([b for _, b in etas], rel=1e-4)


@every_twin
@pytest.mark.parametrize("huge", [1e18, 1e20, 1e25, 3e38])
@pytest.mark.parametrize("delta", [None, 1e-4])
def test_a_huge_curvature_stops_what_it_would_stop_in_float64(kind, twin, path, delta, huge):
    def once(d, step, i):
        if step == 2 and i == 0:
            d[0, 0] = huge
        return d

    apart, etas = follow(kind, twin, once, lr=0.01, delta=delta)
    assert apart < 1e-5
    if huge <= 1e20:
        assert [a for a, _ in etas] == pytest.approx([b for _, b in etas], rel=1e-4)


@every_twin
def test_curvature_that_is_not_a_number_stays_visible_and_infinite_one_moves_nothing(kind, twin, path):
    for value in ("nan", "inf"):
        optimizer = kind([p := nn.Parameter(torch.ones(3))], delta=1e-4)
        p.grad, p.hess_diag = torch.ones(3), torch.full((3,), float(value))
        optimizer.step()
        assert p.isnan().all() if value == "nan" else torch.equal(p.detach(), torch.ones(3))


def test_huge_curvature_leaves_the_steps_of_conjugate_gradients_finite():
    for name, curvature in (
        ("newton-cg", hs.HBP("pch-abs", "jacobian")),
        ("hessian-free", hs.GaussNewton()),
    ):
        for scaled in ("", "scaled-"):
            net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
            optimizer, _ = hs.make_optimizer(scaled + name, net.parameters(), lr=0.1, delta=1e-4)
            x = torch.randn(16, 3)
            for factor in (1e11, 1.0, 1.0):
                loss = hs.losses.CrossEntropy(torch.randint(0, 2, (16,)))
                hs.backward(net, factor * x, loss, curvature)
                optimizer.step()
                optimizer.zero_grad()
            assert all(p.isfinite().all() for p in net.parameters()), (scaled, name)


@every_twin
@pytest.mark.parametrize("delta", [None, 1e-8])
@pytest.mark.parametrize("small", [0.0, 1e-30, 1e-3])
def test_where_curvature_vanishes_steps_equal_the_twins(kind, twin, path, delta, small):
    apart, etas = follow(kind, twin, lambda d, *_: small * d, lr=0.01, delta=delta)
    assert apart < 1e-5
    assert [a for a, _ in etas] == pytest.approx([b for _, b in etas], rel=1e-4)
    assert all(a < 1 for a, _ in etas[:-1]) == (delta is not None)


def huber(net, x, target):
    return lambda: nn.functional.huber_loss(net(x), target)


@pytest.mark.parametrize("lr", [1e-3, 1.0])
@pytest.mark.parametrize("name", [*TWINS, "adahessian"])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
def test_a_loss_without_curvature_is_not_thrown_away(name, scaled, path, lr):
    # Huber's loss where all errors are above 1 is linear in the outputs: HesScale is 0.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
    loss = huber(net, torch.randn(32, 3), 5 + torch.rand(32, 2))
    kind = hs.AdaHessian if name == "adahessian" else TWINS[name][0]
    optimizer = kind(net.parameters(), lr=lr, delta=1e-8 if scaled else None)
    before = float(loss().detach())
    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        for p in net.parameters():
            p.hess_diag = torch.zeros_like(p)
        optimizer.step()
        if lr < 1 or scaled:  # without a trust region a step size is the user's
            assert float(loss().detach()) < before
            before = float(loss().detach())
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("kind", [hs.AdaHesScale, hs.ScaledAdam])
@pytest.mark.parametrize("delta", [None, 1e-4])
def test_a_step_does_not_depend_on_the_unit_of_the_loss(kind, path, delta):
    moved = []
    for unit in (1.0, 1e3):
        g, p = torch.Generator().manual_seed(0), nn.Parameter(torch.zeros(6))
        # The radius is one of the loss: it has its unit.
        optimizer = kind([p], lr=0.01, eps=0.0, delta=None if delta is None else unit * delta)
        for _ in range(5):
            p.grad = unit * torch.randn(6, generator=g)
            p.hess_diag = unit * torch.tensor([0.0, 1e-9, 1e-3, 1e-1, 1.0, 10.0])
            optimizer.step()
        moved.append(p.detach().clone())
    torch.testing.assert_close(*moved, rtol=1e-4, atol=1e-8)


def test_no_step_moves_a_parameter_further_than_its_reach(path):
    p = nn.Parameter(torch.zeros(5))
    optimizer = hs.AdaHesScale([p], lr=0.01, reach=3.0)
    p.grad, p.hess_diag = torch.tensor([1.0, -1e9, 1e-3, 5.0, 0.0]), torch.tensor([0.0, 1e-9, 1e-9, 10.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.03, 0.03, -0.03, -0.005, 0.0]), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", [hs.ScaledAdam, hs.ScaledSGD, partial(hs.ScaledSGD, momentum=0.5)])
@pytest.mark.parametrize("huge", [1e10, 1e25])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_few_huge_curvatures_do_not_hold_the_other_parameters_back(kind, huge, count, path):
    etas, moved = {}, {}
    for reach in (10.0, None):
        p = nn.Parameter(torch.zeros(50))
        optimizer = kind([p], lr=1e-3, delta=1e-4, reach=reach)
        for step in range(30):
            p.grad, p.hess_diag = torch.linspace(-1, 1, 50), torch.ones(50)
            p.hess_diag[:count] = huge if step == 0 else 1.0
            optimizer.step()
            etas.setdefault(reach, []).append(float(optimizer.eta[0]))
        moved[reach] = p.detach()
    assert min(etas[10.0]) >= 0.999 / math.sqrt(1 + count)
    if count == 0:  # where no parameter alone leaves the region, it is the literal step
        assert etas[10.0] == etas[None]
        torch.testing.assert_close(moved[10.0], moved[None], rtol=1e-6, atol=0)
    else:
        assert max(etas[None]) < 1e-2
        assert 0 < moved[10.0][0] < 1e-2 * -moved[10.0][-1] and 10 * moved[None][-1] > moved[10.0][-1]


def own_memory():
    p = nn.Parameter(torch.ones(4, 3))
    p.data = torch.ones(3, 4).T
    return p


class Wrapper(torch.Tensor):
    """A subclass whose numbers are where any tensor's are."""


SHAPES = {
    "transposed": own_memory,
    "float64": lambda: nn.Parameter(torch.ones(4, 3, dtype=torch.float64)),
    "bfloat16": lambda: nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16)),
    "subclass": lambda: nn.Parameter(torch.ones(4, 3).as_subclass(Wrapper)),
    "empty": lambda: nn.Parameter(torch.ones(0, 3)),
    "scalar": lambda: nn.Parameter(torch.ones(())),
    "channels last": lambda: nn.Parameter(torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)),
}


@every_twin
@pytest.mark.parametrize("delta", [None, 1e-4])
@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_of_every_kind_take_the_same_step(kind, twin, delta, shape):
    p = SHAPES[shape]()
    q, state = p.detach().as_subclass(torch.Tensor).double().clone(), {}
    optimizer = kind([p], lr=0.1, delta=delta)
    for step in range(3):
        p.grad = torch.full_like(p.detach(), 0.5 + step)
        p.hess_diag = torch.full_like(p.detach(), 2.0)
        values = [[getattr(p, name).as_subclass(torch.Tensor).double()] for name in ("grad", "hess_diag")]
        twin([q], *values, state, lr=0.1, delta=delta)
        optimizer.step()
    close = 0.02 if p.dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(p.detach().as_subclass(torch.Tensor).double(), q, rtol=close, atol=close)


DISTRIBUTED = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
import hesscale_rl as hs

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
for place in (Replicate(), Shard(0)):
    for name in ("adam", "scaled-adam", "adahesscale", "scaled-adahesscale", "sgd", "scaled-sgd"):
        torch.manual_seed(0)
        plain = [nn.Parameter(torch.randn(s)) for s in ((4, 3), (4,))]
        spread = [nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [place])) for p in plain]
        both = [hs.make_optimizer(name, ps, lr=0.1, delta=1e-4, weight_decay=0.1)[0] for ps in (plain, spread)]
        for _ in range(3):
            for p, q in zip(plain, spread):
                p.grad, p.hess_diag = torch.randn(p.shape), torch.randn(p.shape)
                q.grad, q.hess_diag = (distribute_tensor(t.clone(), mesh, [place]) for t in (p.grad, p.hess_diag))
            for optimizer in both:
                optimizer.step()
        for p, q in zip(plain, spread):
            torch.testing.assert_close(q.full_tensor().detach(), p.detach(), rtol=1e-5, atol=1e-6)
print("equal")
"""


def test_distributed_tensors_take_the_steps_of_plain_ones():
    command = [sys.executable, "-W", "ignore", "-c", DISTRIBUTED]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stdout == "equal\n" and done.returncode == 0, done.stderr[-2000:]


def test_an_optimizer_that_is_copied_keeps_its_settings():
    optimizer = hs.AdaHesScale([nn.Parameter(torch.ones(2))], reach=None, weight_decay=0.1, maximize=True)
    group = copy.deepcopy(optimizer).param_groups[0]
    assert (group["reach"], group["weight_decay"], group["maximize"]) == (None, 0.1, True)
