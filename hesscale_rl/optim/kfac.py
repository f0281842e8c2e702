"""K-FAC: natural-gradient steps with Kronecker-factored curvature, their length set by a trust region."""

from typing import Any, Unpack

import torch
from torch import Tensor

from ..curvature.blocks import Block, BlockSum, Dense, Kronecker
from . import scaling
from .base import CurvatureError, CurvatureOptimizer
from .declaration import declare
from .settings import BETAS, MAXIMIZE, POSITIVE, WHOLE, Ascending


@declare(
    names={"kfac": lambda hs: hs.KFAC(fisher=True)},
    ranges=BETAS | {"damping": POSITIVE, "inverse_every": WHOLE} | MAXIMIZE,
    defaults={"betas": (0.9, 0.999)},
    supervised={"learning_rate": 0.01, "damping": 0.01},
    curvature_name="hess_block",
    usual_curvature="KFAC(fisher=True)",
)
class KFACOptimizer(CurvatureOptimizer):
    """Preconditioning by the averaged blocks of `hesscale_rl.KFAC` (Martens and Grosse 2015; for RL, Wu et al. 2017).

    The factors a, b of every weight are averaged: at step t, min(1 - 1/t, b2) of the old average is kept. Then
    d = (b + r/pi I)^-1 g (a + r pi I)^-1, r^2 = `damping`, pi^2 the ratio of the mean eigenvalues of a and b; for
    parameters with a dense block m, averaged alike, d = (m + damping I)^-1 g. u = lr d_hat, d_hat the average of d
    with b1, corrected for its start at zero. With `delta` its own step-size rule: p <- p - eta u,
    eta = min(1, sqrt(2 delta/h)), h = u'Fu over the parameter group, F the averaged blocks: no step moves the outputs
    by more than about `delta` in KL divergence, if the blocks are those of KFAC(fisher=True). The inverses are
    renewed every `inverse_every` steps. `maximize`: ascend.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.95),
        damping: float = 1e-2,
        delta: float | None = None,
        inverse_every: int = 10,
        **options: Unpack[Ascending],
    ):
        own = {"damping": damping, "delta": delta, "inverse_every": inverse_every, **options}
        super().__init__(params, {"lr": lr, "betas": betas, **own})

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the averages in the state that have the parameter's shape; the factors have others."""
        return ("exp_avg",)

    @torch.no_grad()
    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Any]
    ) -> Tensor | float:
        (b1, b2), lr, delta, h = group["betas"], float(group["lr"]), group["delta"], grads[0].new_zeros(())
        updates = []
        for p, g, block in zip(params, grads, curvatures, strict=True):
            state, new = self.make_state(group, p), _single(block)
            t = state["step"] = state["step"] + 1
            for name in new.matrices:
                now = getattr(new, name)
                if t > 1 and name not in state:
                    raise RuntimeError(
                        f"KFACOptimizer: the state has no {name}, an average since the first step. The optimizer "
                        "knows its factors' shapes from that step on: take it before you load a checkpoint in place"
                    )
                state.setdefault(name, torch.zeros_like(now)).lerp_(now, 1 - min(1 - 1 / t, b2))
            average = new.replaced(*(state[name] for name in new.matrices))
            if (t - 1) % group["inverse_every"] == 0:
                state["inverse"] = _inverses(average, group["damping"])
            m = state["exp_avg"]
            m.lerp_(new.replaced(*state["inverse"]).matmul(-g if group["maximize"] else g), 1 - b1)
            u = m * (lr / (1 - b1**t))
            updates.append(u)
            h = h + (u * average.matmul(u)).sum() if delta is not None else h
        eta: Tensor | float = 1.0
        if delta is not None:
            eta = scaling.eta(group, h)
            torch._foreach_mul_(updates, eta)
        scaling.decay(group, params)
        torch._foreach_sub_(params, updates)
        return eta


def _single(block: Block) -> Kronecker | Dense:
    """One block of several passes: their rows on the average, their outputs added up."""
    parts = block.parts if isinstance(block, BlockSum) else [block]
    products = [part for part in parts if isinstance(part, Kronecker)]
    if len(products) == len(parts):
        a, b = (torch.stack([getattr(part, name) for part in products]).sum(0) for name in "ab")
        return products[0].replaced(a / len(parts), b)
    if all(isinstance(part, Dense) for part in parts):
        return Dense(block.dense(), block.shape)
    first = next((part for part in parts if not isinstance(part, Kronecker | Dense)), parts[0])
    raise CurvatureError(
        f"KFACOptimizer.step(): a block of the kind {type(first).__name__}; compute it with "
        "hesscale_rl.backward(net, x, loss, curvature=hesscale_rl.KFAC(fisher=True))"
    )


def _inverses(block: Kronecker | Dense, damping: float) -> list[Tensor]:
    """The damped matrices' inverses."""
    if isinstance(block, Dense):
        return [_inverse(block.matrix, damping)]
    a, b = block.a, block.b
    # The damping is shared so that both factors are changed alike (Martens and Grosse 2015, section 6.3).
    mean_a, mean_b = (t.diagonal(dim1=1, dim2=2).mean() for t in (a, b))
    tiny = torch.finfo(a.dtype).tiny
    pi, r = (mean_a.clamp(min=tiny) / mean_b.clamp(min=tiny)).sqrt(), damping**0.5
    return [_inverse(a, r * pi), _inverse(b, r / pi)]


def _inverse(m: Tensor, damping: Any) -> Tensor:
    root, failed = torch.linalg.cholesky_ex(m + damping * torch.eye(m.shape[-1], dtype=m.dtype, device=m.device))
    if bool(failed.any()):
        raise CurvatureError(
            "KFACOptimizer.step(): a damped block is not positive definite; take hesscale_rl.KFAC(fisher=True), or "
            "more damping"
        )
    return torch.cholesky_inverse(root)
