"""Modular Hessian backpropagation (Dangel et al. 2020): the Hessian of the loss over every activation, sent back.

The message is a matrix for each sample, H [N, d, d] over the d entries of an activation: J'HJ plus the layer's own
second derivatives (equations 4). Its cost grows with d times that of a gradient; averaged over the batch, [1, d, d],
with d alone (equations 6 and 7). Where an activation goes two ways there is a matrix for every two activations that
the pass has reached and not yet left: messages[id(a), id(b)] [N, d_a, d_b].
"""

from typing import Any

import torch
from torch import Tensor

from ..rules import Affine, MissingPrimitive, Rule, Several, columns
from .base import Curvature, Messages
from .blocks import Block, Dense, Kronecker, PerSample
from .ggn import second_moment, structured

VARIANTS = ("hessian", "ggn", "pch-clip", "pch-abs", "fisher")
AVERAGES = ("none", "hessian", "jacobian")


class HBP(Curvature):
    """Every parameter's own block of a curvature matrix, wherever ways part and meet.

    `variant`: "hessian", exact; "ggn" leaves out the layers' second derivatives; "pch-clip" and "pch-abs" (the
    positive-curvature Hessian of Chen et al. 2018) take their eigenvalues, and those of the loss's Hessian, as zero
    or positive where they are negative; "fisher" is "ggn" of the model's Fisher matrix.
    `average`: "none" keeps every sample's message; "hessian" sends their average (equation 6), "jacobian" takes the
    average of the samples' Jacobians as well (equation 7), the cheapest. With PCH the average is made positive.
    A parameter that is used twice gets the sum over its places, without their cross terms.
    """

    by_sample = True

    def __init__(self, variant: str = "hessian", average: str = "none"):
        for name, value, known in (("variant", variant, VARIANTS), ("average", average, AVERAGES)):
            if value not in known:
                raise ValueError(f"{type(self).__name__}({name}={value!r}): allowed are {', '.join(known)}")
        self.variant, self.average = variant, average

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Tensor:
        """The loss's Hessian at the outputs, or the model's Fisher matrix; averaged, their sum over the samples."""
        h = loss.fisher(y) if self.variant == "fisher" else loss.hessian(y)
        return self._positive(h if self.average == "none" else h.sum(0, keepdim=True))

    def place(self, messages: Messages, y: Tensor, seed: Tensor) -> None:
        """As the matrix of y with itself."""
        messages[id(y), id(y)] = seed

    def step(self, rule: Rule, g: Any, messages: Messages) -> None:
        """J'HJ + sum_k g_k Hess f_k, and J'h for every other activation that the pass has not yet left."""
        structured(self, rule, messages.uses)
        pairs: dict[Any, Tensor] = messages
        ys = list(rule.y) if isinstance(rule.y, tuple | list) else [rule.y]
        at = {id(y): k for k, y in enumerate(ys)}
        within: dict[Any, Tensor] = {}
        across: dict[Any, Tensor] = {}
        for pair in [pair for pair in pairs if isinstance(pair, tuple) and (pair[0] in at or pair[1] in at)]:
            h = pairs.pop(pair)
            if pair[0] in at:
                (within if pair[1] in at else across)[at[pair[0]], at.get(pair[1], pair[1])] = h
        params = [slot for slot in rule.live if slot not in rule.varying]
        if params:
            if len(ys) > 1:
                raise MissingPrimitive(rule, "blocks behind several outputs")
            for slot, block in self.blocks(rule, within[0, 0], params).items():
                messages.put(rule.inputs[slot], block)
        own = [slot for slot in rule.live if slot in rule.varying]
        if len(own) > 1 and not rule.joint and self.variant not in ("ggn", "fisher"):
            raise MissingPrimitive(rule, "second derivatives in two inputs at once")
        for slot in own:
            x = id(rule.inputs[slot])
            for (k, other), h in across.items():
                self._add(pairs, x, other, self._left(rule, k, slot, h))
            for (k, j), h in within.items():
                for second in own[own.index(slot) :]:
                    z = id(rule.inputs[second])
                    if slot == second == "x" and len(ys) == 1 and not isinstance(rule, Several):
                        sandwich = self._sandwich(rule, h)
                    else:
                        sandwich = self._between(rule, (k, slot), (j, second), h)
                    if slot == second:
                        pairs[x, x] = pairs[x, x] + sandwich if (x, x) in pairs else sandwich
                    else:
                        self._add(pairs, x, z, sandwich)
            if self.variant not in ("ggn", "fisher") and (residual := self._residual(rule, g, slot)) is not None:
                pairs[x, x] = pairs[x, x] + residual if (x, x) in pairs else residual

    @staticmethod
    def _add(pairs: dict[Any, Tensor], a: int, b: int, h: Tensor) -> None:
        """Add h [N, d_a, d_b] to the matrix of two activations, in both orders."""
        for pair, part in (((a, b), h), ((b, a), h.mT)):
            pairs[pair] = pairs[pair] + part if pair in pairs else part

    def _left(self, rule: Rule, k: int, slot: str, h: Tensor) -> Tensor:
        """J'h of output k by one input, for h [*, d, m]; averaged, with the samples' mean of J.

        Averages are taken layer by layer, as if every layer had drawn its sample for itself; cross terms must be too,
        or the sum could have negative eigenvalues where no sample has.
        """
        averaged, several = self.average != "none", isinstance(rule.y, tuple | list)
        ys = list(rule.y) if several else [rule.y]
        h = h.expand(len(ys[k]), -1, -1) if averaged else h

        def back(v: Tensor) -> Tensor:
            given = [v if i == k else torch.zeros_like(y) for i, y in enumerate(ys)] if several else v
            return rule.pull(given, [slot])[slot]

        found = columns(back, h, ys[k].shape[1:])
        return found.mean(0, keepdim=True) if averaged else found

    def _between(self, rule: Rule, one: tuple[int, str], other: tuple[int, str], h: Tensor) -> Tensor:
        """J'hJ between two inputs; J of the operations that have several is the same for every sample."""
        return self._left(rule, *other, self._left(rule, *one, h).mT).mT

    def _sandwich(self, rule: Rule, h: Tensor) -> Tensor:
        """J'HJ by x."""
        return rule.sandwich(h) if self.average == "none" else rule.mean_sandwich(h, self.average == "jacobian")

    def _residual(self, rule: Rule, g: Any, slot: str) -> Tensor | None:
        """sum_k g_k Hess f_k by one input; where it is a diagonal, no eigenvalues are sought."""
        averaged = self.average != "none"
        if rule.diagonal:
            residual = rule.pull_second(g, [slot]).get(slot)
            if residual is None:
                return None
            residual = residual.flatten(1).sum(0, keepdim=True) if averaged else residual.flatten(1)
            return {"pch-clip": residual.clamp(min=0), "pch-abs": residual.abs()}.get(
                self.variant, residual
            ).diag_embed()
        if slot != "x":
            if rule.pull_second(g, [slot]):
                raise MissingPrimitive(rule, "hessian")
            return None
        whole = rule.hessian(g)
        return None if whole is None else self._positive(whole.sum(0, keepdim=True) if averaged else whole)

    def _positive(self, h: Tensor) -> Tensor:
        """h [*, d, d] without its negative curvature, for the variants that have none."""
        if not self.variant.startswith("pch"):
            return h
        values, vectors = torch.linalg.eigh(h)
        values = values.clamp(min=0) if self.variant == "pch-clip" else values.abs()
        return (vectors * values[..., None, :]) @ vectors.mT

    def blocks(self, rule: Rule, message: Tensor, slots: list[str]) -> dict[str, Block]:
        """J_p'HJ_p of these parameters in one place, summed over the samples or averaged."""
        if not isinstance(rule, Affine):
            return {name: self._whole(rule, name, message) for name in slots}
        h = _over_positions(rule, message)
        blocks: dict[str, Block] = {"weight": self._weight(rule, h)} if "weight" in slots else {}
        if "bias" in slots:
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
        shape, n = rule.y.shape[1:], len(rule.y)

        def back(v: Tensor) -> Tensor:
            return rule.pull_each(v, [name])[name]

        half = columns(back, message.expand(n, -1, -1), shape)
        if self.average == "jacobian":
            half = half.mean(0, keepdim=True).expand(n, -1, -1)
        each = columns(back, half.mT, shape)
        return Dense(each.sum(0) if self.average == "none" else each.mean(0), rule.inputs[name].shape)


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
