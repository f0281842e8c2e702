"""Every compiled step equals the definition that it is the twin of."""

import pytest
import torch

import hesscale_rl as hs
from hesscale_rl import backend

SETTINGS = {
    "adam": {"weight_decay": 0.1},
    "sgd": {"momentum": 0.9},
    "adahesscale": {"reach": 5.0},
    "adahesscale-gn": {},
    "adabl89": {},
    "adaggn-mc": {},
    "adahessian": {"eps": 1e-4},
}


def test_every_kernel_has_a_row():
    plain = {name: found for name, found in hs.optim.names().items() if not found.scaled}
    assert SETTINGS.keys() == {name for name, found in plain.items() if getattr(found.find_class(), "kernel", None)}


@pytest.mark.parametrize("delta", [None, 1e-6])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_kernel_equals_its_definition(name, delta, monkeypatch):
    monkeypatch.setattr(hs.optim.names()[name].find_class().kernel, "in_step", True)
    g = torch.Generator().manual_seed(0)
    nets = [[torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 4), (5,))] for _ in range(2)]
    scaled = {} if delta is None else {"delta": delta}
    spelled = name if delta is None else f"scaled-{name}"
    optimizers = [hs.make_optimizer(spelled, net, lr=0.1, **scaled, **SETTINGS[name])[0] for net in nets]
    for _ in range(20):
        for p, q in zip(*nets, strict=True):
            for attribute in ("grad", "hess_diag"):
                setattr(p, attribute, torch.randn(p.shape, generator=g))
                setattr(q, attribute, getattr(p, attribute).clone())
        for optimizer, way in zip(optimizers, ("compiled", "torch"), strict=True):
            with backend.use(way):
                optimizer.step()
        assert float(optimizers[0].eta[0]) == pytest.approx(float(optimizers[1].eta[0]), rel=1e-4)
    assert (float(optimizers[0].eta[0]) < 1) == (delta is not None)
    for p, q in zip(*nets, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
