"""AdaHesScale, with and without step-size scaling, and AdaHessian, its form with another curvature."""

import math
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from ..compiled.steps import OFF, Kernel, floats, larger, move_averages
from ..jit import FAST, FAST_SUMS, ZERO
from .declaration import declare
from .diagonal import Averages, DiagonalOptimizer, Moves
from .scaling import at_least, at_least_foreach, average_of_squares, average_of_squares_foreach
from .settings import BETAS, EPS, MAXIMIZE, REACH, TASKS_OWN, Options


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
class AdaHesScale(DiagonalOptimizer):
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
        **options: Unpack[Options],
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "delta": delta, **options})

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the moving averages in the state: of the gradient, then of squares."""
        return ("exp_avg", "exp_hess_sq")

    def update(
        self, grad: Tensor, curvature: Tensor | None, averages: Averages, t: int, group: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The definition: algorithm 2 of Elsayed et al. 2024 (their circled dot is a division), with `reach`."""
        assert curvature is not None
        (b1, b2), m, v = group["betas"], averages["exp_avg"], averages["exp_hess_sq"]
        m.copy_(b1 * m + (1 - b1) * grad)
        m_hat = m / (1 - b1**t)
        root = at_least(average_of_squares(v, curvature, b2, t), m_hat, group["reach"])
        return float(group["lr"]) * m_hat / (root + group["eps"]), root

    def update_foreach(
        self, grads: list[Tensor], curvatures: list[Tensor], averages: Averages, ts: list[int], group: dict[str, Any]
    ) -> Moves:
        """The same for all parameters of a group."""
        (b1, b2), m, v = group["betas"], averages["exp_avg"], averages["exp_hess_sq"]
        torch._foreach_lerp_(m, grads, 1 - b1)
        root, fades = average_of_squares_foreach(v, curvatures, b2, ts), [1 - b1**t for t in ts]
        at_least_foreach(root, m, group["reach"], fades)
        u = torch._foreach_div(m, torch._foreach_add(root, group["eps"]))
        return Moves(u, [float(group["lr"]) / f for f in fades], root)


# --- the same, compiled


@FAST
def _measure(tensors: np.ndarray, n: int, t: int, s: np.ndarray, delta: float) -> float:
    """Move the averages; return u'Hu, or 0 where steps are not scaled."""
    lr, beta1, beta2, eps, reach, flat, maximize = s
    g, d, m, v = floats(tensors[1], n), floats(tensors[2], n), floats(tensors[3], n), floats(tensors[4], n)
    fade = 1 - beta1**t
    rate, root = lr / fade, np.float32(1 / math.sqrt(1 - beta2**t))
    move_averages(g, d, m, v, (beta1, beta2), np.float32(1 - 2 * maximize))
    if delta == OFF:
        return 0.0
    return (
        rate
        * rate
        * _curvature_along(
            m, v, v, root, np.float32(eps), (np.float32(1 / reach / fade), np.float32(1 / flat / fade))
        )
    )


@FAST_SUMS
def _curvature_along(
    m: np.ndarray, v: np.ndarray, w: np.ndarray, root: float, eps: float, bounds: tuple[float, float]
) -> float:
    """sum root' u^2 for root' = max(sqrt(v_hat), low |m|) and u = m/(root' + eps), which has no rate yet.

    In blocks, so that float32 suffices inside one. w is v, and `bounds` is low twice: given as two numbers each, they
    are rounded where they are used, u here as in _apply.
    """
    total, n = np.float64(0), len(m)
    for start in range(0, n, 1024):
        part = ZERO
        for i in range(start, min(start + 1024, n)):
            u = m[i] / larger(math.sqrt(v[i]) * root + eps, bounds[0] * abs(m[i]) + eps)
            part += larger(math.sqrt(w[i]) * root, bounds[1] * abs(m[i])) * u * u
        total += np.float64(part)
    return total


@FAST
def _apply(tensors: np.ndarray, n: int, t: int, s: np.ndarray, delta: float, eta: float) -> None:
    """Take eta u from the parameter."""
    lr, beta1, beta2, eps, reach, _, _ = s
    p, m, v = floats(tensors[0], n), floats(tensors[3], n), floats(tensors[4], n)
    fade = 1 - beta1**t
    rate, root = np.float32(eta * lr / fade), np.float32(1 / math.sqrt(1 - beta2**t))
    e, low = np.float32(eps), np.float32(1 / reach / fade)
    for i in range(n):
        p[i] -= rate * m[i] / larger(math.sqrt(v[i]) * root + e, low * abs(m[i]) + e)


AdaHesScale.kernel = Kernel(
    _measure, _apply, ("exp_avg", "exp_hess_sq"), ("lr", "betas", "eps", "reach", "reach", "maximize")
)


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
