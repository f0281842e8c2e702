"""The curvatures beside HesScale: exact ones against dense matrices, stochastic ones by their means, in float64."""

import pytest
import torch
from test_exactness import F64, LOSSES, N, tanh_net
from torch import nn

import hesscale_rl as hs
from hesscale_rl import networks, oracle

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def dense_net():
    head = networks.GaussianHead(2, 0.2)
    return tanh_net(5, 6, 2) + nn.Sequential(head), torch.randn(N, 5, dtype=F64)


def conv_net():
    body = networks.Skip(nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.Sigmoid())
    up = nn.ConvTranspose2d(2, 2, 2, stride=2, groups=2)
    layers = [nn.Conv2d(1, 2, 2), nn.Tanh(), body, nn.MaxPool2d(2), up, nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 4)), torch.randn(N, 1, 5, 5, dtype=F64)


def skip_net():
    inner = networks.Skip(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))
    outer = networks.Skip(nn.LayerNorm(4), nn.Linear(4, 4), inner, nn.SiLU())
    ones = networks.Heads(nn.Linear(4, 1), nn.Linear(4, 1))
    heads = networks.Heads(nn.Sequential(nn.Linear(4, 2), nn.Tanh()), ones)
    return nn.Sequential(nn.Linear(5, 4), outer, heads), torch.randn(N, 5, dtype=F64)


NETS = {"mlp": dense_net, "cnn": conv_net, "skip": skip_net}
# A network knows nothing of the loss but what the loss puts at its outputs: a curvature that is diagonal, full and
# positive, indefinite, and one that depends on the outputs.
KINDS = ["mse", "ce", "softmax-ppo-0.01", "normal-ppo-log_std-0.01"]


def case(net, loss):
    torch.manual_seed(0)
    net, x = NETS[net]()
    net = net.double()
    if "-var-" in loss:  # the second half of the outputs must be positive
        net = nn.Sequential(net, networks.Heads(Half(0), nn.Sequential(Half(2), networks.Exp())))
    return net, dict(net.named_parameters()), x, LOSSES[loss]


class Half(nn.Module):
    """Two of four columns."""

    def __init__(self, start):
        super().__init__()
        self.start = start

    def forward(self, x):
        return x[:, self.start : self.start + 2]


class HalfRule(hs.rules.Rule):
    def vjp(self, v):
        return nn.functional.pad(v, (self.layer.start, 2 - self.layer.start))


@pytest.fixture(autouse=True)
def halves():
    hs.register(Half, HalfRule)
    yield
    del hs.rules.RULES[Half]


@pytest.mark.parametrize(
    "net, loss", [("mlp", loss) for loss in LOSSES] + [(net, loss) for net in ("cnn", "skip") for loss in KINDS]
)
def test_hbp_is_the_hessians_blocks_and_ggn_the_gauss_newton_diagonal(net, loss):
    net, params, x, loss = case(net, loss)
    dense, gauss = oracle.hessian(net, params, x, loss), oracle.ggn(net, params, x, loss)
    blocks = hs.value_grad_curvature(net, params, x, loss, hs.HBP()).curvature
    diagonal = hs.value_grad_curvature(net, params, x, loss, hs.GGN()).curvature
    exact = hs.value_grad_curvature(net, params, x, loss, hs.ExactDiagonal()).curvature
    for name, p in params.items():
        scale = float(dense[name].abs().max())
        assert scale > 1e-8
        torch.testing.assert_close(blocks[name].dense() / scale, dense[name] / scale, **CLOSE)
        torch.testing.assert_close(blocks[name].diagonal() / scale, exact[name] / scale, **CLOSE)
        v = torch.randn_like(p)
        torch.testing.assert_close(
            blocks[name].matmul(v).flatten() / scale, dense[name] @ v.flatten() / scale, rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(diagonal[name] / scale, gauss[name].diagonal().view_as(p) / scale, **CLOSE)


def test_the_value_loss_too_where_it_is_clipped_and_where_not():
    torch.manual_seed(0)
    net, x = tanh_net(5, 4, 1), torch.randn(N, 5, dtype=F64)
    old = net(x)[:, 0].detach() + torch.tensor([0.0, 1.0, -1.0] * 2)
    loss = hs.losses.ValueLoss(torch.randn(N, dtype=F64), old, clip=0.2, coef=0.7)
    params = dict(net.named_parameters())
    curvature = loss.value_grad_curvature(net(x).detach())[2]
    assert bool((curvature == 0).any()) and bool((curvature > 0).any())
    gauss = oracle.ggn(net, params, x, loss)
    exact = hs.value_grad_curvature(net, params, x, loss, hs.ExactDiagonal()).curvature
    diagonal, blocks, drawn = (
        hs.value_grad_curvature(net, params, x, loss, m).curvature for m in (hs.GGN(), hs.HBP(), hs.GGNMC(20_000))
    )
    for name, p in params.items():
        expected = gauss[name].diagonal().view_as(p)
        torch.testing.assert_close(diagonal[name], expected, **CLOSE)
        torch.testing.assert_close(blocks[name].diagonal(), exact[name], **CLOSE)
        assert float((drawn[name] - expected).abs().max()) < 0.02 * float(expected.max())


class Unsigned(hs.GGN):
    """With |H| in place of H."""

    def seed(self, loss, y, diagonal):
        return super().seed(loss, y, diagonal)._replace(sign=None)


# What is drawn is drawn at the outputs; how it gets through a network is GGN's, which is exact.
@pytest.mark.parametrize("net, loss", [("mlp", loss) for loss in KINDS] + [("cnn", "ce"), ("skip", KINDS[2])])
def test_ggn_by_monte_carlo_is_unbiased(net, loss):
    net, params, x, loss = case(net, loss)
    exact = hs.value_grad_curvature(net, params, x, loss, hs.GGN()).curvature
    size = hs.value_grad_curvature(net, params, x, loss, Unsigned()).curvature
    torch.manual_seed(1)
    draws = [hs.value_grad_curvature(net, params, x, loss, hs.GGNMC(1000)).curvature for _ in range(20)]
    for name, d in exact.items():
        estimates = torch.stack([draw[name] for draw in draws])
        # 20,000 draws within 2 % of the largest entry, and every entry within six standard errors of its mean. Where
        # the loss is not convex, two parts of opposite signs are drawn: the entry is that of their absolute values.
        error = (estimates.mean(0) - d).abs()
        assert float(error.max()) < 0.02 * float(size[name].max())
        assert bool((error < 6 * estimates.std(0) / 20**0.5 + 1e-12).all())
    once = hs.value_grad_curvature(net, params, x, loss, hs.GGNMC()).curvature
    assert any(not torch.allclose(once[name], d, rtol=0.05) for name, d in exact.items())


@pytest.mark.parametrize("loss", ["mse", "ce", "normal-pg-log_std-0.0", "softmax-ppo-0.0"])
def test_kfac_is_exact_for_one_sample(loss):
    """And with drawn labels, on the average."""
    torch.manual_seed(0)
    net, x, loss = tanh_net(5, 6, 4), torch.randn(1, 5, dtype=F64), one_sample(loss)
    params = dict(net.named_parameters())
    gauss = oracle.ggn(net, params, x, loss)
    blocks = hs.value_grad_curvature(net, params, x, loss, hs.KFAC(None)).curvature
    drawn = hs.value_grad_curvature(net, params, x, loss, hs.KFAC(40_000)).curvature
    kfra = hs.value_grad_curvature(nn.Sequential(*(net[0], nn.ReLU(), net[2])), params, x, loss, hs.KFRA()).curvature
    relu = oracle.ggn(nn.Sequential(*(net[0], nn.ReLU(), net[2])), params, x, loss)
    for name, g in gauss.items():
        torch.testing.assert_close(blocks[name].dense(), g, **CLOSE)
        torch.testing.assert_close(blocks[name].diagonal().flatten(), g.diagonal(), **CLOSE)
        assert float((drawn[name].dense() - g).abs().max()) < 0.02 * float(g.abs().max())
        torch.testing.assert_close(kfra[name].dense(), relu[name], **CLOSE)


def one_sample(name):
    a = torch.tensor([-0.7], dtype=F64)
    return {
        "mse": hs.losses.MeanSquaredError(torch.randn(1, 4, dtype=F64)),
        "ce": hs.losses.CrossEntropy(torch.tensor([2])),
        "normal-pg-log_std-0.0": hs.losses.GaussianPolicyGradient(torch.randn(1, 2, dtype=F64), a),
        "softmax-ppo-0.0": hs.losses.CategoricalPPO(torch.tensor([1]), torch.tensor([-1.4], dtype=F64), a),
    }[name]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_kfac_and_kfra_are_exact_for_linear_networks_with_squared_error(reduction):
    """There the outputs' curvature is the same for every sample (Bernacchia et al. 2018)."""
    torch.manual_seed(0)
    skip, head = networks.Skip(nn.Linear(6, 6)), networks.GaussianHead(2)
    net = nn.Sequential(nn.Linear(5, 6), nn.Identity(), skip, nn.Linear(6, 2), head).double()
    x = torch.randn(N, 5, dtype=F64)
    loss = hs.losses.MeanSquaredError(torch.randn(N, 4, dtype=F64), reduction)
    params = dict(net.named_parameters())
    gauss = oracle.ggn(net, params, x, loss)
    for method in (hs.KFAC(None), hs.KFRA()):
        blocks = hs.value_grad_curvature(net, params, x, loss, method).curvature
        for name, g in gauss.items():
            torch.testing.assert_close(blocks[name].dense(), g, **CLOSE)
            v = torch.randn_like(params[name])
            torch.testing.assert_close(blocks[name].matmul(v).flatten(), g @ v.flatten(), **CLOSE)


def test_kfac_of_convolutions_is_its_definition():
    """Grosse and Martens 2016: patches summed, derivatives averaged over the positions; here without `rows`."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 2, 3, stride=2, groups=2).double()
    net = nn.Sequential(conv, nn.Flatten(), nn.Linear(8, 3).double())
    x, loss = torch.randn(N, 4, 5, 5, dtype=F64), hs.losses.CrossEntropy(torch.arange(N) % 3)
    params = dict(net.named_parameters())
    kfac = hs.value_grad_curvature(net, params, x, loss, hs.KFAC(None)).curvature["0.weight"]
    hessians = [net[2].weight.mT @ h @ net[2].weight for h in loss.hessian(net(x))]  # over conv's outputs (o, q)
    patches = nn.functional.unfold(x, 3, stride=2).view(N, 2, 18, 4)
    for g in range(2):
        a = sum(patches[n, g] @ patches[n, g].mT for n in range(N)) / N
        b = sum(h[4 * g + q, 4 * g + q] for h in hessians for q in range(4)) / 4
        torch.testing.assert_close(kfac.a[g], a, **CLOSE)
        torch.testing.assert_close(kfac.b[g, 0, 0], b.detach(), **CLOSE)
        whole = kfac.dense().view(2, 18, 2, 18)[g, :, g]
        torch.testing.assert_close(whole, b.detach() * a, **CLOSE)


def test_the_fisher_matrix_of_a_policy_is_that_of_its_distribution():
    """E[score score'] is the Hessian of KL(old, new) at new = old, whatever the advantages are."""
    torch.manual_seed(0)
    rows = 500  # all the same: 100,000 draws in 200
    z = torch.randn(1, 4, dtype=F64)
    a, old = torch.full((rows,), -3.0, dtype=F64), torch.full((rows,), -1.0, dtype=F64)

    def normal(outputs):
        return torch.distributions.Normal(outputs[:, :2], outputs[:, 2:].exp())

    def softmax(outputs):
        return torch.distributions.Categorical(logits=outputs)

    kinds = [
        (hs.losses.GaussianPPO(torch.randn(rows, 2, dtype=F64), old, a), normal),
        (hs.losses.CategoricalPolicyGradient(torch.ones(rows, dtype=torch.int64), a), softmax),
    ]
    for loss, distribution in kinds:
        p = distribution(z)
        fisher = torch.autograd.functional.hessian(
            lambda y, p=p, d=distribution: torch.distributions.kl_divergence(p, d(y)).sum(), z
        )[0, :, 0]
        outputs = z.expand(rows, 4).clone()
        factors = hs.KFAC(200, fisher=True).seed(loss, outputs, None)
        assert factors.sign is None
        torch.testing.assert_close(loss.fisher(outputs).sum(0), fisher, **CLOSE)
        estimate = torch.einsum("vni,vnj->ij", factors.s, factors.s)
        assert float((estimate - fisher).abs().max()) < 0.02 * float(fisher.abs().max())
    with pytest.raises(ValueError, match="Autodiff says nothing of a distribution"):
        hs.backward(tanh_net(4, 4), z, lambda y: y.square().sum(), hs.KFAC(fisher=True))


def test_relations_between_the_methods():
    """Where f'' is zero, GGN is the Hessian; where the products stay diagonal, HesScaleGN is GGN."""
    torch.manual_seed(0)
    x = torch.randn(N, 5, dtype=F64)
    linear = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), networks.Skip(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 4))
    narrow = nn.Sequential(nn.Linear(5, 4), nn.Tanh())  # every output of its own, and a loss of diagonal Hessian

    def of(net, loss, method):
        return hs.value_grad_curvature(net.double(), dict(net.named_parameters()), x, loss, method).curvature

    pairs = [(linear, "ce", hs.GGN(), hs.ExactDiagonal()), (narrow, "mse", hs.HesScaleGN(), hs.GGN())]
    for net, loss, one, other in pairs:
        first, second = of(net, LOSSES[loss], one), of(net, LOSSES[loss], other)
        for name in first:
            torch.testing.assert_close(first[name], second[name], **CLOSE)
    squares = of(narrow, LOSSES["ce"], hs.SquaredGradient())
    params, labels = dict(narrow.named_parameters()), LOSSES["ce"].target
    each = [
        hs.value_grad_curvature(narrow, params, x[i : i + 1], hs.losses.CrossEntropy(labels[i : i + 1])).grad
        for i in range(N)
    ]
    for name, s in squares.items():  # the loss is a sum
        torch.testing.assert_close(s, sum(g[name].square() for g in each), **CLOSE)
    mean = hs.losses.CrossEntropy(LOSSES["ce"].target)
    for name, s in of(narrow, mean, hs.SquaredGradient()).items():
        torch.testing.assert_close(s, squares[name] / N, **CLOSE)


def test_blocks_add_up_over_passes_and_are_cleared_with_the_gradient():
    torch.manual_seed(0)
    net, x = tanh_net(5, 4), torch.randn(N, 5, dtype=F64)
    optimizer = hs.ScaledAdam(net.parameters())
    one = hs.backward(net, x, LOSSES["ce"], hs.HBP()).curvature["0.weight"]
    hs.backward(net, x, LOSSES["ce"], hs.HBP())
    hs.backward(net, x, LOSSES["ce"], hs.KFAC(None))
    block, v = net[0].weight.hess_block, torch.randn(4, 5, dtype=F64)
    gauss = hs.value_grad_curvature(net, dict(net.named_parameters()), x, LOSSES["ce"], hs.KFAC(None)).curvature
    total = 2 * one.dense() + gauss["0.weight"].dense()
    torch.testing.assert_close(block.dense(), total, **CLOSE)
    torch.testing.assert_close(block.diagonal().flatten(), total.diagonal(), **CLOSE)
    torch.testing.assert_close(block.matmul(v).flatten(), total @ v.flatten(), **CLOSE)
    assert getattr(net[0].weight, "hess_diag", None) is None
    optimizer.zero_grad()
    assert net[0].weight.hess_block is None
    hs.backward(net, x, LOSSES["ce"], hs.HBP())
    torch.testing.assert_close(net[0].weight.hess_block.dense(), one.dense(), **CLOSE)


def test_k_networks_by_vmap_equal_the_loop():
    torch.manual_seed(0)
    net, x = conv_net()
    net = net.double()
    params = {name: torch.randn(3, *p.shape, dtype=F64) * 0.3 for name, p in net.named_parameters()}
    target = torch.arange(N) % 4
    for method in (hs.GGN(), hs.HBP(), hs.KFAC(None), hs.KFRA(), hs.SquaredGradient(), hs.GGNMC(2)):

        def run(p, method=method):
            found = hs.value_grad_curvature(net, p, x, hs.losses.CrossEntropy(target), method).curvature
            return {name: c if isinstance(c, torch.Tensor) else c.diagonal() for name, c in found.items()}

        together = torch.func.vmap(run, randomness="different")(params)
        for i in range(3):
            if not isinstance(method, hs.GGNMC):
                for name, d in run({name: p[i] for name, p in params.items()}).items():
                    torch.testing.assert_close(together[name][i], d, **CLOSE)


def test_a_method_that_cannot_pass_a_layer_names_both():
    class Square(nn.Module):
        def forward(self, x):
            return x * x.roll(1, 1)

    class Rule(hs.rules.Rule):
        def vjp(self, v):
            return v * self.x.roll(1, 1) + (v * self.x).roll(-1, 1)

        def second(self, g):
            return torch.zeros_like(g)

    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x * self.weight

    class GainRule(hs.rules.Rule):
        def vjp(self, v):
            return v * self.p["weight"]

        def grad(self, v):
            return {"weight": (v * self.x).sum(0)}

    x, loss = torch.randn(3, 4), hs.losses.MeanSquaredError(torch.zeros(3, 4))
    hs.register(Square, Rule)
    hs.register(Gain, GainRule)
    try:
        net = nn.Sequential(nn.Linear(4, 4), networks.Skip(Square()))
        with pytest.raises(hs.UnsupportedLayerError, match=r"layer 1\.body\.0 .*Square.*HBP cannot .* no hessian"):
            hs.backward(net, x, loss, hs.HBP())
        assert net[0].weight.grad is None  # nothing of it has been added
        hs.backward(net, x, loss, hs.GGN())
        net = nn.Sequential(nn.Linear(4, 4), Gain())
        for method in (hs.GGN(), hs.GGNMC(), hs.KFAC(), hs.KFRA(), hs.HBP(), hs.SquaredGradient()):
            words = rf"layer 1 .*Gain.*{type(method).__name__} cannot pass it.* no grad_each"
            with pytest.raises(hs.UnsupportedLayerError, match=words):
                hs.backward(net, x, loss, method)
    finally:
        del hs.rules.RULES[Square], hs.rules.RULES[Gain]


@pytest.mark.parametrize("make", [hs.GGNMC, hs.KFAC, hs.Hutchinson])
def test_no_samples_are_refused(make):
    for samples in (0, 1.5, True, "a"):
        with pytest.raises(ValueError, match=rf"samples={samples!r}\): must be at least 1"):
            make(samples)


def test_a_loss_that_couples_the_samples_is_refused_where_it_would_be_a_wrong_number():
    torch.manual_seed(0)
    net, x = tanh_net(2, 3, 2), torch.randn(4, 2, dtype=F64)
    params = dict(net.named_parameters())

    def spread(y):
        return y.var(0).sum()

    for method in (hs.HesScale(), hs.GGN(), hs.HBP(), hs.KFAC(None)):
        with pytest.raises(ValueError, match=r"couples the samples.*ExactDiagonal\(\)"):
            hs.backward(net, x, spread, method)
    exact = hs.backward(net, x, spread, hs.ExactDiagonal()).curvature
    assert float(exact["2.bias"].abs().max()) < 1e-12  # a shift of all outputs changes no variance
    hs.measure_curvature(net, x, spread, hs.GaussNewton())
    assert float(net[2].bias.hess_block.dense().abs().max()) < 1e-12
    alone = hs.value_grad_curvature(net, params, x, lambda y: y.pow(4).sum(), hs.HBP()).curvature
    assert float(alone["2.bias"].diagonal().min()) > 0
