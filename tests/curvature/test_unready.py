"""Networks and inputs that cannot be worked with are refused with the way out, in every path alike."""

import copy

import pytest
import torch
from torch import nn

import hesscale_rl as hs
from hesscale_rl.errors import InputError

LOSS = hs.losses.MeanSquaredError(torch.zeros(5, 2))
UNREADY = {
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(2)), "cpu", "0.weight has no shape before the first call: call net"),
    "meta": (lambda: nn.Linear(3, 2), "meta", "x is on the device meta, which holds no numbers"),
}


@pytest.mark.parametrize("backend", ["auto", "torch", "compile"])
@pytest.mark.parametrize("make, device, words", UNREADY.values(), ids=UNREADY)
def test_what_holds_no_numbers_is_refused(make, device, words, backend):
    loss = hs.losses.CrossEntropy(torch.zeros(4, dtype=torch.long))
    with pytest.raises(InputError, match=words):
        hs.backward(make(), torch.randn(4, 3, device=device), loss, hs.HesScale(), backend)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_parameters_of_inference_mode_are_refused(backend):
    with torch.inference_mode():
        net = hs.networks.mlp([3, 4, 2])
    with pytest.raises(InputError, match="made under torch.inference_mode"):
        hs.backward(net, torch.randn(5, 3), LOSS, hs.HesScale(), backend)
    hs.backward(copy.deepcopy(net), torch.randn(5, 3), LOSS, hs.HesScale(), backend)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_sparse_gradient_is_added_to_as_autograd_does(backend):
    net, other, x = hs.networks.mlp([3, 4, 2]), hs.networks.mlp([3, 4, 2]), torch.randn(5, 3)
    other.load_state_dict(net.state_dict())
    for one in (net, other):
        one[0].weight.grad = torch.eye(4, 3).to_sparse()
    hs.backward(net, x, LOSS, hs.HesScale(), backend)
    LOSS.value(other(x)).backward()
    torch.testing.assert_close(net[0].weight.grad, other[0].weight.grad)
