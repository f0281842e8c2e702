"""Newton steps with the blocks of modular Hessian backpropagation, solved by conjugate gradients."""

from typing import Any, Unpack

import torch
from torch import Tensor

from ..curvature.blocks import Block
from . import scaling
from .base import CurvatureOptimizer
from .conjugate import Systems, conjugate_gradients
from .declaration import declare
from .settings import FRACTION, NOT_NEGATIVE, WHOLE, Shared, one_of


@declare(
    # Averaged Jacobians (equation 7) nearly cancel: a divergence by them would bound no step.
    names={
        "newton-cg": lambda hs, curvature_of="loss": (
            hs.HBP("fisher", "hessian") if curvature_of == "kl" else hs.HBP("pch-abs", "jacobian")
        )
    },
    ranges={"alpha": FRACTION, "tolerance": NOT_NEGATIVE, "iterations": WHOLE, "splits": WHOLE},
    flags={"damping": "alpha"},
    defaults={"alpha": 0.01, "iterations": 10},
    supervised={"learning_rate": 0.1, "damping": 0.02, "iterations": 50, "splits": 1},
    curvature_ranges={"curvature_of": one_of("loss", "kl")},
    curvature_name="hess_block",
    usual_curvature='HBP("pch-abs", "jacobian")',
)
class NewtonCG(CurvatureOptimizer):
    """p <- p + lr d with [alpha I + (1 - alpha) H] d = -g for every block by itself (Dangel et al. 2020, equation 8).

    H is `p.hess_block`, of hesscale_rl.HBP("pch-abs", "jacobian") in the paper. Conjugate gradients end where the
    residual is `tolerance` times the gradient, or after `iterations`; all blocks take their iterations together.
    `alpha` keeps a block invertible whose curvature is positive semi-definite. `splits`: sub-blocks that a parameter
    is cut into by its layer's outputs, the first axis but for transposed convolutions, each solved by itself; one of
    fewer outputs has as many as outputs.
    A direction of negative curvature ends its block's iterations; if it is the gradient's own, d = -g.
    With `delta` the step u = lr d of a parameter group is scaled by eta = min(1, sqrt(2 delta/|h|)), h = u'Hu summed
    over its blocks.
    """

    former = (("betas", (0.0, 0.0)),)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.1,
        alpha: float = 0.02,
        tolerance: float = 0.1,
        iterations: int = 50,
        splits: int = 1,
        delta: float | None = None,
        **options: Unpack[Shared],
    ):
        own = {"alpha": alpha, "tolerance": tolerance, "iterations": iterations, "splits": splits}
        super().__init__(params, {"lr": lr, "delta": delta, **own, **options})

    @torch.no_grad()
    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Any]
    ) -> Tensor | float:
        found = solve(curvatures, grads, group["alpha"], group["tolerance"], group["iterations"], group["splits"])
        lr = float(group["lr"])
        eta: Tensor | float = 1.0
        if group["delta"] is not None:
            dhd = [(d * h.matmul(d)).sum() for d, h in zip(found, curvatures, strict=True)]
            eta = scaling.eta(group, lr**2 * torch.stack(dhd).sum())
        scaling.decay(group, params)
        torch._foreach_sub_(params, found, alpha=lr * float(eta))
        return eta


def solve(
    blocks: list[Block], b: list[Tensor], alpha: float, tolerance: float, iterations: int, splits: int = 1
) -> list[Tensor]:
    """Return x with [alpha I + (1 - alpha) H] x = b for every block, or sub-block, H by itself, to `tolerance`."""
    owners: list[Tensor | int] = []
    parts, count = [], 0
    for block, t in zip(blocks, b, strict=True):
        k = min(splits, t.shape[0])
        owners.append(count if k == 1 else count + block.owners(k).flatten().to(t.device))
        parts.append(block.split(k))
        count += k

    def product(v: list[Tensor], alive: Tensor) -> list[Tensor]:
        return [alpha * d + (1 - alpha) * part.matmul(d) for part, d in zip(parts, v, strict=True)]

    return conjugate_gradients(product, b, Systems(owners, count), tolerance, iterations)
