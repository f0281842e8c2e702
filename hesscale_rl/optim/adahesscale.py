"""AdaHesScale, with and without step-size scaling, and AdaHessian, its form with another curvature."""

from typing import Any

from torch import Tensor

from .base import CurvatureOptimizer
from .declaration import declare
from .scaling import Adaptive, adaptive_step
from .settings import BETAS, EPS, MAXIMIZE, REACH, TASKS_OWN


@declare(
    names={
        "adahesscale": lambda hs: hs.HesScale(),
        "adahesscale-gn": lambda hs: hs.HesScaleGN(),
        "adabl89": lambda hs: hs.BL89(),
        "adaggn-mc": lambda hs: hs.GGNMC(),
    },
    ranges=BETAS | EPS | REACH | MAXIMIZE,
    supervised={"learning_rate": TASKS_OWN},
)
class AdaHesScale(CurvatureOptimizer):
    """Adam with the curvature's square in place of the gradient's (Elsayed et al. 2024, algorithms 2 and 3).

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) d^2, d = p.hess_diag;  u = lr m_hat/(sqrt(v_hat) + eps), hats
    corrected for the start at zero; p <- p - eta u. `delta`: the trust-region radius of the scaling eta of each
    parameter group; None: eta = 1. With d of HesScaleGN it is AdaHesScaleGN.

    `reach` bounds m_hat/sqrt(v_hat), the Newton step of each parameter, which grows without bound where curvature
    vanishes: sqrt(v_hat) counts as at least |m_hat|/reach, in u and in the scaling (optim/scaling.py derives it). So
    no step moves a parameter further than lr reach. Where no Newton step is that long, it changes nothing, to the
    last bit. None: the algorithms to the letter. `maximize`: ascend.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        delta: float | None = None,
        reach: float | None = 10.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ):
        own = {"reach": reach, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "delta": delta, **own})

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the moving averages in the state: of the gradient, then of squares."""
        return ("exp_avg", "exp_hess_sq")

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor]
    ) -> Tensor | float:
        (m, v), steps = self._moments(group, params)
        return adaptive_step(group, Adaptive(params, grads, curvatures, m, v), steps, newton=True)


@declare(
    names={"adahessian": lambda hs: hs.Hutchinson()},
    ranges=BETAS | EPS | REACH | MAXIMIZE,
    supervised={"learning_rate": 1e-3},
    usual_curvature="Hutchinson()",
)
class AdaHessian(AdaHesScale):
    """AdaHessian (Yao et al. 2021) with Hessian power one: the same step with the curvature of `Hutchinson`.

    For convolutions it differs from the original, which averages the curvature over each kernel.
    """
