"""Adam whose steps are scaled by curvature."""

from typing import Any

from torch import Tensor

from .base import CurvatureOptimizer
from .declaration import declare
from .scaling import Adaptive, adaptive_step
from .settings import BETAS, EPS, MAXIMIZE, REACH


@declare(
    names={"adam": lambda hs: hs.HesScale()},
    ranges=BETAS | EPS | REACH | MAXIMIZE,
    supervised={"learning_rate": 1e-3},
    always=False,
)
class ScaledAdam(CurvatureOptimizer):
    """Adam (Kingma and Ba 2014); with `delta`, its update u is scaled as algorithm 3 of Elsayed et al. 2024 does.

    The scaling needs p.hess_diag, averages its square apart from Adam's own moments, and is done for each parameter
    group by itself; it counts a parameter's curvature as at least |m_hat|/reach (AdaHesScale has the same bound), and
    shortens, before all, each entry of u that alone would leave the trust region, so that one huge curvature does not
    hold the others back (optim/scaling.py derives both). reach=None: the algorithm to the letter.
    With delta=None this is torch.optim.Adam, with `weight_decay` torch.optim.AdamW, and needs no curvature.
    `maximize`: ascend.
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
        scaled = group["delta"] is not None
        return ("exp_avg", "exp_avg_sq", "exp_hess_sq") if scaled else ("exp_avg", "exp_avg_sq")

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor]
    ) -> Tensor | float:
        (m, v, *w), steps = self._moments(group, params)
        scaled = (curvatures, w[0]) if w else ()
        return adaptive_step(group, Adaptive(params, grads, grads, m, v, *scaled), steps, newton=False)
