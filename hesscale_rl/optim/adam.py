"""Adam whose steps are scaled by curvature."""

from typing import Any

from torch import Tensor

from .base import CurvatureOptimizer, adaptive_step


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

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the moving averages in the state: of the gradient, then of squares."""
        scaled = group["delta"] is not None
        return ("exp_avg", "exp_avg_sq", "exp_hess_sq") if scaled else ("exp_avg", "exp_avg_sq")

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor]
    ) -> Tensor | float:
        (m, v, *w), steps = self._moments(params, *self.averages(group))
        return adaptive_step(group, params, grads, grads, m, v, steps, curvatures, w[0] if w else None)
