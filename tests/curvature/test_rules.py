"""Every operation against the dense Jacobian and Hessian of torch's own, in float64: one table of cases."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev

import hesscale_rl as hs
from hesscale_rl import oracle
from hesscale_rl.networks import Exp
from hesscale_rl.recording import Recorder, run_forward
from hesscale_rl.rules import FUNCTIONS, OPERATIONS, RULES
from hesscale_rl.rules.autodiff import ByAutodiff

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
}


def ones(*shape):
    return torch.ones(*shape, dtype=torch.float64)


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
    tape = Recorder(inputs)
    with tape, torch.enable_grad():
        return tape.rules, inputs, function(*inputs)


def derivatives(rule, v):
    """What the rule says of each of its inputs: J'v, (J*J)'v and the second derivatives."""
    bends = rule.pull_second(v, rule.live)
    back, back_sq = rule.pull(v, rule.live), rule.pull_sq(v, rule.live)
    return {slot: (back[slot], back_sq[slot], bends.get(slot)) for slot in rule.live}


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_every_operation_equals_the_dense_derivatives(name):
    function, _ = CALLS[name]
    rules, inputs, y = taped(name)
    v = torch.randn_like(y)
    torch.testing.assert_close(y, function(*inputs), rtol=1e-10, atol=1e-10)
    if len(rules) > 1:  # a composition: its gradient alone
        total = hs.curvature.base.Messages()
        total.put(y, v)
        hs.tape.walk(rules, total, hs.curvature.base.Messages(), hs.curvature.NoCurvature())
        for x, g in zip(inputs, torch.func.vjp(function, *inputs)[1](v), strict=True):
            torch.testing.assert_close(total[id(x)], g, rtol=1e-10, atol=1e-10)
        return
    [rule] = rules
    each = {}
    for i, x in enumerate(inputs):

        def f(t, i=i):
            with oracle.Elementary():
                return function(*inputs[:i], t, *inputs[i + 1 :]).flatten()

        w = v.flatten()
        j = jacrev(f)(x).reshape(w.numel(), -1)
        bend = jacrev(grad(lambda t, f=f, w=w: f(t) @ w))(x).reshape(x.numel(), -1).diagonal()
        each[id(x)] = [t.view(x.shape) for t in (w @ j, w @ j.square(), bend)]
        per_sample = torch.einsum("nk,nki->ni", v.flatten(1), j.view(*v.flatten(1).shape, -1))
        slot = next(slot for slot, t in rule.inputs.items() if t is x)
        torch.testing.assert_close(rule.pull_each(v, [slot])[slot].flatten(1), per_sample, rtol=1e-10, atol=1e-10)
    for slot, found in derivatives(rule, v).items():
        for mine, expected in zip(found, each[id(rule.inputs[slot])], strict=True):
            mine = torch.zeros_like(expected) if mine is None else mine
            torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


# torch says so itself when it pads an even kernel unevenly; the module, not the rule, draws it.
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


def test_register_adds_a_layer_and_refuses_other_things():
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    class Rule(hs.rules.Rule):
        def vjp(self, v):
            return 2 * v

        def vjp_sq(self, d):
            return 4 * d

    hs.register(Double, Rule)
    try:
        net = nn.Sequential(nn.Linear(3, 2), Double())
        hs.backward(net, torch.randn(4, 3), hs.losses.MeanSquaredError(torch.randn(4, 2)), hs.HesScale())
        torch.testing.assert_close(net[0].bias.hess_diag, torch.full((2,), 4.0))
    finally:
        del RULES[Double]
    with pytest.raises(TypeError, match="a torch function or a subclass of torch.nn.Module"):
        hs.register(Rule, Rule)
    with pytest.raises(TypeError, match="Rule"):
        hs.register(Double, Double)


def test_register_takes_a_torch_function_in_one_line():
    hs.register(
        torch.sin, hs.rules.elementwise(lambda m, x: x.sin(), lambda m, x, y: x.cos(), lambda m, x, y, dy: -y)
    )
    try:
        x = torch.randn(3, 4, dtype=torch.float64)
        for spelled in (torch.sin, torch.Tensor.sin):
            tape = Recorder([x])
            with tape:
                spelled(x)
            [rule] = tape.rules
            torch.testing.assert_close(rule.second(ones(3, 4)), -x.sin())
    finally:
        for f in (torch.sin, torch.Tensor.sin):
            del FUNCTIONS[f]
