"""`make_optimizer`, for the names of the command line, and what is logged of an optimizer's curvature."""

from typing import Any

import torch

from ..curvature.base import Curvature
from .base import CurvatureOptimizer
from .declaration import every_flag, find
from .foreign import ForeignOptimizer, is_foreign


def make_optimizer(
    name: str,
    params: Any,
    *,
    lr: float | torch.Tensor = 3e-4,
    delta: float | None = 1e-8,
    flags: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[CurvatureOptimizer, Curvature | None]:
    """Return the optimizer of that name, and the curvature that `hesscale_rl.backward` must compute for it, or None.

    `delta`, the trust-region radius, is for the names that begin with "scaled-"; the others take plain steps.
    "module:Class" is an optimizer of another package (foreign.py), `settings` are its own, and `flags` those of the
    agents that it gets where it has them.

    settings: those of the optimizer's declaration by the words of its flags, and its curvature's; so `damping` is
    K-FAC's, that of "hessian-free" and the alpha of "newton-cg". What only other optimizers have is left alone, so
    that many can be made with the same settings. ValueError by name for a setting that no optimizer has and for a
    value that cannot be.
    """
    if is_foreign(name):
        return ForeignOptimizer(name, params, flags or {}, lr=lr, **settings), None  # type: ignore[return-value]
    found = find(name)
    if found.scaled and delta is None:
        raise ValueError(f"optimizer {name!r} with delta=None: give a trust-region radius, or take {found.plain!r}")
    ranges = found.declaration.flag_ranges()
    for setting, value in settings.items():
        if setting in found.declaration.curvature_ranges and not ranges[setting].allows(value):
            raise ValueError(f"optimizer {name!r}: {setting}={value!r}, must be {ranges[setting].words}")
        if setting not in every_flag():
            known = ", ".join(("lr", "delta", *ranges))
            raise ValueError(f"optimizer {name!r}: {setting}={value!r}, a setting that it does not have: {known}")
    own = found.declaration.values(settings)
    optimizer = found.find_class()(params, lr=lr, delta=delta if found.scaled else None, **own)
    return optimizer, found.make_curvature(settings) if optimizer.reads_curvature else None


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
