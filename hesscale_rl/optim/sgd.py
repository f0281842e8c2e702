"""Gradient descent whose steps are scaled by curvature."""

from typing import Any

import torch
from torch import Tensor

from .base import CurvatureOptimizer
from .declaration import declare
from .scaling import at_least, average_of_squares, scale_and_apply, within_alone
from .settings import BETAS, DECAY, MAXIMIZE, REACH


@declare(
    names={"sgd": lambda hs: hs.HesScale()},
    arguments={"betas": ("beta2", BETAS["betas"])},
    ranges={"beta2": DECAY, "momentum": DECAY} | REACH | MAXIMIZE,
    supervised={"learning_rate": 0.1},
    always=False,
)
class ScaledSGD(CurvatureOptimizer):
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
        reach: float | None = 10.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ):
        own = {"reach": reach, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, {"lr": lr, "beta2": betas[1], "delta": delta, "momentum": momentum, **own})

    def _checked(self, group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        group = dict(group)
        if "betas" in group:  # as the constructor has it, and checkpoints of older versions
            group["beta2"] = group.pop("betas")[1]
        return super()._checked(group, defaults)

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the averages in the state: of gradients, and of squared curvature where steps are scaled."""
        names = ("momentum_buffer", "exp_hess_sq")
        return tuple(n for n, kept in zip(names, (group["momentum"], self._group_reads(group)), strict=True) if kept)

    @torch.no_grad()
    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor]
    ) -> Tensor | float:
        moments, steps = self._moments(group, params) if self.averages(group) else ([], [])
        b, root, momentum = grads, None, group["momentum"]
        if momentum:
            b = moments[0]
            torch._foreach_mul_(b, momentum)
            torch._foreach_add_(b, grads, alpha=-1 if group["maximize"] else 1)
        elif group["maximize"]:
            b = list(torch._foreach_neg(grads))
        if curvatures:
            root = average_of_squares(moments[-1], curvatures, group["beta2"], steps)
            at_least(root, b, group["reach"], [1 / (1 - momentum)] * len(b))
        u, rates = [t.clone() for t in b], [float(group["lr"])] * len(b)
        if root is not None:
            within_alone(group, u, rates, root)
        return scale_and_apply(group, params, u, rates, root)
