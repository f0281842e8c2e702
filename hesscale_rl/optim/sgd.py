"""Gradient descent whose steps are scaled by curvature."""

import math
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from ..compiled.steps import OFF, Kernel, floats, larger, longest_alone, move_average_of_squares, smaller
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
from .settings import BETAS, DECAY, MAXIMIZE, REACH, Options


@declare(
    names={"sgd": lambda hs: hs.HesScale()},
    arguments={"betas": ("beta2", BETAS["betas"])},
    ranges={"beta2": DECAY, "momentum": DECAY} | REACH | MAXIMIZE,
    supervised={"learning_rate": 0.1},
    always=False,
)
class ScaledSGD(DiagonalOptimizer):
    """u = lr b, b <- momentum b + g; with `delta` scaled by algorithm 3 of Elsayed et al. 2024, else torch.optim.SGD.

    `betas`: only the second is used, for the average of the squared curvature; groups have it as `beta2`, since
    schedulers that cycle momentum would take `betas` for it. The scaling counts a parameter's curvature as at least
    (1 - momentum) |b|/reach (AdaHesScale has the same bound), and shortens, before all, each entry of u that alone
    would leave the trust region (optim/scaling.py derives it); reach=None: neither. `maximize`: ascend.
    """

    may_begin_late = ("momentum_buffer",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        delta: float | None = None,
        momentum: float = 0.0,
        **options: Unpack[Options],
    ):
        super().__init__(params, {"lr": lr, "beta2": betas[1], "delta": delta, "momentum": momentum, **options})

    def _checked(self, group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        group = dict(group)
        if "betas" in group:  # as the constructor has it, and checkpoints of older versions
            group["beta2"] = group.pop("betas")[1]
        return super()._checked(group, defaults)

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the averages in the state: of gradients, and of squared curvature where steps are scaled."""
        names = ("momentum_buffer", "exp_hess_sq")
        return tuple(n for n, kept in zip(names, (group["momentum"], self._group_reads(group)), strict=True) if kept)

    def update(
        self, grad: Tensor, curvature: Tensor | None, averages: Averages, t: int, group: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """The definition: b <- momentum b + g, u = lr b; what measures it is the curvature's average."""
        b, momentum = grad, group["momentum"]
        if momentum:
            b = averages["momentum_buffer"].copy_(momentum * averages["momentum_buffer"] + grad)
        u = float(group["lr"]) * b
        if curvature is None:
            return u, None
        root = average_of_squares(averages["exp_hess_sq"], curvature, group["beta2"], t)
        root = at_least(root, (1 - momentum) * b, group["reach"])
        return within_alone(u, root, group), root

    def update_foreach(
        self, grads: list[Tensor], curvatures: list[Tensor], averages: Averages, ts: list[int], group: dict[str, Any]
    ) -> Moves:
        """The same for all parameters of a group."""
        b, momentum = grads, group["momentum"]
        if momentum:
            b = averages["momentum_buffer"]
            torch._foreach_mul_(b, momentum)
            torch._foreach_add_(b, grads)
        u, rates = [t.clone() for t in b], [float(group["lr"])] * len(b)
        if not curvatures:
            return Moves(u, rates, None)
        root = average_of_squares_foreach(averages["exp_hess_sq"], curvatures, group["beta2"], ts)
        at_least_foreach(root, b, group["reach"], [1 / (1 - momentum)] * len(b))
        within_alone_foreach(u, root, group, rates)
        return Moves(u, rates, root)


# --- the same, compiled


@FAST
def _measure(tensors: np.ndarray, n: int, t: int, s: np.ndarray, delta: float) -> float:
    """Move the averages; return u'Hu, or 0 where steps are not scaled."""
    lr, beta2, momentum, reach, maximize = s
    b = floats(tensors[1], n)
    if tensors[3] != 0:
        g, b, sign, keep = b, floats(tensors[3], n), np.float32(1 - 2 * maximize), np.float32(momentum)
        for i in range(n):
            b[i] = keep * b[i] + sign * g[i]
    if delta == OFF:
        return 0.0
    w, root = floats(tensors[4], n), np.float32(1 / math.sqrt(1 - beta2**t))
    move_average_of_squares(w, floats(tensors[2], n), beta2)
    bound = np.float32((1 - momentum) / reach)
    return lr * lr * _curvature_along(b, w, root, bound, longest_alone(delta, lr, reach))


@FAST_SUMS
def _curvature_along(b: np.ndarray, w: np.ndarray, root: float, bound: float, most: float) -> float:
    """sum max(sqrt(w_hat), bound |b|) b^2, each entry at most `most`; in blocks, for the sake of float32."""
    total, n = np.float64(0), len(b)
    for start in range(0, n, 1024):
        part = ZERO
        for i in range(start, min(start + 1024, n)):
            part += smaller(larger(math.sqrt(w[i]) * root, bound * abs(b[i])) * b[i] * b[i], most)
        total += np.float64(part)
    return total


@FAST
def _apply(tensors: np.ndarray, n: int, t: int, s: np.ndarray, delta: float, eta: float) -> None:
    """Take eta u from the parameter, each entry of u within the trust region by itself."""
    lr, beta2, momentum, reach, maximize = s
    p, b, sign = floats(tensors[0], n), floats(tensors[1], n), 1 - 2 * maximize
    if tensors[3] != 0:
        b, sign = floats(tensors[3], n), 1.0
    rate = np.float32(sign * eta * lr)
    most = np.float32(np.inf) if delta == OFF else longest_alone(delta, lr, reach)
    if most == np.inf:
        for i in range(n):
            p[i] -= rate * b[i]
        return
    w, root, bound = (
        floats(tensors[4], n),
        np.float32(1 / math.sqrt(1 - beta2**t)),
        np.float32((1 - momentum) / reach),
    )
    for i in range(n):
        longest = math.sqrt(most / larger(math.sqrt(w[i]) * root, bound * abs(b[i])))
        p[i] -= rate * larger(smaller(b[i], longest), -longest)


# Outside of an agent's compiled update torch's two foreach calls take no longer.
ScaledSGD.kernel = Kernel(
    _measure,
    _apply,
    ("momentum_buffer", "exp_hess_sq"),
    ("lr", "beta2", "momentum", "reach", "maximize"),
    in_step=False,
)
