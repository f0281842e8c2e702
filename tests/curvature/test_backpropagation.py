"""Modular Hessian backpropagation in all its variants against the equations, with dense Jacobians, in float64."""

from itertools import product

import pytest
import torch
from test_curvatures import CLOSE, conv_net
from test_exactness import F64, LOSSES, N, tanh_net
from torch import nn
from torch.func import functional_call, jacrev, vmap

import hesscale_rl as hs
from hesscale_rl import networks, oracle
from hesscale_rl.curvature.hbp import AVERAGES, VARIANTS


def positive(h, variant):
    if not variant.startswith("pch"):
        return h
    values, vectors = torch.linalg.eigh(h)
    values = values.clamp(min=0) if variant == "pch-clip" else values.abs()
    return vectors @ values.diag_embed() @ vectors.mT


def literal(net, x, loss, variant, average):
    """Equations 4, 6 and 7 layer by layer: every Jacobian and second derivative as a dense array."""
    inputs = [x]
    for layer in net:
        inputs.append(layer(inputs[-1]).detach())
    h = loss.fisher(inputs[-1]) if variant == "fisher" else loss.hessian(inputs[-1])
    h = positive(h if average == "none" else h.sum(0, keepdim=True), variant)
    g = loss.value_grad_curvature(inputs[-1])[1]
    found = {}

    def between(j):  # J'HJ of j [N, d_out, d_in]
        if average == "none":
            return j.mT @ h @ j
        j = j.mean(0, keepdim=True) if average == "jacobian" else j
        return (j.mT @ h @ j).mean(0, keepdim=True)

    for i, layer in reversed(list(enumerate(net))):
        z, d = inputs[i], inputs[i + 1][0].numel()
        params = {name: p.detach() for name, p in layer.named_parameters()}

        def f(a, p, layer=layer):
            return functional_call(layer, p, (a[None],))[0].flatten()

        for name, j in (vmap(jacrev(f, 1), (0, None))(z, params) if params else {}).items():
            found[f"{i}.{name}"] = between(j.reshape(N, d, -1)).sum(0)
        j = vmap(jacrev(lambda a, f=f, p=params: f(a, p)))(z).reshape(N, d, -1)
        bend = vmap(lambda a, v, f=f, p=params: jacrev(jacrev(lambda b: f(b, p) @ v))(a))(z, g.reshape(N, d))
        bend = bend.reshape(N, j.shape[2], j.shape[2])
        bend = bend if average == "none" else bend.sum(0, keepdim=True)
        h = between(j) + (0 if variant in ("ggn", "fisher") else positive(bend, variant))
        g = torch.einsum("nd,ndi->ni", g.reshape(N, d), j).view(z.shape)
    return found


def blocks(net, x, loss, method):
    found = hs.value_grad_curvature(net, dict(net.named_parameters()), x, loss, method).curvature
    return {name: block.dense() for name, block in found.items()}


def nets(name):
    torch.manual_seed(0)
    if name == "mlp":
        return tanh_net(5, 6, 6, 4), torch.randn(N, 5, dtype=F64)
    if name == "norm":
        net = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Sigmoid(), nn.Linear(4, 2), networks.GaussianHead(2))
        return net.double(), torch.randn(N, 5, dtype=F64)
    net, x = conv_net()
    return nn.Sequential(*(layer for layer in net.double() if not isinstance(layer, networks.Skip))), x


@pytest.mark.parametrize("loss", ["ce", "mse", "normal-ppo-log_std-0.01", "softmax-pg-0.0"])
@pytest.mark.parametrize("net", ["mlp", "norm", "cnn"])
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_the_equations(net, variant, average, loss):
    (net, x), loss = nets(net), LOSSES[loss]
    expected = literal(net, x, loss, variant, average)
    for name, block in blocks(net, x, loss, hs.HBP(variant, average)).items():
        scale = float(expected[name].abs().max())
        assert scale > 1e-8
        torch.testing.assert_close(block / scale, expected[name] / scale, **CLOSE)


@pytest.mark.parametrize("variant", ["ggn", "pch-clip", "pch-abs", "fisher"])
@pytest.mark.parametrize("average", AVERAGES)
def test_blocks_are_positive_semi_definite_where_they_are_said_to_be(variant, average):
    """Of PCH and Fisher for any loss, of GGN for convex ones; the Hessian's own are not."""
    (net, x), convex = nets("mlp"), variant == "ggn"
    inner = networks.Skip(nn.Linear(6, 6), nn.Tanh()).double()
    net = nn.Sequential(*net[:2], inner, *net[2:])
    for loss in ["ce", "mse"] if convex else ["ce", "softmax-ppo-0.0", "normal-pg-log_std-0.0"]:
        for block in blocks(net, x, LOSSES[loss], hs.HBP(variant, average)).values():
            values = torch.linalg.eigvalsh(block)
            assert float(values[0]) > -1e-12 * float(values[-1]) and float(values[-1]) > 0
    large = nn.Sequential(
        nn.Linear(5, 8),
        networks.Skip(nn.Linear(8, 8), nn.ReLU(), networks.Skip(nn.Linear(8, 8), nn.Tanh())),
        networks.Heads(nn.Sequential(nn.Linear(8, 2), nn.ReLU()), nn.Sequential(nn.Linear(8, 2), nn.Tanh())),
    ).double()
    with torch.no_grad():
        for p in large.parameters():
            p.mul_(3)  # so that the samples' Jacobians differ much
    for block in blocks(large, x, LOSSES["ce"], hs.HBP(variant, average)).values():
        values = torch.linalg.eigvalsh(block)
        assert float(values[0]) > -1e-12 * float(values[-1])
    values = torch.linalg.eigvalsh(blocks(net, x, LOSSES["softmax-ppo-0.0"], hs.HBP())["0.weight"])
    assert float(values[0]) < -1e-6


def test_through_skip_and_heads_the_averages_of_one_sample_are_no_approximation():
    torch.manual_seed(0)
    skip = networks.Skip(nn.Linear(4, 4), nn.Tanh(), networks.Skip(nn.Linear(4, 4), nn.Sigmoid()))
    heads = networks.Heads(nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2), nn.Tanh()))
    net, x = nn.Sequential(nn.Linear(3, 4), skip, heads).double(), torch.randn(1, 3, dtype=F64)
    loss = hs.losses.CrossEntropy(torch.tensor([1]))
    exact = oracle.hessian(net, dict(net.named_parameters()), x, loss)
    for average in AVERAGES:
        for name, block in blocks(net, x, loss, hs.HBP("hessian", average)).items():
            torch.testing.assert_close(block, exact[name], **CLOSE)


def test_through_skip_the_averages_are_those_of_the_equations_for_its_parts():
    """One Skip with a linear body is one linear layer, I + W: there its averages must be that layer's."""
    torch.manual_seed(0)
    first, w, sum_ = nn.Linear(3, 4), nn.Linear(4, 4, bias=False).double(), nn.Linear(4, 4, bias=False)
    sum_.weight.data = w.weight.data + torch.eye(4, dtype=F64)
    one = nn.Sequential(first, nn.Tanh(), networks.Skip(w), nn.Tanh(), nn.Linear(4, 3)).double()
    other = nn.Sequential(*one[:2], sum_, *one[3:]).double()
    x, loss = torch.randn(N, 3, dtype=F64), hs.losses.CrossEntropy(torch.arange(N) % 3)
    for average in AVERAGES:
        a, b = (blocks(net, x, loss, hs.HBP("hessian", average)) for net in (one, other))
        torch.testing.assert_close(a["0.weight"], b["0.weight"], **CLOSE)
        torch.testing.assert_close(a["2.body.0.weight"], b["2.weight"], **CLOSE)


@pytest.mark.parametrize("average", ["hessian", "jacobian"])
def test_through_skip_and_heads_every_layer_averages_for_itself(average):
    """Equation 6 is the mean over a sample for each layer, drawn on its own; equation 7 has mean Jacobians."""
    torch.manual_seed(0)
    w = [nn.Linear(4, 4).double() for _ in range(4)]
    heads = networks.Heads(nn.Sequential(w[2], nn.Tanh()), nn.Sequential(w[3], nn.Sigmoid()))
    skip = networks.Skip(w[0], nn.Tanh(), w[1], nn.Sigmoid())
    net, n = nn.Sequential(nn.Linear(3, 4), skip, heads).double(), 3
    x, loss = torch.randn(n, 3, dtype=F64), hs.losses.CrossEntropy(torch.arange(n))
    x0 = net[:1](x)
    a, x1 = w[0](x0), net[:2](x)
    b = w[1](a.tanh())
    ends = [w[2](x1).tanh(), w[3](x1).sigmoid()]
    slopes = [1 - a.tanh() ** 2, b.sigmoid() * (1 - b.sigmoid()), 1 - ends[0] ** 2, ends[1] * (1 - ends[1])]
    if average == "jacobian":
        slopes = [s.mean(0, keepdim=True) for s in slopes]
    h, drawn = loss.hessian(torch.cat(ends, 1)).sum(0), range(len(slopes[0]))
    jacobians = [
        torch.cat((slopes[2][k].diag() @ w[2].weight, slopes[3][m].diag() @ w[3].weight))
        @ (torch.eye(4, dtype=F64) + slopes[1][j].diag() @ w[1].weight @ slopes[0][i].diag() @ w[0].weight)
        for i, j, k, m in product(drawn, repeat=4)
    ]
    expected = sum(j.mT @ h @ j for j in jacobians) / len(jacobians)
    found = blocks(net, x, loss, hs.HBP("ggn", average))["0.bias"]
    torch.testing.assert_close(found, expected.detach(), **CLOSE)


def test_kfra_and_bda_pch_are_special_cases():
    """Botev et al. 2017 and Chen et al. 2018 for an MLP, as they state them: one matrix for each layer."""
    torch.manual_seed(0)
    net, x = tanh_net(5, 6, 6, 4), torch.randn(N, 5, dtype=F64)
    loss = hs.losses.CrossEntropy(torch.arange(N) % 4)
    h1, h2 = net[:2](x), net[:4](x)
    q, w2, w3 = net(x).softmax(1), net[2].weight, net[4].weight
    kfra = (q.diag_embed() - q[:, :, None] * q[:, None]).mean(0)
    a = [(v[:, :, None] * v[:, None]).mean(0) for v in (x, h1, h2)]
    expected = {"4.weight": torch.kron(kfra, a[2])}
    for name, w, h, second in (("2.weight", w3, h2, a[1]), ("0.weight", w2, h1, a[0])):
        d = 1 - h * h
        kfra = (w.mT @ kfra @ w) * (d[:, :, None] * d[:, None]).mean(0)
        expected[name] = torch.kron(kfra, second)
    found = blocks(net, x, loss, hs.KFRA())
    for name, block in expected.items():
        torch.testing.assert_close(found[name], block.detach(), **CLOSE)
    g = (q - nn.functional.one_hot(torch.arange(N) % 4, 4)) / N
    pch = (q.diag_embed() - q[:, :, None] * q[:, None]).mean(0)
    found = blocks(net, x, loss, hs.HBP("pch-abs", "jacobian"))
    for name, w, h, below in (("2.weight", w3, h2, h1), ("0.weight", w2, h1, x)):
        d, g = 1 - h * h, g @ w
        pch = d.mean(0)[:, None] * (w.mT @ pch @ w) * d.mean(0)
        pch = pch + (-2 * h * d * g).sum(0).abs().diag()
        g = g * d
        expected[name] = torch.kron(pch, torch.outer(below.mean(0), below.mean(0)))
        torch.testing.assert_close(found[name], expected[name].detach(), **CLOSE)


def test_what_is_no_variant_is_refused():
    with pytest.raises(ValueError, match="variant='newton'.*pch-abs"):
        hs.HBP("newton")
    with pytest.raises(ValueError, match="average='all'.*jacobian"):
        hs.HBP(average="all")
    with pytest.raises(ValueError, match="Autodiff says nothing of a distribution"):
        hs.backward(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2), lambda y: y.sum(), hs.HBP("fisher"))
