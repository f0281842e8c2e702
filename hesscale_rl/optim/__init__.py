"""Optimizers that use curvature, and `make_optimizer` for the names of the command line."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..curvature import BL89, Curvature, HesScale, HesScaleGN
from ..gauss_newton import GGNMC, KFAC
from ..stochastic import Hutchinson
from .adahesscale import AdaHesScale, AdaHessian
from .adam import ScaledAdam
from .base import CurvatureOptimizer
from .hessian_free import HessianFree
from .kfac import KFACOptimizer
from .newton_cg import NewtonCG
from .sgd import ScaledSGD

# name -> the optimizer's class and the curvature that it, or only its scaled version, reads
OPTIMIZERS: dict[str, tuple[Callable[..., CurvatureOptimizer], Callable[[], Curvature]]] = {
    "sgd": (ScaledSGD, HesScale),
    "adam": (ScaledAdam, HesScale),
    "adahesscale": (AdaHesScale, HesScale),
    "adahesscale-gn": (AdaHesScale, HesScaleGN),
    "adabl89": (AdaHesScale, BL89),
    "adaggn-mc": (AdaHesScale, GGNMC),
    "adahessian": (AdaHessian, Hutchinson),
    "kfac": (KFACOptimizer, partial(KFAC, fisher=True)),
}
SCALED = "scaled-"
OPTIMIZER_NAMES = (*OPTIMIZERS, *(SCALED + name for name in OPTIMIZERS))


def make_optimizer(
    name: str,
    params: Any,
    *,
    lr: float | torch.Tensor = 3e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    delta: float | None = 1e-8,
    damping: float = 1e-2,
    momentum: float = 0.0,
) -> tuple[CurvatureOptimizer, Curvature | None]:
    """Return the optimizer of that name, and the curvature that `hesscale_rl.backward` must compute for it, or None.

    `delta`, the trust-region radius, is for the names that begin with "scaled-"; the others take plain steps. `eps`
    is for Adam and its like, `damping` for K-FAC, `momentum` for SGD.
    """
    if name not in OPTIMIZER_NAMES:
        raise ValueError(f"unknown optimizer {name!r}: allowed are {', '.join(OPTIMIZER_NAMES)}")
    scaled = name.startswith(SCALED)
    if scaled and delta is None:
        raise ValueError(f"optimizer {name!r} with delta=None: give a trust-region radius, or take {name[7:]!r}")
    kind, curvature = OPTIMIZERS[name.removeprefix(SCALED)]
    settings: dict[str, Any] = {"lr": lr, "betas": betas, "delta": delta if scaled else None}
    if kind is KFACOptimizer:
        settings["damping"] = damping
    elif kind is ScaledSGD:
        settings["momentum"] = momentum
    else:
        settings["eps"] = eps
    optimizer = kind(params, **settings)
    return optimizer, curvature() if optimizer.reads_curvature else None


def curvature_figures(optimizer: CurvatureOptimizer) -> dict[str, float]:
    """Return what to log of the last curvature, by TensorBoard tag, for each group that has any; groups need a name.

    curvature/frac_negative_NAME: the share of negative entries; curvature/abs_mean_NAME: their mean absolute value.
    """
    figures = {}
    for group in optimizer.param_groups:
        diagonals = [p.hess_diag.flatten() for p in group["params"] if getattr(p, "hess_diag", None) is not None]
        if diagonals:
            h = torch.cat(diagonals)
            figures[f"curvature/frac_negative_{group['name']}"] = float((h < 0).float().mean())
            figures[f"curvature/abs_mean_{group['name']}"] = float(h.abs().mean())
    return figures


__all__ = [
    "OPTIMIZERS",
    "OPTIMIZER_NAMES",
    "AdaHesScale",
    "AdaHessian",
    "CurvatureOptimizer",
    "HessianFree",
    "KFACOptimizer",
    "NewtonCG",
    "ScaledAdam",
    "ScaledSGD",
    "curvature_figures",
    "make_optimizer",
]
