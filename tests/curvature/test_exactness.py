"""Where HesScale is exact it equals the dense Hessian, and nowhere else; gradients are autograd's everywhere."""

import weakref

import pytest
import torch
from torch import nn

import hesscale_rl as hs
from hesscale_rl import networks, oracle

F64 = torch.float64
N = 6


def tanh_net(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [nn.Linear(a, b), nn.Tanh()] if i < len(sizes) - 2 else [nn.Linear(a, b)]
    return nn.Sequential(*layers).double()


def errors(net, x, loss, curvature):
    """Largest relative error of each parameter's diagonal; checks the gradient on the way."""
    params = dict(net.named_parameters())
    result = hs.value_grad_curvature(net, params, x, loss, curvature)
    gradient, diagonal = oracle.gradient(net, params, x, loss), oracle.hessian_diagonal(net, params, x, loss)
    for name in params:
        assert gradient[name].abs().max() > 1e-8
        torch.testing.assert_close(result.grad[name], gradient[name], rtol=1e-10, atol=1e-12)
    return {k: float((result.curvature[k] - d).abs().max() / d.abs().max()) for k, d in diagonal.items()}


def losses(seed: int = 0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=F64)

    classes, a = torch.randint(0, 4, (N,), generator=g), normal(N)
    old = normal(N) * 0.3
    yield "mse", hs.losses.MeanSquaredError(normal(N, 4))
    yield "ce", hs.losses.CrossEntropy(classes, reduction="sum")
    for c in (0.0, 0.01):
        yield f"softmax-pg-{c}", hs.losses.CategoricalPolicyGradient(classes, a, c)
        yield f"softmax-ppo-{c}", hs.losses.CategoricalPPO(classes, old - 1.4, a, entropy_coef=c)
        for p in ("log_std", "log_var", "var"):
            yield f"normal-pg-{p}-{c}", hs.losses.GaussianPolicyGradient(normal(N, 2), a, c, p)
            yield f"normal-ppo-{p}-{c}", hs.losses.GaussianPPO(normal(N, 2), old - 3, a, 0.2, c, p)


LOSSES = dict(losses())


@pytest.mark.parametrize("name", LOSSES)
def test_closed_forms_equal_autodiff(name):
    loss = LOSSES[name]
    z = torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    if "-var-" in name:
        z[:, 2:] = z[:, 2:].exp()
    value, g, d = loss.value_grad_curvature(z)
    slow = hs.losses.Autodiff(loss.value)
    for fast, reference in zip((value, g, d), slow.value_grad_curvature(z), strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss.hessian(z), slow.hessian(z), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss.hessian(z).diagonal(dim1=1, dim2=2), d, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_last_layer_is_always_exact_and_the_first_of_three_is_not(name):
    torch.manual_seed(0)
    net = tanh_net(5, 6, 6, 4)
    if "-var-" in name:
        branch = nn.Sequential(nn.Linear(6, 2), networks.Exp()).double()
        net = nn.Sequential(*net[:-1], networks.Heads(nn.Linear(6, 2).double(), branch))
    error = errors(net, torch.randn(N, 5, dtype=F64), LOSSES[name], hs.HesScale())
    assert all(e < 1e-10 for k, e in error.items() if k.startswith("4."))
    assert error["0.weight"] > 1e-3


def test_a_diagonal_loss_makes_the_last_two_layers_exact_and_width_one_all():
    torch.manual_seed(0)
    x = torch.randn(N, 5, dtype=F64)
    error = errors(tanh_net(5, 6, 6, 4), x, LOSSES["mse"], hs.HesScale())
    assert max(error["2.weight"], error["2.bias"], error["4.weight"]) < 1e-10 < error["0.weight"]
    assert max(errors(tanh_net(5, 6, 4), x, LOSSES["mse"], hs.HesScale()).values()) < 1e-10
    loss = hs.losses.MeanSquaredError(torch.randn(N, 1, dtype=F64))
    assert max(errors(tanh_net(1, 1, 1, 1, 1), x[:, :1], loss, hs.HesScale()).values()) < 1e-10
    assert max(errors(tanh_net(5, 6, 6, 4), x, LOSSES["ce"], hs.ExactDiagonal()).values()) < 1e-10


def test_piecewise_linear_networks_make_hesscale_and_its_gauss_newton_version_one():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), networks.Skip(nn.Linear(6, 6), nn.LeakyReLU()), nn.Linear(6, 4))
    net, x = net.double(), torch.randn(N, 5, dtype=F64)
    params = dict(net.named_parameters())
    full, gauss = (
        hs.value_grad_curvature(net, params, x, LOSSES["ce"], c).curvature for c in (hs.HesScale(), hs.HesScaleGN())
    )
    for name in params:
        assert full[name].abs().max() > 1e-6
        torch.testing.assert_close(full[name], gauss[name], rtol=0, atol=0)


def test_k_networks_by_vmap_equal_the_loop_and_the_pass_compiles_whole():
    torch.manual_seed(0)
    body = networks.Skip(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    conv = [nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), body, nn.AvgPool2d(2), nn.MaxPool2d(3), nn.Flatten()]
    net = nn.Sequential(*conv, nn.LayerNorm(3), nn.Linear(3, 3)).double()
    k = 4
    params = {name: torch.randn(k, *p.shape, dtype=F64) * 0.3 for name, p in net.named_parameters()}
    x, target = torch.randn(k, 5, 2, 6, 6, dtype=F64), torch.randint(0, 3, (k, 5))

    def run(p, x, target):
        return hs.value_grad_curvature(net, p, x, hs.losses.CrossEntropy(target), hs.HesScale())

    together = torch.func.vmap(run)(params, x, target)
    for i in range(k):
        alone = run({name: p[i] for name, p in params.items()}, x[i], target[i])
        for name, d in alone.curvature.items():
            torch.testing.assert_close(together.curvature[name][i], d, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(together.grad[name][i], alone.grad[name], rtol=1e-10, atol=1e-12)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    result = compiled({name: p[-1] for name, p in params.items()}, x[-1], target[-1])
    for name, d in alone.curvature.items():
        torch.testing.assert_close(result.curvature[name], d, rtol=1e-10, atol=1e-12)


def test_a_step_without_fresh_curvature_is_an_error_that_changes_nothing():
    net = tanh_net(5, 6, 4)
    optimizer = hs.AdaHesScale(net.named_parameters(), lr=1e-2)
    x = torch.randn(N, 5, dtype=F64)
    LOSSES["ce"].value(net(x)).backward()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(hs.CurvatureError, match=r"4 of 4 parameters .* 0.weight, 0.bias, 2.weight, \.\.\."):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    optimizer.zero_grad()
    hs.backward(net, x, LOSSES["ce"], hs.HesScale())
    optimizer.step()
    with pytest.raises(hs.CurvatureError, match="older step"):
        optimizer.step()
    optimizer.zero_grad()
    assert all(p.grad is None and p.hess_diag is None for p in net.parameters())


def test_an_operation_that_cannot_be_is_named_with_the_way_out():
    net = nn.Sequential(nn.Linear(5, 6), networks.Skip(nn.BatchNorm1d(6)), nn.Linear(6, 4))
    loss = hs.losses.CrossEntropy(torch.zeros(N, dtype=torch.int64))
    with pytest.raises(hs.UnsupportedLayerError, match=r"KFAC needs .*layer 1\.body\.0 .*BatchNorm1d, .*register"):
        hs.backward(net, torch.randn(N, 5), loss, hs.KFAC())


def test_the_four_cases_of_ppos_clip_and_both_of_the_value_loss():
    a = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], dtype=F64)
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    actions = torch.tensor([0, 1, 2, 3, 0, 1])
    ratio = torch.tensor([1.5, 0.5, 1.0, 1.5, 0.5, 1.0], dtype=F64)
    old = logits.log_softmax(1).gather(1, actions[:, None])[:, 0] - ratio.log()
    loss = hs.losses.CategoricalPPO(actions, old, a, clip=0.2)
    value, g, d = loss.value_grad_curvature(logits)
    assert (g == 0).all(1).tolist() == (d == 0).all(1).tolist() == [True, False, False, False, True, False]
    v, returns = torch.tensor([[1.0], [1.0], [0.05]], dtype=F64), torch.tensor([2.0, -2.0, 1.0], dtype=F64)
    critic = hs.losses.ValueLoss(returns, torch.zeros(3, dtype=F64), clip=0.1, coef=0.3)
    assert (critic.value_grad_curvature(v)[2] == 0).flatten().tolist() == [True, False, False]
    for one, z in ((loss, logits), (critic, v)):
        slow = hs.losses.Autodiff(one.value).value_grad_curvature(z)
        torch.testing.assert_close(one.value_grad_curvature(z), slow, rtol=1e-10, atol=1e-12)


def test_inside_the_value_losss_clip_rounding_does_not_switch_samples_off():
    g = torch.Generator().manual_seed(0)
    v, returns = torch.randn(500, 1, generator=g), torch.randn(500, generator=g)
    loss = hs.losses.ValueLoss(returns, v[:, 0] + 0.05 * torch.randn(500, generator=g), clip=0.5, reduction="sum")
    _, gradient, diagonal = loss.value_grad_curvature(v)
    torch.testing.assert_close(gradient[:, 0], v[:, 0] - returns)
    assert bool((diagonal == 1).all())


def test_a_module_that_stands_twice_gets_the_sum_over_its_places():
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double()
    net = nn.Sequential(layer, nn.Tanh(), layer)
    x, loss = torch.randn(N, 3, dtype=F64), hs.losses.MeanSquaredError(torch.randn(N, 3, dtype=F64))
    expected = torch.autograd.grad(loss.value(net(x)), list(layer.parameters()))
    for curvature in (hs.HesScale(), hs.ExactDiagonal()):
        layer.weight.grad = layer.bias.grad = layer.weight.hess_diag = layer.bias.hess_diag = None
        hs.backward(net, x, loss, curvature)
        torch.testing.assert_close((layer.weight.grad, layer.bias.grad), expected, rtol=1e-10, atol=1e-12)
        assert layer.weight.hess_diag.shape == (3, 3)
    dense = torch.autograd.functional.hessian(
        lambda w: loss.value(torch.func.functional_call(net, {"0.weight": w}, x, tie_weights=False)),
        layer.weight.detach(),
    )
    torch.testing.assert_close(layer.weight.hess_diag.flatten(), dense.view(9, 9).diagonal(), rtol=1e-10, atol=1e-12)
    found = hs.value_grad_curvature(net, dict(net.named_parameters()), x, loss).grad
    torch.testing.assert_close((found["0.weight"], found["0.bias"]), expected, rtol=1e-10, atol=1e-12)
    every = dict(net.named_parameters(remove_duplicate=False))
    assert hs.value_grad_curvature(net, every, x, loss).grad.keys() == found.keys()
    with pytest.raises(ValueError, match=r"params: 2\.weight .*another tensor under its first name"):
        hs.value_grad_curvature(net, every | {"2.weight": layer.weight + 1}, x, loss)
    with pytest.raises(ValueError, match=r"params has no 0\.bias"):
        hs.value_grad_curvature(net, {"0.weight": layer.weight}, x, loss)


def test_what_is_no_batch_no_curvature_and_no_data_is_named():
    net, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3)
    loss = hs.losses.MeanSquaredError(torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"\[0, 3\]: there is no sample"):
        hs.backward(net, x[:0], loss)
    with pytest.raises(TypeError, match=r"HesScale\(\)"):
        hs.backward(net, x, loss, hs.HesScale)
    with pytest.raises(ValueError, match=r"target \[2\] holds torch.bool"):
        hs.losses.MeanSquaredError(torch.ones(2, dtype=torch.bool))
    with pytest.raises(TypeError, match="target must be a torch.Tensor, got list"):
        hs.losses.CrossEntropy([1, 2])
    with pytest.raises(ValueError, match="entropy_coef=nan"):
        hs.losses.CategoricalPolicyGradient(torch.zeros(2).long(), torch.zeros(2), float("nan"))
    with pytest.raises(ValueError, match=r"layer 1 .*GaussianHead\(3\): its input has the shape \[4, 2\]"):
        hs.backward(nn.Sequential(nn.Linear(3, 2), networks.GaussianHead(3)), x, loss)
    with pytest.raises(ValueError, match=r"layer 0\.body\.0 \(Skip\).*: its body maps"):
        inner = networks.Skip(nn.Linear(3, 2))
        hs.backward(nn.Sequential(networks.Skip(inner)), x, loss)


def test_hutchinson_is_unbiased_and_exact_where_the_hessian_is_diagonal():
    torch.manual_seed(0)
    net = tanh_net(2, 2, 1)
    x, loss = torch.randn(N, 2, dtype=F64), hs.losses.MeanSquaredError(torch.randn(N, 1, dtype=F64))
    params = {name: p.detach() for name, p in net.named_parameters()}
    whole = torch.func.jacrev(torch.func.jacrev(oracle.loss_of(net, x, loss)))(params)
    torch.manual_seed(1)
    found = hs.Hutchinson(3).estimate(net, params, x, loss)
    torch.manual_seed(1)
    expected = {name: torch.zeros_like(p) for name, p in params.items()}
    for _ in range(3):
        z = {name: 2.0 * torch.randint_like(p, 2) - 1.0 for name, p in params.items()}
        for name in params:
            hz = sum(torch.tensordot(whole[name][other], v, v.ndim) for other, v in z.items())
            expected[name] += z[name] * hz / 3
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    exact = hs.backward(net, x, loss, hs.ExactDiagonal()).curvature
    largest = max(float(d.abs().max()) for d in exact.values())
    copies = {name: p.expand(500, *p.shape) for name, p in params.items()}  # 20,000 draws

    def estimate(p):
        return hs.Hutchinson(40).estimate(net, p, x, loss)

    for name, estimates in torch.func.vmap(estimate, randomness="different")(copies).items():
        error = (estimates.mean(0) - exact[name]).abs()
        # Five standard errors of the mean, and 2 % of the largest entry.
        assert bool((error < 5 * estimates.std(0) / 500**0.5 + 1e-12).all()) and float(error.max()) < 0.02 * largest
        assert not torch.equal(found[name], exact[name])
    one = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh()).double()
    y = hs.losses.MeanSquaredError(torch.randn(N, 1, dtype=F64))
    exact, once = (hs.backward(one, x[:, :1], y, c).curvature for c in (hs.ExactDiagonal(), hs.Hutchinson()))
    torch.testing.assert_close(once["0.weight"], exact["0.weight"], rtol=1e-10, atol=0)


def test_hutchinson_by_vmap_and_on_a_linear_loss():
    net = nn.Sequential(nn.Linear(3, 2)).double()
    x = torch.randn(N, 3, dtype=F64)
    params = {name: torch.stack([p.detach(), p.detach() + 1]) for name, p in net.named_parameters()}

    def curvature(p):
        loss = hs.losses.MeanSquaredError(torch.zeros(N, 2, dtype=F64))
        return hs.value_grad_curvature(net, p, x, loss, hs.Hutchinson()).curvature

    both = torch.func.vmap(curvature, randomness="different")(params)
    assert both["0.weight"].shape == (2, 2, 3) and not torch.equal(both["0.weight"][0], both["0.weight"][1])
    result = hs.backward(net, x, lambda z: z.sum(), hs.Hutchinson())
    assert all(not v.any() for v in result.curvature.values())


def test_the_exact_diagonal_refuses_a_network_that_draws():
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout(0.5)))
    x, loss = torch.randn(4, 3), hs.losses.MeanSquaredError(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"layer 1\.0 \(Dropout.*net\.eval\(\)"):
        hs.backward(net, x, loss, hs.ExactDiagonal())
    hs.backward(net.eval(), x, loss, hs.ExactDiagonal())


def test_convolutions_hold_no_more_than_their_activations():
    """Unfolding would need 25 times the input."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for t in result if isinstance(result, tuple | list) else [result]:
                largest = max(largest, t.numel() if isinstance(t, torch.Tensor) else 0)
            return result

    net = nn.Sequential(nn.Conv2d(3, 3, 5, padding=2), nn.Tanh(), nn.Conv2d(3, 3, 5, padding=2), nn.Flatten())
    x = torch.randn(4, 3, 16, 16)
    with Watch():
        hs.backward(net, x, hs.losses.MeanSquaredError(torch.randn(4, 768)), hs.HesScale())
    assert largest == x.numel()


def test_a_layer_is_free_once_the_pass_is_below_it():
    class Counting(hs.HesScale):
        seen, alive = [], []

        def step(self, rule, g, messages):
            self.alive.append(sum(ref() is not None for ref in self.seen))
            self.seen.append(weakref.ref(rule))
            super().step(rule, g, messages)

    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), networks.Skip(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    hs.backward(net, torch.randn(5, 3), hs.losses.CrossEntropy(torch.zeros(5, dtype=torch.int64)), Counting())
    assert set(Counting.alive) == {0} and len(Counting.alive) == 6


def test_bl89_sees_only_the_target():
    z, target = torch.randn(N, 4, dtype=F64), torch.arange(N) % 4
    q = z.softmax(1).gather(1, target[:, None])
    expected = torch.zeros(N, 4, dtype=F64).scatter(1, target[:, None], q - q * q)
    for loss in (
        hs.losses.CrossEntropy(target, reduction="sum"),
        hs.losses.CategoricalPolicyGradient(target, torch.ones(N, dtype=F64), reduction="sum"),
    ):
        torch.testing.assert_close(loss.bl89_diagonal(z), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: hs.losses.MeanSquaredError(torch.full((3, 2), torch.nan)), r"target \[3, 2\]: 6 entries"),
        (lambda: hs.losses.GaussianPPO(torch.ones(3, 2), torch.ones(4), torch.ones(3)), r"\[4\], expected \[3\]"),
        (lambda: hs.losses.ValueLoss(torch.ones(3, 1)), r"returns has the shape \[3, 1\]"),
        (lambda: hs.losses.ValueLoss(torch.ones(3)).value(torch.ones(3)), r"outputs has the shape \[3\]"),
        (lambda: hs.losses.CrossEntropy(torch.tensor([4])).value(torch.ones(1, 4)), "classes 0 to 3"),
        (lambda: hs.losses.CrossEntropy(torch.ones(3)), "integer"),
        (lambda: hs.losses.CrossEntropy(torch.tensor([1]), reduction="none"), "'mean' and 'sum'"),
        (lambda: hs.losses.GaussianPolicyGradient(torch.ones(3, 2), torch.ones(3), parametrization="std"), "log_var"),
    ],
)
def test_bad_data_is_named_with_its_shape(make, words):
    with pytest.raises(ValueError, match=words):
        make()
