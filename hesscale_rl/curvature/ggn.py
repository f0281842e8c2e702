"""The generalised Gauss-Newton matrix J'HJ, J the outputs by the parameters, H the loss's Hessian at the outputs.

The message is a stack of vectors S [V, N, *] with H = sum_v sign_v S_v S_v' at the outputs (Dangel et al. 2020): each
travels back like a gradient. Exact for the whole H; with one random vector in place of C it costs as much as one more
gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from ..rules import Affine, Branching, Rule
from .base import Curvature, whole
from .blocks import Block, Dense, Kronecker

LARGEST = 2**22  # numbers that the gradients of all samples may take at once


class Factors(NamedTuple):
    """Vectors S [V, N, *] and their signs [V, N], None where all are positive."""

    s: Tensor
    sign: Tensor | None

    def weigh(self, squares: Tensor) -> Tensor:
        """Sum `squares` [V, N, *] over v with the signs: [N, *]."""
        if self.sign is not None:
            squares = squares * self.sign.view(*self.sign.shape, *[1] * (squares.ndim - 2))
        return squares.sum(0)


def each(f: Callable[[Tensor], Any], s: Tensor) -> Any:
    """Apply f to every vector of s [V, N, *]."""
    return f(s[0])[None] if len(s) == 1 else vmap(f)(s)


class GGN(Curvature):
    """The exact diagonal of the generalised Gauss-Newton matrix, also through Skip and Heads: C vectors go back.

    Where the loss is not convex in the outputs (policy losses), H is taken as it is, with its negative part. A module
    that stands twice gets the sum over its places, without their cross terms.
    """

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Factors:
        """The loss's own factors, exactly."""
        return Factors(*loss.factors(y))

    def pull(self, rule: Rule, g: Tensor, message: Factors) -> Factors:
        """J'S."""
        return message._replace(s=each(rule.vjp, message.s))

    def read(self, rule: Rule, message: Factors) -> dict[str, Any]:
        """sum_v (J_p'S_v)^2, summed over the samples."""
        if rule.one_use:
            return rule.grad_sq(message.weigh(message.s.square()))
        total: dict[str, Tensor] = {}
        # A gradient of every sample for every vector is a lot: as many vectors at once as fit.
        step = max(1, LARGEST // (len(rule.x) * max((p.numel() for p in rule.p.values()), default=1)))
        for i in range(0, len(message.s), step):
            part = Factors(message.s[i : i + step], None if message.sign is None else message.sign[i : i + step])
            for name, g in vmap(rule.grad_each)(part.s).items():
                total[name] = total.get(name, 0) + part.weigh(g.square()).sum(0)
        return total

    def split(self, rule: Branching, message: Factors) -> list[Factors]:
        """Each branch's entries."""
        return [message._replace(s=part) for part in vmap(rule.split)(message.s)]

    def merge(self, rule: Branching, message: Factors, ends: list[Factors]) -> Factors:
        """Their sum, as for gradients."""
        return message._replace(s=sum((end.s for end in ends[1:]), ends[0].s))


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

    def read(self, rule: Rule, message: Factors) -> dict[str, Block]:  # type: ignore[override]
        """A Kronecker block for a weight, a dense one for everything else."""
        if not isinstance(rule, Affine):
            each_grad = {name: each(partial(grad_of, rule, name), message.s) for name in rule.p}
            return {name: self._dense(message._replace(s=s), rule.p[name]) for name, s in each_grad.items()}
        cols = each(rule.cols, message.s)  # [V, N, G, Q, O]
        b = _gram(message._replace(s=cols.movedim(3, 2)), "vnqgo,vnqgs->gos") / cols.shape[3]
        blocks: dict[str, Block] = {"weight": Kronecker(second_moment(rule.rows), b, rule.layout)}
        if "bias" in rule.p:
            blocks["bias"] = self._dense(message._replace(s=cols.sum(3)), rule.p["bias"])
        return blocks

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


def grad_of(rule: Rule, name: str, v: Tensor) -> Tensor:
    """Return J_p'v of every sample for the parameter of that name, [N, *]."""
    return rule.grad_each(v)[name]


def second_moment(rows: Tensor) -> Tensor:
    """Mean over the samples of sum_q rows rows', [G, R, R] of [N, G, Q, R]."""
    columns = rows.permute(1, 3, 0, 2).flatten(2)  # a convolution's rows can be gigabytes; they lie so already
    return columns @ columns.mT / len(rows)


def _gram(message: Factors, formula: str) -> Tensor:
    s, sign = message
    signed = s if sign is None else s * sign.view(*sign.shape, *[1] * (s.ndim - 2))
    return torch.einsum(formula, signed, s)
