"""A user's own rules, of modules and of torch's functions."""

import pytest
import torch
from torch import nn

import hesscale_rl as hs
from hesscale_rl.recording import Recorder
from hesscale_rl.rules import FUNCTIONS, RULES


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
    before = dict(FUNCTIONS)
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
            torch.testing.assert_close(rule.second(torch.ones(3, 4, dtype=torch.float64)), -x.sin())
    finally:
        FUNCTIONS.clear()
        FUNCTIONS.update(before)
