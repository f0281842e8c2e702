"""The table of layers by method in docs/curvature.md is what the methods do.

python tests/curvature/test_curvature_table.py     writes it anew
"""

import math
from pathlib import Path

import pytest
import torch
from test_rules import CASES
from torch import nn

import hesscale_rl as hs
from hesscale_rl import networks, oracle
from hesscale_rl.curvature.blocks import Block

DOCS = Path(__file__).parents[2] / "docs" / "curvature.md"
BEGIN, END = "<!-- made by tests/curvature/test_curvature_table.py -->\n", "<!-- until here -->\n"
METHODS = {
    "HesScale": hs.HesScale(),
    "HesScaleGN": hs.HesScaleGN(),
    "BL89": hs.BL89(),
    "GGN": hs.GGN(),
    "GGNMC": hs.GGNMC(),
    "KFAC": hs.KFAC(),
    "KFRA": hs.KFRA(),
    "HBP": hs.HBP(),
    "Hutchinson": hs.Hutchinson(),
    "SquaredGradient": hs.SquaredGradient(),
    "ExactDiagonal": hs.ExactDiagonal(),
}
COMPOSED = {
    nn.Identity: (nn.Identity(), (4,)),
    nn.Dropout: (nn.Dropout(0.4).eval(), (4,)),
    networks.GaussianHead: (networks.GaussianHead(4, 0.3), (4,)),
    networks.Skip: (networks.Skip(nn.Linear(5, 5), nn.Tanh()), (5,)),
    networks.Heads: (networks.Heads(nn.Linear(5, 2), nn.Linear(5, 2)), (5,)),
}


def layers():
    """One case of every layer type, with the shape of a sample."""
    found = {}
    for layer, shape in CASES.values():
        found.setdefault(type(layer), (layer, shape))
    return found | COMPOSED


def cells(layer, shape, methods):
    """H: the Hessian's diagonal; G: the Gauss-Newton matrix's; ~: an approximation; -: refused.

    In a network with a linear layer before this one and one behind it, with cross-entropy.
    """
    torch.manual_seed(0)
    layer = layer.double()
    with torch.no_grad():
        width = layer(torch.zeros(1, *shape, dtype=torch.float64)).numel()
    first = [nn.Linear(4, math.prod(shape)), nn.Unflatten(1, shape)]
    net = nn.Sequential(*first, layer, nn.Flatten(), nn.Linear(width, 3)).double()
    x, loss = torch.randn(5, 4, dtype=torch.float64), hs.losses.CrossEntropy(torch.arange(5) % 3)
    params = dict(net.named_parameters())
    whole, gauss = oracle.hessian_diagonal(net, params, x, loss), oracle.ggn(net, params, x, loss)
    gauss = {name: g.diagonal().view_as(params[name]) for name, g in gauss.items()}

    def cell(method):
        try:
            found = hs.value_grad_curvature(net, params, x, loss, method).curvature
        except hs.UnsupportedLayerError:
            return "-"
        if isinstance(method, hs.KFAC | hs.GGNMC | hs.Hutchinson):
            return "~"  # drawn
        diagonal = {name: d.diagonal() if isinstance(d, Block) else d for name, d in found.items()}
        for letter, exact in (("H", whole), ("G", gauss)):
            if all(torch.allclose(diagonal[k], d, rtol=1e-8, atol=1e-10) for k, d in exact.items()):
                return letter
        return "~"

    return tuple(map(cell, methods))


def table():
    """One row for all layers that look alike."""
    alike = {}
    for kind, (layer, shape) in layers().items():
        alike.setdefault(cells(layer, shape, METHODS.values()), []).append(kind.__name__)
    rows = [f"| {', '.join(names)} | {' | '.join(row)} |" for row, names in alike.items()]
    return "\n".join([f"| layers | {' | '.join(METHODS)} |", "|---" * (len(METHODS) + 1) + "|", *rows]) + "\n"


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch's, in the reference
def test_the_table_in_the_docs_is_true():
    text = DOCS.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == table()


def test_what_the_table_calls_exact_is_told_from_what_is_not():
    four = (hs.HBP(), hs.GGN(), hs.HesScale(), hs.HesScaleGN())
    assert cells(nn.Tanh(), (4,), four) == ("H", "G", "~", "~")
    assert cells(nn.Linear(4, 3), (4,), four)[1] == "H"  # nothing bends
    batch_norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(hs.UnsupportedLayerError):
        hs.backward(batch_norm, torch.randn(2, 3), lambda y: y.sum(), hs.KFAC())


if __name__ == "__main__":
    text = DOCS.read_text()
    DOCS.write_text(text[: text.index(BEGIN) + len(BEGIN)] + table() + text[text.index(END) :])
