"""Gauss-Newton products against dense matrices, and the Hessian-free optimizer made of them, in float64."""

import copy

import pytest
import torch
from test_exactness import F64, tanh_net
from torch import nn
from torch.func import functional_call, jvp, vjp

import hesscale_rl as hs
from hesscale_rl import networks, oracle
from hesscale_rl.curvature.matmul import VARIANTS, GaussNewton, Products
from hesscale_rl.optim.conjugate import Systems, conjugate_gradients
from hesscale_rl.optim.hessian_free import HessianFree, adjacent

N = 6
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


class Last(nn.Module):
    """The last step of a sequence."""

    def forward(self, x):
        return x[:, -1]


def lstm():
    layers = [networks.PeepholeLSTM(3, 4), networks.PeepholeLSTM(4, 3), Last(), nn.Linear(3, 4)]
    return nn.Sequential(*layers), torch.randn(N, 5, 3, dtype=F64)


def resnet():
    body = [networks.Skip(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)) for _ in range(2)]
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), *body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    return net, torch.randn(N, 1, 6, 6, dtype=F64)


NETS = {"mlp": lambda: (tanh_net(5, 6, 4), torch.randn(N, 5, dtype=F64)), "lstm": lstm, "resnet": resnet}


def case(name, reduction="mean"):
    torch.manual_seed(0)
    net, x = NETS[name]()
    net = net.double()
    return net, x, hs.losses.CrossEntropy(torch.arange(N) % 4, reduction), dict(net.named_parameters())


# torch 2.13's forward mode warns of its own deprecated code.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("net", NETS)
def test_products_equal_the_dense_gauss_newton_matrix_and_forward_then_reverse_mode(net):
    net, x, loss, params = case(net)
    products, dense = Products(net, params, x, loss), oracle.ggn(net, params, x, loss)
    v = {name: torch.randn_like(p) for name, p in params.items()}
    for name, p in params.items():  # the parameter's own block
        expected = (dense[name] @ v[name].flatten()).view_as(p)
        torch.testing.assert_close(products.times({name: v[name]})[name], expected, **CLOSE)

    def outputs(p):
        return functional_call(net, p, (x,))

    plain = {name: p.detach() for name, p in params.items()}
    z, jv = jvp(outputs, (plain,), (v,))  # the whole matrix, by torch.func
    hjv = torch.einsum("ncd,nd->nc", loss.hessian(z), jv)
    [expected] = vjp(outputs, plain)[1](hjv)
    for name, product in products.times(v).items():
        torch.testing.assert_close(product, expected[name], **CLOSE)
    names = list(params)
    blocks = [{k: v[k] for k in names[:2]}, {k: v[k] for k in names[2:]}]
    for one, other in zip(products.times_each(blocks), map(products.times, blocks), strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], **CLOSE)


def policy_case(kind):
    """An actor with a PPO loss on which the clip acts, and its KL divergence, of a sample, from the outputs `old`."""
    torch.manual_seed(0)
    x, advantages, old = torch.randn(N, 5, dtype=F64), torch.randn(N, dtype=F64), torch.randn(N, dtype=F64) - 2
    if kind == "categorical":
        net, actions = tanh_net(5, 6, 4), torch.arange(N) % 4
        distribution = lambda z: torch.distributions.Categorical(logits=z)  # noqa: E731
        return net.double(), x, hs.losses.CategoricalPPO(actions, old, advantages), distribution
    net, actions = nn.Sequential(*tanh_net(5, 6, 2), networks.GaussianHead(2)), torch.randn(N, 2, dtype=F64)

    def distribution(z):
        mean, log_std = z.chunk(2, -1)
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)

    return net.double(), x, hs.losses.GaussianPPO(actions, old, advantages), distribution


@pytest.mark.parametrize("kind", ["normal", "categorical"])
def test_the_fisher_matrix_is_the_hessian_of_the_kl_divergence_and_no_variant_but_ggn_is_indefinite(kind):
    net, x, loss, distribution = policy_case(kind)
    params = dict(net.named_parameters())
    with torch.no_grad():
        before = net(x)
    divergence = hs.losses.base.Autodiff(
        lambda z: torch.distributions.kl_divergence(distribution(before), distribution(z))
    )
    expected = {"fisher": oracle.ggn(net, params, x, divergence), "ggn": oracle.ggn(net, params, x, loss)}
    # Where the divergence is zero its slope is zero too, and its Hessian has no other part.
    whole = oracle.hessian(net, params, x, divergence)
    h = loss.hessian(before)
    values, vectors = torch.linalg.eigh(h)
    positive = type("Positive", (), {"hessian": lambda self, z: vectors @ values.abs().diag_embed() @ vectors.mT})()
    expected["ggn-abs"] = oracle.ggn(net, params, x, positive)
    lowest = {}
    for variant, dense in expected.items():
        hs.measure_curvature(net, x, loss, GaussNewton(variant=variant))
        for name, p in params.items():
            torch.testing.assert_close(p.hess_block.dense(), dense[name], **CLOSE)
            if variant == "fisher":
                torch.testing.assert_close(p.hess_block.dense(), whole[name], **CLOSE)
        lowest[variant] = min(float(torch.linalg.eigvalsh(m).min()) for m in dense.values())
    assert lowest["ggn"] < -0.01 and lowest["ggn-abs"] > -1e-12 < lowest["fisher"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_convex_loss_has_one_matrix_at_its_outputs_and_needs_none(variant):
    net, x, loss, params = case("mlp")
    v = {name: torch.randn_like(p) for name, p in params.items()}
    products = Products(net, params, x, loss, variant)
    assert products.at_outputs is None
    found, products.at_outputs = products.times(v), loss.fisher(net(x)).detach()
    for name, product in products.times(v).items():
        torch.testing.assert_close(found[name], product, **CLOSE)


def test_the_peephole_lstm_is_the_published_recursion():
    torch.manual_seed(0)
    layer, x = networks.PeepholeLSTM(3, 2).double(), torch.randn(4, 6, 3, dtype=F64)
    w, b, u, peep = layer.from_input.weight, layer.from_input.bias, layer.from_output.weight, layer.peephole
    for n in range(4):
        h = c = torch.zeros(2, dtype=F64)
        for t in range(6):

            def pre(k, x=x[n, t], h=h):
                return w[2 * k : 2 * k + 2] @ x + u[2 * k : 2 * k + 2] @ h + b[2 * k : 2 * k + 2]

            i, f = torch.sigmoid(pre(0) + peep[0] * c), torch.sigmoid(pre(1) + peep[1] * c)
            new = f * c + i * torch.tanh(pre(3))
            h, c = torch.sigmoid(pre(2) + peep[2] * new) * torch.tanh(new), new
        torch.testing.assert_close(layer(x)[n, -1], h, **CLOSE)


def train(net, x, loss, optimizer, steps, rows=None):
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss.value(net(x))
        value.backward()
        hs.measure_curvature(net, x, loss, GaussNewton(rows))
        optimizer.step()
        values.append(value.item())
    return values


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_a_step_is_the_dense_solution_of_every_block(name, blocks, together):
    net, x, loss, params = case(name)
    blocks = min(blocks, 2) if name == "mlp" else blocks
    settings = {"blocks": blocks, "damping": 0.1, "iterations": 500, "tolerance": 1e-12, "together": together}
    optimizer = HessianFree(net.named_parameters(), lr=1.0, **settings)
    before = {name: p.detach().clone() for name, p in params.items()}
    products = Products(copy.deepcopy(net), before, x, loss)
    hs.backward(net, x, loss, GaussNewton())
    gradient = {name: p.grad for name, p in params.items()}
    optimizer.step()
    assert len(optimizer.param_groups) == blocks
    for block in adjacent(list(net.named_parameters()), blocks):
        names = [name for name, _ in block]
        moved = {name: before[name] - params[name].detach() for name in names}
        back = products.times(moved)
        for name in names:  # (G + damping) moved = gradient
            torch.testing.assert_close(back[name] + 0.1 * moved[name], gradient[name], rtol=1e-7, atol=1e-9)


def two_networks():
    """An actor and a critic, a parameter group and a pass each."""
    actor, x, loss, _ = policy_case("normal")
    critic, value = tanh_net(5, 6, 1).double(), hs.losses.ValueLoss(torch.randn(N, dtype=F64))
    return [(actor, x, loss), (critic, x, value)], [{"params": [*net.parameters()]} for net in (actor, critic)]


@pytest.mark.parametrize("delta", [None, 1e-4])
@pytest.mark.parametrize("together", [False, True])
def test_every_network_is_solved_by_itself_and_kept_within_its_radius(delta, together):
    passes, groups = two_networks()
    groups[0]["damping"], settings = 0.2, {"iterations": 500, "tolerance": 1e-12}
    optimizer = HessianFree(groups, lr=0.5, damping=0.1, together=together, delta=delta, **settings)
    for step in range(2):  # the second one starts at the first one's solution
        optimizer.zero_grad()
        expected, etas = [], []
        for (net, x, loss), damping in zip(passes, (0.2, 0.1), strict=True):
            hs.backward(net, x, loss, GaussNewton(variant="fisher"))
            params = dict(net.named_parameters())
            names, sizes = list(params), [p.numel() for p in params.values()]
            columns = []
            for row in torch.eye(sum(sizes), dtype=F64):
                v = {n: t.view_as(params[n]) for n, t in zip(names, row.split(sizes), strict=True)}
                columns.append(
                    torch.cat([t.flatten() for t in params[names[0]].hess_block.products.times(v).values()])
                )
            matrix, g = torch.stack(columns), torch.cat([p.grad.flatten() for p in params.values()])
            u = 0.5 * torch.linalg.solve(matrix + damping * torch.eye(len(g), dtype=F64), g)
            etas.append(min(1.0, (2 * delta / float(u @ matrix @ u)) ** 0.5) if delta else 1.0)
            expected.append(nn.utils.parameters_to_vector(net.parameters()).detach() - etas[-1] * u)
        optimizer.step()
        assert [float(eta) for eta in optimizer.eta] == pytest.approx(etas, rel=1e-7)
        assert (max(etas) < 1) == (delta is not None), step
        for (net, _, _), moved in zip(passes, expected, strict=True):
            torch.testing.assert_close(
                nn.utils.parameters_to_vector(net.parameters()).detach(), moved, rtol=1e-7, atol=1e-9
            )


def test_a_network_without_a_gradient_is_left_alone_and_one_group_of_two_networks_is_refused():
    passes, groups = two_networks()
    critic = groups[1]["params"]
    optimizer, before = HessianFree(groups, damping=0.1, delta=1e-6), [p.detach().clone() for p in critic]
    hs.backward(*passes[0], GaussNewton())
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(critic, before, strict=True))
    assert float(optimizer.eta[0]) < 1 and optimizer.eta[1] == 1
    for net, x, loss in passes:
        net.zero_grad()
        hs.backward(net, x, loss, GaussNewton())
    with pytest.raises(hs.CurvatureError, match="parameter group 0 is of several passes; give each network a group"):
        HessianFree([p for group in groups for p in group["params"]]).step()


def test_a_quadratic_with_independent_blocks_is_solved_in_one_step():
    torch.manual_seed(0)

    class Two(nn.Module):
        """Two linear models, each of its own half of the inputs."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, x):
            return torch.cat([self.a(x[:, :3]), self.b(x[:, 3:])], 1)

    net, x = Two().double(), torch.randn(20, 7, dtype=F64)
    loss = hs.losses.MeanSquaredError(torch.randn(20, 4, dtype=F64))
    settings = {"damping": 0.0, "iterations": 100, "tolerance": 1e-12}
    optimizer = HessianFree(net.named_parameters(), lr=1.0, blocks=2, **settings)
    train(net, x, loss, optimizer, 1)
    gradient = torch.autograd.grad(loss.value(net(x)), list(net.parameters()))
    assert max(float(g.abs().max()) for g in gradient) < 1e-9


@pytest.mark.parametrize("name, damping, rows", [("lstm", 0.01, None), ("resnet", 0.1, 4)])
def test_it_trains_what_no_rule_covers_also_with_curvature_of_a_part_of_the_minibatch(name, damping, rows):
    net, x, loss, _ = case(name)
    adam = copy.deepcopy(net)
    values = train(net, x, loss, HessianFree(net.named_parameters(), lr=0.3, blocks=3, damping=damping), 25, rows)
    first = torch.optim.Adam(adam.parameters(), 1e-3)
    for _ in range(25):
        first.zero_grad()
        value = loss.value(adam(x))
        value.backward()
        first.step()
    assert values[-1] < 0.3 * values[0] and values[-1] < 0.5 * value.item()


def test_part_of_the_samples_is_the_first_ones_and_warm_starts_are_used():
    net, x, loss, params = case("mlp")
    part = hs.losses.CrossEntropy(loss.target[:2])
    hs.measure_curvature(net, x, loss, GaussNewton(2))
    dense = oracle.ggn(net, params, x[:2], part)
    for name, p in params.items():
        torch.testing.assert_close(p.hess_block.dense(), dense[name], **CLOSE)
        torch.testing.assert_close(p.hess_block.diagonal().flatten(), dense[name].diagonal(), **CLOSE)
    once = {
        w: HessianFree(net.named_parameters(), lr=0.0, iterations=3, warm_start=w, damping=0.1) for w in (0.0, 1.0)
    }
    found = {}
    for w, optimizer in once.items():
        train(net, x, loss, optimizer, 5)
        hs.measure_curvature(net, x, loss, GaussNewton())
        state = {name: optimizer.state[p]["solution"] for name, p in params.items()}
        product = params["0.weight"].hess_block.products.times(state)
        found[w] = sum(float((product[k] + 0.1 * state[k] - p.grad).square().sum()) for k, p in params.items())
    assert found[1.0] < 0.1 * found[0.0]  # five times three iterations of one system


def test_blocks_are_adjacent_and_about_equal():
    net = nn.Sequential(*[nn.Linear(a, b) for a, b in ((100, 10), (10, 10), (10, 10), (10, 90), (90, 1))])
    named = list(net.named_parameters())
    cut = [[name for name, _ in block] for block in adjacent(named, 3)]
    assert sum(cut, []) == [name for name, _ in named]
    sizes = [sum(p.numel() for _, p in block) for block in adjacent(named, 3)]
    assert sizes == [1010, 220, 1081]
    with pytest.raises(ValueError, match="blocks=6, but there are 5 layers"):
        adjacent(named, 6)
    with pytest.raises(ValueError, match=r"net\.named_parameters\(\)"):
        HessianFree(net.parameters(), blocks=2)


def test_a_state_dict_goes_on_and_averages_of_the_weights_are_torchs_own():
    net, x, loss, _ = case("mlp")
    optimizer = HessianFree(net.named_parameters(), blocks=2)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    train(net, x, loss, optimizer, 2)
    average.update_parameters(net)
    other = copy.deepcopy(net)
    again = HessianFree(other.named_parameters(), blocks=2)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, x, loss, optimizer, 2)
    train(other, x, loss, again, 2)
    for p, q, first in zip(net.parameters(), other.parameters(), average.parameters(), strict=True):
        assert torch.equal(p, q) and not torch.equal(p, first)


def test_what_it_needs_and_what_it_cannot_is_said():
    net, x, loss, _ = case("mlp")
    optimizer = HessianFree(net.named_parameters())
    hs.backward(net, x, loss)
    with pytest.raises(hs.CurvatureError, match=r"GaussNewton\(\)"):
        optimizer.step()
    hs.backward(net, x, loss, hs.HBP())
    with pytest.raises(hs.CurvatureError, match="PerSample.*GaussNewton"):
        optimizer.step()
    with pytest.raises(TypeError, match="HesScale"):
        hs.measure_curvature(net, x, loss, hs.HesScale())
    with pytest.raises(ValueError, match="a callable cannot be cut"):
        hs.measure_curvature(net, x, lambda y: y.sum(), GaussNewton(2))
    with pytest.raises(ValueError, match="rows=0"):
        GaussNewton(0)
    with pytest.raises(ValueError, match="variant='hessian'.: allowed are ggn, ggn-abs, fisher"):
        GaussNewton(variant="hessian")
    for settings in ({"blocks": 0}, {"damping": -1.0}, {"iterations": 0}, {"tolerance": -1.0}, {"warm_start": 2.0}):
        with pytest.raises(ValueError, match=rf"HessianFree(: |\(){next(iter(settings))}="):
            HessianFree(net.named_parameters(), **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curvature_that_is_rounding_ends_a_singular_system(dtype):
    """A has three directions without curvature, of which b has a part: steps along them have no bound."""
    torch.manual_seed(0)
    q, values = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0], torch.tensor([4.0, 3, 2, 1, 0.5, 0, 0, 0])
    a, weights = ((q * values) @ q.mT).to(dtype), torch.randn(5, dtype=torch.float64)
    seen, solution = q[:, :5] @ weights, q[:, :5] @ (weights / values[:5])

    def solve(b):
        return conjugate_gradients(lambda v, alive: [a @ v[0]], [b.to(dtype)], Systems([0], 1), 0.0, 200)[0].double()

    x = solve(seen)
    assert float((a.double() @ x - seen).norm()) < 1e3 * torch.finfo(dtype).eps and float((x - solution).norm()) < 1
    assert float((solve(seen + q[:, 5]) - solution).norm()) < 100  # without the end: 3e7 and 2e16
