"""Adam whose steps are scaled by curvature."""

from typing import Any

import torch
from torch import Tensor

from .base import CurvatureOptimizer, average_of_squares, scale_and_apply


class ScaledAdam(CurvatureOptimizer):
    """Adam (Kingma and Ba 2014); with `delta`, its update u is scaled as algorithm 3 of Elsayed et al. 2024 does.

    The scaling needs p.hess_diag, averages its square apart from Adam's own moments, and is done for each parameter
    group by itself. With delta=None this is torch.optim.Adam and needs no curvature.
    """

    always_reads_curvature = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        delta: float | None = None,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "delta": delta})

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor]
    ) -> Tensor:
        beta1, beta2 = group["betas"]
        names = ("exp_avg", "exp_avg_sq", "exp_hess_sq") if curvatures else ("exp_avg", "exp_avg_sq")
        (m, v, *vh), steps = self._moments(params, *names)
        torch._foreach_lerp_(m, grads, 1 - beta1)
        u = torch._foreach_div(m, torch._foreach_add(average_of_squares(v, grads, beta2, steps), group["eps"]))
        torch._foreach_mul_(u, [float(group["lr"]) / (1 - beta1**t) for t in steps])
        root = average_of_squares(vh[0], curvatures, beta2, steps) if vh else None
        return scale_and_apply(params, u, root, group["delta"])
