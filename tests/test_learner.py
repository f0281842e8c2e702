"""The agents' compiled update against their readable one: the same losses, outputs, scaling and parameters."""

import copy
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import hesscale_rl as hs
from agents import a2c, ppo
from hesscale_rl.compiled.learner import choose, learner
from hesscale_rl.errors import InputError
from hesscale_rl.optim import OPTIMIZER_NAMES

BOX = gym.spaces.Box(-np.inf, np.inf, (11,))
KINDS = [*ppo.STDS, "discrete"]
COVERED = [name for name in OPTIMIZER_NAMES if "sgd" not in name and "bl89" not in name and "hessian" not in name]


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


def pair(agent, kind, name, lr=3e-4, **settings):
    """The same policy twice, each with its optimizer; the second with the compiled update."""
    space = gym.spaces.Discrete(4) if kind == "discrete" else gym.spaces.Box(-1, 1, (3,))
    args = replace(agent.Args(), optimizer=name, std="parameter" if kind == "discrete" else kind, **settings)
    torch.manual_seed(0)
    policy = agent.make_policy(BOX, space, args)
    sides = []
    for own in (policy, copy.deepcopy(policy)):
        optimizer, curvature = hs.make_optimizer(name, agent.groups(own), lr=lr, eps=1e-5, delta=1e-5)
        sides.append((own, optimizer, curvature))
    return args, sides, learner(*sides[1])


def settings(agent, args):
    if agent is a2c:
        return args.norm_adv, 0.0, args.ent_coef, 0.0, args.vf_coef, args.max_grad_norm
    return args.norm_adv, args.clip_coef, args.ent_coef, ppo.value_clip(args), args.vf_coef, args.max_grad_norm


def distance(a, b):
    """The largest relative distance of two policies' parameters, by the norm of each."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().norm() / (q.detach().norm() + 1e-6)) for p, q in pairs)


CASES = [("parameter", name, 64) for name in COVERED]
CASES += [(kind, "scaled-adahesscale", n) for kind in KINDS for n in (5, 257)] + [("parameter", "scaled-adam", 1)]


@pytest.mark.parametrize("agent", [ppo, a2c], ids=["ppo", "a2c"])
@pytest.mark.parametrize("kind, name, n", CASES)
def test_fifty_minibatches_stay_together(agent, kind, name, n):
    args, (slow, quick), fast = pair(agent, kind, name, norm_adv=agent is ppo and n > 1, ent_coef=0.01)
    for step in range(50):
        mb = batch(slow[0], n, step)
        expected = agent.learn(*slow, mb, args)
        result = fast.step(mb, *settings(agent, args))
        if step == 0:
            # float32: sums of other orders
            assert result[:2] == pytest.approx(expected[:2], rel=1e-5, abs=1e-6)
            torch.testing.assert_close(result[2], expected[2], rtol=1e-5, atol=1e-6)
            assert [float(e) for e in quick[1].eta] == pytest.approx([float(e) for e in slow[1].eta], rel=1e-4)
            for p, q in zip(quick[0].parameters(), slow[0].parameters(), strict=True):
                for a, b in ((p.grad, q.grad), (getattr(p, "hess_diag", None), getattr(q, "hess_diag", None))):
                    assert b is None or float((a - b).norm()) < 3e-6 * float(b.norm()) + 1e-7
    # A step divides by the curvature: where its parts nearly cancel, the quotient magnifies the rounding.
    assert distance(quick[0], slow[0]) < 1e-4
    assert [s["step"] for s in quick[1].state.values()] == [50] * len(fast.params)
    for p, q in zip(quick[0].parameters(), slow[0].parameters(), strict=True):
        scale = 1e-3 * float(q.grad.abs().max()) + 1e-7
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-2, atol=scale)


def test_a_loss_that_is_not_finite_changes_nothing():
    args, (_, quick), fast = pair(ppo, "parameter", "adahesscale")
    mb = batch(quick[0], 8, 0)
    before = copy.deepcopy(quick[0].state_dict())
    actor, _, _ = fast.step(mb | {"advantages": torch.full((8,), float("nan"))}, *settings(ppo, args))
    assert actor != actor
    assert all(torch.equal(v, before[k]) for k, v in quick[0].state_dict().items())


def test_what_has_no_compiled_update_is_said(capsys):
    for name in ("sgd", "adabl89", "adahessian"):
        assert pair(ppo, "parameter", name)[2] is None
    _, (side, _), fast = pair(ppo, "parameter", "adam")
    assert choose("auto", fast) is fast and choose("torch", fast) is None and choose("compiled", fast) is fast
    assert capsys.readouterr().err == ""
    assert choose("auto", None) is None and "no compiled update" in capsys.readouterr().err
    with pytest.raises(InputError, match="--backend compiled"):
        choose("compiled", None)
    frozen = side[0].double()
    assert learner(frozen, *side[1:]) is None
