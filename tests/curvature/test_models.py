"""Models as users write them: accepted, the gradient autograd's, the last layer's diagonal the Hessian's.

python tests/curvature/test_models.py     writes the table of docs/models.md anew
"""

from pathlib import Path

import pytest
import torch
from zoo import MODELS

import hesscale_rl as hs
from hesscale_rl import oracle
from hesscale_rl.losses import as_loss

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- made by tests/curvature/test_models.py -->\n", "<!-- until here -->\n"
EXACT = 1e-9  # relative, in float64


def call(net, x):
    return net(*x) if isinstance(x, tuple) else net(x)


def made(name):
    """The model with its parameters by name, and those of its last layers."""
    torch.manual_seed(0)
    model = MODELS[name]
    net = model.build().double().eval()
    for p in net.parameters():
        if p.ndim < 2:  # zeros and ones hide what is wrong
            p.data += 0.1 * torch.randn_like(p)
    params = dict(net.named_parameters(remove_duplicate=False))
    last = {k: p for k, p in params.items() if any(k == at or k.startswith(f"{at}.") for at in model.last.split())}
    return model, net, dict(net.named_parameters()), last


def error(found, expected):
    """The largest error relative to the largest entry."""
    scale = max(float(t.abs().max()) for t in expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / scale


def measured(name):
    """The gradient's error by both ways, and that of the last layers' diagonal."""
    model, net, params, last = made(name)
    trained = {k: p for k, p in params.items() if p.requires_grad}
    expected = torch.autograd.grad(model.loss(call(net, model.x)), list(trained.values()), materialize_grads=True)
    result = hs.backward(net, model.x, model.loss, hs.HesScale())
    by_backward = error([result.grad[k] for k in trained], expected)
    return by_backward


@pytest.mark.parametrize("name", MODELS)
def test_model(name):
    assert measured(name) < EXACT
