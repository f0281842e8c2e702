"""Programs with a loss of their own: gradients are autograd's, diagonals those of the closed forms."""

import pytest
import torch
from test_bad_programs import Double
from torch import nn
from torch.distributions import Normal

import hesscale_rl as hs
from hesscale_rl.errors import InputError
from hesscale_rl.networks import GaussianHead, mlp

N, F64 = 8, torch.float64


class Agent(nn.Module):
    """Actor and critic with a free log standard deviation, in one module."""

    def __init__(self):
        super().__init__()
        self.critic, self.actor_mean = mlp([5, 16, 16, 1]).double(), mlp([5, 16, 16, 3]).double()
        self.actor_logstd = nn.Parameter(torch.full((1, 3), -0.3, dtype=F64))

    def evaluate(self, x, action):
        mean = self.actor_mean(x)
        probs = Normal(mean, torch.exp(self.actor_logstd.expand_as(mean)))
        return probs.log_prob(action).sum(1), probs.entropy().sum(1), self.critic(x)


def data():
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=F64)

    return normal(N, 5), normal(N, 3), normal(N) * 0.3 - 5, normal(N), normal(N), normal(N)


def ppo(agent):
    """The usual script's loss: clipped ratio, clipped value loss, entropy bonus."""
    x, actions, old, advantages, returns, values = data()
    logprob, entropy, value = agent.evaluate(x, actions)
    ratio = (logprob - old).exp()
    policy = torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.2)).mean()
    value = value.view(-1)
    unclipped = (value - returns) ** 2
    clipped = (values + torch.clamp(value - values, -0.2, 0.2) - returns) ** 2
    value_loss = 0.5 * torch.max(unclipped, clipped).mean()
    return policy - 0.01 * entropy.mean() + 0.5 * value_loss


def test_an_unmodified_agent_has_autograds_gradient_and_the_closed_forms_diagonal():
    torch.manual_seed(0)
    agent = Agent()
    expected = torch.autograd.grad(ppo(agent), list(agent.parameters()))
    with hs.record() as tape:
        loss = ppo(agent)
    tape.backward(loss, hs.HesScale())
    for p, g in zip(agent.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-14)
    x, actions, old, advantages, returns, values = data()
    head = GaussianHead(3).double()
    head.log_std.data = agent.actor_logstd.data[0]
    actor = nn.Sequential(*agent.actor_mean, head)
    results = hs.value_grad_curvature(
        actor,
        dict(actor.named_parameters()),
        x,
        hs.losses.GaussianPPO(actions, old, advantages, 0.2, 0.01),
        hs.HesScale(),
    )
    critic = hs.value_grad_curvature(
        agent.critic,
        dict(agent.critic.named_parameters()),
        x,
        hs.losses.ValueLoss(returns, values, 0.2, 0.5),
        hs.HesScale(),
    )
    theirs = [*results.curvature.values(), *critic.curvature.values()]
    ours = [*agent.actor_mean.parameters(), agent.actor_logstd, *agent.critic.parameters()]
    for p, d in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.hess_diag, d.view_as(p), rtol=1e-10, atol=1e-14)


def test_a_loop_of_somebody_elses_learns_under_record_with_a_curvature():
    def train(agent, optimizer):
        told = []
        for _ in range(3):
            loss = ppo(agent)
            with torch.no_grad():
                told.append(float(agent.critic(data()[0]).mean()))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
            told += [loss.item(), float(loss.detach().numpy())]
        return torch.tensor(told)

    torch.manual_seed(0)
    agent, twin = Agent(), Agent()
    twin.load_state_dict(agent.state_dict())
    with hs.record(hs.HesScale()):
        told = train(agent, torch.optim.Adam(agent.parameters(), lr=1e-2))
    torch.testing.assert_close(told, train(twin, torch.optim.Adam(twin.parameters(), lr=1e-2)))
    diagonals = [p.hess_diag for p in agent.parameters()]
    again = Agent()
    again.load_state_dict(agent.state_dict())
    with hs.record(hs.HesScale()):
        ppo(again).backward()
    with hs.record() as tape:
        loss = ppo(agent)
    agent.zero_grad()
    tape.backward(loss, hs.HesScale())
    assert all(
        torch.equal(p.hess_diag, q.hess_diag) for p, q in zip(agent.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(agent.actor_logstd.hess_diag, diagonals[0])


def test_networks_of_several_inputs_and_outputs():
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.one, self.other = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 1)

        def forward(self, a, b):
            h = torch.tanh(self.body(a + b))
            return {"policy": self.one(h), "value": self.other(h)}

    net = Two().double()
    a, b, target = torch.randn(N, 4, dtype=F64), torch.randn(N, 4, dtype=F64), torch.arange(N) % 2

    def loss(outputs):
        return nn.functional.cross_entropy(outputs["policy"], target) + outputs["value"].square().mean()

    expected = torch.autograd.grad(loss(net(a, b)), list(net.parameters()))
    for x in ((a, b), {"a": a, "b": b}):
        net.zero_grad()
        result = hs.backward(net, x, loss, hs.HesScale())
        assert result.output.keys() == {"policy", "value"}
        for p, g in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-14)
    h = torch.tanh(net.body(a + b)).detach()

    def last(w):
        outputs = {"policy": h @ w.view_as(net.one.weight).mT + net.one.bias, "value": net.other(h)}
        return loss(outputs)

    whole = torch.autograd.functional.hessian(last, net.one.weight.detach().flatten())
    torch.testing.assert_close(net.one.weight.hess_diag.flatten(), whole.diagonal(), rtol=1e-10, atol=1e-14)
    with pytest.raises(InputError, match=r"returns a dict, and MeanSquaredError knows one tensor"):
        hs.backward(net, (a, b), hs.losses.MeanSquaredError(torch.zeros(N, 2)))
    with pytest.raises(InputError, match=r"GGN needs a network with one tensor of outputs"):
        hs.backward(net, (a, b), loss, hs.GGN())


def test_what_a_tape_cannot_do_is_told():
    w = nn.Parameter(torch.ones(3))
    with hs.record() as tape:
        loss = (w * 2).square().sum()
        unused = nn.Parameter(torch.ones(2))
    tape.backward(loss, hs.HesScale())
    torch.testing.assert_close(w.hess_diag, torch.full((3,), 8.0))
    assert unused.grad is None
    with pytest.raises(InputError, match="good for one walk back"):
        tape.backward(loss)
    with hs.record() as tape:
        loss = (w * 2).square().sum()
    with pytest.raises(InputError, match="scalar tensor"):
        tape.backward(loss / 2)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(InputError, match="changed in place after the forward"):
        tape.backward(loss)
    outside = w * 2
    with hs.record() as tape, pytest.raises(InputError, match="computed from parameters by what cannot be recorded"):
        outside.sum()


def test_what_backward_under_a_curvature_cannot_do_is_told():
    agent = Agent()
    with pytest.raises(InputError, match="KFAC needs a network with one tensor of outputs"):
        hs.record(hs.KFAC())
    with hs.record(hs.HesScale()):
        with pytest.raises(hs.UnsupportedLayerError, match="takes no retain_graph"):
            ppo(agent).backward(retain_graph=True)
        loss = ppo(agent)
        loss.backward()
        with pytest.raises(RuntimeError, match="does not require grad"):  # as autograd says it of a graph without one
            loss.backward()


def test_what_a_program_keeps_from_autograd_is_kept_from_the_tape():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    with hs.record() as tape:
        with torch.no_grad():
            held = w * 3
        loss = (w * held).sum() + (w.detach() * w).sum() + (w.data * 5).sum()
    tape.backward(loss)
    torch.testing.assert_close(w.grad, held + w.detach())


def test_a_function_with_its_own_backward_is_refused_and_not_taken_for_a_constant():
    w = nn.Parameter(torch.ones(3))
    with hs.record(), pytest.raises(hs.UnsupportedLayerError, match="part of a torch.autograd.Function"):
        Double.apply(w * 1)
