"""One switch says whether compiled twins run."""

import pytest
import torch

import hesscale_rl as hs
from hesscale_rl import backend, compiled
from hesscale_rl.compiled import steps


def test_a_backend_lasts_as_long_as_its_block_whatever_happens_there():
    assert backend.current() == "auto" and backend.compiles()
    with pytest.raises(KeyError), backend.use("torch"):
        assert backend.current() == "torch" and not backend.compiles()
        raise KeyError
    assert backend.current() == "auto"
    with pytest.raises(ValueError, match="backend='numba': allowed are auto, compiled, torch"), backend.use("numba"):
        pass


def test_backward_and_step_obey_it(monkeypatch):
    def forbidden(*_):
        raise AssertionError("compiled code")

    monkeypatch.setattr(compiled, "find", forbidden, raising=False)
    monkeypatch.setattr(steps, "take", forbidden)
    net, x = hs.networks.mlp([3, 4, 2]), torch.randn(5, 3)
    optimizer = hs.AdaHesScale(net.parameters())
    with backend.use("torch"):
        hs.backward(net, x, hs.losses.CrossEntropy(torch.zeros(5, dtype=torch.long)), hs.HesScale())
        optimizer.step()
    with pytest.raises(AssertionError, match="compiled code"):
        hs.backward(net, x, hs.losses.CrossEntropy(torch.zeros(5, dtype=torch.long)))
