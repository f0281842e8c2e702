"""AdaHesScale, with and without step-size scaling, and AdaHessian, its form with another curvature."""

from typing import Any

from torch import Tensor

from .base import CurvatureOptimizer, adaptive_step


class AdaHesScale(CurvatureOptimizer):
    """Adam with the curvature's square in place of the gradient's (Elsayed et al. 2024, algorithms 2 and 3).

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) d^2, d = p.hess_diag;  u = lr m_hat/(sqrt(v_hat) + eps), hats
    corrected for the start at zero; p <- p - eta u. `delta`: the trust-region radius of the scaling eta of each
    parameter group; None: eta = 1. With d of HesScaleGN it is AdaHesScaleGN.
    """

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
        return ("exp_avg", "exp_hess_sq")

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor]
    ) -> Tensor | float:
        (m, v), steps = self._moments(params, *self.averages(group))
        return adaptive_step(group, params, grads, curvatures, m, v, steps)


class AdaHessian(AdaHesScale):
    """AdaHessian (Yao et al. 2021) with Hessian power one: the same step with the curvature of `Hutchinson`.

    For convolutions it differs from the original, which averages the curvature over each kernel.
    """
