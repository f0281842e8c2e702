"""Optimizers that use curvature, and `make_optimizer` for the names of the command line."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from ..curvature.base import BL89, Curvature, HesScale, HesScaleGN
from ..curvature.ggn import GGNMC, KFAC
from ..curvature.hbp import HBP
from ..curvature.hutchinson import Hutchinson
from ..curvature.matmul import GaussNewton
from ..names import CURVATURES_OF, OPTIMIZER_NAMES, SCALED
from .adahesscale import AdaHesScale, AdaHessian
from .adam import ScaledAdam
from .base import CurvatureOptimizer
from .hessian_free import HessianFree
from .kfac import KFACOptimizer
from .newton_cg import NewtonCG
from .sgd import ScaledSGD


class Recipe(NamedTuple):
    """An optimizer's class, the curvature that it, or only its scaled version, reads, and what sets it beside lr."""

    kind: Callable[..., CurvatureOptimizer]
    curvature: Callable[..., Curvature]
    settings: tuple[str, ...]


ADAPTIVE = ("betas", "eps", "reach")
OPTIMIZERS = {
    "sgd": Recipe(ScaledSGD, HesScale, ("betas", "momentum", "reach")),
    "adam": Recipe(ScaledAdam, HesScale, ADAPTIVE),
    "adahesscale": Recipe(AdaHesScale, HesScale, ADAPTIVE),
    "adahesscale-gn": Recipe(AdaHesScale, HesScaleGN, ADAPTIVE),
    "adabl89": Recipe(AdaHesScale, BL89, ADAPTIVE),
    "adaggn-mc": Recipe(AdaHesScale, GGNMC, ADAPTIVE),
    "adahessian": Recipe(AdaHessian, Hutchinson, ADAPTIVE),
    "kfac": Recipe(KFACOptimizer, partial(KFAC, fisher=True), ("betas", "damping")),
}
NEWTON = {  # their curvatures are functions of what they are of, and of a number of rows
    "hessian-free": Recipe(
        HessianFree,
        lambda of, rows: GaussNewton(rows, "fisher" if of == "kl" else "ggn-abs"),
        ("damping", "iterations"),
    ),
    # Averaged Jacobians (equation 7) nearly cancel: a divergence by them would bound no step.
    "newton-cg": Recipe(
        NewtonCG,
        lambda of, rows: HBP("fisher", "hessian") if of == "kl" else HBP("pch-abs", "jacobian"),
        ("alpha", "iterations", "splits"),
    ),
}


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
    iterations: int = 10,
    splits: int = 1,
    curvature_rows: int | None = None,
    curvature_of: str = "loss",
    reach: float | None = 10.0,
    weight_decay: float = 0.0,
) -> tuple[CurvatureOptimizer, Curvature | None]:
    """Return the optimizer of that name, and the curvature that `hesscale_rl.backward` must compute for it, or None.

    `delta`, the trust-region radius, is for the names that begin with "scaled-"; the others take plain steps. `eps`
    is for Adam and its like, `momentum` for SGD, `reach`, the bound on Newton steps, for both; `damping` for K-FAC,
    "hessian-free" and, as alpha, "newton-cg". `weight_decay`, decoupled, is for all. For "hessian-free" and
    "newton-cg" alone: `iterations` of conjugate gradients; `curvature_of`, "loss" (without its negative curvature) or
    "kl", the Fisher matrix; `splits` (newton-cg); `curvature_rows` (hessian-free), the samples it is measured on.
    """
    if name not in OPTIMIZER_NAMES:
        raise ValueError(f"unknown optimizer {name!r}: allowed are {', '.join(OPTIMIZER_NAMES)}")
    scaled = name.startswith(SCALED)
    if scaled and delta is None:
        raise ValueError(f"optimizer {name!r} with delta=None: give a trust-region radius, or take {name[7:]!r}")
    if curvature_of not in CURVATURES_OF:
        raise ValueError(f"curvature_of={curvature_of!r}: allowed are {', '.join(CURVATURES_OF)}")
    plain = name.removeprefix(SCALED)
    kind, curvature, own = (OPTIMIZERS | NEWTON)[plain]
    values = {"betas": betas, "eps": eps, "damping": damping, "alpha": damping, "iterations": iterations}
    values |= {"splits": splits, "momentum": momentum, "reach": reach}
    chosen = {name: values[name] for name in own}
    optimizer = kind(params, lr=lr, delta=delta if scaled else None, weight_decay=weight_decay, **chosen)
    if not optimizer.reads_curvature:
        return optimizer, None
    return optimizer, curvature(curvature_of, curvature_rows) if plain in NEWTON else curvature()


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
    "CURVATURES_OF",
    "NEWTON",
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
