"""What recorded programs may do: autograd's gradient, or an error that names operation, place and way out."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import hesscale_rl as hs
from hesscale_rl.errors import InputError

N = 4
ERRORS = (InputError, hs.UnsupportedLayerError, RuntimeError)  # the last: torch's own


compiled_sine = torch.compile(torch.sin, backend="eager")


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Net(nn.Module):
    """Two layers with a program in their middle: (network, activations) -> activations."""

    def __init__(self, program):
        super().__init__()
        self.one, self.two, self.program = nn.Linear(3, 4), nn.Linear(4, 2), program
        self.norm, self.buffer = nn.BatchNorm1d(4), torch.ones(4, dtype=torch.float64)

    def forward(self, x):
        return self.two(self.program(self, torch.tanh(self.one(x))))


def set_item(net, h):
    h = h * 1
    h[:, 0] = net.two.weight.sum()
    return h


def shared(net, h):
    h = h * 1
    h[:, 0] = h[:, 1] * 2
    return h


def view_in_place(net, h):
    h = h * 1
    h[:, :2].mul_(3)
    return h


def without_grad(net, h):
    with torch.no_grad():
        scale = h.abs().max()
    return h / scale


def inference(net, h):
    with torch.inference_mode():
        scale = h.abs().max()
    return h / scale.item()


def branch(net, h):
    return h * 2 if h.sum() > 0 else h * 3


def read(net, h):
    return h * float(h.detach().numpy().max()) * h[0, 0].item()


def twice(net, h):
    return torch.tanh(net.two(h) @ net.two.weight)


def stored(net, h):
    y = h * net.buffer
    with torch.no_grad():
        net.buffer.mul_(2.0)
    return y


def changed_unseen(net, h):
    y = torch.exp(h)
    with torch.no_grad():
        y.mul_(2.0)
    return y


def other_thread(net, h):
    made = []
    thread = threading.Thread(target=lambda: made.append(h * 2))
    thread.start()
    thread.join()
    return made[0]


def by_vmap(net, h):
    return torch.func.vmap(lambda row: row * 2)(h)


def by_vmap_of_weights(net, h):
    return torch.func.vmap(lambda row: net.two.weight[0] * row)(h)


def by_jacobian(net, h):
    return torch.func.jacrev(lambda t: (t**3).sum())(h)


def penalty(net, h):
    return torch.autograd.grad((h**2).sum(), h, create_graph=True)[0]


def hooked(net, h):
    h.register_hook(lambda g: 2 * g)
    return h


def autocast(net, h):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.linear(h, torch.eye(4, dtype=torch.float64) + 0 * net.two.weight.sum()).double()


def couples(net, h):
    return h - h.mean(0)


def by_fft(net, h):
    return torch.fft.rfft(h).abs() @ torch.ones(3, 4, dtype=torch.float64)


def by_complex(net, h):
    return torch.view_as_real(torch.view_as_complex(h.view(N, 2, 2)) * (1 + 2j)).flatten(1)


def two_precisions(net, h):
    return (h.float() * 2).double()


def on_meta(net, h):
    return h + torch.ones(4, device="meta", dtype=torch.float64)


def written_out(net, h):
    return torch.mul(h, 2, out=torch.empty_like(h))


def hook_of_module(net, h):
    inner = nn.Tanh()
    inner.register_full_backward_hook(lambda m, g, y: (2 * g[0],))
    return inner(h)


def forward_hook(net, h):
    inner = nn.Tanh()
    inner.register_forward_hook(lambda m, x, y: 2 * y)
    return inner(h)


def scripted(net, h):
    return torch.jit.trace(lambda t: torch.sin(t) * 2, torch.ones(N, 4, dtype=torch.float64))(h)


def step(net, h):
    loss = h.square().sum()
    loss.backward()
    return h


# A program in the middle of a network, and None where it gets autograd's gradient, else what the error says.
PROGRAMS = {
    "in place": (lambda net, h: (h * 1).mul_(2).add_(1), None),
    "augmented": (lambda net, h: (h * 1).__iadd__(h.detach()), None),
    "in place by a module": (lambda net, h: nn.ReLU(inplace=True)(h * 1), None),
    "entries set": (set_item, None),
    "entries set of what a view looks at": (shared, "shares; clone"),
    "in place on a view": (view_in_place, "shares; clone"),
    "out=": (written_out, "out="),
    "no_grad": (without_grad, None),
    "inference_mode": (inference, None),
    "detach": (lambda net, h: h * h.detach(), None),
    "branch": (branch, None),
    "numbers read": (read, None),
    "a module twice": (twice, None),
    "a buffer changed after its use": (stored, "changed in place after"),
    "a result changed after its use": (changed_unseen, "changed in place after"),
    "another thread": (other_thread, "another thread"),
    "vmap": (by_vmap, "torch.func"),
    "vmap over what closes over weights": (by_vmap_of_weights, "torch.func"),
    "jacrev": (by_jacobian, "torch.func"),
    "autograd.grad": (penalty, "no graph of what is recorded"),
    "backward inside": (step, "tape.backward"),
    "hook of a tensor": (hooked, "hooks of tensors"),
    "hook of a module's gradient": (hook_of_module, "autograd.Function"),
    "forward hook": (forward_hook, None),
    "autograd.Function": (lambda net, h: Double.apply(h), "autograd.Function"),
    "checkpoint": (lambda net, h: checkpoint(torch.sin, h, use_reentrant=False), None),
    "reentrant checkpoint": (lambda net, h: checkpoint(torch.sin, h, use_reentrant=True), "autograd.Function"),
    "compiled function": (lambda net, h: compiled_sine(h), None),
    "scripted function": (scripted, "scripted"),
    "autocast": (autocast, "autocast is on"),
    "samples coupled": (couples, None),
    "batch norm in training": (lambda net, h: net.norm(h), None),
    "batch norm in eval mode": (lambda net, h: net.norm.eval()(h), None),
    "fft": (by_fft, "complex"),
    "complex numbers": (by_complex, "complex"),
    "two precisions": (two_precisions, None),
    "meta tensors": (on_meta, "meta"),
    "DataParallel": (lambda net, h: nn.DataParallel(nn.Tanh())(h), None),
    "nothing": (lambda net, h: h.detach(), None),
}


def made(name):
    torch.manual_seed(0)
    return Net(PROGRAMS[name][0]).double(), torch.randn(N, 3, dtype=torch.float64)


def loss_of(y):
    return (y.sin() - 0.3).square().sum()


def by_record(net, x):
    with hs.record() as tape:
        loss = loss_of(net(x))
    tape.backward(loss, hs.HesScale())


def by_network(net, x):
    hs.backward(net, x, loss_of, hs.HesScale())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("way", [by_record, by_network])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_right_or_refused(name, way):
    expected_error = PROGRAMS[name][1]
    net, x = made(name)
    if expected_error is not None:
        with pytest.raises(ERRORS, match=expected_error) as told:
            way(net, x)
        assert all(p.grad is None for p in net.parameters())
        assert "\n" not in str(told.value)
        return
    twin, _ = made(name)
    loss_of(twin(x)).backward()
    way(net, x)
    for (label, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None and not hasattr(p, "hess_diag"), label
        else:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
            assert p.hess_diag.shape == p.shape and p.hess_diag.isfinite().all()
    assert net(x).grad_fn is not None  # nothing is left behind: autograd works as before


def test_what_surrounds_a_tape():
    net, x = made("nothing")
    with hs.record() as tape:
        loss = loss_of(net(x))
    assert not loss.requires_grad
    tape.backward(loss)
    with pytest.raises(InputError, match="good for one walk back"):
        tape.backward(loss)
    with hs.record() as tape:
        loss = loss_of(net(x))
    with pytest.raises(InputError, match="autocast is on"), torch.autocast("cpu"):
        tape.backward(loss)
    net.one.weight.register_hook(lambda g: 2 * g)
    net, x = made("in place")
    twin, _ = made("in place")
    for one in (net, twin):
        one.one.weight.register_hook(lambda g: 2 * g)
    loss_of(twin(x)).backward()
    by_record(net, x)
    torch.testing.assert_close(net.one.weight.grad, twin.one.weight.grad, rtol=1e-10, atol=1e-12)


def test_dropout_has_the_gradient_of_its_own_draw():
    for way in (by_record, by_network):
        torch.manual_seed(0)
        net = Net(lambda net, h: F.dropout(h, 0.5)).double()
        twin = Net(lambda net, h: F.dropout(h, 0.5)).double()
        twin.load_state_dict(net.state_dict())
        x = torch.randn(N, 3, dtype=torch.float64)
        torch.manual_seed(1)
        loss_of(twin(x)).backward()
        torch.manual_seed(1)
        way(net, x)
        torch.testing.assert_close(net.one.weight.grad, twin.one.weight.grad, rtol=1e-10, atol=1e-12)
