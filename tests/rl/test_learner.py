"""The agents' compiled update against their readable one: the same losses, outputs, scaling and parameters."""

import copy
import os
from dataclasses import replace
from itertools import combinations, product

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import hesscale_rl as hs
from hesscale_rl.agents import a2c, ppo
from hesscale_rl.backend import use
from hesscale_rl.errors import InputError
from hesscale_rl.optim import names
from hesscale_rl.rl.fast.learner import Objective, make_learner

BOX = gym.spaces.Box(-np.inf, np.inf, (11,))
KINDS = [*ppo.STDS, "discrete"]
# AdaHessian's two ways draw other signs: test_hutchinson_compiled.py. The others have one way only.
ELSEWHERE = ("adabl89", "adaggn-mc", "adahessian", "kfac", "hessian-free", "newton-cg")
COVERED = [name for name, found in names().items() if found.plain not in ELSEWHERE]
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "silu": nn.SiLU}
SIZES = (1, 5, 64, 257)


def batch(policy, n, seed):
    """Data on which every clip acts on some samples."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    obs, advantages, values = normal(n, 11), normal(n), normal(n)
    actions = torch.randint(4, (n,), generator=g) if policy.discrete else normal(n, 3)
    logprob = ppo.likelihood(policy, actions, advantages).log_prob(policy.actor(obs)).detach() + 0.2 * normal(n)
    rows = dict(obs=obs, actions=actions, logprob=logprob, advantages=advantages)
    return rows | dict(returns=values + normal(n), values=policy.critic(obs)[:, 0].detach() + 0.2 * normal(n))


def with_activation(net, kind):
    """The network with its hidden tanh replaced."""
    for name, layer in net.named_children():
        if type(layer) is nn.Tanh:
            setattr(net, name, ACTIVATIONS[kind]())
        else:
            with_activation(layer, kind)


def pair(agent, kind, name, lr=3e-4, activation="tanh", **settings):
    """The same policy twice, each with its optimizer; the second with the compiled update."""
    space = gym.spaces.Discrete(4) if kind == "discrete" else gym.spaces.Box(-1, 1, (3,))
    args = replace(agent.Args(), optimizer=name, std="parameter" if kind == "discrete" else kind, **settings)
    torch.manual_seed(0)
    policy = agent.make_policy(BOX, space, args)
    with_activation(policy, activation)
    sides = []
    for own in (policy, copy.deepcopy(policy)):
        optimizer, curvature = hs.make_optimizer(name, own.groups(), lr=lr, eps=1e-5, delta=1e-5)
        sides.append([own, optimizer, curvature])
    return args, sides, make_learner(*sides[1])


def objective(agent, args):
    if agent is a2c:
        return Objective(args.norm_adv, args.ent_coef, args.vf_coef, args.max_grad_norm)
    return Objective(args.norm_adv, args.ent_coef, args.vf_coef, args.max_grad_norm, args.clip_coef, args.value_clip)


def distance(a, b):
    """The largest relative distance of two policies' networks, each taken as one vector of parameters."""
    pairs = ((a.actor, b.actor), (a.critic, b.critic))
    vectors = [[nn.utils.parameters_to_vector(net.parameters()).detach() for net in pair] for pair in pairs]
    return max(float((p - q).norm() / q.norm()) for p, q in vectors)


def wobble(agent, args, result, seen, activation, seed):
    """How far `result` is from the readable way with other rounding: in float64, or from weights 1e-7 beside."""
    side = pair(agent, "discrete" if result[0].discrete else args.std, args.optimizer, activation=activation)[1][0]
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in side[0].parameters():
            p *= 1 + 1e-7 * torch.randn(p.shape, generator=g)
    if seed == 0:
        side[0].double()
        seen = [{k: v.double() if v.is_floating_point() else v for k, v in mb.items()} for mb in seen]
    for mb in seen:
        agent.learn(*side, mb, args)
    return distance(side[0].float(), result[0])


EVERY = list(product(KINDS, COVERED, ACTIVATIONS, SIZES))
# One case for every kind and optimizer, so turned that any two values of two columns meet; FULL=1 runs them all.
FEW = [
    (kind, name, list(ACTIVATIONS)[(k + n + n // 4) % 4], SIZES[(k + 3 * n) % 4])
    for (k, kind), (n, name) in product(enumerate(KINDS), enumerate(COVERED))
]
CASES = EVERY if os.environ.get("FULL") else FEW


def test_the_cases_meet_every_pair():
    for i, j in combinations(range(4), 2):
        assert {(case[i], case[j]) for case in FEW} == {(case[i], case[j]) for case in EVERY}


@pytest.mark.parametrize("agent", [ppo, a2c], ids=["ppo", "a2c"])
@pytest.mark.parametrize("kind, name, activation, n", CASES)
def test_fifty_minibatches_stay_together(agent, kind, name, activation, n):
    norm_adv = agent is ppo and n > 1
    args, (slow, quick), fast = pair(agent, kind, name, activation=activation, norm_adv=norm_adv, ent_coef=0.01)
    seen = []
    for step in range(50):
        seen.append(mb := batch(slow[0], n, step))
        expected = agent.learn(*slow, mb, args)
        *result, etas = fast.learn(mb, torch.arange(n), 1, objective(agent, args))
        if step == 0:
            # float32: sums of other orders
            assert result[:2] == pytest.approx(expected[:2], rel=1e-5, abs=1e-6)
            torch.testing.assert_close(result[2], expected[2], rtol=1e-5, atol=1e-6)
            assert etas == [quick[1].eta] == [pytest.approx([float(e) for e in slow[1].eta], rel=1e-4)]
            for p, q in zip(quick[0].parameters(), slow[0].parameters(), strict=True):
                for a, b in ((p.grad, q.grad), (getattr(p, "hess_diag", None), getattr(q, "hess_diag", None))):
                    assert b is None or float((a - b).norm()) < 3e-6 * float(b.norm()) + 1e-7
    # A step divides by the curvature: where its parts nearly cancel, or a sample crosses a kink, rounding is
    # magnified. Then there may be more, but not more than other rounding does to the readable way.
    apart = distance(quick[0], slow[0])
    assert apart < 1e-4 or apart < 3 * max(wobble(agent, args, slow, seen, activation, k) for k in range(5))
    assert all(s["step"] == 50 for s in quick[1].state.values())


def test_a_pass_is_its_minibatches_one_after_the_other():
    args, (slow, quick), fast = pair(ppo, "parameter", "scaled-adahesscale")
    rows, order = batch(slow[0], 50, 0), torch.randperm(50, generator=torch.Generator().manual_seed(0))
    losses, outputs, etas = [], None, []
    for part in order.tensor_split(7):
        *losses, outputs = ppo.learn(*slow, {name: x[part] for name, x in rows.items()}, args)
        etas.append([float(eta) for eta in slow[1].eta])
    actor, critic, out, factors = fast.learn(rows, order, 7, objective(ppo, args))
    assert (actor, critic) == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(out, outputs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(factors, etas, rtol=1e-3)
    assert distance(quick[0], slow[0]) < 1e-5


@pytest.mark.parametrize(
    "name, settings",
    [
        ("sgd", {"momentum": 0.9}),
        ("scaled-sgd", {"momentum": 0.9, "maximize": True}),
        ("scaled-adam", {"average": 0.9}),
        ("scaled-adahesscale", {"average": 0.9, "bound": 2.0}),
    ],
)
def test_settings_that_no_flag_of_its_own_has_are_compiled_too(name, settings):
    args, (slow, quick), _ = pair(ppo, "parameter", name)
    for side in (slow, quick):
        side[1] = hs.make_optimizer(name, side[0].groups(), lr=1e-2, eps=1e-5, delta=1e-5, **settings)[0]
    fast = make_learner(*quick)
    for step in range(20):
        mb = batch(slow[0], 64, step)
        for side in (slow, quick):
            for group in side[1].param_groups:  # a radius that falls, as lr does
                group["delta"] = group["delta"] and 1e-5 * (1 - step / 20)
        agent_etas = ppo.learn(*slow, mb, args) and [float(eta) for eta in slow[1].eta]
        etas = fast.learn(mb, torch.arange(64), 1, objective(ppo, args))[3]
        np.testing.assert_allclose(etas[0], agent_etas, rtol=1e-3)
    assert distance(quick[0], slow[0]) < 1e-4
    for a, b in zip(slow[1].param_groups, quick[1].param_groups, strict=True):
        assert a.get("curvature_along", (0, 0)) == pytest.approx(b.get("curvature_along", (0, 0)), rel=1e-3)


LATE_SETTINGS = {
    "lr": 1e-3, "delta": 1e-8, "weight_decay": 10.0, "average": 0.9, "bound": 1.5, "betas": (0.5, 0.9), "beta2": 0.5,
    "eps": 0.1, "reach": 1e-3, "maximize": True, "momentum": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in COVERED if name.endswith(("adahesscale", "adam", "sgd"))])
def test_settings_that_come_late_act_as_in_the_readable_way(name):
    args, (slow, quick), fast = pair(ppo, "parameter", name)
    for setting in [None, *slow[1].ranges]:
        if setting == "delta" and not hs.optim.is_scaled(name):
            continue
        for _, optimizer, _ in (slow, quick):
            for group in optimizer.param_groups if setting else ():
                group[setting] = LATE_SETTINGS[setting]
        for step in range(2):
            mb = batch(slow[0], 64, step)
            ppo.learn(*slow, mb, args)
            fast.learn(mb, torch.arange(64), 1, objective(ppo, args))
        assert distance(quick[0], slow[0]) < 1e-3, setting


def refused(name, setting, value, words):
    args, (_, quick), fast = pair(ppo, "parameter", name)
    rows, order = batch(quick[0], 8, 0), torch.arange(8)
    fast.learn(rows, order, 1, objective(ppo, args))
    before = copy.deepcopy([quick[0].state_dict(), [*quick[1].state.values()]])
    quick[1].param_groups[-1][setting] = value
    with pytest.raises((ValueError, RuntimeError), match=words):
        fast.learn(rows, order, 1, objective(ppo, args))
    assert str([quick[0].state_dict(), [*quick[1].state.values()]]) == str(before)


def test_what_cannot_be_set_late_is_refused_by_name_before_anything_moves():
    refused("adam", "delta", 1e-8, "ScaledAdam: the state has no exp_hess_sq, which delta=1e-08 needs")
    refused("sgd", "delta", 1e-8, "delta was set, and this Learner computes no curvature")
    refused("scaled-adam", "delta", -1e-8, "ScaledAdam: delta=-1e-08, must be a positive number")
    refused("adahesscale", "amsgrad", True, "AdaHesScale: amsgrad=True, a setting that it does not have")
    refused("adahesscale", "lr", float("nan"), "AdaHesScale: lr=nan, must be zero or")
    refused("adahesscale", "params", [], "other parameters now: make a new Learner")


def test_a_loss_that_is_not_finite_changes_nothing():
    args, (_, quick), fast = pair(ppo, "parameter", "adahesscale", norm_adv=False)
    mb = batch(quick[0], 8, 0)
    mb["advantages"][5] = float("nan")
    actor, _, _, etas = fast.learn(mb, torch.arange(8), 4, objective(ppo, args))
    assert actor != actor and len(etas) == 2  # it is in the third minibatch
    before = copy.deepcopy(quick[0].state_dict())
    assert fast.learn(mb, torch.tensor([5]), 1, objective(ppo, args))[3] == []
    assert all(torch.equal(v, before[k]) for k, v in quick[0].state_dict().items())


def test_what_has_no_compiled_update_is_said(capsys):
    assert pair(ppo, "parameter", "adabl89")[2] is None
    assert "no compiled update" in capsys.readouterr().err
    for name in ("adahessian", "adam"):
        _, (_, side), fast = pair(ppo, "parameter", name)
        assert fast is not None and capsys.readouterr().err == ""
    kfac = hs.make_optimizer("kfac", side[0].groups())
    assert make_learner(side[0], *kfac) is None
    assert "no compiled update" in capsys.readouterr().err
    assert make_learner(side[0], *kfac, quiet=True) is None and capsys.readouterr().err == ""
    with use("torch"):
        assert make_learner(*side) is None and capsys.readouterr().err == ""
    side[0].double()
    with use("compiled"), pytest.raises(InputError, match="--backend compiled"):
        make_learner(*side)


def test_what_was_replaced_is_noticed():
    args, (_, quick), fast = pair(ppo, "parameter", "adam")
    rows, order = batch(quick[0], 8, 0), torch.arange(8)
    quick[1].load_state_dict(copy.deepcopy(quick[1].state_dict()))
    with pytest.raises(RuntimeError, match="make a new Learner"):
        fast.learn(rows, order, 1, objective(ppo, args))
    fast = make_learner(*quick)
    fast.learn(rows, order, 1, objective(ppo, args))
    quick[0].share_memory()
    with pytest.raises(RuntimeError, match="make a new Learner"):
        fast.learn(rows, order, 1, objective(ppo, args))


@pytest.mark.parametrize("change", ["share_memory", "replace", "double"])
def test_acting_notices_parameters_that_moved(change):
    policy = pair(ppo, "parameter", "adam")[1][0][0]
    obs = np.ones((2, 11), np.float32)
    policy.act(obs, None)
    if change == "share_memory":
        policy.share_memory()
    elif change == "replace":
        policy.actor[0].weight = nn.Parameter(torch.randn(64, 11))
    else:
        policy.double()
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.1
        expected = policy.actor(torch.from_numpy(obs).to(policy.actor[0].weight.dtype))[:, :3].float()
    torch.testing.assert_close(torch.from_numpy(policy.act(obs, None)), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"\[2, 5\], expected \[N, 11\]"):
        policy.act(obs[:, :5], None)
