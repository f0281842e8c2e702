"""Networks that nobody thought of: 200 random compositions, their gradients against autograd's in float64."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import hesscale_rl as hs
from hesscale_rl.networks import Exp, GaussianHead, Heads, Skip

ACTIVATIONS = st.sampled_from(
    [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus]
).map(lambda kind: kind())
WIDTHS = st.integers(1, 6)


@st.composite
def same_width(draw, n, depth=0):
    """A module [N, n] -> [N, n]."""
    kinds = ["activation", "linear", "norm", "bounded exp", "dropout", "identity"]
    kind = draw(st.sampled_from(kinds + ["skip", "nested"] * (depth < 2)))
    if kind == "linear":
        return nn.Linear(n, n, bias=draw(st.booleans()))
    if kind == "norm":
        return nn.LayerNorm(n, elementwise_affine=draw(st.booleans()))
    if kind == "bounded exp":
        return nn.Sequential(nn.Tanh(), Exp())
    if kind == "dropout":
        return nn.Dropout(0.5).eval()
    if kind == "identity":
        return nn.Identity()
    if kind in ("skip", "nested"):
        body = draw(st.lists(same_width(n, depth + 1), min_size=1, max_size=3))
        return Skip(*body) if kind == "skip" else nn.Sequential(*body)
    return draw(ACTIVATIONS)


@st.composite
def images(draw):
    """Layers [N, 2, 6, 5] -> [N, width], and the width."""
    channels, layers = draw(st.sampled_from([2, 4])), []
    how = {
        "kernel_size": draw(st.integers(1, 3)),
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 1)),
    }
    groups, bias = draw(st.sampled_from([1, 2])), draw(st.booleans())
    layers.append(nn.Conv2d(2, channels, **how, groups=groups, bias=bias))
    layers.append(draw(ACTIVATIONS))
    pools = [nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(2), nn.ZeroPad2d(1)]
    layers.append(draw(st.sampled_from(pools)))
    if draw(st.booleans()):
        layers.append(nn.ConvTranspose2d(channels, 2, 2, stride=draw(st.integers(1, 2))))
    if draw(st.booleans()):
        layers.append(Skip(nn.Conv2d(channels_of(layers), channels_of(layers), 3, padding=1), draw(ACTIVATIONS)))
    layers.append(nn.Flatten())
    width = nn.Sequential(*layers)(torch.zeros(1, 2, 6, 5)).shape[1]
    return layers, width


def channels_of(layers):
    return nn.Sequential(*layers)(torch.zeros(1, 2, 6, 5)).shape[1]


@st.composite
def networks(draw):
    """A network, and the shape of one sample."""
    if draw(st.booleans()):
        layers, width = draw(images())
        shape = (2, 6, 5)
    else:
        layers, width = [], draw(WIDTHS)
        shape = (width,)
    for _ in range(draw(st.integers(0, 3))):
        layers.append(draw(same_width(width)))
        after = draw(WIDTHS)
        layers.append(nn.Linear(width, after))
        width = after
    ends = {
        "linear": lambda: [nn.Linear(width, 3)],
        "head": lambda: [nn.Linear(width, 2), GaussianHead(2, 0.1)],
        "heads": lambda: [Heads(nn.Linear(width, 2), nn.Sequential(draw(same_width(width)), nn.Linear(width, 1)))],
    }
    return nn.Sequential(*layers, *ends[draw(st.sampled_from(sorted(ends)))]()), shape


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(networks(), st.integers(0, 2**31))
def test_the_gradient_is_autograds(network, seed):
    torch.manual_seed(seed)
    net, shape = network
    net = net.double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    output = net(x)
    loss = hs.losses.MeanSquaredError(torch.randn_like(output), reduction="sum")
    expected = torch.autograd.grad(loss.value(output), list(net.parameters()))
    result = hs.backward(net, x, loss, hs.HesScale())
    torch.testing.assert_close(result.output, output.detach(), rtol=1e-10, atol=1e-10)
    for (name, p), g in zip(net.named_parameters(), expected, strict=True):
        # A LayerNorm of nearly equal entries magnifies float64's rounding by 1/sqrt(eps).
        torch.testing.assert_close(
            p.grad, g, rtol=1e-8, atol=1e-8 * (1 + float(g.abs().max())), msg=lambda m, n=name: n + m
        )
        assert p.hess_diag.shape == p.shape and bool(p.hess_diag.isfinite().all())
