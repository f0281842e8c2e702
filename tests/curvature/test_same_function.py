"""hs.backward is the same function as net(x) and autograd, or refuses: modules mutated at random, on every path."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import hesscale_rl as hs
from hesscale_rl import tape
from hesscale_rl.errors import InputError
from hesscale_rl.networks import GaussianHead, Heads, Skip
from hesscale_rl.rules import checks

F64 = torch.float64
REFUSALS = (hs.UnsupportedLayerError, InputError)
PATHS = ("auto", "torch", "compile", "value_grad_curvature")


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """What torch.compile would be given, run as it is: what differs between the paths lies before it."""
    monkeypatch.setattr(tape, "_graph", lambda: tape._by_name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small, and waiting threads cost more than they give
    yield
    torch.set_num_threads(threads)


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))


def residual():
    skip, heads = Skip(nn.ReLU(), nn.Linear(4, 4)), Heads(nn.Sequential(nn.ELU(), nn.Linear(4, 2)), nn.Linear(4, 1))
    return nn.Sequential(nn.Linear(3, 4), skip, nn.LayerNorm(4), nn.BatchNorm1d(4).eval(), heads)


def image():
    body = [nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.ZeroPad2d(1)]
    return nn.Sequential(*body, nn.ConvTranspose2d(4, 1, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 2))


def head():
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3).eval(), nn.GELU(), nn.Linear(4, 2), GaussianHead(2, 0.1))


NETS = {"mlp": (mlp, (3,)), "residual": (residual, (3,)), "image": (image, (2, 5, 5)), "head": (head, (3,))}


def layers(net, *kinds):
    return [m for m in net.modules() if isinstance(m, kinds or nn.Module)]


def weights(net):
    return [(m, name) for m in net.modules() for name, p in m._parameters.items() if p is not None]


def as_constant(net, r, how):
    module, name = r.choice(weights(net))
    value = getattr(module, name).detach() + 0.5
    del module._parameters[name]
    if how == "buffer":
        module.register_buffer(name, value)
    else:
        setattr(module, name, value.requires_grad_(how == "plain, trained"))


def new_parameter(net, r, change):
    # Not of batch normalisation: torch's own gradient through it is wrong for a weight that is not contiguous.
    module, name = r.choice([w for w in weights(net) if not isinstance(w[0], nn.BatchNorm1d)])
    module._parameters[name] = change(module._parameters[name])


class Scaled(nn.Parameter):
    """Another function by the same operation."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * out if func is nn.functional.linear else out


def hook_on(kind):
    def mutate(net, r):
        module, name = r.choice(weights(net))
        p = getattr(module, name)
        if kind == "gradient":
            p.register_hook(lambda g: 0.5 * g)
            p.register_hook(lambda g: None)
        else:
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", 3 * p.grad))

    return mutate


def module_hook(register):
    return lambda net, r: getattr(r.choice(layers(net)), register)(lambda m, *args: None)


def forward_of_its_own(net, r):
    layer = r.choice(layers(net))
    old = layer.forward
    layer.forward = lambda x: 2 * old(x)


def attribute(name, value, *kinds):
    def mutate(net, r):
        for layer in layers(net, *kinds):
            setattr(layer, name, value)

    return mutate


def of_a_subclass(net, r):
    layer = r.choice(layers(net))
    layer.__class__ = type(
        "Mine", (type(layer),), {"forward": lambda self, x: super(type(self), self).forward(x) + 1}
    )


def in_place(net, r):
    for layer in layers(net, nn.ReLU, nn.ELU, nn.SiLU, nn.Dropout):
        layer.inplace = True


def tied(net, r):
    linears = layers(net, nn.Linear)
    same = [m for m in linears if m.weight.shape == linears[-1].weight.shape]
    same[0].weight = linears[-1].weight


def reparametrised(how):
    return lambda net, r: how(r.choice(layers(net, nn.Linear)))


def shared(net, r):
    layer = nn.Linear(2, 2).to(next(net.parameters()).dtype)
    for part in (layer, nn.Tanh(), layer) if isinstance(net[-1], nn.Linear) else ():
        net.append(part)


MUTATIONS = {
    "nothing": lambda net, r: None,
    "buffer": lambda net, r: as_constant(net, r, "buffer"),
    "plain": lambda net, r: as_constant(net, r, "plain"),
    "plain, trained": lambda net, r: as_constant(net, r, "plain, trained"),
    "gradient hook": hook_on("gradient"),
    "accumulation hook": hook_on("accumulation"),
    "forward hook": module_hook("register_forward_hook"),
    "forward pre-hook": module_hook("register_forward_pre_hook"),
    "full backward hook": module_hook("register_full_backward_hook"),
    "forward of its own": forward_of_its_own,
    "subclass": of_a_subclass,
    "parameter subclass": lambda net, r: new_parameter(net, r, lambda p: Scaled(p.detach())),
    "parameter removed": lambda net, r: new_parameter(net, r, lambda p: None),
    "another dtype": lambda net, r: new_parameter(net, r, lambda p: nn.Parameter(p.detach().half())),
    "complex": lambda net, r: new_parameter(net, r, lambda p: nn.Parameter(p.detach() + 1j)),
    "sparse": lambda net, r: new_parameter(net, r, lambda p: nn.Parameter(p.detach().to_sparse())),
    "another shape": lambda net, r: new_parameter(net, r, lambda p: nn.Parameter(p.detach()[:1].clone())),
    "not contiguous": lambda net, r: new_parameter(
        net, r, lambda p: nn.Parameter(torch.stack([p.detach(), p.detach()], -1)[..., 0])
    ),
    "frozen": lambda net, r: new_parameter(net, r, lambda p: p.requires_grad_(False)),
    "extra parameter": lambda net, r: r.choice(layers(net)).register_parameter("extra", nn.Parameter(torch.ones(1))),
    "weight of an activation": lambda net, r: [
        m.register_parameter("weight", nn.Parameter(torch.ones(1))) for m in layers(net, nn.Tanh, nn.ReLU, nn.GELU)
    ],
    "hidden by an attribute": lambda net, r: vars((w := r.choice(weights(net)))[0]).update({w[1]: torch.ones(2)}),
    "in place": in_place,
    "training mode": lambda net, r: net.train(),
    "tied": tied,
    "shared": shared,
    "weight norm": reparametrised(parametrizations.weight_norm),
    "parametrisation": reparametrised(lambda m: parametrize.register_parametrization(m, "bias", nn.Tanh())),
    "pruned": reparametrised(lambda m: prune.random_unstructured(m, "weight", amount=0.5)),
    "channels last": lambda net, r: [m.to(memory_format=torch.channels_last) for m in layers(net, nn.Conv2d)],
    "eps": attribute("eps", 0.3, nn.LayerNorm, nn.BatchNorm1d),
    "stride": attribute("stride", (2, 1), nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d),
    "stride, one number": attribute("stride", 2, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d),
    "padding": attribute("padding", (1, 0), nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d),
    "padding, same": attribute("padding", "same", nn.Conv2d),
    "padding of pads": attribute("padding", (1, 0, 2, 1), nn.ZeroPad2d),
    "value of pads": attribute("value", 0.7, nn.ZeroPad2d),
    "indices": attribute("return_indices", True, nn.MaxPool2d),
    "ceil": attribute("ceil_mode", True, nn.MaxPool2d, nn.AvgPool2d),
    "divisor": attribute("divisor_override", 3, nn.AvgPool2d),
    "transposed": attribute("transposed", True, nn.Conv2d),
    "kernel size": attribute("kernel_size", (2, 2), nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d),
    "dilation": attribute("dilation", (2, 1), nn.Conv2d, nn.MaxPool2d),
    "groups": attribute("groups", 2, nn.Conv2d),
    "normalised axes": attribute("normalized_shape", (6, 4), nn.LayerNorm),
    "flatten from the samples on": attribute("start_dim", 0, nn.Flatten),
    "gelu": attribute("approximate", "tanh", nn.GELU),
    "alpha": attribute("alpha", 0.4, nn.ELU),
    "running mean": attribute("running_mean", torch.ones(4, dtype=torch.float16), nn.BatchNorm1d),
    "running variance": attribute("running_var", torch.ones(1), nn.BatchNorm1d),
}
INPUTS = {
    "nothing": lambda x: x,
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "negated lazily": lambda x: torch.complex(x, -x).conj().imag,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x,
    "one sample": lambda x: x[:1],
    "no samples' axis": lambda x: x[0],
    "no sample": lambda x: x[:0],
    "one axis more": lambda x: x[:, None],
    "one entry less": lambda x: x[..., 1:],
    "float16": lambda x: x.half(),
    "integers": lambda x: x.long(),
    "complex": lambda x: x + 0j,
    "sparse": lambda x: x.to_sparse(),
    "requires grad": lambda x: x.clone().requires_grad_(),
    "a parameter": lambda x: nn.Parameter(x),
    "a dict": lambda x: {"x": x},
    "a tuple": lambda x: (x, x),
    "an array": lambda x: x.numpy(),
}


def build(kind, mutation, seed, dtype):
    """The same mutated network at every call."""
    torch.manual_seed(seed)
    net = NETS[kind][0]().to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    MUTATIONS[mutation](net, random.Random(seed))
    return net


def by_autograd(net, x, target):
    """Outputs and what is left in p.grad; None where torch itself fails."""
    try:
        y = net(x)
        (y - target).square().mean().backward()
        return y.detach(), {name: p.grad for name, p in net.named_parameters()}
    except Exception:
        return None


def by_ours(path, net, x, target):
    loss = hs.losses.MeanSquaredError(target)
    if path != "value_grad_curvature":
        result = hs.backward(net, x, loss, hs.HesScale(), backend=path)
        return result.output, {name: p.grad for name, p in net.named_parameters()}
    places = dict(net.named_parameters(remove_duplicate=False))
    params = {name: p.detach() if checks.has_hooks(p) else p for name, p in places.items()}
    result = hs.value_grad_curvature(net, params, x, loss, hs.HesScale())
    total: dict = {}
    for name, p in places.items():
        if p.requires_grad and name in result.grad:
            total[p] = total.get(p, 0) + result.grad[name]
    return result.output, {name: total.get(p) for name, p in net.named_parameters()}


def compare(make, x, dtype):
    """Hold every path to autograd; return what they refuse it with, "" if they do not."""
    reference, told = by_autograd(make(), copy.deepcopy(x), torch.zeros((), dtype=dtype)), []
    for path in PATHS:
        net = make()
        hooked = any(map(checks.has_hooks, net.parameters()))
        target = torch.zeros(6, 2, dtype=dtype) if reference is None else torch.zeros_like(reference[0])
        try:
            output, grads = by_ours(path, net, copy.deepcopy(x), target)
        except REFUSALS as refusal:
            told.append(str(refusal))
            assert "\n" not in told[-1] and all(p.grad is None for p in net.parameters())
            continue
        assert reference is not None, f"{path} takes what torch does not"
        close = {"rtol": 1e-10, "atol": 1e-10} if dtype is F64 else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(output, reference[0], **close)
        if hooked and path == "value_grad_curvature":
            continue  # it knows the tensors that it is given, and no others
        for name, g in reference[1].items():
            g = torch.zeros(()) if g is None else g
            found = torch.zeros_like(g) if grads[name] is None else grads[name]
            torch.testing.assert_close(found, g, **close, msg=lambda m, n=name, p=path: f"{p}, {n}: {m}")
    assert len(told) in (0, len(PATHS)) and len(set(told)) <= 1, "the paths differ: " + " | ".join(told)
    return told[0] if told else ""


# What is no other function than before, or one that the rules follow: never refused.
TAKEN = ("nothing", "buffer", "plain", "gradient hook", "accumulation hook", "frozen", "in place", "tied", "shared")


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", NETS)
def test_every_mutation_is_followed_or_refused_on_every_path(kind, dtype):
    x = torch.randn(6, *NETS[kind][1], generator=torch.Generator().manual_seed(0)).to(dtype)
    for seed, mutation in enumerate(MUTATIONS, start=100 * (dtype is F64)):
        try:
            told = compare(lambda m=mutation, s=seed: build(kind, m, s, dtype), x, dtype)
        except Exception as error:
            raise AssertionError(f"{mutation}, seed {seed}: {type(error).__name__}: {error}") from error
        assert not (told and mutation in TAKEN), told


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", NETS)
def test_every_input_is_taken_as_it_is_or_refused_on_every_path(kind, dtype):
    x = torch.randn(6, *NETS[kind][1], generator=torch.Generator().manual_seed(0)).to(dtype)
    for name, change in INPUTS.items():
        try:
            compare(lambda: build(kind, "nothing", 0, dtype), change(x), dtype)
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("path", PATHS[:3])
def test_what_surrounds_the_call_is_refused_or_changes_nothing(path):
    net, x, loss = mlp(), torch.randn(6, 3), hs.losses.CrossEntropy(torch.arange(6) % 2)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(InputError, match=r"autocast\('cpu', enabled=False"),
    ):
        hs.backward(net, x, loss, hs.HesScale(), backend=path)
    hook = nn.modules.module.register_module_forward_hook(lambda m, i, o: 2 * o)
    try:
        with pytest.raises(InputError, match=r"hooks for all modules .*remove\(\)"):
            hs.backward(net, x, loss, hs.HesScale(), backend=path)
    finally:
        hook.remove()
    with torch.device("meta"):
        assert hs.backward(net, x, loss, hs.HesScale(), backend=path).value.device.type == "cpu"


@pytest.mark.parametrize(
    "loss, words",
    [
        (
            nn.CrossEntropyLoss(),
            r"CrossEntropyLoss lacks its target: take hesscale_rl\.losses\.CrossEntropy\(target\)",
        ),
        (nn.functional.mse_loss, r"hesscale_rl\.losses\.MeanSquaredError\(target\)"),
        (nn.HuberLoss(), r"lambda outputs: criterion\(outputs, target\)"),
        (hs.losses.CrossEntropy, r"a class; make a loss of it"),
        (hs.losses.CrossEntropy(torch.zeros(5).long()), r"outputs have the shape \[6, 2\] and target \[5\]"),
        (
            hs.losses.MeanSquaredError(torch.zeros(6, 3)),
            r"target has the shape \[6, 3\], expected \[6, 2\].*net\(x\)",
        ),
    ],
)
def test_a_loss_that_cannot_be_is_told_with_the_right_one_or_both_shapes(loss, words):
    with pytest.raises(ValueError, match=words):
        hs.backward(mlp(), torch.randn(6, 3), loss, hs.HesScale())


SCALE = torch.ones(3, requires_grad=True)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(
    "x, loss, words",
    [
        ("graph", lambda y: y.square().sum(), "x requires grad"),
        ("data", lambda y: (y * SCALE).square().sum(), r"reads a tensor \[3\] that requires grad"),
        ("data", hs.losses.MeanSquaredError(torch.zeros(5, 3, requires_grad=True)), "target requires grad"),
        ("data", lambda y: y.sum().detach(), "does not depend on the outputs"),
        ("data", lambda y: torch.tensor(1.0), "does not depend on the outputs"),
        ("data", lambda y: y.sum().item(), "the loss returned .*, expected a scalar tensor"),
        ("data", lambda y: None, "the loss returned None, expected a scalar tensor"),
    ],
)
def test_what_autograd_would_send_elsewhere_is_refused(backend, x, loss, words):
    net, data = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(5, 4)
    given = nn.Linear(4, 4)(data) if x == "graph" else data
    with pytest.raises(ValueError, match=words):
        hs.backward(net, given, loss, hs.HesScale(), backend=backend)
    assert all(p.grad is None for p in net.parameters())
