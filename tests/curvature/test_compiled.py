"""The compiled twin against the tape, and what it must leave to the tape."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import hesscale_rl as hs
from hesscale_rl import compiled
from hesscale_rl.losses import (
    CategoricalPolicyGradient,
    CategoricalPPO,
    CrossEntropy,
    GaussianPolicyGradient,
    GaussianPPO,
    MeanSquaredError,
    ValueLoss,
)
from hesscale_rl.networks import Exp, GaussianHead, Heads

SIZES = [1, 5, 64, 257]
CURVATURES = [None, hs.HesScale(), hs.HesScaleGN(), hs.BL89()]


def network(activation=nn.Tanh, outputs=6, head=False):
    net = nn.Sequential(
        nn.Sequential(nn.Linear(17, 33), activation()), nn.Linear(33, 20), activation(), nn.Linear(20, outputs)
    )
    return net.append(GaussianHead(outputs)) if head else net


def losses(n, c):
    """Every loss with data that lets clips act on some samples: name -> (loss, outputs per sample, head)."""
    advantages, classes = torch.randn(n), torch.randint(c, (n,))
    actions = torch.randn(n, c)
    near = torch.randn(n, c) * 0.05
    logprob = GaussianPolicyGradient(actions, advantages).log_prob(torch.cat([near, 0.3 * near], 1))
    chosen = torch.full((n,), -torch.tensor(float(c)).log()) + 0.3 * torch.randn(n)
    policy = {
        f"gaussian-ppo-{kind}": (GaussianPPO(actions, logprob, advantages, 0.2, 0.01, kind), 2 * c)
        for kind in ("log_std", "log_var")
    }
    return policy | {
        "gaussian-pg": (GaussianPolicyGradient(actions, advantages, 0.01), 2 * c),
        "categorical-pg": (CategoricalPolicyGradient(classes, advantages, 0.01), c),
        "categorical-ppo": (CategoricalPPO(classes, chosen, advantages, 0.2, 0.01), c),
        "cross-entropy": (CrossEntropy(classes), c),
        "cross-entropy-sum": (CrossEntropy(classes, reduction="sum"), c),
        "value": (ValueLoss(advantages, coef=0.5), 1),
        "value-clipped": (ValueLoss(advantages, 0.3 * torch.randn(n), 0.2, coef=0.5), 1),
        "mean-squared-error": (MeanSquaredError(actions), c),  # has no loop of its own
        "autodiff": (lambda z: z.square().mean(), c),
    }


def both(net, x, loss, curvature):
    results = []
    for backend in ("auto", "torch"):
        for p in net.parameters():
            p.grad = p.hess_diag = None
        results.append(hs.backward(net, x, loss, curvature, backend=backend))
    return results


def assert_close(fast, slow):
    # float32 rounds both; sums of different order differ by a few units of the largest entry's last place.
    for a, b in ((fast.grad, slow.grad), (fast.curvature, slow.curvature)):
        assert list(a) == list(b) or set(a) == set(b)
        for name, expected in b.items():
            torch.testing.assert_close(a[name], expected, rtol=2e-5, atol=2e-6 * (float(expected.abs().max()) + 1e-6))
    torch.testing.assert_close(fast.value, slow.value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast.output, slow.output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", losses(2, 3))
def test_every_loss_and_curvature_equals_the_tape(name, n):
    torch.manual_seed(n)
    loss, outputs = losses(n, 6)[name]
    head = name.startswith("gaussian")
    net, x = network(outputs=outputs // 2 if head else outputs, head=head), torch.randn(n, 17)
    for curvature in CURVATURES:
        assert compiled.find(net, x, curvature or hs.curvature.NoCurvature()) is not None
        assert_close(*both(net, x, loss, curvature))


@pytest.mark.parametrize("activation", compiled.ACTIVATIONS)
def test_every_activation_equals_the_tape(activation):
    torch.manual_seed(0)
    net = network(activation)
    for scale in (0.1, 0.3) if activation is Exp else (1.0, 30.0):
        x = scale * torch.randn(64, 17)
        assert_close(*both(net, x, MeanSquaredError(torch.randn(64, 6)), hs.HesScale()))


def test_a_variance_equals_the_tape():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Sigmoid())  # outputs above zero: [mean, variance]
    loss = GaussianPPO(torch.rand(9, 4), -torch.rand(9), torch.randn(9), parametrization="var", entropy_coef=0.1)
    assert_close(*both(net, torch.randn(9, 3), loss, hs.HesScale()))


def test_tanh_is_exact_to_float32_and_keeps_what_is_not_finite():
    x = torch.cat([torch.linspace(-12, 12, 100_001), 10 ** torch.linspace(-30, 0, 1000)]).float()
    y = torch.empty_like(x)
    compiled.kernels.tanh(x.numpy(), y.numpy())
    exact = x.double().tanh()
    assert float(((y - exact) / exact.abs().clamp(min=1e-40)).abs().max()) < 4 * torch.finfo(torch.float32).eps
    for activation, code in compiled.ACTIVATIONS.items():
        odd = torch.tensor([float("inf"), -float("inf"), float("nan")])
        expected = activation()(odd)
        compiled.kernels.activate(code, odd.numpy(), y[:3].numpy(), y[3:6].numpy())
        torch.testing.assert_close(odd, expected, equal_nan=True)


def odd(name, *shape):
    """A network whose parameter was replaced by one of another shape."""
    net = network()
    setattr(net[1], name, nn.Parameter(torch.zeros(shape)))
    return net


def hooked():
    net = network()
    net[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


def test_a_rule_of_the_users_own_and_hooks_are_not_passed_over():
    class Half(hs.rules.activation.Tanh):
        def vjp(self, v):
            return super().vjp(v) / 2

    x, built_in = torch.randn(5, 17), hs.rules.FUNCTIONS[torch.tanh]
    for kind in (nn.Tanh, torch.tanh):
        hs.register(kind, Half)
        try:
            assert compiled.find(network(), x, hs.HesScale()) is None
        finally:
            hs.rules.RULES.pop(nn.Tanh, None)
            hs.register(torch.tanh, built_in)
    assert compiled.find(network(), x, hs.HesScale()) is not None
    net = hooked()
    result = hs.backward(net, x, CrossEntropy(torch.zeros(5).long()))
    torch.testing.assert_close(result.output, net(x).detach())


def test_a_state_of_other_shapes_is_an_error_not_a_crash():
    net = network()
    optimizer = hs.AdaHesScale(net.parameters())
    for grown in (False, True):
        if grown:
            net[3].weight.data, net[3].bias.data = torch.randn(300, 20), torch.randn(300)
        optimizer.zero_grad()
        hs.backward(net, torch.randn(5, 17), CrossEntropy(torch.zeros(5).long()), hs.HesScale())
        if grown:
            with pytest.raises(RuntimeError, match="size"):
                optimizer.step()
        else:
            optimizer.step()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("activation", compiled.ACTIVATIONS)
def test_acting_gives_the_networks_outputs(activation, n):
    torch.manual_seed(0)
    x = torch.randn(n, 17)
    for net in (network(activation), network(activation, head=True), Heads(network(activation), network(activation))):
        run = compiled.function(net, x)
        for _ in range(2):
            torch.testing.assert_close(torch.from_numpy(run(x.numpy())), net(x).detach(), rtol=1e-5, atol=1e-6)
            with torch.no_grad():
                for p in net.parameters():
                    p.mul_(0.9)  # it reads the parameters where they are
    assert compiled.function(network().double(), x) is None
    assert compiled.function(Heads(network(), network(nn.ELU)), x) is None


def test_what_the_tape_must_do():
    x, hesscale = torch.randn(5, 17), hs.HesScale()
    for net in (
        network().double(),
        nn.Sequential(nn.Linear(17, 3, bias=False)),
        nn.Sequential(nn.Tanh(), nn.Linear(17, 3)),
        nn.Sequential(nn.Linear(17, 3), nn.Tanh(), nn.Tanh()),
        nn.Sequential(nn.Linear(17, 3), GaussianHead(3), nn.Tanh()),
        nn.Sequential(nn.Linear(17, 4000)),
        nn.Sequential(nn.Linear(17, 3), nn.ELU()),
        nn.Sequential(nn.Linear(16, 3)),
        nn.Linear(17, 3),
        nn.Sequential(),
        odd("weight", 40, 17),
        odd("bias", 1),
        hooked(),
        nn.Sequential(nn.Linear(17, 3), GaussianHead(2)),
        nn.Sequential(prune.random_unstructured(nn.Linear(17, 3), "weight", amount=0.5)),
    ):
        assert compiled.find(net, x, hesscale) is None
    assert compiled.find(network(), x.double(), hesscale) is None
    assert compiled.find(network(), x[None], hesscale) is None
    assert compiled.find(network(), x[:0], hesscale) is None
    assert compiled.find(network(), x, hs.ExactDiagonal()) is None


def test_targets_of_another_precision_are_taken_on_both_ways():
    torch.manual_seed(0)
    target = torch.randn(5, 6, dtype=torch.float64)
    assert_close(*both(network(), torch.randn(5, 17), MeanSquaredError(target), hs.HesScale()))


def test_strides_frozen_parameters_and_shared_modules():
    torch.manual_seed(0)
    layer = nn.Linear(17, 17)
    net = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(17, 6))
    net[4].bias.requires_grad_(False)
    x = torch.randn(17, 8).T  # not in rows
    gradients = []
    for backend in ("auto", "torch"):
        for p in net.parameters():
            p.grad = p.hess_diag = None
        hs.backward(net, x, CrossEntropy(torch.arange(8) % 6), hs.HesScale(), backend=backend)
        assert net[4].bias.grad is None
        gradients.append([layer.weight.grad, layer.weight.hess_diag, layer.bias.grad, layer.bias.hess_diag])
    torch.testing.assert_close(*gradients, rtol=2e-5, atol=1e-7)


def test_errors_are_the_tapes():
    net, x = network(), torch.randn(4, 17)
    for loss in (
        CrossEntropy(torch.tensor([0, 1, 2, 6])),
        CategoricalPPO(torch.tensor([0, 1, -1, 5]), x[:, 0], x[:, 1]),
    ):
        messages = []
        for backend in ("auto", "torch"):
            with pytest.raises(ValueError, match="ranges from") as error:
                hs.backward(net, x, loss, backend=backend)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
    with pytest.raises(ValueError, match=r"outputs has the shape \[4, 6\]"):
        hs.backward(net, x, ValueLoss(torch.zeros(4)))
    with pytest.raises(ValueError, match="backend='numba'.*auto"):
        hs.backward(net, x, ValueLoss(torch.zeros(4)), backend="numba")


@pytest.mark.parametrize("name", ["adam", "scaled-adam", "adahesscale", "scaled-adahesscale", "scaled-sgd"])
def test_fifty_updates_stay_with_the_tape(name):
    nets = []
    for backend in ("auto", "torch"):
        torch.manual_seed(0)
        net, g = network(), torch.Generator().manual_seed(1)
        optimizer, curvature = hs.make_optimizer(name, net.parameters(), lr=1e-3, delta=1e-6)
        for _ in range(50):
            x, target = torch.randn(64, 17, generator=g), torch.randint(6, (64,), generator=g)
            optimizer.zero_grad()
            hs.backward(net, x, CrossEntropy(target), curvature, backend=backend)
            optimizer.step()
        nets.append(net)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert float((p - q).detach().norm() / q.detach().norm()) < 1e-4


@pytest.mark.parametrize("delta", [None, 1e-6])
@pytest.mark.parametrize("kind", [hs.ScaledAdam, hs.AdaHesScale])
def test_the_compiled_step_equals_torchs(kind, delta):
    """Strided twins of the same numbers take the other way."""
    g = torch.Generator().manual_seed(0)
    rows = [nn.Parameter(torch.randn(s, generator=g)) for s in ((30, 50), (1,), (7, 3, 2))]
    strided = [nn.Parameter(torch.stack([p.detach(), p.detach()], -1)[..., 0]) for p in rows]
    assert all(
        p.is_contiguous() and not q.is_contiguous() for p, q in zip(rows, strided, strict=True) if p.numel() > 1
    )
    fast, slow = (kind(ps, lr=1e-2, delta=delta) for ps in (rows, strided))
    for _ in range(50):
        for p, q in zip(rows, strided, strict=True):
            p.grad, p.hess_diag = torch.randn(p.shape, generator=g), torch.randn(p.shape, generator=g)
            q.grad, q.hess_diag = p.grad.clone(), p.hess_diag.clone()
        version = rows[0]._version
        fast.step()
        slow.step()
        assert rows[0]._version > version  # autograd sees the change
        assert float(fast.eta[0]) == pytest.approx(float(slow.eta[0]), rel=1e-5)
        assert (float(fast.eta[0]) < 1) == (delta is not None)
    for p, q in zip(rows, strided, strict=True):
        # Where an average of squares starts near zero the quotient magnifies the rounding of float32.
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_a_rule_that_is_registered_before_the_first_pass_is_obeyed():
    code = """
import torch
from torch import nn
import hesscale_rl as hs
from hesscale_rl.rules.activation import elementwise
hs.register(nn.Tanh, elementwise(lambda m, x: 2 * x, lambda m, x, y: 2 + 0 * x))
net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
result = hs.backward(net, x, hs.losses.MeanSquaredError(torch.zeros(5, 2)), hs.HesScale())
assert torch.allclose(result.output, net[2](2 * net[0](x)), atol=1e-6)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
