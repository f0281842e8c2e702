"""Optimizers that use curvature: one file each, which declares itself (declaration.py), and `make_optimizer`.

Names are imported when they are first used, so that a command can check its optimizer before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .declaration import SCALED, declare, find, is_scaled, names

if TYPE_CHECKING:
    from .adahesscale import AdaHesScale, AdaHessian
    from .adam import ScaledAdam
    from .base import CurvatureError, CurvatureOptimizer
    from .hessian_free import HessianFree
    from .kfac import KFACOptimizer
    from .making import curvature_figures, make_optimizer
    from .newton_cg import NewtonCG
    from .sgd import ScaledSGD

__all__ = [
    "SCALED",
    "AdaHesScale",
    "AdaHessian",
    "CurvatureError",
    "CurvatureOptimizer",
    "HessianFree",
    "KFACOptimizer",
    "NewtonCG",
    "ScaledAdam",
    "ScaledSGD",
    "curvature_figures",
    "declare",
    "find",
    "is_scaled",
    "make_optimizer",
    "names",
]

_HOMES = {
    "adahesscale": ["AdaHesScale", "AdaHessian"],
    "adam": ["ScaledAdam"],
    "base": ["CurvatureError", "CurvatureOptimizer"],
    "hessian_free": ["HessianFree"],
    "kfac": ["KFACOptimizer"],
    "making": ["curvature_figures", "make_optimizer"],
    "newton_cg": ["NewtonCG"],
    "sgd": ["ScaledSGD"],
}
_HOME = {name: module for module, words in _HOMES.items() for name in words}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return value
    if name in _HOMES or name in ("conjugate", "diagonal", "scaling"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
