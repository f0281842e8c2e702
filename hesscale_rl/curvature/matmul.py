"""Products with the Gauss-Newton matrix of any module, without ever holding it; what Hessian-free methods need."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import functional_call

from ..networks import given_to
from .base import Curvature, refuse_dropout, whole
from .blocks import Block

Named = dict[str, Tensor]


VARIANTS = ("ggn", "ggn-abs", "fisher")


class GaussNewton(Curvature):
    """J'HJ as a function, for any module that autograd knows, LSTMs and user-defined ones too.

    `variant`: what H is. "ggn": the loss's Hessian at the outputs, as it is; "ggn-abs": with its eigenvalues taken as
    positive, sample by sample, for losses that are not convex; "fisher": the model's Fisher matrix, so that J'HJ is
    the Hessian of the KL divergence from the model as it is (a step with it is a natural gradient).
    `p.hess_block` of every parameter then stands for its block and, in `products`, for the whole matrix. `rows`: how
    many of the samples, the first ones, curvature is measured on; None: all. The graph of one forward pass is kept
    for as long as the blocks are.
    """

    on_tape = False

    def __init__(self, rows: int | None = None, variant: str = "ggn"):
        if variant not in VARIANTS:
            raise ValueError(f"GaussNewton(variant={variant!r}): allowed are {', '.join(VARIANTS)}")
        self.variant = variant
        self.rows = None if rows is None else whole("GaussNewton", "rows", rows)

    def estimate(self, net: nn.Module, params: Named, x: Tensor, loss: Any) -> dict[str, Any]:
        """Return a block of every parameter, by name; all share one Products."""
        refuse_dropout("GaussNewton", net)
        if self.rows is not None and self.rows < len(x):
            x, loss = x[: self.rows], loss.part(slice(self.rows))
        products = Products(net, params, x, loss, self.variant)
        return {name: Implicit(products, name, p.shape) for name, p in params.items()}


class Products:
    """v -> J'HJ v at fixed parameters, J the outputs by the parameters, H as `GaussNewton` has it for `variant`.

    J v is the derivative of J'u with respect to u, so that one graph serves both directions (the R-operator of
    Pearlmutter 1994 by reverse mode twice).
    """

    def __init__(self, net: nn.Module, params: Named, x: Tensor, loss: Any, variant: str = "ggn"):
        self.leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        with torch.enable_grad():
            self.z = functional_call(net, self.leaves, (given_to(net, x),))
            self.u = torch.zeros_like(self.z, requires_grad=True)
            every = list(self.leaves.values())
            back = grad(self.z, every, self.u, create_graph=True, allow_unused=True)
            self.back = {name: b for name, b in zip(self.leaves, back, strict=True) if b is not None}
            self.outputs = self.z.detach().requires_grad_()
            [self.gradient] = grad(loss.value(self.outputs), self.outputs, create_graph=True)
        # A Hessian that is a Fisher matrix has no negative eigenvalue, and its products need no matrix.
        as_it_is = variant == "ggn" or loss.score_gives_hessian
        self.at_outputs = None if as_it_is else _at_outputs(loss, self.z.detach(), variant)

    def times(self, v: Named) -> Named:
        """Return the product for the parameters in v alone: the block of the matrix that they make."""
        return self._times(v, False)

    def times_each(self, v: list[Named]) -> list[Named]:
        """Return the products of K blocks with K vectors, v[k] by the names of block k; all of them at once."""
        names = [name for block in v for name in block]
        stacked = {}
        for k, block in enumerate(v):
            for name, t in block.items():
                stacked[name] = torch.zeros(len(v), *t.shape, dtype=t.dtype, device=t.device)
                stacked[name][k] = t
        found = self._times({name: stacked[name] for name in names}, True)
        return [{name: found[name][k] for name in block} for k, block in enumerate(v)]

    def _times(self, v: Named, batched: bool) -> Named:
        used = [name for name in v if name in self.back]
        zeros = {name: torch.zeros_like(t) for name, t in v.items()}
        if not used:
            return zeros
        how: dict[str, Any] = {"retain_graph": True, "is_grads_batched": batched}
        [jv] = grad([self.back[name] for name in used], self.u, [v[name] for name in used], **how)
        found = grad(self.z, [self.leaves[name] for name in used], self._hessian_times(jv, how), **how)
        return zeros | dict(zip(used, found, strict=True))

    def _hessian_times(self, jv: Tensor, how: dict[str, Any]) -> Tensor:
        """H times vectors over the outputs, [N, C] or [K, N, C]."""
        if self.at_outputs is not None:
            return torch.einsum("ncd,...nd->...nc", self.at_outputs, jv)
        if not self.gradient.requires_grad:  # a linear loss
            return torch.zeros_like(jv)
        return grad(self.gradient, self.outputs, jv, **how)[0]


def _at_outputs(loss: Any, z: Tensor, variant: str) -> Tensor:
    """H [N, C, C] of a variant other than "ggn"."""
    if variant == "fisher":
        return loss.fisher(z)
    values, vectors = torch.linalg.eigh(loss.hessian(z))
    return (vectors * values.abs()[:, None]) @ vectors.mT


class Implicit(Block):
    """A parameter's block of a matrix that is known by its products."""

    def __init__(self, products: Products, name: str, shape: torch.Size):
        self.products, self.name, self.shape = products, name, shape

    def matmul(self, v: Tensor) -> Tensor:
        """A product of the matrix."""
        return self.products.times({self.name: v})[self.name]

    def dense(self) -> Tensor:
        """A product for every entry."""
        leaf = self.products.leaves[self.name]
        rows = torch.eye(leaf.numel(), dtype=leaf.dtype, device=leaf.device)
        return torch.stack([self.matmul(row.view(self.shape)).flatten() for row in rows])

    def diagonal(self) -> Tensor:
        """Of the dense block."""
        return self.dense().diagonal().reshape(self.shape)

    def split(self, k: int) -> Block:
        """Only k = 1, the block itself."""
        if k != 1:
            raise ValueError(f"splits={k}: a block known by its products cannot be split; take the blocks of HBP")
        return self
