"""The step of optimizers that measure it by a diagonal: what the definition is, and which twin of it runs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backend
from ..compiled import steps as compiled
from . import scaling
from .base import CurvatureOptimizer
from .scaling import Tensors

Averages = dict[str, Any]  # by name: a tensor of each parameter, or a list of one for each of a group


class Moves(NamedTuple):
    """Steps of a group's parameters: rate u of each, and the curvature `root` that measures it, if any does."""

    u: Tensors
    rates: list[float]
    root: Tensors | None


class DiagonalOptimizer(CurvatureOptimizer):
    """For every parameter group: u and root of each parameter, eta for all of them, p <- (1 - lr decay) p - eta u.

    h = u'Hu = sum root u^2, and eta is the rule of scaling.py. An optimizer of this kind says in `update` what its u
    and root are; this is its definition, and enough. `update_foreach` and `kernel` are twins of it for speed: the
    former with the same signature for all parameters of a group at once, the latter compiled (compiled/steps.py), for
    contiguous float32 tensors on the CPU, unless the backend is torch.
    """

    kernel: compiled.Kernel | None = None

    def update(
        self, grad: Tensor, curvature: Tensor | None, averages: Averages, t: int, group: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Move the averages of a parameter by its gradient and curvature at its step t; return u and root.

        The curvature and root are None where the group's steps are not scaled and nothing else needs them. The
        gradient is what to descend along, also to `maximize`.
        """
        raise NotImplementedError

    def update_foreach(
        self, grads: list[Tensor], curvatures: list[Tensor], averages: Averages, ts: list[int], group: dict[str, Any]
    ) -> Moves:
        """The same for all parameters of a group; curvatures are empty where `update` is given None."""
        found = []
        for i, (grad, t) in enumerate(zip(grads, ts, strict=True)):
            own = {name: tensors[i] for name, tensors in averages.items()}
            found.append(self.update(grad, curvatures[i] if curvatures else None, own, t, group))
        u, roots = [u for u, _ in found], [root for _, root in found if root is not None]
        return Moves(u, [1.0] * len(u), roots or None)

    def _step_all(self, batches: list[Any]) -> list[Tensor | float]:
        prepared = []
        for group, (params, grads, curvatures) in zip(self.param_groups, batches, strict=True):
            names = self.averages(group)
            moments, ts = self._moments(group, params) if names else ([], [0] * len(params))
            prepared.append((params, grads, curvatures, dict(zip(names, moments, strict=True)), ts))
        kernel = self.kernel
        if kernel is not None and kernel.in_step and backend.compiles():
            columns = [
                [params, grads, curvatures or None, *(averages.get(name) for name in kernel.averages), ts]
                for params, grads, curvatures, averages, ts in prepared
            ]
            if (etas := compiled.take(kernel, self.param_groups, columns)) is not None:
                return [*etas]
        with torch.no_grad():
            moves = [self._moves(group, *rest) for group, (_, *rest) in zip(self.param_groups, prepared, strict=True)]
            factors = [
                scaling.eta(group, _along(move)) if move is not None and move.root is not None else 1.0
                for group, move in zip(self.param_groups, moves, strict=True)
            ]
            for group, (params, *_), move, eta in zip(self.param_groups, prepared, moves, factors, strict=True):
                if move is not None:
                    _apply(group, params, move, eta)
            return factors

    def _moves(
        self, group: dict[str, Any], grads: list[Tensor], curvatures: list[Tensor], averages: Averages, ts: list[int]
    ) -> Moves | None:
        if not grads:
            return None
        if group.get("maximize"):
            grads = list(torch._foreach_neg(grads))
        moves = self.update_foreach(grads, curvatures, averages, ts, group)
        return moves if group["delta"] is not None else moves._replace(root=None)


def _along(move: Moves) -> Tensor:
    """Return u'Hu = sum root (rate u)^2, 0-d, in float64, so that no step size makes it overflow. Uses up root."""
    assert move.root is not None
    torch._foreach_mul_(move.root, move.u)
    torch._foreach_mul_(move.root, move.u)
    # No entry is negative: the 1-norm is the sum.
    sums = torch.stack([_gathered(t) for t in torch._foreach_norm(move.root, 1)]).double()
    return (sums * torch.tensor(move.rates, dtype=torch.float64, device=sums.device).square()).sum()


def _apply(group: dict[str, Any], params: list[Tensor], move: Moves, eta: Tensor | float) -> None:
    """Set p <- (1 - lr weight_decay) p - eta rate u in place. Uses up u."""
    if move.root is not None:
        torch._foreach_mul_(move.u, eta)
    scaling.decay(group, params)
    torch._foreach_mul_(move.u, move.rates)
    torch._foreach_sub_(params, move.u)


def _gathered(t: Tensor) -> Tensor:
    """The whole of a tensor that is distributed, or the tensor itself."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t
