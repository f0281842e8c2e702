"""What is put into `param_groups` after the first step: as if it had been there, or refused by name."""

import copy

import numpy as np
import pytest
import torch
from test_optim_settings import KINDS, REFUSED, X, learn, made, network, values

import hesscale_rl as hs
from hesscale_rl.backend import use
from hesscale_rl.optim.diagonal import DiagonalOptimizer

TIGHT = {"delta": 1e-9}  # a radius that every step has to be shortened to
LATE = {  # of every setting the value that is set late, and the settings beside which it changes a step
    "lr": (0.02, {"delta": 1.0}),
    "delta": (1e-9, {}),
    "weight_decay": (0.5, {}),
    "average": (0.9, {"delta": 1e-6, "reach": None}),
    "bound": (1.5, {"delta": 1e-6, "reach": None, "average": 0.9}),
    "betas": ((0.5, 0.9), {}),
    "beta2": (0.5, TIGHT),
    "eps": (0.1, {}),
    "reach": (1e-3, {}),
    "maximize": (True, {}),
    "momentum": (0.5, {}),
    "damping": (0.3, {"inverse_every": 1}),
    "inverse_every": (1, {}),
    "alpha": (0.5, {}),
    "tolerance": (0.9, {}),
    "iterations": (1, {}),
    "splits": (2, {}),
    "warm_start": (0.1, {}),
    "together": (True, {}),
}
WITHOUT_SCALING = ("adahesscale", "adahessian", "adam", "sgd", "momentum", "kfac", "newton-cg", "hessian-free")
ONLY_SCALED = ("average", "bound", "beta2")  # settings that say nothing where steps are not scaled
REFUSED_LATE = [  # what, set late in a group of whom, and the words of the error
    *((name, *next(iter(setting.items())), words) for name, setting, words in REFUSED if len(setting) == 1),
    ("adam", "decoupled_weight_decay", False, "decoupled_weight_decay=False"),
    ("adam", "delta", 1e-8, "ScaledAdam: the state has no exp_hess_sq, which delta=1e-08 needs"),
    ("momentum", "delta", 1e-8, "ScaledSGD: the state has no exp_hess_sq, which delta=1e-08 needs"),
    ("sgd", "delta", 1e-8, "the curvature p.hess_diag of 4 of 4 parameters is missing"),
    ("scaled-adam", "delta", -1e-8, "ScaledAdam: delta=-1e-08, must be a positive number, or None"),
    ("scaled-adam", "lr", float("nan"), "lr=nan, must be zero or"),
    ("scaled-adam", "lr", torch.ones(3), "lr=tensor.*must be zero or"),
    ("scaled-adam", "lr", np.ones(3), "lr=.*must be zero or"),
    ("scaled-adam", "average", 1.0, "average=1.0, must be a number in"),
    ("scaled-adam", "bound", 0.5, "bound=0.5, must be a number of at least 1"),
    ("scaled-sgd", "betas", (0.9, 0.99), "ScaledSGD: betas="),
    ("kfac", "damping", 0.0, "KFACOptimizer: damping=0.0, must be a positive number"),
    ("kfac", "eps", 1e-8, "KFACOptimizer: eps=1e-08, a setting that it does not have"),
    ("hessian-free", "warm_start", 2, "HessianFree: warm_start=2, must be from 0 to 1"),
    ("hessian-free", "together", 1, "HessianFree: together=1, must be True or False"),
]


def backends(name):
    """Where a step may differ: what has no kernel is one way."""
    return ["auto", "torch"] if issubclass(KINDS[name][0], DiagonalOptimizer) else ["torch"]


def cases():
    for name, (kind, own, _) in KINDS.items():
        for setting in kind(network().parameters(), **own).ranges:
            scaled = name not in WITHOUT_SCALING
            if setting == "delta" and name in ("adam", "sgd", "momentum"):
                continue  # refused: REFUSED_LATE
            if not scaled and (setting in ONLY_SCALED or (setting == "reach" and "hess" not in name)):
                continue
            for backend in backends(name):
                yield pytest.param(name, setting, backend, id=f"{name}-{setting}-{backend}")


@pytest.mark.parametrize("name, setting, backend", [*cases()])
def test_a_setting_that_comes_late_acts_as_one_that_was_saved(name, setting, backend):
    value, beside = LATE[setting]
    known, scaled = KINDS[name][0].declared.ranges, name not in WITHOUT_SCALING
    beside = {other: kept for other, kept in beside.items() if scaled or other in known}
    beside = {other: kept for other, kept in beside.items() if other in known or other in ("delta", "average")}
    ends = []
    with use(backend):
        for way in ("late", "saved", "never"):
            net = network()
            optimizer = made(name, net, **beside)
            learn(name, net, optimizer, 2)
            if way == "late":
                optimizer.param_groups[0][setting] = value
            elif way == "saved":
                saved = optimizer.state_dict()
                saved["param_groups"][0][setting] = value
                optimizer = made(name, net)
                optimizer.load_state_dict(saved)
            if setting != "lr":
                optimizer.param_groups[0]["lr"] = 0.5  # a longer step than before: it is far above the average
            learn(name, net, optimizer, 2, 5 * X)
            ends.append(values(net))
    assert torch.equal(ends[0], ends[1])
    assert setting == "together" or not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("name, setting, value, words", REFUSED_LATE)
def test_a_setting_that_cannot_be_is_refused_by_name_before_anything_moves(name, setting, value, words):
    net = network()
    optimizer = made(name, net)
    learn(name, net, optimizer)
    group, before, state = optimizer.param_groups[0], values(net), copy.deepcopy(optimizer.state_dict()["state"])
    good = group.get(setting)
    group[setting] = value
    for _ in range(2):  # and again as long as it is there
        with pytest.raises((ValueError, RuntimeError), match=words):
            learn(name, net, optimizer)
    assert torch.equal(values(net), before)
    assert str(optimizer.state_dict()["state"]) == str(state)
    group[setting] = good
    if good is None and setting != "delta":
        del group[setting]
    learn(name, net, optimizer)
    assert not torch.equal(values(net), before)


def test_what_is_changed_in_place_is_seen_and_what_a_group_lacks_is_named():
    net = network()
    optimizer = made("adam", net, lr=torch.tensor(0.05))
    group = optimizer.param_groups[0]
    group["betas"] = [0.9, 0.99]
    learn("adam", net, optimizer)
    group["betas"][0] = 1.5
    with pytest.raises(ValueError, match=r"betas=\[1.5, 0.99\], must be two numbers"):
        learn("adam", net, optimizer)
    group["betas"][0] = 0.8
    group["lr"].fill_(float("nan"))
    with pytest.raises(ValueError, match="lr=nan"):
        learn("adam", net, optimizer)
    group["lr"].fill_(0.1)
    learn("adam", net, optimizer)
    del group["eps"]
    with pytest.raises(ValueError, match="a parameter group has no eps"):
        learn("adam", net, optimizer)
    group["eps"] = 1e-8
    optimizer.param_groups.append({"params": list(torch.nn.Linear(1, 1).parameters())})
    with pytest.raises(ValueError, match="a parameter group has no .*; add_param_group"):
        learn("adam", net, optimizer)


def test_settings_that_blocks_share_are_the_same_in_all_of_them():
    net = network()
    optimizer = hs.HessianFree(net.named_parameters(), blocks=2)
    learn("hessian-free", net, optimizer)
    optimizer.param_groups[1]["iterations"] = 3
    with pytest.raises(ValueError, match="HessianFree: iterations=3 in parameter group 1, but 30 in group 0"):
        learn("hessian-free", net, optimizer)
    optimizer.param_groups[0]["iterations"] = 3
    learn("hessian-free", net, optimizer)


@pytest.mark.parametrize("name, backend", [(name, backend) for name in KINDS for backend in backends(name)])
def test_a_state_loaded_before_the_first_step_goes_on_to_the_last_bit(name, backend, tmp_path):
    with use(backend):
        net, other = network(), network(1)
        optimizer, again = made(name, net), made(name, other)
        learn(name, net, optimizer, 3)
        torch.save([net.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
        weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
        other.load_state_dict(weights)
        again.load_state_dict(state)
        assert again.state_dict()["state"].keys() == state["state"].keys()
        learn(name, net, optimizer, 12)  # past the renewal of K-FAC's inverses
        learn(name, other, again, 12)
        assert torch.equal(values(net), values(other))
