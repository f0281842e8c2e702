"""The optimizers against their literal twins, against torch's own, and against torch.optim's contract."""

import copy
import math
from functools import partial

import literal_twins
import pytest
import torch
from torch import nn

import hesscale_rl as hs
from hesscale_rl import backend
from hesscale_rl.optim import names
from hesscale_rl.optim.diagonal import DiagonalOptimizer

TWINS = {
    hs.AdaHesScale: literal_twins.adahesscale,
    hs.ScaledAdam: literal_twins.scaled_adam,
    hs.ScaledSGD: literal_twins.scaled_sgd,
    partial(hs.ScaledSGD, momentum=0.9): partial(literal_twins.scaled_sgd, momentum=0.9),
}


def fill(params, generator):
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        p.hess_diag = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def parameters():
    return [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in ((3, 4), (3,), (2, 2))]


@pytest.mark.parametrize("way", ["foreach", "definition"])
@pytest.mark.parametrize("delta", [None, 1e-4])
@pytest.mark.parametrize("kind", TWINS)
def test_fifty_steps_equal_the_literal_twin_with_a_scaling_for_each_group(kind, delta, way, monkeypatch):
    if way == "definition":
        monkeypatch.setattr(getattr(kind, "func", kind), "update_foreach", DiagonalOptimizer.update_foreach)
    torch.manual_seed(0)
    fast, g = parameters(), torch.Generator().manual_seed(1)
    slow = [p.detach().clone() for p in fast]
    groups = [{"params": fast[:2], "lr": 1e-1}, {"params": fast[2:], "lr": 1e-5}]
    optimizer, states, etas = kind(groups, delta=delta), ({}, {}), []
    for _ in range(50):
        fill(fast, g)
        eta = [
            TWINS[kind](
                slow[a:b], [p.grad for p in fast[a:b]], [p.hess_diag for p in fast[a:b]], s, lr=lr, delta=delta
            )
            for a, b, s, lr in ((0, 2, states[0], 1e-1), (2, 3, states[1], 1e-5))
        ]
        optimizer.step()
        etas.append([float(e) for e in optimizer.eta])
        assert etas[-1] == pytest.approx(eta, rel=1e-6)  # eta is a float32 one where nothing is scaled
    for p, q in zip(fast, slow, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=1e-12)
    assert all(second == 1 for _, second in etas)
    assert all((first < 1) == (delta is not None) for first, _ in etas)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (hs.ScaledAdam, torch.optim.Adam),
        (hs.ScaledSGD, torch.optim.SGD),
        (partial(hs.ScaledSGD, momentum=0.9), partial(torch.optim.SGD, momentum=0.9)),
    ],
    ids=["adam", "sgd", "momentum"],
)
def test_without_delta_they_are_torchs_own_and_need_no_curvature(ours, theirs):
    a = parameters()
    b = [nn.Parameter(p.detach().clone()) for p in a]
    x, y, g = ours(a, lr=1e-2), theirs(b, lr=1e-2), torch.Generator().manual_seed(1)
    for _ in range(20):
        fill(a, g)
        for p, q in zip(a, b, strict=True):
            p.hess_diag, q.grad = None, p.grad.clone()
        x.step()
        y.step()
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def learner(seed=0, kind=hs.AdaHesScale):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = kind(net.named_parameters(), lr=1e-2, delta=1e-6)
    return net, optimizer


def learn(net, optimizer, steps, seed=1):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, target = torch.randn(8, 4, generator=g), torch.randint(0, 3, (8,), generator=g)
        optimizer.zero_grad()
        kfac = isinstance(optimizer, hs.KFACOptimizer)
        hs.backward(net, x, hs.losses.CrossEntropy(target), hs.KFAC(None) if kfac else hs.HesScale())
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("kind", [hs.AdaHesScale, hs.KFACOptimizer])
def test_a_state_dict_goes_on_to_the_last_bit_through_a_safe_file(tmp_path, kind):
    net, optimizer = learner(kind=kind)
    learn(net, optimizer, 5)
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    expected = learn(net, optimizer, 5, seed=2)
    other, again = learner(seed=3, kind=kind)
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    other.load_state_dict(saved["net"])
    again.load_state_dict(saved["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(learn(other, again, 5, seed=2), expected, strict=True))


@pytest.mark.parametrize("way", ["auto", "torch"])
def test_what_the_scaling_remembers_is_in_the_state_dict(tmp_path, way):
    kind = partial(hs.AdaHesScale, average=0.9)
    with backend.use(way):
        net, optimizer = learner(kind=kind)
        learn(net, optimizer, 5)
        torch.save((net.state_dict(), optimizer.state_dict()), tmp_path / "x.pt")
        expected = learn(net, optimizer, 5, seed=2)
        other, again = learner(seed=3, kind=kind)
        for part, saved in zip((other, again), torch.load(tmp_path / "x.pt", weights_only=True), strict=True):
            part.load_state_dict(saved)
        assert again.param_groups[0]["curvature_along"][1] == 5
        assert all(torch.equal(a, b) for a, b in zip(learn(other, again, 5, seed=2), expected, strict=True))


@pytest.mark.parametrize("way", ["auto", "torch"])
@pytest.mark.parametrize("kind", [hs.AdaHesScale, hs.ScaledAdam, hs.ScaledSGD])
def test_a_radius_may_change_between_steps(kind, way):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(20))
    q, state, g = p.detach().double(), {}, torch.Generator().manual_seed(1)
    optimizer = kind([p], lr=0.1, delta=1.0)
    for step in range(10):
        fill([p], g)
        delta = optimizer.param_groups[0]["delta"] = 1e-3 * 0.5**step
        eta = TWINS[kind]([q], [p.grad.double()], [p.hess_diag.double()], state, lr=0.1, delta=delta)
        with backend.use(way):
            optimizer.step()
        assert float(optimizer.eta[0]) == pytest.approx(eta, rel=1e-5) and eta < 1
    torch.testing.assert_close(p.detach().double(), q, rtol=1e-5, atol=1e-6)


def test_deepcopies_learn_alike():
    net, optimizer = learner()
    learn(net, optimizer, 3)
    both = copy.deepcopy((net, optimizer))
    expected = learn(net, optimizer, 3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(learn(*both, 3, seed=2), expected, strict=True))


def test_closure_scheduler_and_late_groups():
    net, optimizer = learner()
    late = nn.Linear(3, 2)
    optimizer.add_param_group({"params": list(late.named_parameters()), "lr": 0.5})
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    flat = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, flat], [2])
    rates = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        return hs.backward(net, torch.randn(8, 4), hs.losses.MeanSquaredError(torch.randn(8, 3)), hs.HesScale()).value

    for _ in range(3):
        assert optimizer.step(closure).ndim == 0
        rates.append(optimizer.param_groups[1]["lr"])
        scheduler.step()
    assert rates == pytest.approx([0.05, 0.275, 0.5])
    assert late.weight not in optimizer.state and net[0].weight in optimizer.state  # no gradient: left alone


def test_two_halves_accumulate_to_the_whole_and_frozen_parameters_stay():
    net, _ = learner()
    net[0].bias.requires_grad_(False)
    x, target = torch.randn(8, 4), torch.randint(0, 3, (8,))

    def add(part):
        hs.backward(net, x[part], hs.losses.CrossEntropy(target[part], reduction="sum"), hs.HesScale())
        return net[0].weight.grad, net[0].weight.hess_diag

    whole = add(slice(8))
    net[0].weight.grad = net[0].weight.hess_diag = None
    add(slice(3))
    halves = add(slice(3, 8))
    # float32: the order of summation differs
    torch.testing.assert_close(halves, whole, rtol=1e-5, atol=1e-6)
    assert net[0].bias.grad is None and not hasattr(net[0].bias, "hess_diag")


def test_curvature_may_be_set_by_hand_but_must_fit():
    net, optimizer = learner()
    for p in net.parameters():
        p.grad, p.hess_diag = torch.ones_like(p), torch.ones_like(p)
    optimizer.step()
    for p in net.parameters():
        p.hess_diag = torch.ones(1)
    with pytest.raises(hs.CurvatureError, match="another shape"):
        optimizer.step()


def test_a_step_that_fails_uses_nothing_up():
    both = [nn.Linear(2, 2), nn.Linear(2, 2)]
    optimizer = hs.AdaHesScale([{"params": list(net.parameters())} for net in both])
    x, loss = torch.randn(4, 2), hs.losses.MeanSquaredError(torch.randn(4, 2))
    hs.backward(both[0], x, loss, hs.HesScale())
    hs.backward(both[1], x, loss)
    with pytest.raises(hs.CurvatureError, match="missing"):
        optimizer.step()
    both[1].zero_grad()
    hs.backward(both[1], x, loss, hs.HesScale())
    optimizer.step()


def test_curvature_of_the_past_is_not_summed_and_not_taken():
    net, optimizer = learner()
    x, loss = torch.randn(8, 4), hs.losses.CrossEntropy(torch.zeros(8).long())
    seen = []
    for _ in range(3):
        hs.backward(net, x, loss, hs.HesScale())
        seen.append(net[0].weight.hess_diag.clone())
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
        net.zero_grad()  # knows nothing of hess_diag
    torch.testing.assert_close(seen[0], seen[2])
    hs.backward(net, x, loss, hs.HesScale())
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    net.zero_grad()
    loss.value(net(x)).backward()
    with pytest.raises(hs.CurvatureError, match="older step"):
        optimizer.step()


def test_the_state_of_torchs_adam_is_taken_up():
    ours, theirs = parameters(), parameters()
    adam, g = torch.optim.Adam(theirs, lr=1e-2), torch.Generator().manual_seed(0)
    for _ in range(3):
        fill(theirs, g)
        adam.step()
    scaled = hs.ScaledAdam(ours, lr=1e-2)
    scaled.load_state_dict(copy.deepcopy(adam.state_dict()))
    for p, q in zip(ours, theirs, strict=True):
        p.data.copy_(q.data)
    fill(theirs, g)
    for p, q in zip(ours, theirs, strict=True):
        p.grad = q.grad.clone()
    scaled.step()
    adam.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    scaled.param_groups[0]["delta"] = 1e-8
    fill(ours, g)
    with pytest.raises(RuntimeError, match="exp_hess_sq.*new optimizer"):
        scaled.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_step_size_is_too_large_for_the_trust_region(dtype):
    moved = []
    for lr in (1e3, 1e25):
        p = nn.Parameter(torch.ones(3, dtype=dtype))
        optimizer = hs.AdaHesScale([p], lr=lr, delta=1e-6)
        p.grad, p.hess_diag = torch.ones(3, dtype=dtype), torch.full((3,), 2.0, dtype=dtype)
        optimizer.step()
        moved.append(p.detach())
    torch.testing.assert_close(moved[0], moved[1])
    assert float(moved[0][0]) < 1


def test_no_curvature_at_all_scales_nothing_to_the_letter():
    p = nn.Parameter(torch.ones(3))
    optimizer = hs.ScaledAdam([p], lr=0.1, delta=1e-8, reach=None)
    p.grad, p.hess_diag = torch.ones(3), torch.zeros(3)
    optimizer.step()
    assert float(optimizer.eta[0]) == 1
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.9))


BAD = [{"lr": -1.0}, {"lr": math.nan}, {"delta": 0.0}, {"delta": -1e-8}, {"betas": (0.9, 1.0)}, {"eps": -1.0}]


@pytest.mark.parametrize("setting", BAD, ids=str)
def test_bad_settings_name_themselves(setting):
    name = next(iter(setting))
    with pytest.raises(ValueError, match=f"AdaHesScale: {name}="):
        hs.AdaHesScale(parameters(), **setting)
    with pytest.raises(ValueError, match=f"AdaHesScale: {name}="):
        hs.AdaHesScale(parameters()[:1]).add_param_group({"params": parameters()[1:], **setting})


def test_momentum_is_checked_and_a_state_of_before_has_none():
    with pytest.raises(ValueError, match="ScaledSGD: momentum=1.0"):
        hs.ScaledSGD(parameters(), momentum=1.0)
    with pytest.raises(ValueError, match="ScaledSGD: momentum=nan"):
        hs.ScaledSGD(parameters()[:1]).add_param_group({"params": parameters()[1:], "momentum": math.nan})
    saved = hs.ScaledSGD(parameters()).state_dict()
    del saved["param_groups"][0]["momentum"]
    optimizer = hs.ScaledSGD(parameters())
    optimizer.load_state_dict(saved)
    fill(optimizer.param_groups[0]["params"], torch.Generator().manual_seed(1))
    optimizer.step()
    assert not optimizer.state


def test_names_of_the_command_line():
    for name, found in names().items():
        optimizer, curvature = hs.make_optimizer(name, parameters(), lr=0.5, delta=1e-3)
        assert optimizer.param_groups[0]["delta"] == (1e-3 if found.scaled else None)
        assert (curvature is None) == (name in ("sgd", "adam"))
    assert type(hs.make_optimizer("adahesscale-gn", parameters())[1]) is hs.HesScaleGN
    assert type(hs.make_optimizer("scaled-adabl89", parameters())[1]) is hs.BL89
    with pytest.raises(ValueError, match="scaled-adam.*delta=None.*take 'adam'"):
        hs.make_optimizer("scaled-adam", parameters(), delta=None)
    with pytest.raises(ValueError, match="adamw.*scaled-adahesscale"):
        hs.make_optimizer("adamw", parameters())
    with pytest.raises(ValueError, match="curvature_of='policy', must be one of loss, kl"):
        hs.make_optimizer("hessian-free", parameters(), curvature_of="policy")


def test_settings_of_the_newton_methods_reach_them():
    settings = {"damping": 0.5, "iterations": 3, "splits": 2, "curvature_rows": 7}
    for name, damping in (("hessian-free", "damping"), ("newton-cg", "alpha")):
        for of, variant in (("loss", "abs"), ("kl", "fisher")):
            optimizer, curvature = hs.make_optimizer(name, parameters(), curvature_of=of, **settings)
            group = optimizer.param_groups[0]
            assert (group[damping], group["iterations"]) == (0.5, 3) and curvature.variant.endswith(variant)
            if name == "hessian-free":
                assert curvature.rows == 7
            else:
                assert group["splits"] == 2 and curvature.average == ("hessian" if of == "kl" else "jacobian")


@pytest.mark.parametrize("delta", [None, 1e-3])
def test_kfac_equals_its_literal_twin_with_whole_matrices(delta):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2), hs.networks.GaussianHead(2)]
    net = nn.Sequential(*layers).double()
    slow, state = [p.detach().clone() for p in net.parameters()], {}
    optimizer, etas = hs.KFACOptimizer(net.named_parameters(), lr=0.1, delta=delta), []
    for _ in range(25):
        x, a = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
        loss = hs.losses.GaussianPPO(torch.randn(16, 2, dtype=torch.float64), -3 + 0.1 * a, a)
        optimizer.zero_grad()
        hs.backward(net, x, loss, hs.KFAC(3, fisher=True))
        blocks = [p.hess_block for p in net.parameters()]
        factors = [(b.a[0], b.b[0]) if hasattr(b, "a") else b.dense() for b in blocks]
        eta = literal_twins.kfac(slow, [p.grad for p in net.parameters()], factors, state, lr=0.1, delta=delta)
        optimizer.step()
        etas.append(float(optimizer.eta[0]))
        assert etas[-1] == pytest.approx(eta, rel=1e-8)
    for p, q in zip(net.parameters(), slow, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-8, atol=1e-10)
    assert (min(etas) < 1) == (delta is not None)


def test_kfac_learns_faster_than_its_gradient_and_says_what_it_needs():
    def final(optimize):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 3))
        x = torch.randn(256, 20) * torch.logspace(-1, 1, 20)  # badly scaled
        loss = hs.losses.CrossEntropy(nn.Sequential(nn.Linear(20, 5), nn.Tanh(), nn.Linear(5, 3))(x).argmax(1))
        optimizer, curvature = optimize(net.parameters())
        for _ in range(60):
            optimizer.zero_grad()
            value = hs.backward(net, x, loss, curvature).value
            optimizer.step()
        return float(value)

    descent = min(final(lambda p, lr=lr: hs.make_optimizer("sgd", p, lr=lr)) for lr in (0.01, 0.1, 1.0))
    assert final(lambda p: hs.make_optimizer("kfac", p, lr=0.3)) < 0.5 * descent
    assert final(lambda p: hs.make_optimizer("scaled-kfac", p, lr=1.0, delta=1e-2)) < 0.5 * descent
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    optimizer = hs.KFACOptimizer(nn.Sequential(net).parameters())
    hs.backward(nn.Sequential(net), x, hs.losses.MeanSquaredError(torch.zeros(4, 2)), hs.HesScale())
    with pytest.raises(hs.CurvatureError, match=r"p\.hess_block of 2 of 2 .*KFAC\(fisher=True\)"):
        optimizer.step()
    hs.backward(nn.Sequential(net), x, hs.losses.MeanSquaredError(torch.zeros(4, 2)), hs.HBP())
    with pytest.raises(hs.CurvatureError, match="PerSample.*KFAC"):
        optimizer.step()
    for settings in ({"damping": 0.0}, {"inverse_every": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            hs.KFACOptimizer(net.parameters(), **settings)
