"""Gradient descent whose steps are scaled by curvature."""

from typing import Any

import torch
from torch import Tensor

from .base import CurvatureOptimizer, average_of_squares, scale_and_apply


class ScaledSGD(CurvatureOptimizer):
    """u = lr g; with `delta` scaled as algorithm 3 of Elsayed et al. 2024 does, else torch.optim.SGD.

    `betas`: only the second is used, for the average of the squared curvature.
    """

    always_reads_curvature = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        delta: float | None = None,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "delta": delta})

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the moving averages in the state: of the squared curvature, where steps are scaled."""
        return ("exp_hess_sq",) if self._group_reads(group) else ()

    @torch.no_grad()
    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor]
    ) -> Tensor | float:
        u, rates = [g.clone() for g in grads], [float(group["lr"])] * len(grads)
        if not curvatures:
            return scale_and_apply(params, u, rates, None, None)
        (v,), steps = self._moments(params, *self.averages(group))
        root = average_of_squares(v, curvatures, group["betas"][1], steps)
        return scale_and_apply(params, u, rates, root, group["delta"])
