"""Hessian-free optimization, and its block-diagonal version."""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from ..curvature.base import whole
from ..curvature.matmul import Implicit, Products
from . import scaling
from .base import CurvatureError, CurvatureOptimizer
from .conjugate import Systems, conjugate_gradients
from .declaration import declare
from .settings import FRACTION, NOT_NEGATIVE, SWITCH, TASKS_OWN, WHOLE, Solving, one_of, or_none

Named = tuple[str, Tensor]


@declare(
    names={
        "hessian-free": lambda hs, curvature_of="loss", curvature_rows=None: hs.GaussNewton(
            curvature_rows, "fisher" if curvature_of == "kl" else "ggn-abs"
        )
    },
    ranges={
        "damping": NOT_NEGATIVE,
        "iterations": WHOLE,
        "tolerance": NOT_NEGATIVE,
        "warm_start": FRACTION,
        "together": SWITCH,
    },
    defaults={"iterations": 10},
    supervised={"learning_rate": 0.1, "damping": TASKS_OWN, "iterations": TASKS_OWN, "blocks": TASKS_OWN},
    curvature_ranges={"curvature_of": one_of("loss", "kl"), "curvature_rows": or_none(WHOLE, "for all of them")},
    curvature_name="hess_block",
    usual_curvature="GaussNewton()",
)
class HessianFree(CurvatureOptimizer):
    """p <- p - lr x with (G + damping I) x = g by conjugate gradients, for each block alone (Zhang et al. 2017).

    G is the Gauss-Newton matrix of hesscale_rl.GaussNewton, of which a block keeps what its own parameters make; one
    block is the Hessian-free method of Martens 2010. `params`: named parameters in the order of the layers, as
    net.named_parameters() has them, which are cut into `blocks` of adjacent layers and about equal size; or parameter
    groups, each of which is a block, of one pass; different blocks may belong to different networks. Conjugate
    gradients begin at `warm_start` times the last solution and end after `iterations`, or where the residual is
    `tolerance` times the gradient; these three and `together` are the same in all groups. `together`: one batched
    product for all blocks of a pass in place of one for each; the results are the same. A direction of negative
    curvature ends its block where it stands; if it is the gradient's own and nothing was solved before, x = g.
    Without damping the system has no solution where the gradient has a part that G does not see, as with a G of few
    rows or of saturated outputs: steps then grow until they are stopped by rounding.
    With `delta` the step u = lr x of a block is scaled by eta = min(1, sqrt(2 delta/|u'Gu|)): as TRPO's, if G is the
    policy's Fisher matrix, lr 1 and `delta` a KL divergence (Schulman et al. 2015, without its line search).
    """

    former = (("betas", (0.0, 0.0)),)
    shared = ("iterations", "tolerance", "warm_start", "together")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.1,
        blocks: int = 1,
        damping: float = 1e-2,
        iterations: int = 30,
        tolerance: float = 1e-3,
        warm_start: float = 0.95,
        delta: float | None = None,
        **options: Unpack[Solving],
    ):
        whole("HessianFree", "blocks", blocks)
        own: dict[str, Any] = {
            "damping": damping,
            "iterations": iterations,
            "tolerance": tolerance,
            "warm_start": warm_start,
        }
        params = list(params)
        if blocks > 1:
            params = [{"params": block} for block in adjacent(params, blocks)]
        own |= options
        super().__init__(params, {"lr": lr, "delta": delta, **own})

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The last solution, where the next one begins."""
        return ("solution",)

    def check_groups(self) -> None:
        """The same, and ValueError where blocks that are solved together have different settings for that."""
        super().check_groups()
        first = self.param_groups[0]
        for number, group in enumerate(self.param_groups):
            for name in self.shared:
                if group[name] != first[name]:
                    raise ValueError(
                        f"HessianFree: {name}={group[name]} in parameter group {number}, but {first[name]} in group 0"
                        ": blocks are solved together, set it in every group"
                    )

    @torch.no_grad()
    def _step_all(self, batches: list[Any]) -> list[Tensor | float]:
        """Solve for all blocks, which take their iterations together, and move."""
        params, grads, curvatures = ([t for batch in batches for t in batch[i]] for i in range(3))
        if not params:
            return [1.0] * len(batches)
        passes: list[Any] = [_of_one_pass(k, batch[2]) for k, batch in enumerate(batches)]
        names, owners = [h.name for h in curvatures], [k for k, batch in enumerate(batches) for _ in batch[0]]
        first, dampings = self.param_groups[0], [group["damping"] for group in self.param_groups]

        def times(v: list[Tensor], on: list[int]) -> list[Tensor]:
            """G v, zero for the blocks that are not `on`."""
            blocks = {k: {n: t for n, t, own in zip(names, v, owners, strict=True) if own == k} for k in on}
            found: dict[int, dict[str, Tensor]] = {}
            for products in {passes[k] for k in on}:
                own = [k for k in on if passes[k] is products]
                vectors = [blocks[k] for k in own]
                each = products.times_each(vectors) if first["together"] else map(products.times, vectors)
                found.update(zip(own, each, strict=True))
            places = zip(v, names, owners, strict=True)
            return [found[k][name] if k in found else torch.zeros_like(t) for t, name, k in places]

        def product(v: list[Tensor], alive: Tensor) -> list[Tensor]:
            on = [k for k in range(len(batches)) if bool(alive[k])]
            return [g + dampings[k] * t for g, t, k in zip(times(v, on), v, owners, strict=True)]

        pairs = zip(params, owners, strict=True)
        states = [self.make_state(self.param_groups[own], p) for p, own in pairs]
        start = None
        if first["warm_start"] > 0 and all(state["step"] for state in states):
            start = [state["solution"] * first["warm_start"] for state in states]
        systems = Systems(list(owners), len(batches))
        found = conjugate_gradients(product, grads, systems, first["tolerance"], first["iterations"], start)
        rates, deltas = ([group[name] for group in self.param_groups] for name in ("lr", "delta"))
        etas: list[Tensor | float] = [1.0] * len(batches)
        if on := [k for k in sorted(set(owners)) if deltas[k] is not None]:
            xgx = systems.dot(found, times(found, on))
            for k in on:
                etas[k] = scaling.eta(self.param_groups[k], xgx[k] * float(rates[k]) ** 2)
        for group, batch in zip(self.param_groups, batches, strict=True):
            scaling.decay(group, batch[0])
        for p, x, state, own in zip(params, found, states, owners, strict=True):
            state["solution"], state["step"] = x, state["step"] + 1
            p.sub_(x, alpha=float(rates[own]) * float(etas[own]))
        return etas


def adjacent(params: list[Named], blocks: int) -> list[list[Named]]:
    """Cut named parameters into blocks of adjacent layers, as equal in size as layers in this order allow."""
    if not all(isinstance(p, tuple) for p in params):
        raise ValueError("HessianFree(blocks=...): give net.named_parameters(), or parameter groups of your own")
    layers: dict[str, list[Named]] = {}
    for name, p in params:
        layers.setdefault(name.rpartition(".")[0], []).append((name, p))
    if len(layers) < blocks:
        raise ValueError(f"HessianFree: blocks={blocks}, but there are {len(layers)} layers with parameters")
    sizes = [sum(p.numel() for _, p in layer) for layer in layers.values()]
    # best[k][j]: the size of the largest of k blocks of the first j layers, and where the last of them begins
    best: list[list[tuple[float, int]]] = [[(0.0 if j == 0 else float("inf"), 0) for j in range(len(sizes) + 1)]]
    for _ in range(blocks):
        before = best[-1]
        row = [(float("inf"), 0)]
        for j in range(1, len(sizes) + 1):
            row.append(min((max(before[i][0], float(sum(sizes[i:j]))), i) for i in range(j)))
        best.append(row)
    cuts = [len(sizes)]
    for k in range(blocks, 0, -1):
        cuts.insert(0, best[k][cuts[0]][1])
    groups = list(layers.values())
    return [[named for layer in groups[a:b] for named in layer] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def _of_one_pass(number: int, curvatures: list[Any]) -> Products | None:
    """The products that a block's parameters share, None if it has none; CurvatureError if there is no such thing."""
    other = [type(h).__name__ for h in curvatures if not isinstance(h, Implicit)]
    if other:
        raise CurvatureError(
            f"HessianFree.step(): a block of the kind {other[0]}; compute it with "
            "curvature=hesscale_rl.GaussNewton(), and clear it with zero_grad() before the next"
        )
    if len({h.products for h in curvatures}) > 1:
        raise CurvatureError(
            f"HessianFree.step(): parameter group {number} is of several passes; give each network a group of its own"
        )
    return curvatures[0].products if curvatures else None
