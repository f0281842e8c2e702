"""Networks and inputs that hold no numbers yet are refused with the way out, in every path alike."""

import pytest
import torch
from torch import nn

import hesscale_rl as hs
from hesscale_rl.errors import InputError

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
