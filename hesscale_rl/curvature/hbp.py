"""Modular Hessian backpropagation (Dangel et al. 2020): the Hessian of the loss over every activation, sent back.

The message is a matrix for each sample, H [N, d, d] over the d entries of an activation: J'HJ plus the layer's own
second derivatives (equations 4). Its cost grows with d times that of a gradient; averaged over the batch, [1, d, d],
with d alone (equations 6 and 7).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ..rules import Affine, Branching, Rule, columns
from ..rules.activation import Elementwise
from .base import Curvature
from .blocks import Block, Dense, Kronecker, PerSample
from .ggn import grad_of, second_moment

VARIANTS = ("hessian", "ggn", "pch-clip", "pch-abs", "fisher")
AVERAGES = ("none", "hessian", "jacobian")


class HBP(Curvature):
    """Every parameter's own block of a curvature matrix, also through Skip and Heads.

    `variant`: "hessian", exact; "ggn" leaves out the layers' second derivatives; "pch-clip" and "pch-abs" (the
    positive-curvature Hessian of Chen et al. 2018) take their eigenvalues, and those of the loss's Hessian, as zero
    or positive where they are negative; "fisher" is "ggn" of the model's Fisher matrix.
    `average`: "none" keeps every sample's message; "hessian" sends their average (equation 6), "jacobian" takes the
    average of the samples' Jacobians as well (equation 7), the cheapest. With PCH the average is made positive.
    A module that stands twice gets the sum over its places, without their cross terms.
    """

    def __init__(self, variant: str = "hessian", average: str = "none"):
        for name, value, known in (("variant", variant, VARIANTS), ("average", average, AVERAGES)):
            if value not in known:
                raise ValueError(f"{type(self).__name__}({name}={value!r}): allowed are {', '.join(known)}")
        self.variant, self.average = variant, average

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Tensor:
        """The loss's Hessian at the outputs, or the model's Fisher matrix; averaged, their sum over the samples."""
        h = loss.fisher(y) if self.variant == "fisher" else loss.hessian(y)
        return self._positive(h if self.average == "none" else h.sum(0, keepdim=True))

    def pull(self, rule: Rule, g: Tensor, message: Tensor) -> Tensor:
        """J'HJ + sum_k g_k Hess f_k."""
        averaged, jacobian = self.average != "none", self.average == "jacobian"
        message = rule.mean_sandwich(message, jacobian) if averaged else rule.sandwich(message)
        if self.variant in ("ggn", "fisher"):
            return message
        if isinstance(rule, Elementwise):  # the second derivatives are a diagonal: no eigenvalues are sought
            bend = rule.second(g)
            if bend is None:
                return message
            bend = bend.flatten(1).sum(0, keepdim=True) if averaged else bend.flatten(1)
            bend = {"pch-clip": bend.clamp(min=0), "pch-abs": bend.abs()}.get(self.variant, bend)
            return message + bend.diag_embed()
        whole = rule.hessian(g)
        return (
            message if whole is None else message + self._positive(whole.sum(0, keepdim=True) if averaged else whole)
        )

    def _positive(self, h: Tensor) -> Tensor:
        """h [*, d, d] without its negative curvature, for the variants that have none."""
        if not self.variant.startswith("pch"):
            return h
        values, vectors = torch.linalg.eigh(h)
        values = values.clamp(min=0) if self.variant == "pch-clip" else values.abs()
        return (vectors * values[..., None, :]) @ vectors.mT

    def read(self, rule: Rule, message: Tensor) -> dict[str, Block]:  # type: ignore[override]
        """J_p'HJ_p, summed over the samples or averaged."""
        if not isinstance(rule, Affine):
            return {name: self._whole(rule, name, message) for name in rule.p}
        h = _over_positions(rule, message)
        blocks: dict[str, Block] = {"weight": self._weight(rule, h)}
        if "bias" in rule.p:
            o = rule.p["bias"].numel()
            blocks["bias"] = Dense(h.sum((0, 2, 5)).reshape(o, o), rule.p["bias"].shape)
        return blocks

    def _weight(self, rule: Affine, h: Tensor) -> Block:
        rows = rule.rows
        if self.average == "none":
            return PerSample(h, rows, rule.layout)
        rows = rows.mean(0, keepdim=True) if self.average == "jacobian" else rows
        if rows.shape[1] == rows.shape[2] == 1:  # one group, one position
            return Kronecker(second_moment(rows), h[0, 0, 0, :, 0, 0][None], rule.layout)
        return PerSample((h / len(rows)).expand(len(rows), *h.shape[1:]), rows, rule.layout)

    def _whole(self, rule: Rule, name: str, message: Tensor) -> Dense:
        """The block of a parameter by each sample's own Jacobian."""
        back, shape = partial(grad_of, rule, name), rule.y.shape[1:]
        half = columns(back, self._for_all(rule, message), shape)
        if self.average == "jacobian":
            half = self._for_all(rule, half.mean(0, keepdim=True))
        each = columns(back, half.mT, shape)
        return Dense(each.sum(0) if self.average == "none" else each.mean(0), rule.p[name].shape)

    def _for_all(self, rule: Rule, message: Tensor) -> Tensor:
        """One matrix as that of every sample."""
        return message.expand(len(rule.x), -1, -1)

    def split(self, rule: Branching, message: Tensor) -> list[Tensor]:
        """H over each branch's own outputs."""
        return [_split(rule, part.mT)[i] for i, part in enumerate(_split(rule, message))]

    def merge(self, rule: Branching, message: Tensor, ends: list[Tensor]) -> Tensor:
        """Their sum, and the cross terms J_i'HJ_j of every two branches."""
        total = sum(ends[1:], ends[0])
        for i in range(len(ends)):
            one = self._through(rule, i, message).mT  # (J_i'H)'
            for j in range(i + 1, len(ends)):
                cross = self._through(rule, j, one)
                total = total + cross + cross.mT
        return total

    def _through(self, rule: Branching, i: int, h: Tensor) -> Tensor:
        """J_i'h for h [*, d, k]; averaged, the product of the layers' average Jacobians.

        The averages of the branches' own terms are taken layer by layer, as if every layer had drawn its sample for
        itself; so are these, or their sum could have negative eigenvalues where no sample has.
        """
        if self.average == "none":
            return columns(partial(rule.branch_vjp, i), h, rule.y.shape[1:])
        h = _split(rule, h)[i]
        for inner in reversed(rule.branches[i]):
            if isinstance(inner, Branching):
                through = [self._through(inner, k, h) for k in range(len(inner.branches))]
                h = sum(through[1:], through[0])
            else:
                h = columns(inner.vjp, self._for_all(inner, h), inner.y.shape[1:]).mean(0, keepdim=True)
        return h


class KFRA(HBP):
    """Equation 6 without second derivatives (Botev et al. 2017): a Kronecker product for every weight of a Linear.

    Exact for one sample on piecewise linear networks, and for linear networks with squared error.
    """

    def __init__(self) -> None:
        super().__init__("ggn", "hessian")


def _over_positions(rule: Affine, h: Tensor) -> Tensor:
    """h [N, d, d] over the outputs of an affine layer as [N, G, Q, O, G, Q, O]."""
    shape, sizes = rule.y.shape[1:], rule.cols(rule.y[:1]).shape[1:]
    return columns(rule.cols, columns(rule.cols, h, shape).mT, shape).reshape(len(h), *sizes, *sizes)


def _split(rule: Branching, h: Tensor) -> list[Tensor]:
    """The rows of h [N, d, k] that belong to each branch's output."""
    parts = vmap(rule.split)(h.permute(2, 0, 1).reshape(h.shape[2], len(h), *rule.y.shape[1:]))
    return [part.flatten(2).permute(1, 2, 0) for part in parts]
