"""Models as users write them: accepted, the gradient autograd's, the last layer's diagonal the Hessian's.

python tests/curvature/test_models.py     writes the table of docs/models.md anew
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from zoo import MODELS

import hesscale_rl as hs
from hesscale_rl import oracle
from hesscale_rl.losses import as_loss
from hesscale_rl.rules.autodiff import ByAutodiff

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- made by tests/curvature/test_models.py -->\n", "<!-- until here -->\n"
EXACT = 1e-9  # of the largest entry, in float64; torch's hardsigmoid goes back by a sixth in single precision


class Measured(NamedTuple):
    """What one pass over a model gave; errors are those of the worst entry, in parts of the largest one."""

    parameters: int
    operations: int
    by_autodiff: int  # operations without a rule
    gradient: float
    last: float | None  # of the last layers' diagonal; None where it is known to be approximate
    by_network: float | None  # of the gradient of hesscale_rl.backward; None where the loss couples samples


def call(net, x):
    return net(*x) if isinstance(x, tuple) else net(x)


def made(name):
    """A model, its network, its parameters by name, and the names of those in its last layers."""
    torch.manual_seed(0)
    model = MODELS[name]
    net = model.build().double().eval()
    for p in net.parameters():
        if p.ndim < 2:  # zeros and ones hide what is wrong
            p.data += 0.1 * torch.randn_like(p)
    params = dict(net.named_parameters(remove_duplicate=False))
    last = [k for k in params if any(k == at or k.startswith(f"{at}.") for at in model.last.split())]
    assert len({k.rsplit(".", 1)[0] for k in last}) >= len(model.last.split()) or not model.last
    return model, net, {k: p for k, p in params.items() if p.requires_grad}, last


def error(found, expected):
    scale = max(float(t.abs().max()) for t in expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / scale


@cache
def measured(name):
    """One pass by record, as a program with its own loss, and one by backward, network and loss apart."""
    model, net, params, last = made(name)
    expected = torch.autograd.grad(model.loss(call(net, model.x)), list(params.values()), materialize_grads=True)
    with hs.record() as tape:
        loss = model.loss(call(net, model.x))
    rules = list(tape.rules)
    tape.backward(loss, hs.HesScale())
    gradient = error([torch.zeros_like(p) if p.grad is None else p.grad for p in params.values()], expected)
    exact = None
    if last:
        first = dict(net.named_parameters())
        own = {k: next(name for name, p in first.items() if p is params[k]) for k in last}
        whole = oracle.hessian_diagonal(net, first, model.x, as_loss(model.loss), names=own.values())
        exact = error([params[k].hess_diag[model.rows] for k in last], [whole[own[k]][model.rows] for k in last])
    by_network = None
    if not model.coupled:
        result = hs.backward(net, model.x, model.loss, hs.HesScale())
        by_network = error([result.grad.get(k, g) for k, g in zip(params, expected, strict=True)], expected)
    numbers = sum(p.numel() for p in net.parameters())
    unknown = sum(isinstance(rule, ByAutodiff) for rule in rules)
    return Measured(numbers, len(rules), unknown, gradient, exact, by_network)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_accepted_and_exact_where_it_should_be(name):
    found = measured(name)
    assert found.gradient < EXACT
    assert found.by_network is None or found.by_network < EXACT
    assert found.last is None or found.last < EXACT


def table():
    def cell(value):
        return "" if value is None else "0" if value == 0 else f"{value:.0e}"

    head = ["model", "parameters", "operations", "of them by autodiff", "gradient", "last layer's diagonal"]
    rows = []
    for name in MODELS:
        found = measured(name)
        cells = [name, found.parameters, found.operations, found.by_autodiff or ""]
        rows.append([*cells, cell(found.gradient), cell(found.last)])
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows]) + "\n"


if __name__ == "__main__":
    text = DOCS.read_text()
    DOCS.write_text(text[: text.index(BEGIN) + len(BEGIN)] + table() + text[text.index(END) :])
