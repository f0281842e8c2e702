"""The compiled z * Hz against autodiff's with the very same signs, and where the signs come from."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from test_learner import ACTIVATIONS, KINDS, SIZES, batch, distance, objective, pair

import hesscale_rl as hs
from hesscale_rl import oracle
from hesscale_rl.agents import a2c, ppo
from hesscale_rl.compiled import hutchinson
from hesscale_rl.compiled.records import CATEGORICAL, DISTRIBUTIONS, VAR, PolicyLoss, Samples
from hesscale_rl.rl.fast.learner import make_learner

F64 = torch.float64
AGENTS = pytest.mark.parametrize("agent", [ppo, a2c], ids=["ppo", "a2c"])


def next_seed():
    """The seed that the next pass of a Learner draws."""
    state = torch.get_rng_state()
    seed = torch.randint(2**63 - 1, ()).item()
    torch.set_rng_state(state)
    return seed


def drawn(seed, first, n):
    signs = np.empty(n, np.float32)
    hutchinson.draw(np.uint64(seed), first, signs)
    return torch.from_numpy(signs)


class Same(hs.Hutchinson):
    """Hutchinson's estimate by autodiff, from the signs of minibatch k of the compiled pass with this seed."""

    def __init__(self, policy, seed, k=0, samples=1):
        super().__init__(samples)
        self.actor = policy.actor
        n, in_actor = (sum(p.numel() for p in net.parameters()) for net in (policy, policy.actor))
        words = math.ceil(n / 64)
        draws = [drawn(seed, (k * samples + s) * words, n) for s in range(samples)]
        self.draws = [(signs[:in_actor], signs[in_actor:]) for signs in draws]

    def estimate(self, net, params, x, loss):
        times = oracle.hessian_product(net, params, x, loss)
        total = {name: torch.zeros_like(p) for name, p in params.items()}
        for of_actor, of_critic in self.draws:
            parts = (of_actor if net is self.actor else of_critic).split([p.numel() for p in params.values()])
            signs = {name: z.view_as(p).to(p) for (name, p), z in zip(params.items(), parts, strict=True)}
            for name, v in times(signs).items():
                total[name] += signs[name] * v / self.samples
        return total


def in_double(rows):
    return {name: x.double() if x.is_floating_point() else x for name, x in rows.items()}


@AGENTS
@pytest.mark.parametrize("kind, activation, n", list(product(KINDS, ACTIVATIONS, SIZES)))
def test_gradient_and_estimate_are_those_of_float64(agent, kind, activation, n):
    settings = dict(activation=activation, norm_adv=agent is ppo and n > 1, ent_coef=0.01)
    args, (slow, quick), fast = pair(agent, kind, "adahessian", **settings)
    rows = batch(slow[0], n, 0)
    twin = Same(slow[0], next_seed())
    agent.learn(slow[0].double(), slow[1], twin, in_double(rows), args)
    fast.learn(rows, torch.arange(n), 1, objective(agent, args))
    for mine, theirs in ((quick[0].actor, slow[0].actor), (quick[0].critic, slow[0].critic)):
        for what in ("grad", "hess_diag"):
            pairs = [
                (getattr(p, what), getattr(q, what))
                for p, q in zip(mine.parameters(), theirs.parameters(), strict=True)
            ]
            whole = float(torch.cat([b.flatten() for _, b in pairs]).norm())
            for a, b in pairs:
                # float32 rounds to 6e-8, and action - mean and the sums over the samples cancel, most of all in a
                # bias of one entry; there the error is measured by what the whole network has.
                assert float((a - b).norm()) < 1e-5 * float(b.norm()) + 1e-6 * whole + 1e-9


def loss_of(kind, clip, actions, old, advantages):
    data = (actions, old, advantages, clip, 0.1) if clip else (actions, advantages, 0.1)
    if kind == CATEGORICAL:
        return (hs.losses.CategoricalPPO if clip else hs.losses.CategoricalPolicyGradient)(*data)
    parametrization = {code: name for name, code in DISTRIBUTIONS.items()}[kind]
    return (hs.losses.GaussianPPO if clip else hs.losses.GaussianPolicyGradient)(*data, parametrization)


@pytest.mark.parametrize("clip", [0.0, 0.2])
@pytest.mark.parametrize("kind", DISTRIBUTIONS.values())
def test_the_losses_second_derivatives_along_a_direction(kind, clip):
    torch.manual_seed(0)
    n = 200
    z, rz, advantages = (torch.randn(n, 6, dtype=F64), torch.randn(n, 6, dtype=F64), torch.randn(n, dtype=F64))
    if kind == VAR:
        z[:, 3:] = z[:, 3:].exp()
    actions = torch.randint(6, (n,)) if kind == CATEGORICAL else torch.randn(n, 3, dtype=F64)
    old = loss_of(kind, 0.0, actions, None, advantages).log_prob(z) + 0.3 * torch.randn(n, dtype=F64)
    loss = loss_of(kind, clip, actions, old, advantages)
    expected = (loss.hessian(z) @ rz[:, :, None])[:, :, 0]
    rg = np.empty((n, 6))
    given = Samples(actions.numpy(), old.numpy(), advantages.numpy()), PolicyLoss(clip, 0.1, 1 / n), rg
    if kind == CATEGORICAL:
        hutchinson.categorical.py_func(z.numpy(), rz.numpy(), *given)
    else:
        hutchinson.gaussian.py_func(z.numpy(), rz.numpy(), kind, *given)
    np.testing.assert_allclose(rg, expected.numpy(), rtol=1e-9, atol=1e-12)
    if clip:
        clipped = loss.objective(loss.log_prob(z)) != -advantages * (loss.log_prob(z) - old).exp()
        assert 20 < int(clipped.sum()) < 180


@pytest.mark.parametrize("kind, n", list(product(KINDS, SIZES)))
def test_fifty_minibatches_stay_with_those_of_float64(kind, n):
    # Every kind meets both agents with both optimizers. At the larger step size the trust region acts.
    k, size = KINDS.index(kind), SIZES.index(n)
    name, lr = (("adahessian", 3e-4), ("scaled-adahessian", 1e-2))[(k + size) % 2]
    agent = (ppo, a2c)[(k + size // 2) % 2]
    how = dict(lr=lr, norm_adv=agent is ppo and n > 1, ent_coef=0.01)
    args, (slow, quick), fast = pair(agent, kind, name, **how)
    slow[0].double()
    seen = []
    for step in range(50):
        seen.append((rows := batch(quick[0], n, step), seed := next_seed()))
        expected = agent.learn(*slow[:2], Same(slow[0], seed), in_double(rows), args)
        *result, etas = fast.learn(rows, torch.arange(n), 1, objective(agent, args))
        if step == 0:
            assert result[:2] == pytest.approx(expected[:2], rel=1e-5, abs=1e-6)
            # The scaling's sum of g^2/|d| is of the entries whose d nearly cancels: torch's float32 is 5e-4 off.
            assert etas == [quick[1].eta] == [pytest.approx([float(e) for e in slow[1].eta], rel=2e-3)]
    apart = distance(quick[0], slow[0].float())
    if apart >= 1e-4:  # such an entry may take a step of its own; but no further than in torch's float32
        side = pair(agent, kind, name, **how)[1][0]
        for rows, seed in seen:
            agent.learn(*side[:2], Same(side[0], seed), rows, args)
        assert apart < 3 * distance(side[0], slow[0])
    assert all(s["step"] == 50 for s in quick[1].state.values())


@pytest.mark.parametrize("kind", ["network", "discrete"])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_pass_draws_other_signs_for_every_minibatch(kind, samples):
    args, (slow, quick), fast = pair(ppo, kind, "scaled-adahessian")
    fast = make_learner(*quick[:2], hs.Hutchinson(samples))
    rows, order, seed = batch(slow[0], 50, 0), torch.randperm(50), next_seed()
    slow[0].double()  # in float32 autodiff is itself off, on some processors by 1e-5
    for k, part in enumerate(order.tensor_split(7)):
        minibatch = in_double({name: x[part] for name, x in rows.items()})
        ppo.learn(*slow[:2], Same(slow[0], seed, k, samples), minibatch, args)
    fast.learn(rows, order, 7, objective(ppo, args))
    assert distance(quick[0], slow[0].float()) < 1e-5  # with the first minibatch's signs in all: from 7e-5
    for p, q in zip(quick[0].parameters(), slow[0].parameters(), strict=True):
        assert float((p.hess_diag - q.hess_diag).norm()) < 1e-3 * float(q.hess_diag.norm()) + 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_many_draws_is_the_diagonal(kind):
    args, (slow, quick), _ = pair(ppo, kind, "adahessian", lr=0.0, norm_adv=False, ent_coef=0.01, max_grad_norm=0.0)
    fast = make_learner(*quick[:2], hs.Hutchinson(50))
    rows, draws = batch(slow[0], 16, 0), []
    for _ in range(40):
        fast.learn(rows, torch.arange(16), 1, objective(ppo, args))
        draws.append([p.hess_diag.clone() for p in quick[0].parameters()])
    ppo.learn(*slow[:2], hs.ExactDiagonal(), rows, args)
    away, entries = 0.0, 0
    for p, *estimates in zip(slow[0].parameters(), *draws, strict=True):
        estimates = torch.stack(estimates)
        error = (estimates.mean(0) - p.hess_diag) / (estimates.std(0) / 40**0.5 + 1e-7)
        assert float(error.abs().max()) < 7  # of ten thousand entries of Student's t with 39 degrees of freedom
        away, entries = away + float(error.square().sum()), entries + error.numel()
    assert 0.5 < away / entries < 1.3  # its mean square is 39/37; noise that is no noise would be less, a bias more


def test_the_signs_are_the_bits_of_splitmix64():
    words = (6457827717110365317, 3203168211198807973, 9817491932198370423)  # of the reference code, for this seed
    bits = [1.0 - 2.0 * (word >> i & 1) for word in words for i in range(64)]
    assert drawn(1234567, 0, 150).tolist() == bits[:150]
    assert drawn(1234567, 1, 128).tolist() == bits[64:]
    signs = drawn(2**63 - 2, 0, 2**20)
    assert signs.abs().eq(1).all() and abs(float(signs.mean())) < 5 / 2**10
    assert abs(float((signs[1:] * signs[:-1]).mean())) < 5 / 2**10


def learned(name, seed):
    """The parameters after two passes, and the state of torch's generator."""
    args, (_, quick), _ = pair(ppo, "network", name)
    fast, rows = make_learner(*quick), batch(quick[0], 20, 0)
    torch.manual_seed(seed)
    for _ in range(2):
        fast.learn(rows, torch.arange(20), 3, objective(ppo, args))
    return torch.cat([p.detach().flatten() for p in quick[0].parameters()]), torch.get_rng_state()


def test_a_seed_decides_the_signs_and_others_draw_nothing():
    (a, after), (b, _), (c, _) = (learned("adahessian", seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(learned("scaled-adahesscale", 1)[1], before)
    for _ in range(2):
        torch.randint(2**63 - 1, ())
    assert torch.equal(after, torch.get_rng_state())
