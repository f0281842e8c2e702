"""Hessian-free optimization, and its block-diagonal version."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..curvature import whole
from ..products import Implicit, Products
from .base import CurvatureError, CurvatureOptimizer
from .conjugate import Systems, conjugate_gradients

Named = tuple[str, Tensor]


class HessianFree(CurvatureOptimizer):
    """p <- p - lr x with (G + damping I) x = g by conjugate gradients, for each block alone (Zhang et al. 2017).

    G is the Gauss-Newton matrix of hesscale_rl.GaussNewton, of which a block keeps what its own parameters make; one
    block is the Hessian-free method of Martens 2010. `params`: named parameters in the order of the layers, as
    net.named_parameters() has them, which are cut into `blocks` of adjacent layers and about equal size; or parameter
    groups, each of which is a block. Conjugate gradients begin at `warm_start` times the last solution and end after
    `iterations`, or where the residual is `tolerance` times the gradient; these three and `together` are the first
    group's. `together`: one batched product for all blocks in place of one for each; the results are the same.
    """

    curvature_name, usual_curvature = "hess_block", "GaussNewton()"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.1,
        blocks: int = 1,
        damping: float = 0.0,
        iterations: int = 30,
        tolerance: float = 1e-3,
        warm_start: float = 0.95,
        together: bool = False,
    ):
        for name, ok, allowed in (
            ("damping", damping >= 0, "zero or positive"),
            ("tolerance", tolerance >= 0, "zero or positive"),
            ("warm_start", 0 <= warm_start <= 1, "between 0 and 1"),
        ):
            if not ok:
                raise ValueError(f"HessianFree: {name}={locals()[name]}, must be {allowed}")
        whole("HessianFree", "blocks", blocks)
        whole("HessianFree", "iterations", iterations)
        own = {"damping": damping, "iterations": iterations, "tolerance": tolerance, "warm_start": warm_start}
        params = list(params)
        if blocks > 1:
            params = [{"params": block} for block in adjacent(params, blocks)]
        super().__init__(params, {"lr": lr, "betas": (0.0, 0.0), "delta": None, "together": together, **own})

    @torch.no_grad()
    def _step_all(self, batches: list[Any]) -> list[Tensor | float]:
        """Solve for all blocks, which take their iterations together, and move."""
        params, grads, curvatures = ([t for batch in batches for t in batch[i]] for i in range(3))
        if not params:
            return [1.0] * len(batches)
        names, products = _shared(curvatures)
        owners = [k for k, batch in enumerate(batches) for _ in batch[0]]
        first, dampings = self.param_groups[0], [group["damping"] for group in self.param_groups]

        def product(v: list[Tensor], alive: Tensor) -> list[Tensor]:
            on = [k for k in range(len(batches)) if bool(alive[k])]
            blocks = [{n: t for n, t, own in zip(names, v, owners, strict=True) if own == k} for k in on]
            found = products.times_each(blocks) if first["together"] else [products.times(b) for b in blocks]
            whole = {name: t for block in found for name, t in block.items()}
            kept = [whole.get(name, torch.zeros_like(t)) for name, t in zip(names, v, strict=True)]
            return [g + dampings[own] * t for g, t, own in zip(kept, v, owners, strict=True)]

        states = [self.state[p] for p in params]
        start = None
        if first["warm_start"] > 0 and all("solution" in state for state in states):
            start = [state["solution"] * first["warm_start"] for state in states]
        systems = Systems(list(owners), len(batches))
        found = conjugate_gradients(product, grads, systems, first["tolerance"], first["iterations"], start)
        for p, x, state, own in zip(params, found, states, owners, strict=True):
            state["solution"] = x
            p.sub_(x, alpha=float(self.param_groups[own]["lr"]))
        return [1.0] * len(batches)


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


def _shared(curvatures: list[Any]) -> tuple[list[str], Products]:
    """The parameters' names in the products that all blocks share; CurvatureError if there is no such thing."""
    if not all(isinstance(block, Implicit) for block in curvatures):
        kind = next(type(block).__name__ for block in curvatures if not isinstance(block, Implicit))
        raise CurvatureError(
            f"HessianFree.step(): a block of the kind {kind}; compute it with curvature=hesscale_rl.GaussNewton(), "
            "and clear it with zero_grad() before the next"
        )
    if len({id(block.products) for block in curvatures}) > 1:
        raise CurvatureError("HessianFree.step(): the blocks are of several passes; they must be of one")
    return [block.name for block in curvatures], curvatures[0].products
