"""Settings of every optimizer: ranges, weight decay and maximize, torch's own states, schedulers, checkpoints."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

import hesscale_rl as hs

X, LOSS = torch.randn(16, 3), hs.losses.CrossEntropy(torch.randint(0, 2, (16,)))
SCALED = {"delta": 1e-4}
KINDS = {  # an optimizer of every kind, with the curvature that it reads
    "adahesscale": (hs.AdaHesScale, {}, hs.HesScale),
    "scaled-adahesscale": (hs.AdaHesScale, SCALED, hs.HesScale),
    "adahessian": (hs.AdaHessian, {}, lambda: hs.Hutchinson(1)),
    "adam": (hs.ScaledAdam, {}, None),
    "scaled-adam": (hs.ScaledAdam, SCALED, hs.HesScale),
    "sgd": (hs.ScaledSGD, {}, None),
    "momentum": (hs.ScaledSGD, {"momentum": 0.9}, None),
    "scaled-sgd": (hs.ScaledSGD, SCALED, hs.HesScale),
    "scaled-momentum": (hs.ScaledSGD, {"momentum": 0.9, **SCALED}, hs.HesScale),
    "kfac": (hs.KFACOptimizer, {}, lambda: hs.KFAC(fisher=True)),
    "scaled-kfac": (hs.KFACOptimizer, SCALED, lambda: hs.KFAC(fisher=True)),
    "newton-cg": (hs.NewtonCG, {}, lambda: hs.HBP("pch-abs", "jacobian")),
    "scaled-newton-cg": (hs.NewtonCG, SCALED, lambda: hs.HBP("pch-abs", "jacobian")),
    "hessian-free": (hs.HessianFree, {}, hs.GaussNewton),
    "scaled-hessian-free": (hs.HessianFree, SCALED, hs.GaussNewton),
}
ASCENDING = [name for name in KINDS if not name.endswith(("newton-cg", "hessian-free"))]
every_kind = pytest.mark.parametrize("name", KINDS)


def made(name, net, **settings):
    kind, own, _ = KINDS[name]
    return kind(net.parameters(), **{"lr": 0.05, **own, **settings})


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def learn(name, net, optimizer, steps=1, x=X):
    curvature = KINDS[name][2]
    for step in range(steps):
        torch.manual_seed(step)  # AdaHessian's signs
        optimizer.zero_grad()
        hs.backward(net, x, LOSS, *([curvature()] if curvature else []))
        optimizer.step()


def values(net):
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


@every_kind
def test_weight_decay_is_decoupled_and_left_alone_by_scaling(name):
    plain, decayed = network(), network()
    before = values(plain)
    learn(name, plain, made(name, plain))
    learn(name, decayed, made(name, decayed, weight_decay=0.5))
    torch.testing.assert_close(values(plain) - values(decayed), 0.05 * 0.5 * before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ASCENDING)
def test_maximize_goes_the_other_way(name):
    down, up = network(), network()
    before = values(down)
    learn(name, down, made(name, down))
    learn(name, up, made(name, up, maximize=True))
    torch.testing.assert_close(values(up) - before, before - values(down), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("where", ["constructor", "group", "late group", "state"])
def test_weight_decay_and_maximize_are_adamws_wherever_they_come_from(where):
    ours, theirs = network(), network()
    extra = {"weight_decay": 0.5, "maximize": True}
    a = torch.optim.AdamW(theirs.parameters(), lr=0.01, **extra)
    if where == "constructor":
        b = hs.ScaledAdam(ours.parameters(), lr=0.01, **extra)
    elif where == "group":
        b = hs.ScaledAdam([{"params": ours.parameters(), **extra}], lr=0.01)
    elif where == "late group":
        b = hs.ScaledAdam(nn.Linear(1, 1).parameters(), lr=0.01)
        b.add_param_group({"params": ours.parameters(), **extra})
    else:
        learn("adam", theirs, a, 3)
        ours.load_state_dict(theirs.state_dict())
        b = hs.ScaledAdam(ours.parameters())
        b.load_state_dict(a.state_dict())
    learn("adam", ours, b, 5)
    learn("adam", theirs, a, 5)
    torch.testing.assert_close(values(ours), values(theirs), rtol=1e-5, atol=1e-6)


REFUSED = [  # what, in a group of whom, and the words of the error
    ("adam", {"amsgrad": True}, "ScaledAdam: amsgrad=True"),
    ("adahesscale", {"amsgrad": True}, "AdaHesScale: amsgrad=True"),
    ("adam", {"nesterov": True}, "nesterov=True"),
    ("momentum", {"nesterov": True}, "ScaledSGD: nesterov=True"),
    ("sgd", {"dampening": 0.1}, "dampening=0.1"),
    ("adam", {"differentiable": True}, "differentiable=True"),
    ("adam", {"capturable": True}, "capturable=True"),
    ("adam", {"momentum": 0.9}, "momentum=0.9"),
    ("adam", {"weight_dekay": 0.1}, "weight_dekay=0.1"),
    ("adam", {"weight_decay": -0.1}, "weight_decay=-0.1, must be zero or a positive number"),
    ("adam", {"weight_decay": 0.1, "decoupled_weight_decay": False}, "weight_decay=0.1.*L2"),
    ("adam", {"maximize": 1}, "maximize=1, must be True or False"),
    ("adam", {"lr": None}, "lr=None, must be zero or"),
    ("adam", {"betas": 0.9}, "betas=0.9, must be two numbers"),
    ("adam", {"reach": 0.0}, "reach=0.0, must be a positive number"),
    ("kfac", {"inverse_every": 0}, "KFACOptimizer: inverse_every=0"),
    ("newton-cg", {"maximize": True}, "NewtonCG: maximize=True"),
    ("newton-cg", {"alpha": 2.0}, "NewtonCG: alpha=2.0, must be from 0 to 1"),
    ("newton-cg", {"betas": (0.9, 0.9)}, "NewtonCG: betas="),
    ("hessian-free", {"iterations": 1.5}, "HessianFree: iterations=1.5, must be at least 1"),
]


@pytest.mark.parametrize("name, setting, words", REFUSED)
def test_a_setting_that_an_optimizer_does_not_have_is_refused_by_name(name, setting, words):
    net = network()
    with pytest.raises(ValueError, match=words):
        KINDS[name][0]([{"params": net.parameters(), **setting}])
    optimizer = made(name, net)
    saved = optimizer.state_dict()
    saved["param_groups"][0] |= setting
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict() == before


STATES = [  # the optimizer that saved, its settings, ours, and the words of the error or None
    (torch.optim.Adam, {}, "adam", None),
    (torch.optim.AdamW, {}, "adam", None),
    (torch.optim.SGD, {}, "sgd", None),
    (torch.optim.SGD, {"momentum": 0.9}, "momentum", None),
    (torch.optim.Adam, {"amsgrad": True}, "adam", "ScaledAdam: amsgrad=True"),
    (torch.optim.Adam, {"weight_decay": 0.1}, "adam", "weight_decay=0.1 .*L2"),
    (torch.optim.SGD, {"weight_decay": 0.1}, "sgd", "weight_decay=0.1 .*L2"),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, "momentum", "nesterov=True"),
    (torch.optim.SGD, {"momentum": 0.9}, "adam", "ScaledAdam: momentum=0.9"),
    (torch.optim.Adam, {}, "momentum", "ScaledSGD: eps="),
    (torch.optim.Adam, {}, "adahesscale", "AdaHesScale: the loaded state has no exp_hess_sq, but step, exp_avg"),
    (torch.optim.Adam, {}, "scaled-adam", "ScaledAdam: the loaded state has no exp_hess_sq"),
    (torch.optim.SGD, {"momentum": 0.9}, "scaled-momentum", "ScaledSGD: the loaded state has no exp_hess_sq"),
    (torch.optim.Adam, {}, "kfac", "KFACOptimizer: eps="),
    (torch.optim.Adam, {}, "hessian-free", "HessianFree: betas="),
]


@pytest.mark.parametrize("kind, settings, name, words", STATES)
def test_a_state_of_torchs_optimizers_goes_on_or_is_refused_by_name(kind, settings, name, words):
    theirs, ours = network(), network()
    a, b = kind(theirs.parameters(), lr=0.02, **settings), made(name, ours)
    learn("sgd", theirs, a, 3)
    ours.load_state_dict(theirs.state_dict())
    if words:
        with pytest.raises(ValueError, match=words):
            b.load_state_dict(a.state_dict())
        assert not b.state and b.param_groups[0]["lr"] == 0.05
        return
    b.load_state_dict(a.state_dict())
    learn("sgd", theirs, a, 3)
    learn("sgd", ours, b, 3)
    torch.testing.assert_close(values(ours), values(theirs), rtol=1e-6, atol=1e-7)


def test_averages_of_another_shape_are_refused_and_two_optimizers_share_none():
    net, other = network(), network()
    a, b = made("adahesscale", net), made("adahesscale", other)
    learn("adahesscale", net, a, 2)
    saved = copy.deepcopy(a.state_dict())
    saved["state"][0]["exp_hess_sq"] = saved["state"][0]["exp_hess_sq"].T
    with pytest.raises(ValueError, match=r"exp_hess_sq of the loaded state is \[3, 8\], its parameter \[8, 3\]"):
        b.load_state_dict(saved)
    b.load_state_dict(a.state_dict())
    other.load_state_dict(net.state_dict())
    learn("adahesscale", other, b, 3)
    learn("adahesscale", net, a, 3)
    assert torch.equal(values(net), values(other))


def test_states_of_older_versions_are_taken_up():
    net = network()
    for name, older in (("newton-cg", {"betas": (0.0, 0.0)}), ("hessian-free", {"betas": (0.0, 0.0)})):
        optimizer = made(name, net)
        saved = optimizer.state_dict()
        saved["param_groups"][0] |= older
        optimizer.load_state_dict(saved)
        assert "betas" not in optimizer.param_groups[0]
    sgd, adahesscale = made("scaled-sgd", net), made("adahesscale", net)
    for optimizer in (sgd, adahesscale):
        saved = optimizer.state_dict()
        for name in ("reach", "weight_decay", "maximize"):
            del saved["param_groups"][0][name]
        saved["param_groups"][0] |= {"betas": (0.9, 0.99)}
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["reach"] == 10
    assert sgd.param_groups[0]["beta2"] == 0.99 and adahesscale.param_groups[0]["betas"] == (0.9, 0.99)


@every_kind
@pytest.mark.parametrize("cyclic", [False, True], ids=["OneCycleLR", "CyclicLR"])
def test_schedulers_cycle_momentum_where_there_is_one(name, cyclic):
    net = network()
    optimizer = made(name, net)

    def scheduler(**settings):
        if cyclic:
            return torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=3, **settings)
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6, **settings)

    cycled = not name.endswith(("newton-cg", "hessian-free"))
    if not cycled:
        with pytest.raises(ValueError, match="momentum"):
            scheduler()
    schedule = scheduler(cycle_momentum=cycled)
    group, seen = optimizer.param_groups[0], set()
    for _ in range(5):
        learn(name, net, optimizer)
        seen.add(group["momentum"] if "momentum" in group else group.get("betas", (0.0,))[0])
        schedule.step()
    assert (len(seen) > 2) == cycled and values(net).isfinite().all()
    again = made(name, net)
    again.load_state_dict(optimizer.state_dict())  # with what the scheduler has left in the groups


@every_kind
def test_torchs_distributed_checkpoints_go_on_to_the_last_bit(name):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    net, other = network(), network()
    optimizer, again = made(name, net), made(name, other)
    start = get_optimizer_state_dict(net, optimizer)  # nothing has been learnt
    assert torch.equal(values(net), values(other)) and optimizer.param_groups[0]["lr"] == 0.05
    assert all(state["step"] == 0 for state in start["state"].values())
    learn(name, net, optimizer, 3)
    assert all(state["step"] == 3 for state in optimizer.state.values())
    other.load_state_dict(net.state_dict())
    file = io.BytesIO()
    torch.save(get_optimizer_state_dict(net, optimizer), file)
    file.seek(0)
    set_optimizer_state_dict(other, again, torch.load(file, weights_only=True))
    learn(name, net, optimizer, 2)
    learn(name, other, again, 2)
    assert torch.equal(values(net), values(other))


@every_kind
def test_a_checkpoint_loaded_in_place_goes_on_or_says_what_it_lacks(name, tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    net, other = network(), network()
    optimizer, again = made(name, net), made(name, other)
    learn(name, net, optimizer, 3)
    other.load_state_dict(net.state_dict())
    with warnings.catch_warnings(action="ignore"):  # of torch: one process, no group
        dcp.save(get_optimizer_state_dict(net, optimizer), checkpoint_id=tmp_path)
        target = get_optimizer_state_dict(other, again)
        dcp.load(target, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, again, target)
    learn(name, net, optimizer, 2)
    if name.endswith("kfac"):
        with pytest.raises(RuntimeError, match="the state has no a, .*take it before"):
            learn(name, other, again)
        return
    learn(name, other, again, 2)
    assert torch.equal(values(net), values(other))


def test_a_step_without_curvature_is_still_refused():
    net = network()
    optimizer = made("adahesscale", net, lr=0.0)
    hs.backward(net, X, LOSS)
    with pytest.raises(hs.CurvatureError, match="missing"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(hs.CurvatureError, match="missing"):
        optimizer.step()
