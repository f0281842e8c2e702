"""Modular Hessian backpropagation (Dangel et al. 2020): the Hessian of the loss over every activation, sent back.

The message is a matrix for each sample, H [N, d, d] over the d entries of an activation: J'HJ plus the layer's own
second derivatives. It costs d times what a gradient costs, so it is for small networks and for comparing others with.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from .blocks import Block, Dense, Kronecker, PerSample
from .curvature import Curvature
from .gauss_newton import grad_of, second_moment
from .rules import Affine, Branching, Rule, columns


class HBP(Curvature):
    """The exact Hessian block of every parameter, also through Skip and Heads (equations 4 of Dangel et al. 2020).

    A module that stands twice gets the sum over its places, without their cross terms.
    """

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Tensor:
        """The loss's Hessian at the outputs."""
        return loss.hessian(y)

    def pull(self, rule: Rule, g: Tensor, message: Tensor) -> Tensor:
        """J'HJ + sum_k g_k Hess f_k."""
        bend = rule.hessian(g)
        message = rule.sandwich(message)
        return message if bend is None else message + bend

    def read(self, rule: Rule, message: Tensor) -> dict[str, Block]:  # type: ignore[override]
        """J_p'HJ_p, summed over the samples."""
        blocks: dict[str, Block] = {}
        names = list(rule.p)
        if isinstance(rule, Affine):
            h = over_positions(rule, message)
            blocks["weight"] = PerSample(h, rule.rows, rule.layout)
            names.remove("weight")
            if "bias" in names:
                o = rule.p["bias"].numel()
                blocks["bias"] = Dense(h.sum((0, 2, 5)).reshape(o, o), rule.p["bias"].shape)
                names.remove("bias")
        return blocks | {name: _whole(rule, name, message) for name in names}

    def split(self, rule: Branching, message: Tensor) -> list[Tensor]:
        """H over each branch's own outputs."""
        half = _split(rule, message)
        return [_split(rule, part.mT)[i] for i, part in enumerate(half)]

    def merge(self, rule: Branching, message: Tensor, ends: list[Tensor]) -> Tensor:
        """Their sum, and the cross terms J_i'HJ_j of every two branches."""
        total, shape = sum(ends[1:], ends[0]), rule.y.shape[1:]
        for i in range(len(ends)):
            one = columns(partial(rule.branch_vjp, i), message, shape).mT  # (J_i'H)'
            for j in range(i + 1, len(ends)):
                cross = columns(partial(rule.branch_vjp, j), one, shape)
                total = total + cross + cross.mT
        return total


class KFRA(HBP):
    """One matrix for the whole batch, averaged on the way, without second derivatives (Botev et al. 2017).

    Blocks are Kronecker products of the rows' second moment and that matrix. Exact for one sample on piecewise linear
    networks, and for linear networks with squared error. For convolutions the matrix is averaged over the positions,
    as in KFAC; through Skip and Heads the cross terms are averaged likewise.
    """

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Tensor:
        """The sum of the samples' Hessians, [1, C, C]; its mean for a loss that is a mean."""
        return loss.hessian(y).sum(0, keepdim=True)

    def pull(self, rule: Rule, g: Tensor, message: Tensor) -> Tensor:
        """The samples' mean of J'HJ."""
        # A linear layer's Jacobian is that of every sample.
        one = isinstance(rule, Affine) and rule.one_use
        return rule.sandwich(message if one else _for_all(rule, message)).mean(0, keepdim=True)

    def read(self, rule: Rule, message: Tensor) -> dict[str, Block]:  # type: ignore[override]
        """A Kronecker block for a weight, the mean of J_p'HJ_p for everything else."""
        if not isinstance(rule, Affine):
            return {name: _whole(rule, name, _for_all(rule, message) / len(rule.x)) for name in rule.p}
        h = over_positions(rule, message)[0]  # [G, Q, O, G, Q, O]
        b = torch.einsum("gqogqs->gos", h) / h.shape[1]
        blocks: dict[str, Block] = {"weight": Kronecker(second_moment(rule.rows), b, rule.layout)}
        if "bias" in rule.p:
            o = rule.p["bias"].numel()
            blocks["bias"] = Dense(h.sum((1, 4)).reshape(o, o), rule.p["bias"].shape)
        return blocks

    def merge(self, rule: Branching, message: Tensor, ends: list[Tensor]) -> Tensor:
        """As in HBP, averaged."""
        return super().merge(rule, _for_all(rule, message), ends).mean(0, keepdim=True)


def over_positions(rule: Affine, h: Tensor) -> Tensor:
    """h [N, d, d] over the outputs of an affine layer as [N, G, Q, O, G, Q, O]."""
    shape, sizes = rule.y.shape[1:], rule.cols(rule.y[:1]).shape[1:]
    return columns(rule.cols, columns(rule.cols, h, shape).mT, shape).reshape(len(h), *sizes, *sizes)


def _whole(rule: Rule, name: str, h: Tensor) -> Dense:
    """The block of a parameter by each sample's own Jacobian."""
    back, shape = partial(grad_of, rule, name), rule.y.shape[1:]
    each = columns(back, columns(back, h, shape).mT, shape)
    return Dense(each.sum(0), rule.p[name].shape)


def _split(rule: Branching, h: Tensor) -> list[Tensor]:
    """The rows of h [N, d, k] that belong to each branch's output."""
    parts = vmap(rule.split)(h.permute(2, 0, 1).reshape(h.shape[2], len(h), *rule.y.shape[1:]))
    return [part.flatten(2).permute(1, 2, 0) for part in parts]


def _for_all(rule: Rule, message: Tensor) -> Tensor:
    return message.expand(len(rule.x), -1, -1)
