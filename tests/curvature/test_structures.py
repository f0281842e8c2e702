"""KFAC, KFRA and HBP: structures that they pass, by definition, and those that they refuse, with the reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import jacrev

import hesscale_rl as hs
from hesscale_rl.networks import Skip

N, CLASSES = 4, 3


class Attention(nn.Module):
    """Multi-head attention of a sequence with itself, and its mean's logits."""

    def __init__(self, **call):
        super().__init__()
        self.attention, self.head, self.how = (
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, CLASSES),
            call,
        )

    def forward(self, x):
        y, _ = self.attention(x, x, x, **self.how)
        return self.head(y.mean(1))


class Recurrent(nn.Module):
    """A recurrent layer and a linear one on its last output."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.layer, self.head = kind(4, 5, batch_first=True, **settings), nn.Linear(5, CLASSES)

    def forward(self, x):
        outputs, _ = self.layer(x)
        return self.head(outputs[:, -1])


def ended(width, *layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, CLASSES))


ENCODER = {"dropout": 0.0, "batch_first": True}
IMAGE = (2, 4, 4)
PASSED = {  # by KFAC and KFRA; name -> module, shape of a sample, whether HBP passes it too
    "sequence": (lambda: ended(15, nn.Linear(4, 5), nn.Tanh()), (3, 4), True),
    "convolution": (lambda: ended(16, nn.Conv2d(2, 4, 3), nn.Tanh()), IMAGE, True),
    "residual": (lambda: ended(32, Skip(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh())), IMAGE, True),
    "layer norm": (lambda: ended(4, nn.Linear(4, 4), nn.LayerNorm(4)), (4,), True),
    "group norm": (lambda: ended(16, nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), IMAGE, True),
    "instance norm": (lambda: ended(16, nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True)), IMAGE, True),
    "rnn": (lambda: Recurrent(nn.RNN), (3, 4), True),
    "lstm": (lambda: Recurrent(nn.LSTM), (3, 4), False),
    "two layers of lstm": (lambda: Recurrent(nn.LSTM, num_layers=2), (3, 4), False),
    "gru": (lambda: Recurrent(nn.GRU), (3, 4), False),
    "attention": (lambda: Attention(need_weights=False), (3, 8), False),
    "attention with weights": (Attention, (3, 8), False),
    "transformer": (lambda: ended(24, nn.TransformerEncoderLayer(8, 2, 16, **ENCODER)), (3, 8), False),
}
SAMPLES, PARAMETERS = "needs the samples on axis 0 of every activation", "needs the parameters themselves where"
REFUSED = {
    "statistics of the batch": (lambda: ended(4, nn.Linear(4, 4), nn.BatchNorm1d(4)), (4,), SAMPLES),
    "sequences first": (lambda: ended(8, nn.MultiheadAttention(8, 2)), (8,), SAMPLES),
    "weight norm": (
        lambda: ended(4, nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
        (4,),
        PARAMETERS,
    ),
}


def made(table, name):
    make, shape, *rest = table[name]
    torch.manual_seed(0)
    net = make().double()
    g = torch.Generator().manual_seed(1)
    x = torch.randn(N, *shape, dtype=torch.float64, generator=g)
    return net, x, torch.randint(CLASSES, (N,), generator=g), *rest


@pytest.mark.parametrize("name", PASSED)
def test_kfac_and_kfra_pass_what_keeps_the_samples_apart(name):
    net, x, labels, whole = made(PASSED, name)
    expected = torch.autograd.grad(F.cross_entropy(net(x), labels), list(net.parameters()))
    last = list(net.parameters())[-2]
    for method in (hs.KFAC(None), hs.KFRA(), hs.HBP("ggn"), hs.HBP()):
        for p in net.parameters():
            p.grad = p.hess_block = None
        if isinstance(method, hs.HBP) and method.variant == "hessian" and not whole:
            with pytest.raises(hs.UnsupportedLayerError, match="no second derivatives in two inputs at once"):
                hs.backward(net, x, hs.losses.CrossEntropy(labels), method)
            continue
        hs.backward(net, x, hs.losses.CrossEntropy(labels), method)
        for p, g in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-14)
            assert p.hess_block.diagonal().shape == p.shape
        assert (last.hess_block.diagonal() > 0).all()


@pytest.mark.parametrize("method", [hs.KFAC(), hs.KFRA(), hs.HBP()])
@pytest.mark.parametrize("name", REFUSED)
def test_what_moves_samples_or_makes_weights_is_refused_with_the_reason(name, method):
    net, x, labels, reason = made(REFUSED, name)
    if name == "sequences first":
        net = Attention()
        net.attention.batch_first = False
        x = x[:, None].expand(-1, 3, -1).contiguous()
        net = net.double()
    with pytest.raises(hs.UnsupportedLayerError, match=reason):
        hs.backward(net, x, hs.losses.CrossEntropy(labels), method)


def taps(name, net):
    """A layer on a sequence, weight and bias; and net(x) [1, C] with shift [T, O] added to that layer's outputs."""
    if name == "sequence":
        return net[0].weight, net[0].bias, lambda x, shift: net[1:](net[0](x) + shift)
    if name == "lstm":
        layer = net.layer
        weights = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0

        def run(x, shift):
            state = x.new_zeros(1, 5), x.new_zeros(1, 5)
            for t, given in enumerate(x.unbind(1)):
                state = torch.lstm_cell(given, state, *weights[:2], weights[2] + shift[t], weights[3])
            return net.head(state[0])

        return weights[0], weights[2], run
    m = net.attention

    def attend(x, shift):
        qkv = (F.linear(x, m.in_proj_weight, m.in_proj_bias) + shift).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in qkv)
        y = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        return net.head(m.out_proj(y.transpose(1, 2).flatten(2)).mean(1))

    return m.in_proj_weight, m.in_proj_bias, attend


@pytest.mark.parametrize("name", ["sequence", "lstm", "attention"])
def test_kfac_on_a_sequence_is_its_definition(name):
    """The mean of sum_t a_t a_t', and sum_t g_t g_t' over the length, g of the loss's exact factors: KFAC-expand."""
    net, x, labels, _ = made(PASSED, name)
    hs.backward(net, x, hs.losses.CrossEntropy(labels), hs.KFAC(None))
    weight, bias, run = taps(name, net)
    still = torch.zeros(x.shape[1], len(bias), dtype=x.dtype)
    cols = torch.zeros(len(bias), len(bias), dtype=x.dtype)
    for one in x.split(1):
        p = run(one, still)[0].softmax(0).detach()
        j = jacrev(lambda shift, one=one: run(one, shift)[0])(still).detach()
        cols += torch.einsum("cto,cd,dts->os", j, (p.diag() - p.outer(p)) / N, j) / x.shape[1]
    torch.testing.assert_close(weight.hess_block.a[0], torch.einsum("nti,ntj->ij", x, x) / N, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(weight.hess_block.b[0], cols, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["group norm", "instance norm"])
def test_blocks_behind_normalised_groups_are_exact(name):
    net, x, labels, _ = made(PASSED, name)
    params = {k: p.detach() for k, p in net.named_parameters()}
    loss = hs.losses.CrossEntropy(labels)
    exact = hs.value_grad_curvature(net, params, x, loss, hs.ExactDiagonal()).curvature
    found = hs.value_grad_curvature(net, params, x, loss, hs.HBP()).curvature
    for k, block in found.items():
        torch.testing.assert_close(block.diagonal(), exact[k], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("masks", [(), ("attn_mask",), ("key_padding_mask",), ("attn_mask", "key_padding_mask")])
@pytest.mark.parametrize("weights", [True, False])
def test_attention_with_masks_is_torchs(masks, weights):
    torch.manual_seed(0)
    hidden = torch.zeros(N, 3, dtype=torch.bool)
    hidden[1, 2] = True
    given = {"attn_mask": torch.triu(torch.ones(3, 3, dtype=torch.bool), 1), "key_padding_mask": hidden}
    net = Attention(need_weights=weights, **{k: given[k] for k in masks}).double()
    x, labels = torch.randn(N, 3, 8, dtype=torch.float64), torch.arange(N) % CLASSES
    expected = torch.autograd.grad(F.cross_entropy(net(x), labels), list(net.parameters()))
    with hs.record() as tape:
        y, found = net.attention(x, x, x, **net.how)
        loss = F.cross_entropy(net.head(y.mean(1)), labels)
    _, told = net.attention(x, x, x, **net.how)
    assert (found is None) == (told is None)
    if told is not None:
        torch.testing.assert_close(found, told)
    tape.backward(loss)
    for p, g in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-14)


def test_the_exact_diagonal_of_a_transformer_is_to_be_had():
    net, x, labels, _ = made(PASSED, "transformer")
    last = list(dict(net.named_parameters()))[-2]
    params = {k: p.detach() for k, p in net.named_parameters()}
    loss = hs.losses.CrossEntropy(labels)
    exact = hs.value_grad_curvature(net, params, x, loss, hs.ExactDiagonal()).curvature
    assert all(d.isfinite().all() for d in exact.values())
    torch.testing.assert_close(
        hs.value_grad_curvature(net, params, x, loss, hs.HesScale()).curvature[last], exact[last], rtol=1e-10, atol=0
    )
