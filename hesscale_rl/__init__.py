"""HesScale: scalable Hessian diagonals, exact at the outputs, and the optimizers that use them.

Names are imported when they are first used, so that a command can check its arguments before torch is loaded.

>>> import torch, hesscale_rl as hs
>>> net = hs.networks.mlp([3, 8, 2])
>>> loss = hs.losses.CrossEntropy(torch.tensor([0, 1, 1, 0]))
>>> result = hs.backward(net, torch.randn(4, 3), loss, hs.HesScale())
>>> net[0].weight.grad.shape == net[0].weight.hess_diag.shape
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _moved

if TYPE_CHECKING:
    from . import losses, networks, optim, rules
    from .curvature.base import BL89, Curvature, ExactDiagonal, HesScale, HesScaleGN
    from .curvature.ggn import GGN, GGNMC, KFAC, SquaredGradient
    from .curvature.hbp import HBP, KFRA
    from .curvature.hutchinson import Hutchinson
    from .curvature.matmul import GaussNewton
    from .optim import (
        AdaHesScale,
        AdaHessian,
        HessianFree,
        KFACOptimizer,
        NewtonCG,
        ScaledAdam,
        ScaledSGD,
        make_optimizer,
    )
    from .optim.base import CurvatureError
    from .playing import Player, load
    from .rules import UnsupportedLayerError, register
    from .tape import Result, Tape, backward, measure_curvature, record, value_grad_curvature
    from .training import Trained, train

__version__ = "0.1.0"
__all__ = [
    "BL89",
    "GGN",
    "GGNMC",
    "HBP",
    "KFAC",
    "KFRA",
    "AdaHesScale",
    "AdaHessian",
    "Curvature",
    "CurvatureError",
    "ExactDiagonal",
    "GaussNewton",
    "HesScale",
    "HesScaleGN",
    "HessianFree",
    "Hutchinson",
    "KFACOptimizer",
    "NewtonCG",
    "Player",
    "Result",
    "ScaledAdam",
    "ScaledSGD",
    "SquaredGradient",
    "Tape",
    "Trained",
    "UnsupportedLayerError",
    "backward",
    "load",
    "losses",
    "make_optimizer",
    "measure_curvature",
    "networks",
    "optim",
    "record",
    "register",
    "rules",
    "train",
    "value_grad_curvature",
]

_HOMES = {
    "curvature.base": ["BL89", "Curvature", "ExactDiagonal", "HesScale", "HesScaleGN"],
    "curvature.ggn": ["GGN", "GGNMC", "KFAC", "SquaredGradient"],
    "curvature.hbp": ["HBP", "KFRA"],
    "curvature.hutchinson": ["Hutchinson"],
    "curvature.matmul": ["GaussNewton"],
    "optim": [
        "AdaHesScale",
        "AdaHessian",
        "HessianFree",
        "KFACOptimizer",
        "NewtonCG",
        "ScaledAdam",
        "ScaledSGD",
        "make_optimizer",
    ],
    "optim.base": ["CurvatureError"],
    "playing": ["Player", "load"],
    "rules": ["UnsupportedLayerError", "register"],
    "tape": ["Result", "Tape", "backward", "measure_curvature", "record", "value_grad_curvature"],
    "training": ["Trained", "train"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ["compiled", "curvature", "losses", "networks", "optim", "oracle", "rl", "rules", "runs", "tape"]


_moved.install()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return value
    if name in _MODULES or name in _moved.MOVED:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
