"""Conjugate gradients on blocks against dense solves, and the Newton steps made of them, in float64."""

import pytest
import torch
from test_backpropagation import nets
from test_exactness import F64, LOSSES, N
from torch import nn

import hesscale_rl as hs
from hesscale_rl.curvature.blocks import Dense
from hesscale_rl.optim.newton_cg import NewtonCG, solve


def measured(name, method, loss="ce"):
    net, x = nets(name)
    net = net[:-1] if isinstance(net[-1], hs.networks.GaussianHead) else net
    found = hs.value_grad_curvature(net, dict(net.named_parameters()), x, LOSSES[loss], method)
    return list(found.curvature.values()), list(found.grad.values())


def dense(block, k):
    """The matrix without what couples two groups of rows."""
    own = block.owners(k).flatten()
    return block.dense() * (own[:, None] == own)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("net", ["mlp", "cnn"])
@pytest.mark.parametrize("average", ["none", "hessian", "jacobian"])
def test_conjugate_gradients_agree_with_a_dense_solve(net, average, splits):
    blocks, grads = measured(net, hs.HBP("pch-abs", average))
    found = solve(blocks, grads, 0.02, 1e-12, 1000, splits)
    for block, g, x in zip(blocks, grads, found, strict=True):
        k = min(splits, len(g))
        matrix = 0.02 * torch.eye(g.numel(), dtype=F64) + 0.98 * dense(block, k)
        torch.testing.assert_close(x.flatten(), torch.linalg.solve(matrix, g.flatten()), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(block.split(k).dense(), dense(block, k), rtol=1e-12, atol=1e-14)
        v = torch.randn_like(g)
        product = dense(block, k) @ v.flatten()
        torch.testing.assert_close(block.split(k).matmul(v).flatten(), product, rtol=1e-10, atol=1e-12)
        assert block.owners(k).shape == g.shape and len(block.owners(k).unique()) == k


def test_every_block_ends_by_its_own_residual_and_all_by_the_number_of_iterations():
    torch.manual_seed(0)
    easy, hard = torch.eye(4, dtype=F64), torch.logspace(-4, 4, 30, dtype=F64).diag()
    blocks = [Dense(easy, torch.Size((4,))), Dense(hard, torch.Size((30,)))]
    b = [torch.randn(4, dtype=F64), torch.randn(30, dtype=F64)]
    for iterations in (1, 5, 400):
        x, y = solve(blocks, b, 0.0, 1e-3, iterations)
        torch.testing.assert_close(x, b[0], rtol=1e-12, atol=0)  # one iteration
        residual = float((hard @ y - b[1]).norm() / b[1].norm())
        assert (residual <= 1e-3) == (iterations == 400)
    assert float((easy @ solve(blocks, b, 0.0, 2.0, 50)[0]).norm()) == 0  # nothing to do


def test_sub_blocks_are_as_if_they_were_parameters_of_their_own():
    torch.manual_seed(0)
    a, b = torch.randn(3, 3, dtype=F64), torch.randn(5, 5, dtype=F64)
    a, b = a @ a.mT, b @ b.mT * 100
    whole, g = Dense(torch.block_diag(a, b), torch.Size((8,))), torch.randn(8, dtype=F64)
    whole.owners = lambda k: torch.tensor([0] * 3 + [1] * 5)  # rows 3 and 5
    together = solve([whole], [g], 0.1, 0.3, 3, 2)[0]
    parts = [Dense(a, torch.Size((3,))), Dense(b, torch.Size((5,)))]
    torch.testing.assert_close(together, torch.cat(solve(parts, [g[:3], g[3:]], 0.1, 0.3, 3)), rtol=1e-10, atol=0)


def test_negative_curvature_ends_a_block_where_it_stands():
    b = torch.tensor([1.0, 1.0], dtype=F64)
    down = Dense(-torch.eye(2, dtype=F64), torch.Size((2,)))
    mixed = Dense(torch.diag(torch.tensor([5.0, -1.0], dtype=F64)), torch.Size((2,)))
    first, second = solve([down, mixed], [b, b], 0.0, 1e-6, 50)
    torch.testing.assert_close(first, b)  # down the gradient
    torch.testing.assert_close(second, b * (2 / 4))  # after one step its direction bends down


def test_a_step_solves_a_quadratic_of_independent_parameters():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
    x, loss = torch.randn(10, 4, dtype=F64), hs.losses.MeanSquaredError(torch.randn(10, 3, dtype=F64))
    optimizer = NewtonCG(net.parameters(), lr=1.0, alpha=0.0, tolerance=1e-12, iterations=100)
    hs.backward(net, x, loss, hs.HBP())
    optimizer.step()
    gradient = hs.value_grad_curvature(net, dict(net.named_parameters()), x, loss).grad
    assert float(gradient["0.weight"].abs().max()) < 1e-10


@pytest.mark.parametrize("delta", [None, 1e-5, 1e3])
def test_a_radius_scales_the_step_of_a_group(delta):
    net, x = nets("mlp")
    hs.backward(net, x, LOSSES["ce"], hs.HBP("pch-abs", "jacobian"))
    params, before = list(net.parameters()), [p.detach().clone() for p in net.parameters()]
    optimizer = NewtonCG(net.parameters(), lr=0.3, delta=delta, tolerance=1e-12, iterations=1000)
    expected, h = [], 0.0
    for p in params:
        matrix = p.hess_block.dense()
        damped = 0.02 * torch.eye(p.numel(), dtype=F64) + 0.98 * matrix
        u = 0.3 * torch.linalg.solve(damped, p.grad.flatten())
        h += float(u @ matrix @ u)
        expected.append(u.view_as(p))
    eta = min(1.0, (2 * delta / h) ** 0.5) if delta else 1.0
    assert (eta < 1) == (delta == 1e-5)
    optimizer.step()
    assert float(optimizer.eta[0]) == pytest.approx(eta, rel=1e-7)
    for p, q, u in zip(params, before, expected, strict=True):
        torch.testing.assert_close(q - p.detach(), eta * u, rtol=1e-6, atol=1e-12)


def test_it_leaves_the_plateau_of_a_deep_sigmoid_network_where_momentum_does_not():
    def final(make, method, steps):
        torch.manual_seed(0)
        sizes, layers = (8, 16, 12, 8, 6, 3), []
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(a, b), nn.Sigmoid()]
            nn.init.xavier_uniform_(layers[-2].weight)
            nn.init.zeros_(layers[-2].bias)
        net, x = nn.Sequential(*layers[:-1]), torch.randn(200, 8)
        loss = hs.losses.CrossEntropy((x[:, 0] > 0.4).long() + (x[:, 0] > -0.4).long())
        optimizer = make(net.parameters())
        for _ in range(steps):
            optimizer.zero_grad()
            value = hs.backward(net, x, loss, method).value
            optimizer.step()
        return float(value)

    momentum = final(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), None, 200)
    for splits in (1, 4):
        newton = final(lambda p, k=splits: NewtonCG(p, splits=k), hs.HBP("pch-abs", "jacobian"), 200)
        assert newton < 0.1 < 1.0 < momentum, splits


@pytest.mark.parametrize("settings", [{"alpha": 2.0}, {"tolerance": -1.0}, {"iterations": 0}, {"splits": 1.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=rf"NewtonCG(: |\(){next(iter(settings))}="):
        NewtonCG([nn.Parameter(torch.ones(2))], **settings)


def test_without_blocks_it_says_what_to_call():
    net = nn.Sequential(nn.Linear(2, 2))
    hs.backward(net, torch.ones(N, 2), hs.losses.MeanSquaredError(torch.zeros(N, 2)), hs.HesScale())
    with pytest.raises(hs.CurvatureError, match=r"hess_block of 2 of 2 .*HBP\(\"pch-abs\", \"jacobian\"\)"):
        NewtonCG(net.parameters()).step()
