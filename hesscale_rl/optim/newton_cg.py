"""Newton steps with the blocks of modular Hessian backpropagation, solved by conjugate gradients."""

from typing import Any

import torch
from torch import Tensor

from ..blocks import Block
from .base import CurvatureOptimizer


class NewtonCG(CurvatureOptimizer):
    """p <- p + lr d with [alpha I + (1 - alpha) H] d = -g for every block by itself (Dangel et al. 2020, equation 8).

    H is `p.hess_block`, of hesscale_rl.HBP("pch-abs", "jacobian") in the paper. Conjugate gradients end where the
    residual is `tolerance` times the gradient, or after `iterations`; all blocks take their iterations together.
    `alpha` keeps a block invertible whose curvature is positive semi-definite. `splits`: sub-blocks that the rows of
    a parameter (its first axis) are cut into, each solved by itself; a parameter of fewer rows has as many as rows.
    A direction of negative curvature ends its block's iterations; if it is the gradient's own, d = -g.
    """

    curvature_name, usual_curvature = "hess_block", 'HBP("pch-abs", "jacobian")'

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.1,
        alpha: float = 0.02,
        tolerance: float = 0.1,
        iterations: int = 50,
        splits: int = 1,
    ):
        for name, ok, allowed in (
            ("alpha", 0 <= alpha <= 1, "between 0 and 1"),
            ("tolerance", tolerance >= 0, "zero or positive"),
            ("iterations", iterations >= 1, "at least 1"),
            ("splits", splits >= 1, "at least 1"),
        ):
            if not ok:
                raise ValueError(f"NewtonCG: {name}={locals()[name]}, must be {allowed}")
        own = {"alpha": alpha, "tolerance": tolerance, "iterations": iterations, "splits": splits}
        super().__init__(params, {"lr": lr, "betas": (0.0, 0.0), "delta": None, **own})

    @torch.no_grad()
    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Any]
    ) -> Tensor | float:
        found = solve(curvatures, grads, group["alpha"], group["tolerance"], group["iterations"], group["splits"])
        torch._foreach_sub_(params, found, alpha=float(group["lr"]))
        return 1.0


def solve(
    blocks: list[Block], b: list[Tensor], alpha: float, tolerance: float, iterations: int, splits: int = 1
) -> list[Tensor]:
    """Return x with [alpha I + (1 - alpha) H] x = b for every block, or sub-block, H by itself, to `tolerance`."""
    counts = [min(splits, t.shape[0]) for t in b]
    owners = [block.owners(k).flatten().to(t.device) for block, k, t in zip(blocks, counts, b, strict=True)]
    blocks = [block.split(k) for block, k in zip(blocks, counts, strict=True)]

    def dot(u: list[Tensor], v: list[Tensor]) -> Tensor:
        """The products of all sub-blocks, one after the other."""
        each = [
            (x * y).sum()[None] if k == 1 else x.new_zeros(k).index_add_(0, own, (x * y).flatten())
            for x, y, own, k in zip(u, v, owners, counts, strict=True)
        ]
        return torch.cat(each)

    def times(c: Tensor, v: list[Tensor]) -> list[Tensor]:
        """Every entry times its sub-block's factor."""
        parts = zip(v, c.split(counts), owners, strict=True)
        return [x * own if len(own) == 1 else x * own[at].view_as(x) for x, own, at in parts]

    x = [torch.zeros_like(t) for t in b]
    r = p = b
    squares = dot(r, r)
    goal, alive = squares * tolerance**2, torch.ones_like(squares, dtype=torch.bool)
    for i in range(iterations):
        alive = alive & (squares > goal)
        if not bool(alive.any()):
            break
        ap = [alpha * d + (1 - alpha) * block.matmul(d) for block, d in zip(blocks, p, strict=True)]
        bend = dot(p, ap)
        if i == 0:
            x = times((bend <= 0).to(bend), b)
        alive = alive & (bend > 0)
        step = torch.where(alive, squares / bend, 0.0)
        x = [old + change for old, change in zip(x, times(step, p), strict=True)]
        r = [old - change for old, change in zip(r, times(step, ap), strict=True)]
        before, squares = squares, torch.where(alive, dot(r, r), squares)
        turned = times(torch.where(alive, squares / before, 0.0), p)
        p = [rest + old for rest, old in zip(r, turned, strict=True)]
    return x
