"""Gradient descent whose steps are scaled by curvature."""

from typing import Any

import torch
from torch import Tensor

from .base import CurvatureOptimizer, average_of_squares, scale_and_apply


class ScaledSGD(CurvatureOptimizer):
    """u = lr b, b <- momentum b + g; with `delta` scaled by algorithm 3 of Elsayed et al. 2024, else torch.optim.SGD.

    `betas`: only the second is used, for the average of the squared curvature.
    """

    always_reads_curvature = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        delta: float | None = None,
        momentum: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "delta": delta, "momentum": momentum})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, after checking its settings as the constructor does."""
        momentum = param_group.get("momentum", self.defaults["momentum"])
        if not 0 <= momentum < 1:
            raise ValueError(f"{type(self).__name__}: momentum={momentum}, must be in [0, 1)")
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # saved before there was momentum
            group.setdefault("momentum", 0.0)

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the averages in the state: of gradients, and of squared curvature where steps are scaled."""
        names = ("momentum_buffer", "exp_hess_sq")
        return tuple(n for n, kept in zip(names, (group["momentum"], self._group_reads(group)), strict=True) if kept)

    @torch.no_grad()
    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor]
    ) -> Tensor | float:
        names = self.averages(group)
        moments, steps = self._moments(params, *names) if names else ([], [])
        b, root = grads, None
        if group["momentum"]:
            b = moments[0]
            torch._foreach_mul_(b, group["momentum"])
            torch._foreach_add_(b, grads)
        if curvatures:
            root = average_of_squares(moments[-1], curvatures, group["betas"][1], steps)
        return scale_and_apply(params, [t.clone() for t in b], [float(group["lr"])] * len(b), root, group["delta"])
