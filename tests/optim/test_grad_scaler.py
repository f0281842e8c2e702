"""torch.amp.GradScaler: a scaled loss moves the weights as the loss itself does, curvature included."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import GradScaler

import hesscale_rl as hs

X, CLASSES = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2


def steps(kind, curvature, scale, delta=1e-6, unscale=None):
    """The parameters after three steps, `unscale` called before each."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = kind(net.parameters(), lr=1e-2, delta=delta)
    scaler = GradScaler("cpu", init_scale=scale)
    for _ in range(3):
        optimizer.zero_grad()
        hs.backward(net, X, lambda y: scaler.scale(F.cross_entropy(y, CLASSES)), curvature)
        if unscale:
            unscale(scaler, optimizer, net)
        scaler.step(optimizer)
        scaler.update()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("delta", [None, 1e-6])
@pytest.mark.parametrize("kind", [hs.AdaHesScale, hs.ScaledAdam, hs.ScaledSGD, hs.AdaHessian])
def test_a_loss_scaled_by_65536_moves_the_weights_as_the_loss_itself_does(kind, delta):
    plain, scaled = (steps(kind, hs.HesScale(), scale, delta) for scale in (1.0, 65536.0))
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-6)


def test_after_unscale_the_curvature_is_unscaled_by_hand_or_the_step_says_so():
    def gradient_alone(scaler, optimizer, net):
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1e3)

    def both(scaler, optimizer, net):
        gradient_alone(scaler, optimizer, net)
        for p in net.parameters():
            p.hess_diag = p.hess_diag / scaler.get_scale()

    with pytest.raises(hs.CurvatureError, match=r"p\.hess_diag = p\.hess_diag / scaler\.get_scale\(\)"):
        steps(hs.AdaHesScale, hs.HesScale(), 65536.0, unscale=gradient_alone)
    plain = steps(hs.AdaHesScale, hs.HesScale(), 1.0)
    scaled = steps(hs.AdaHesScale, hs.HesScale(), 65536.0, unscale=both)
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_moves_nothing_and_lowers_the_scale():
    net = nn.Sequential(nn.Linear(3, 2))
    optimizer, scaler = hs.AdaHesScale(net.parameters()), GradScaler("cpu", init_scale=2.0**127)
    before = net[0].weight.detach().clone()
    hs.backward(net, 1e3 * X, lambda y: scaler.scale(F.cross_entropy(y, CLASSES)), hs.HesScale())
    assert not bool(net[0].weight.grad.isfinite().all())
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(net[0].weight, before) and not optimizer.state and scaler.get_scale() == 2.0**126


def test_blocks_are_not_scaled_and_say_so():
    with pytest.raises(hs.CurvatureError, match=r"p\.hess_block cannot be unscaled.*call optimizer\.step\(\) itself"):
        steps(hs.KFACOptimizer, hs.KFAC(), 65536.0)
