"""HesScale: scalable Hessian diagonals, exact at the outputs, and the optimizers that use them."""

from . import layers as _layers  # noqa: F401 - its rows complete rules.RULES
from . import losses, networks, optim
from .curvature import BL89, Curvature, ExactDiagonal, HesScale, HesScaleGN
from .optim import AdaHesScale, ScaledAdam, ScaledSGD, make_optimizer
from .optim.base import CurvatureError
from .rules import UnsupportedLayerError, register
from .tape import Result, backward, value_grad_curvature

__version__ = "0.1.0"
__all__ = [
    "BL89",
    "AdaHesScale",
    "Curvature",
    "CurvatureError",
    "ExactDiagonal",
    "HesScale",
    "HesScaleGN",
    "Result",
    "ScaledAdam",
    "ScaledSGD",
    "UnsupportedLayerError",
    "backward",
    "losses",
    "make_optimizer",
    "networks",
    "optim",
    "register",
    "value_grad_curvature",
]
