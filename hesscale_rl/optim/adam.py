"""Adam whose steps are scaled by curvature."""

import math
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from ..compiled import steps
from ..compiled.steps import OFF, Kernel, floats, larger, longest_alone, smaller
from ..jit import FAST, FAST_SUMS, ZERO
from .declaration import declare
from .diagonal import Averages, DiagonalOptimizer, Moves
from .scaling import (
    at_least,
    at_least_foreach,
    average_of_squares,
    average_of_squares_foreach,
    within_alone,
    within_alone_foreach,
)
from .settings import BETAS, EPS, MAXIMIZE, REACH, Options


@declare(
    names={"adam": lambda hs: hs.HesScale()},
    ranges=BETAS | EPS | REACH | MAXIMIZE,
    supervised={"learning_rate": 1e-3},
    always=False,
)
class ScaledAdam(DiagonalOptimizer):
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
        **options: Unpack[Options],
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "delta": delta, **options})

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the moving averages in the state: of the gradient, then of squares."""
        scaled = group["delta"] is not None
        return ("exp_avg", "exp_avg_sq", "exp_hess_sq") if scaled else ("exp_avg", "exp_avg_sq")

    def update(
        self, grad: Tensor, curvature: Tensor | None, averages: Averages, t: int, group: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """The definition: Adam's update; what measures it is the curvature's own average, within both bounds."""
        (b1, b2), m, v = group["betas"], averages["exp_avg"], averages["exp_avg_sq"]
        m.copy_(b1 * m + (1 - b1) * grad)
        m_hat = m / (1 - b1**t)
        u = float(group["lr"]) * m_hat / (average_of_squares(v, grad, b2, t) + group["eps"])
        if curvature is None:
            return u, None
        root = at_least(average_of_squares(averages["exp_hess_sq"], curvature, b2, t), m_hat, group["reach"])
        return within_alone(u, root, group), root

    def update_foreach(
        self, grads: list[Tensor], curvatures: list[Tensor], averages: Averages, ts: list[int], group: dict[str, Any]
    ) -> Moves:
        """The same for all parameters of a group."""
        (b1, b2), m, v = group["betas"], averages["exp_avg"], averages["exp_avg_sq"]
        torch._foreach_lerp_(m, grads, 1 - b1)
        root, fades = average_of_squares_foreach(v, grads, b2, ts), [1 - b1**t for t in ts]
        rates = [float(group["lr"]) / f for f in fades]
        u = torch._foreach_div(m, torch._foreach_add(root, group["eps"]))
        if not curvatures:
            return Moves(u, rates, None)
        root = average_of_squares_foreach(averages["exp_hess_sq"], curvatures, b2, ts)
        at_least_foreach(root, m, group["reach"], fades)
        within_alone_foreach(u, root, group, rates)
        return Moves(u, rates, root)


# --- the same, compiled


@FAST
def _measure(tensors: np.ndarray, n: int, t: int, s: np.ndarray, delta: float) -> float:
    """Move the averages; return u'Hu, or 0 where steps are not scaled."""
    lr, beta1, beta2, eps, reach, maximize = s
    g, m, v = floats(tensors[1], n), floats(tensors[3], n), floats(tensors[4], n)
    steps.move_averages(g, g, m, v, (beta1, beta2), np.float32(1 - 2 * maximize))
    if delta == OFF:
        return 0.0
    w = floats(tensors[5], n)
    steps.move_average_of_squares(w, floats(tensors[2], n), beta2)
    fade = 1 - beta1**t
    rate, root = lr / fade, np.float32(1 / math.sqrt(1 - beta2**t))
    most, flat = longest_alone(delta, rate, reach), np.float32(1 / reach / fade)
    if most == np.inf:
        return rate * rate * _curvature_along(m, v, w, root, np.float32(eps), flat)
    return rate * rate * _curvature_along_within(m, v, w, root, np.float32(eps), (flat, most))


@FAST_SUMS
def _curvature_along(m: np.ndarray, v: np.ndarray, w: np.ndarray, root: float, eps: float, flat: float) -> float:
    """sum max(sqrt(w_hat), flat |m|) u^2 for u = m/(sqrt(v_hat) + eps), which has no rate yet.

    In blocks, so that float32 suffices inside one.
    """
    total, n = np.float64(0), len(m)
    for start in range(0, n, 1024):
        part = ZERO
        for i in range(start, min(start + 1024, n)):
            u = m[i] / (math.sqrt(v[i]) * root + eps)
            part += larger(math.sqrt(w[i]) * root, flat * abs(m[i])) * u * u
        total += np.float64(part)
    return total


@FAST_SUMS
def _curvature_along_within(
    m: np.ndarray, v: np.ndarray, w: np.ndarray, root: float, eps: float, bounds: tuple[float, float]
) -> float:
    """The same where each entry is shortened until it counts as `most`; bounds: flat and most."""
    total, n = np.float64(0), len(m)
    flat, most = bounds
    for start in range(0, n, 1024):
        part = ZERO
        for i in range(start, min(start + 1024, n)):
            u = m[i] / (math.sqrt(v[i]) * root + eps)
            part += smaller(larger(math.sqrt(w[i]) * root, flat * abs(m[i])) * u * u, most)
        total += np.float64(part)
    return total


@FAST
def _apply(tensors: np.ndarray, n: int, t: int, s: np.ndarray, delta: float, eta: float) -> None:
    """Take eta u from the parameter, each entry of u within the trust region by itself."""
    lr, beta1, beta2, eps, reach, _ = s
    p, m, v = floats(tensors[0], n), floats(tensors[3], n), floats(tensors[4], n)
    fade = 1 - beta1**t
    rate, root, e = np.float32(eta * lr / fade), np.float32(1 / math.sqrt(1 - beta2**t)), np.float32(eps)
    most = np.float32(np.inf) if delta == OFF else longest_alone(delta, lr / fade, reach)
    if most == np.inf:
        for i in range(n):
            p[i] -= rate * m[i] / (math.sqrt(v[i]) * root + e)
        return
    w, flat = floats(tensors[5], n), np.float32(1 / reach / fade)
    for i in range(n):
        u = rate * m[i] / (math.sqrt(v[i]) * root + e)
        longest = rate * math.sqrt(most / larger(math.sqrt(w[i]) * root, flat * abs(m[i])))
        p[i] -= larger(smaller(u, longest), -longest)


ScaledAdam.kernel = Kernel(
    _measure, _apply, ("exp_avg", "exp_avg_sq", "exp_hess_sq"), ("lr", "betas", "eps", "reach", "maximize")
)
