"""Every operation against the dense Jacobian and Hessian of torch's own, in float64: one table of cases."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jacrev

import hesscale_rl as hs
from hesscale_rl import oracle
from hesscale_rl.networks import Exp
from hesscale_rl.recording import Recorder, latest, run_forward
from hesscale_rl.rules import OPERATIONS
from hesscale_rl.rules.autodiff import ByAutodiff
from hesscale_rl.rules.recurrent import gru_step, lstm_step

N = 3
IMAGE = (4, 6, 5)
# Modules: name -> module, shape of a sample.
CASES = {
    "linear": (nn.Linear(5, 4), (5,)),
    "linear, no bias": (nn.Linear(5, 4, bias=False), (5,)),
    "linear, positions": (nn.Linear(5, 4), (3, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), IMAGE),
    "conv2d, no bias": (nn.Conv2d(4, 2, 2, bias=False, padding="valid"), IMAGE),
    "conv2d, same": (nn.Conv2d(4, 2, 3, padding="same"), IMAGE),
    "conv2d, same, even": (nn.Conv2d(4, 2, (4, 3), padding="same"), IMAGE),
    "conv3d": (nn.Conv3d(2, 2, 2, stride=(1, 2, 1), padding=1), (2, 3, 4, 2)),
    "convT1d": (nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1, dilation=2), (4, 5)),
    "convT2d": (nn.ConvTranspose2d(4, 6, (3, 2), stride=2, padding=1, output_padding=(1, 0), groups=2), (4, 3, 4)),
    "convT3d": (nn.ConvTranspose3d(2, 2, 2, bias=False), (2, 2, 3, 2)),
    "max1d": (nn.MaxPool1d(3, stride=2, padding=1), (2, 8)),
    "max2d": (nn.MaxPool2d(3, stride=1, dilation=2, padding=1, ceil_mode=True), (2, 6, 7)),
    "max3d": (nn.MaxPool3d(2, stride=1), (2, 3, 4, 3)),
    "avg1d": (nn.AvgPool1d(3, stride=2, padding=1, ceil_mode=True), (2, 8)),
    "avg2d": (nn.AvgPool2d((3, 2), stride=2, padding=1, ceil_mode=True, count_include_pad=False), (2, 6, 7)),
    "avg2d, divisor": (nn.AvgPool2d(3, stride=2, padding=1, divisor_override=5), (2, 6, 7)),
    "avg3d": (nn.AvgPool3d(2, stride=1, padding=1), (2, 3, 4, 3)),
    "adaptive1d": (nn.AdaptiveAvgPool1d(3), (2, 7)),
    "adaptive2d": (nn.AdaptiveAvgPool2d((None, 3)), (2, 4, 7)),
    "adaptive3d": (nn.AdaptiveAvgPool3d(2), (2, 3, 4, 5)),
    "pad1d": (nn.ZeroPad1d((1, 2)), (2, 4)),
    "pad2d": (nn.ZeroPad2d((1, 2, 0, 1)), (2, 3, 4)),
    "pad3d": (nn.ZeroPad3d(1), (1, 2, 2, 3)),
    "flatten": (nn.Flatten(), (2, 3)),
    "unflatten": (nn.Unflatten(1, (2, 3)), (6,)),
    "layer norm": (nn.LayerNorm(7), (7,)),
    "layer norm, two axes": (nn.LayerNorm((3, 4)), (2, 3, 4)),
    "layer norm, plain": (nn.LayerNorm(7, elementwise_affine=False), (7,)),
    "layer norm, no bias": (nn.LayerNorm(7, bias=False), (7,)),
    "batch norm 1d": (nn.BatchNorm1d(4).eval(), (4,)),
    "batch norm 2d": (nn.BatchNorm2d(2).eval(), (2, 3, 3)),
    "batch norm 3d": (nn.BatchNorm3d(2, affine=False).eval(), (2, 2, 2, 2)),
    "relu": (nn.ReLU(), (9,)),
    "leaky relu": (nn.LeakyReLU(0.13), (9,)),
    "elu": (nn.ELU(), (9,)),
    "elu, another alpha": (nn.ELU(0.7), (9,)),
    "selu": (nn.SELU(), (9,)),
    "gelu": (nn.GELU(), (9,)),
    "gelu, tanh": (nn.GELU("tanh"), (9,)),
    "silu": (nn.SiLU(), (9,)),
    "tanh": (nn.Tanh(), (9,)),
    "sigmoid": (nn.Sigmoid(), (9,)),
    "log sigmoid": (nn.LogSigmoid(), (9,)),
    "softplus": (nn.Softplus(2.0, threshold=1.5), (9,)),
    "exp": (Exp(), (9,)),
    "rms norm": (nn.RMSNorm(7, eps=0.1), (2, 7)),
    "adaptive max": (nn.AdaptiveMaxPool2d(2), (2, 5, 4)),
    **{
        str(layer): (layer, (9,))
        for layer in (
            *(nn.Hardtanh(-0.5, 0.8), nn.ReLU6(), nn.Hardswish(), nn.Softsign(), nn.Mish()),
            *(nn.CELU(0.5), nn.Tanhshrink(), nn.Softshrink(), nn.Hardshrink(), nn.Threshold(0.1, 0.5)),
            nn.RReLU().eval(),
        )
    },
}
UNARY = (
    "neg abs square sqrt rsqrt reciprocal exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh asinh "
    "atanh erf relu6 clip"
)


def ones(*shape):
    return torch.ones(*shape, dtype=torch.float64)


CHOICE = torch.arange(12).view(3, 4) % 5 < 2
ROWS = torch.tensor([2, 1, 0, 3, 1, 2])


QKV = [(3, 4, 4, 2), (3, 2, 5, 2), (3, 2, 5, 2)]
STATE = 0.3 * torch.ones(2, 2, 3, 2, dtype=torch.float64)


def TWICE(gates):
    """The weights of two directions."""
    return [(gates, 2), (gates, 2), (gates,), (gates,)] * 2


def POSITIVE(a):
    return a.exp()


def SET(a, b):
    y = a * 1
    y[:, 1:3] = b
    return y


# Functions of tensors that all have derivatives: name -> function, shapes. An axis 0 of three holds samples.
CALLS = {
    "add": (torch.add, [(3, 4), (4,)]),
    "add, alpha": (lambda a, b: torch.add(a, b, alpha=2.5), [(3, 4), (3, 1)]),
    "add, number": (lambda a: 1.5 + a, [(3, 4)]),
    "sub": (lambda a, b: a - b, [(3, 4), (1, 4)]),
    "sub, alpha": (lambda a, b: a.sub(b, alpha=3), [(3, 4), (4,)]),
    "rsub": (lambda a: 2 - a, [(3, 4)]),
    "mul": (lambda a, b: a * b, [(3, 1, 4), (2, 1)]),
    "div": (lambda a, b: a / b, [(3, 4), (4,)]),
    "cat": (lambda a, b, c: torch.cat([a, b, c], 1), [(3, 2), (3, 4), (3, 1)]),
    "reshape": (lambda a: a.reshape(3, 2, 3), [(3, 6)]),
    "expand": (lambda a: a.expand(3, 2, 4), [(2, 1)]),
    "index": (lambda a: a[:, [0, 2, 2]], [(3, 4)]),
    "transpose": (lambda a: a.mT.flip(0), [(3, 2, 4)]),
    "weight norm": (torch._weight_norm, [(3, 4), (3, 1)]),
    "weight norm of all": (lambda v, g: torch._weight_norm(v, g, -1), [(3, 4), (1, 1)]),
    "square": (lambda a: a * a, [(3, 4)]),
    "pow": (lambda a: torch.relu(a) ** 3, [(3, 4)]),
    "pow of two": (lambda a, b: POSITIVE(a) ** b, [(3, 4), (4,)]),
    "rpow": (lambda a: 2**a, [(3, 4)]),
    "rdiv": (lambda a: 2 / a, [(3, 4)]),
    "maximum": (torch.maximum, [(3, 4), (4,)]),
    "minimum": (torch.minimum, [(3, 4), (3, 1)]),
    "max of two": (torch.max, [(3, 4), (3, 4)]),
    "atan2": (torch.atan2, [(3, 4), (4,)]),
    "where": (lambda a, b: torch.where(CHOICE, a, b), [(3, 4), (4,)]),
    "masked fill": (lambda a: a.masked_fill(CHOICE, 2.0), [(3, 4)]),
    "clamp": (lambda a: a.clamp(-0.4, 0.7), [(3, 4)]),
    "clip": (lambda a: torch.clip(a, max=0.3), [(3, 4)]),
    "matmul": (torch.matmul, [(3, 2, 4), (4, 5)]),
    "matmul of stacks": (lambda a, b: a @ b, [(3, 2, 4), (3, 4, 5)]),
    "matmul of a vector": (torch.matmul, [(4,), (3, 4, 5)]),
    "mv": (torch.mv, [(3, 4), (4,)]),
    "dot": (lambda a, b: torch.dot(a, b)[None].expand(3), [(4,), (4,)]),
    "addmm": (lambda a, b, c: torch.addmm(a, b, c, beta=0.5, alpha=2), [(5,), (3, 4), (4, 5)]),
    "baddbmm": (torch.baddbmm, [(3, 2, 5), (3, 2, 4), (3, 4, 5)]),
    "einsum": (lambda a, b: torch.einsum("nij,jk->nik", a, b), [(3, 2, 4), (4, 5)]),
    "einsum, summed first": (lambda a, b: torch.einsum("nij,kj->ni", a, b), [(3, 2, 4), (5, 4)]),
    "einsum, outer": (lambda a, b: torch.einsum("ni,nj->nij", a, b), [(3, 2), (3, 4)]),
    "einsum of one": (lambda a: torch.einsum("nij->nji", a), [(3, 2, 4)]),
    "embedding": (lambda w: torch.nn.functional.embedding(ROWS, w, padding_idx=1), [(4, 2)]),
    "sum": (lambda a: a.sum((1, 2)), [(3, 2, 4)]),
    "sum of all": (lambda a: a.sum().expand(3), [(3, 2)]),
    "mean": (lambda a: a.mean(-1, keepdim=True), [(3, 2, 4)]),
    "var": (lambda a: a.var(1), [(3, 4)]),
    "std": (lambda a: a.std(1, unbiased=False), [(3, 4)]),
    "norm": (lambda a: a.norm(dim=1), [(3, 4)]),
    "vector norm": (lambda a: torch.linalg.vector_norm(a, dim=1, keepdim=True), [(3, 4)]),
    "amax": (lambda a: a.amax(1), [(3, 4)]),
    "max along an axis": (lambda a: a.max(1).values, [(3, 4)]),
    "min of all": (lambda a: a.min().expand(3), [(3, 4)]),
    "softmax": (lambda a: a.softmax(-1), [(3, 4)]),
    "log softmax": (lambda a: torch.nn.functional.log_softmax(a, 1), [(3, 4, 2)]),
    "softmin": (lambda a: torch.nn.functional.softmin(a, 1), [(3, 4)]),
    "logsumexp": (lambda a: torch.logsumexp(a, 1), [(3, 4)]),
    "attention": (F.scaled_dot_product_attention, [(3, 4, 2), (3, 5, 2), (3, 5, 3)]),
    "attention, causal": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7),
        [(3, 2, 4, 2), (3, 2, 4, 2), (3, 2, 4, 3)],
    ),
    "attention, mask": (F.scaled_dot_product_attention, [(3, 4, 2), (3, 5, 2), (3, 5, 3), (4, 5)]),
    "broadcast": (lambda a, b: torch.mul(*torch.broadcast_tensors(a, b.exp())), [(3, 4), (4,)]),
    "a live setting": (lambda a, b: a.clamp(max=b), [(3, 4), (3, 4)]),
    "stack": (lambda a, b: torch.stack([a, b], 1), [(3, 4), (3, 4)]),
    "cast": (lambda a: a.to(torch.float64, copy=True), [(3, 4)]),
    "gather": (lambda a: a.gather(1, ROWS.view(3, 2) % 2), [(3, 4)]),
    "cumsum": (lambda a: a.cumsum(1), [(3, 4)]),
    "unfold": (lambda a: F.unfold(a, 2), [(3, 2, 3, 4)]),
    "pixel shuffle": (lambda a: F.pixel_shuffle(a, 2), [(3, 4, 2, 3)]),
    "circular pad": (lambda a: F.pad(a, (1, 2), mode="circular"), [(3, 2, 4)]),
    "interpolate": (lambda a: F.interpolate(a, scale_factor=2, mode="bilinear"), [(3, 2, 3, 4)]),
    "interpolate, nearest": (lambda a: F.interpolate(a, size=(5, 3)), [(3, 2, 3, 4)]),
    "interpolate, cubic": (lambda a: F.interpolate(a, size=(5, 7), mode="bicubic"), [(3, 2, 3, 4)]),
    "prelu": (F.prelu, [(3, 4, 2), (4,)]),
    "group norm": (lambda a, w, b: F.group_norm(a, 2, w, b), [(3, 4, 2), (4,), (4,)]),
    "instance norm": (lambda a: F.instance_norm(a, eps=0.1), [(3, 2, 4)]),
    "batch norm in training": (lambda a, w: F.batch_norm(a, None, None, w, training=True), [(3, 4, 2), (4,)]),
    "lstm": (lambda x, *w: torch.lstm(x, tuple(STATE), w, True, 1, 0.0, True, True, True)[0], [(3, 4, 2), *TWICE(8)]),
    "gru": (lambda x, *w: torch.gru(x, STATE[0], w, True, 1, 0.0, True, True, True)[0], [(3, 4, 2), *TWICE(6)]),
    "rnn": (lambda x, *w: torch.rnn_tanh(x, STATE[0], w, True, 1, 0.0, True, True, True)[0], [(3, 4, 2), *TWICE(2)]),
    "lstm's step": (lambda x, c: torch.cat(lstm_step(x, c), -1), [(3, 8), (3, 2)]),
    "gru's step": (gru_step, [(3, 6), (3, 6), (3, 2)]),
    "lstm cell": (lambda x, *w: torch.lstm_cell(x, (STATE[0][0], STATE[1][0]), *w)[1], [(3, 2), *TWICE(8)[:4]]),
    "gru cell": (lambda x, *w: torch.gru_cell(x, STATE[0][0], *w), [(3, 2), *TWICE(6)[:4]]),
    "attention, dropped": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), QKV),
    "normalize": (lambda a: F.normalize(a, dim=1), [(3, 4)]),
    "glu": (F.glu, [(3, 4)]),
    "bilinear": (F.bilinear, [(3, 2), (3, 4), (5, 2, 4), (5,)]),
    "lerp": (torch.lerp, [(3, 4), (3, 4), (3, 4)]),
    "addcmul": (torch.addcmul, [(3, 4), (3, 4), (3, 4)]),
    "addcdiv": (lambda a, b, c: torch.addcdiv(a, b, c, value=2), [(3, 4), (3, 4), (3, 4)]),
    "set": (lambda a, b: SET(a, b), [(3, 4), (2,)]),
    "in place": (lambda a: (a + 1).mul_(a).relu_(), [(3, 4)]),
    "mse": (lambda a, b: F.mse_loss(a, b).expand(3), [(3, 4), (3, 4)]),
    "l1": (lambda a, b: F.l1_loss(a, b, reduction="sum").expand(3), [(3, 4), (3, 4)]),
    "cross entropy": (lambda a: F.cross_entropy(a, ROWS[:3], reduction="none"), [(3, 4)]),
    "cross entropy, ignored": (lambda a: F.cross_entropy(a, ROWS[:3], ignore_index=1).expand(3), [(3, 4)]),
    "bce": (lambda a: F.binary_cross_entropy_with_logits(a, CHOICE.double()).expand(3), [(3, 4)]),
    **{name: (getattr(torch, name), [(3, 4)]) for name in UNARY.split() if name not in ("relu6", "clip")},
    "hardsigmoid": (F.hardsigmoid, [(3, 4)]),
    "relu6": (F.relu6, [(3, 4)]),
    "no rule": (lambda a, b: torch.lerp(a, b, 0.3) * torch.special.erf(a), [(3, 4), (3, 4)]),
}


def test_every_rule_has_a_case():
    used, unknown = set(), set()
    for name in (*CASES, *CALLS):
        with torch.no_grad():
            for rule in taped(name)[0]:
                (unknown if isinstance(rule, ByAutodiff) else used).add(type(rule))
    drawn = {hs.rules.pooling.Dropout}  # below
    assert not [name for name, kind in OPERATIONS.items() if kind not in used | drawn]
    assert unknown == {ByAutodiff}


def taped(name):
    """The rules of a case's operations, its inputs and its outputs."""
    torch.manual_seed(0)
    if name in CASES:
        layer, shape = CASES[name]
        layer = layer.double()
        for p in (*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())):
            p.data = torch.rand_like(p) + 0.5 if "norm" in name else torch.randn_like(p)
        inputs = [torch.randn(N, *shape, dtype=torch.float64) * 1.5]
        tape = Recorder([*inputs, *layer.parameters()], inputs)
        return tape.rules, inputs, run_forward(layer, inputs[0], tape)
    function, shapes = CALLS[name]
    inputs = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    if name in UNARY:
        inputs = [0.1 + 0.8 * torch.rand_like(t) for t in inputs]
    tape = Recorder(inputs)
    with tape, torch.enable_grad():
        y = latest(function(*inputs), tape.now)
    return tape.rules, inputs, y


def derivatives(rule, v):
    """What the rule says of each of its inputs: J'v, (J*J)'v and the second derivatives."""
    bends = rule.pull_second(v, rule.live)
    back, back_sq = rule.pull(v, rule.live), rule.pull_sq(v, rule.live)
    return {slot: (back[slot], back_sq[slot], bends.get(slot)) for slot in rule.live}


# Of these the diagonal is not exact: ways that meet again, products behind one another.
INEXACT = {"lerp", "in place", "bilinear", "lstm", "gru", "rnn", "lstm cell", "gru cell", "attention, dropped"}
INEXACT |= {"normalize", "pow of two", "no rule"}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch's, in the reference
@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_every_operation_equals_the_dense_derivatives(name):
    function, _ = CALLS[name]
    rules, inputs, y = taped(name)
    v = torch.randn_like(y)
    torch.testing.assert_close(y, function(*inputs), rtol=1e-10, atol=1e-10)
    each = {}
    if len(rules) > 1:
        total, diagonal, d = hs.curvature.base.Messages(), hs.curvature.base.Messages(), torch.rand_like(y)
        total.put(y, v)
        diagonal.put(y, d)
        hs.tape.walk(rules, total, diagonal, hs.HesScale())
    for i, x in enumerate(inputs):

        def f(t, i=i):
            with oracle.Elementary():
                return function(*inputs[:i], t, *inputs[i + 1 :]).flatten()

        w = v.flatten()
        j = jacrev(f)(x).reshape(w.numel(), -1)
        bend = jacrev(grad(lambda t, f=f, w=w: f(t) @ w))(x).reshape(x.numel(), -1).diagonal()
        if not rules:
            torch.testing.assert_close(total[id(x)].flatten(), w @ j, rtol=1e-10, atol=1e-10)
            if name not in INEXACT:
                exact = d.flatten() @ j.square() + bend
                torch.testing.assert_close(diagonal[id(x)].flatten(), exact, rtol=1e-10, atol=1e-10)
            continue
        [rule] = rules
        each[id(x)] = [t.view(x.shape) for t in (w @ j, w @ j.square(), bend)]
        rows = v.reshape(len(v), -1)
        per_sample = torch.einsum("nk,nki->ni", rows, j.view(*rows.shape, -1))
        slot = next(slot for slot, t in rule.inputs.items() if t is x)
        torch.testing.assert_close(rule.pull_each(v, [slot])[slot].flatten(1), per_sample, rtol=1e-10, atol=1e-10)
    for slot, found in derivatives(*rules, v).items() if rules else ():
        for mine, expected in zip(found, each[id(rule.inputs[slot])], strict=True):
            mine = torch.zeros_like(expected) if mine is None else mine
            torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


# And of the reference of RReLU.
# torch says so itself when it pads an even kernel unevenly; the module, not the rule, draws it.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_primitives_equal_the_dense_derivatives(name):
    layer, shape = CASES[name]
    with torch.no_grad():
        rules, [x], y = taped(name)
        [rule] = rules
        params = {k: p.detach() for k, p in layer.named_parameters()}
        v = torch.randn_like(y)
        torch.testing.assert_close(y, layer(x), rtol=1e-10, atol=1e-10)
        second, grads, grads_sq = rule.second(v), rule.grad(v), rule.grad_sq(v)
        back, back_sq = rule.vjp(v), rule.vjp_sq(v)
        each, use_d2f = rule.grad_each(v), rule.hessian(v)
    dense, dense_sq, bend = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    dense_p = {k: torch.zeros_like(p) for k, p in params.items()}
    dense_p_sq = {k: torch.zeros_like(p) for k, p in params.items()}
    h_y = torch.randn(N, y[0].numel(), y[0].numel(), dtype=torch.float64)
    h_y, dense_h = h_y + h_y.mT, []
    read_h = {k: torch.zeros(p.numel(), p.numel()).to(x) for k, p in params.items()}
    for n in range(N):

        def f(a, p=params):
            return functional_call(layer, p, (a[None],))[0].flatten()

        w = v[n].flatten()
        j = jacrev(f)(x[n]).flatten(1)
        dense[n], dense_sq[n] = (w @ j).view(shape), (w @ j.square()).view(shape)
        dense_h.append(j.flatten(1).mT @ h_y[n] @ j.flatten(1))
        h = jacrev(grad(lambda a, f=f, w=w: f(a) @ w))(x[n]) if second is not None else None
        if h is not None:
            bend[n] = h.reshape(x[n].numel(), -1).diagonal().view(shape)
            torch.testing.assert_close(use_d2f[n], h.reshape(use_d2f[n].shape), rtol=1e-10, atol=1e-10)
        for k, jp in (jacrev(lambda p, f=f, n=n: f(x[n], p))(params) if params else {}).items():
            dense_p[k] += (w @ jp.flatten(1)).view_as(params[k])
            dense_p_sq[k] += (w @ jp.flatten(1).square()).view_as(params[k])
            torch.testing.assert_close(each[k][n].flatten(), w @ jp.flatten(1), rtol=1e-10, atol=1e-10)
            if rule.one_use:
                torch.testing.assert_close(jp.flatten(1).square().sum(0), jp.flatten(1).sum(0).square())
            read_h[k] += jp.flatten(1).mT @ h_y[n] @ jp.flatten(1)
    assert dense.abs().max() > 1e-3
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(back, dense, **close)
    torch.testing.assert_close(back_sq, dense_sq, **close)
    if second is not None:
        assert bend.abs().max() > 1e-3
        torch.testing.assert_close(second, bend, **close)
    torch.testing.assert_close(rule.sandwich(h_y), torch.stack(dense_h), **close)
    blocks = hs.HBP().blocks(rule, h_y, list(rule.p))
    assert (use_d2f is None) == (second is None) and each.keys() == blocks.keys() == params.keys()
    for k, block in blocks.items():
        u = torch.randn_like(params[k])
        torch.testing.assert_close(block.dense(), read_h[k], **close)
        torch.testing.assert_close(block.diagonal(), read_h[k].diagonal().view_as(u), **close)
        torch.testing.assert_close(block.matmul(u), (read_h[k] @ u.flatten()).view_as(u), **close)
    assert grads.keys() == grads_sq.keys() == params.keys()
    for k in params:
        assert dense_p[k].abs().max() > 1e-3
        torch.testing.assert_close(grads[k], dense_p[k], **close)
        torch.testing.assert_close(grads_sq[k], dense_p_sq[k], **close)


def test_dropout_draws_one_mask_for_the_pass():
    x = torch.ones(4, 50)
    tape = Recorder([x])
    y = run_forward(nn.Dropout(0.5), x, tape)
    [rule] = tape.rules
    assert 0 < int((y == 0).sum()) < 200
    assert torch.equal(rule.vjp(x), y) and torch.equal(rule.vjp_sq(x), y * y)


def test_a_module_that_works_in_place_keeps_its_input():
    net, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 2)), torch.randn(4, 5)
    kept = x.clone()
    hs.backward(net, x, hs.losses.MeanSquaredError(torch.zeros(4, 2)))
    assert torch.equal(x, kept)
