"""The generalised Gauss-Newton matrix J'HJ, J the outputs by the parameters, H the loss's Hessian at the outputs.

The message is a stack of vectors S [V, N, *] with H = sum_v sign_v S_v S_v' at the outputs (Dangel et al. 2020): each
travels back like a gradient. Exact for the whole H; with one random vector in place of C it costs as much as one more
gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from ..losses.checks import eye
from ..rules import Affine, MissingPrimitive, Refusal, Rule, Slots
from .base import Curvature, Messages, whole
from .blocks import Block, Dense, Kronecker

LARGEST = 2**22  # numbers that the gradients of all samples may take at once


class Factors(NamedTuple):
    """Vectors S [V, *] for a tensor with the samples on axis 0; `each`: [V, N, *], every sample's part for itself.

    `sign` [V, N]; None where all are positive. Tensors of which several samples have a share (parameters, and what is
    made of them alone) have the second form.
    """

    s: Tensor
    sign: Tensor | None
    each: bool = False

    def weigh(self, squares: Tensor) -> Tensor:
        """Sum `squares` [V, N, *] over v with the signs: [N, *]."""
        if self.sign is not None:
            squares = squares * self.sign.view(*self.sign.shape, *[1] * (squares.ndim - 2))
        return squares.sum(0)

    def spread(self) -> "Factors":
        """Return the second form: S of sample n is zero in the rows of the others."""
        if self.each:
            return self
        n = self.s.shape[1]
        one = eye(n, self.s).view(1, n, n, *[1] * (self.s.ndim - 2))
        return Factors(self.s[:, None] * one, self.sign, True)

    def __add__(self, other: "Factors") -> "Factors":  # type: ignore[override]
        if self.each != other.each:
            return self.spread() + other.spread()
        return self._replace(s=self.s + other.s)


def each(f: Callable[[Any], Any], s: Any) -> Any:
    """Apply f to every vector of s [V, *], or of a list of such; f returns a tensor, or a dict of them."""
    if len(s[0] if isinstance(s, list) else s) > 1:
        return vmap(f)(s)
    found = f([t[0] for t in s] if isinstance(s, list) else s[0])
    return {name: t[None] for name, t in found.items()} if isinstance(found, dict) else found[None]


class GGN(Curvature):
    """The exact diagonal of the generalised Gauss-Newton matrix, whatever the network's form: C vectors go back.

    Where the loss is not convex in the outputs (policy losses), H is taken as it is, with its negative part.
    """

    by_sample = True

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Factors:
        """The loss's own factors, exactly."""
        return Factors(*loss.factors(y))

    def step(self, rule: Rule, g: Any, messages: Messages) -> None:
        """J'S; a parameter that stands here alone is read at once."""
        message = messages.take(rule, self.nothing)
        first = message[0] if isinstance(message, list) else message
        if first.each or not rule.by_sample:
            parts = [m.spread() for m in message] if isinstance(message, list) else message.spread()
            s = [m.s for m in parts] if isinstance(parts, list) else parts.s
            found = each(vmap(lambda v: rule.pull(v, rule.live)), s)
            for slot, t in found.items():
                messages.put(rule.inputs[slot], Factors(t, first.sign, True))
            return
        s = [m.s for m in message] if isinstance(message, list) else message.s
        own = [slot for slot in rule.live if slot in rule.varying]
        if own:
            for slot, t in each(lambda v: rule.pull(v, own), s).items():
                messages.put(rule.inputs[slot], Factors(t, first.sign))
        shared = [slot for slot in rule.live if slot not in rule.varying]
        once = [slot for slot in shared if messages.uses.get(id(rule.inputs[slot])) == 1]
        if once:
            for slot, t in self.squares(rule, s, first, once).items():
                messages.put(rule.inputs[slot], t)
        if more := [slot for slot in shared if slot not in once]:
            for slot, t in vmap(lambda v: rule.pull_each(v, more))(s).items():
                messages.put(rule.inputs[slot], Factors(t, first.sign, True))

    def nothing(self, y: Tensor, like: Any) -> Factors:
        """Zeros."""
        s = like.s
        return like._replace(s=s.new_zeros(*(s.shape[:2] if like.each else s.shape[:1]), *y.shape))

    def squares(self, rule: Rule, s: Any, like: Factors, slots: Slots) -> dict[str, Any]:
        """sum_v (J_p'S_v)^2, summed over the samples."""
        if rule.one_use:
            return rule.pull_sq(like.weigh(s.square()), slots)
        total: dict[str, Tensor] = {}
        first = s[0] if isinstance(s, list) else s
        # A gradient of every sample for every vector is a lot: as many vectors at once as fit.
        step = max(1, LARGEST // (first.shape[1] * max(rule.inputs[slot].numel() for slot in slots)))
        for i in range(0, len(first), step):
            cut = [t[i : i + step] for t in s] if isinstance(s, list) else s[i : i + step]
            part = like._replace(sign=None if like.sign is None else like.sign[i : i + step])
            for name, g in vmap(lambda v: rule.pull_each(v, slots))(cut).items():
                total[name] = total.get(name, 0) + part.weigh(g.square()).sum(0)
        return total

    def read(self, message: Any) -> Any:
        """The squares' sum."""
        return message.weigh(message.s.square()).sum(0) if isinstance(message, Factors) else message


class _Sampled(GGN):
    """What draws its vectors; `samples` of them."""

    def __init__(self, samples: int | None = 1):
        self.samples = samples if samples is None else whole(type(self).__name__, "samples", samples)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.samples})"

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Factors:
        """Vectors whose outer products have H as their mean; two for each draw where H may have a negative part."""
        if self.samples is None:
            return super().seed(loss, y, diagonal)
        scale = self.samples**-0.5
        if loss.score_gives_hessian:
            return Factors(torch.stack([loss.score(y) for _ in range(self.samples)]) * scale, None)
        s, sign = loss.factors(y)
        signs = 2.0 * torch.randint_like(s[:, :, :1].expand(-1, -1, self.samples), 2) - 1.0  # [C, N, samples]
        parts = [s] if sign is None else [s * (sign > 0)[..., None], s * (sign < 0)[..., None]]
        drawn = torch.cat([torch.einsum("cnk,cnv->vnk", part, signs) for part in parts]) * scale
        if sign is None:
            return Factors(drawn, None)
        ones = torch.ones_like(drawn[: self.samples, :, 0])
        return Factors(drawn, torch.cat([ones, -ones]))


class GGNMC(_Sampled):
    """The diagonal of the generalised Gauss-Newton matrix by Monte Carlo: unbiased, a vector for each of `samples`.

    For cross-entropy, squared error and the value loss, a vector is the gradient at a label drawn from the model; for
    any other loss, the exact factors with random signs. The numbers come from torch's global generator.
    """

    samples: int

    def __init__(self, samples: int = 1):
        super().__init__(whole("GGNMC", "samples", samples))


class KFAC(_Sampled):
    """A Kronecker product for every weight, mean of rows rows' times sum of S S' (Martens and Grosse 2015).

    For convolutions as Grosse and Martens 2016: rows summed, S S' averaged over the positions. Parameters that
    multiply no rows (biases, norms, GaussianHead) get their whole block. `samples`: vectors drawn as for GGNMC; None:
    the exact factors, which is KFLR. `fisher`: the Fisher matrix of the policy or model in place of the loss's
    Gauss-Newton matrix: positive semi-definite, labels drawn from the model for every loss that has one. KFLR is
    exact for one sample, and for linear networks with squared error, in Linear layers with one position (x [N, I]).
    """

    def __init__(self, samples: int | None = 1, fisher: bool = False):
        super().__init__(samples)
        if fisher and samples is None:
            raise ValueError("KFAC(fisher=True) draws its labels: samples must be a number")
        self.fisher = fisher

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Factors:
        """Gradients at labels that the model draws, or GGNMC's vectors."""
        if not self.fisher:
            return super().seed(loss, y, diagonal)
        assert self.samples is not None
        return Factors(torch.stack([loss.score(y) for _ in range(self.samples)]) * self.samples**-0.5, None)

    def step(self, rule: Rule, g: Any, messages: Messages) -> None:
        """J'S, and a Kronecker block for a weight, a dense one for every other parameter."""
        structured(self, rule, messages.uses)
        message = messages.take(rule, self.nothing)
        s = [m.s for m in message] if isinstance(message, list) else message.s
        sign = (message[0] if isinstance(message, list) else message).sign
        if own := [slot for slot in rule.live if slot in rule.varying]:
            for slot, t in each(lambda v: rule.pull(v, own), s).items():
                messages.put(rule.inputs[slot], Factors(t, sign))
        if params := [slot for slot in rule.live if slot not in rule.varying]:
            if isinstance(s, list):
                raise MissingPrimitive(rule, "blocks behind several outputs")
            for slot, block in self.blocks(rule, Factors(s, sign), params).items():
                messages.put(rule.inputs[slot], block)

    def blocks(self, rule: Rule, message: Factors, slots: list[str]) -> dict[str, Block]:
        """The blocks of these parameters in one place."""
        if not isinstance(rule, Affine):
            each_grad = each(lambda v: rule.pull_each(v, slots), message.s)
            return {name: self._dense(message._replace(s=s), rule.inputs[name]) for name, s in each_grad.items()}
        cols = each(rule.cols, message.s)  # [V, N, G, Q, O]
        blocks: dict[str, Block] = {}
        if "weight" in slots:
            b = _gram(message._replace(s=cols.movedim(3, 2)), "vnqgo,vnqgs->gos") / cols.shape[3]
            blocks["weight"] = Kronecker(second_moment(rule.rows), b, rule.layout)
        if "bias" in slots:
            blocks["bias"] = self._dense(message._replace(s=cols.sum(3)), rule.p["bias"])
        return blocks

    def read(self, message: Any) -> Any:
        """The block."""
        return message

    def _dense(self, message: Factors, p: Tensor) -> Dense:
        """The block of p whose gradients by sample are message.s [V, N, *]."""
        return Dense(_gram(message._replace(s=message.s.flatten(2)), "vni,vnj->ij"), p.shape)


class SquaredGradient(GGN):
    """The mean of the samples' squared gradients: the empirical Fisher matrix's diagonal; for one sample, Adam's.

    With reduction="sum", their sum. For a loss that couples the samples it means nothing.
    """

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Factors:
        """The gradient, each sample's its own."""
        _, g, _ = loss.value_grad_curvature(y, diagonal=False)
        return Factors(g[None] * loss.factor(len(y)) ** -0.5, None)


def structured(method: Curvature, rule: Rule, params: dict[int, int]) -> None:
    """Raise Refusal unless the operation has what blocks by layer need: samples on axis 0, weights as they are."""
    name = type(method).__name__
    if not rule.by_sample:
        raise Refusal(
            f"{name} needs the samples on axis 0 of every activation, and they are moved or joined by "
            f"{rule.mixed or 'it'}"
        )
    for slot in rule.live:
        if slot not in rule.varying and id(rule.inputs[slot]) not in params:
            raise Refusal(f"{name} needs the parameters themselves where samples meet them, not what is made of them")


def second_moment(rows: Tensor) -> Tensor:
    """Mean over the samples of sum_q rows rows', [G, R, R] of [N, G, Q, R]."""
    columns = rows.permute(1, 3, 0, 2).flatten(2)  # a convolution's rows can be gigabytes; they lie so already
    return columns @ columns.mT / len(rows)


def _gram(message: Factors, formula: str) -> Tensor:
    s, sign, _ = message
    signed = s if sign is None else s * sign.view(*sign.shape, *[1] * (s.ndim - 2))
    return torch.einsum(formula, signed, s)
