"""The rules of linear layers, and what they share with convolutions; rule.py says what a rule is."""

from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .rule import NotCovered, Refusal, Rule, arguments


class Layout(NamedTuple):
    """How a weight's entries are those of G matrices [O, R], one for each group: y = W rows at every position."""

    shape: torch.Size
    groups: int = 1
    transposed: bool = False  # [I, O, *kernel] instead of [O, I, *kernel], as transposed convolutions have it

    def pack(self, w: Tensor) -> Tensor:
        """Return [*, G, O, R] of a weight, or of several, [*, *shape]."""
        lead, g = w.shape[: w.ndim - len(self.shape)], self.groups
        if not self.transposed:
            return w.reshape(*lead, g, self.shape[0] // g, -1)
        split = w.reshape(*lead, g, self.shape[0] // g, self.shape[1], -1)
        return split.transpose(-3, -2).flatten(-2)

    def unpack(self, m: Tensor) -> Tensor:
        """Return [*, *shape] of m [*, G, O, R]."""
        if self.transposed:
            inputs = self.shape[0] // self.groups
            m = m.unflatten(-1, (inputs, -1)).transpose(-3, -2)
        return m.reshape(*m.shape[: m.ndim - 3 - self.transposed], *self.shape)


class Affine(Rule):
    """y = W rows + b at each of Q positions; the base of Linear and of convolutions."""

    layout: Layout

    @cached_property
    def rows(self) -> Tensor:
        """What the weights multiply, [N, G, Q, R]."""
        raise NotImplementedError

    def cols(self, v: Tensor) -> Tensor:
        """v, in the shape of y, as [N, G, Q, O]."""
        raise NotImplementedError

    def grad_each(self, v: Tensor) -> dict[str, Tensor]:
        """cols rows' and the columns' sum over the positions, of every sample."""
        cols = self.cols(v)
        out = {"weight": self.layout.unpack(torch.einsum("ngqo,ngqr->ngor", cols, self.rows))}
        if "bias" in self.p:
            out["bias"] = cols.sum(2).flatten(1)
        return out


class Linear(Affine):
    """y = x W' + b on the last axis; axes between the samples and it are positions that share W."""

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W' + b."""
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise NotCovered
        self.take(x, weight=weight, bias=bias)
        self.one_use = x.ndim == 2
        return F.linear(x, weight, bias)

    def repeats(self, n: int) -> bool:
        """Where x is a constant with a row for each sample, as a recurrent layer's first state is."""
        return "x" not in self.live and self.x.shape[:1] == (n,)

    def vjp(self, v: Tensor) -> Tensor:
        """V W."""
        return v @ self.p["weight"]

    def vjp_sq(self, d: Tensor) -> Tensor:
        """D (W*W)."""
        return d @ self.p["weight"].square()

    def _read(self, v: Tensor, x: Tensor) -> dict[str, Tensor]:
        if v.ndim != 2:
            v, x = v.reshape(-1, v.shape[-1]), x.reshape(-1, x.shape[-1])
        out = {"weight": v.mT @ x}
        if "bias" in self.p:
            out["bias"] = v.sum(0)
        return out

    def grad(self, v: Tensor) -> dict[str, Tensor]:
        """V'X and the sum of V."""
        return self._read(v, self.x)

    def grad_sq(self, d: Tensor) -> dict[str, Tensor]:
        """D'(X*X) and the sum of D."""
        return self._read(d, self.x.square())

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        """One group."""
        return Layout(self.p["weight"].shape)

    @cached_property
    def rows(self) -> Tensor:
        """The inputs at every position."""
        return self.cols(self.x)

    def cols(self, v: Tensor) -> Tensor:
        """The axes between the samples and the last as one."""
        return v.reshape(len(v), 1, -1, v.shape[-1])

    def sandwich(self, h: Tensor) -> Tensor:
        """W'hW."""
        w = self.p["weight"]
        return w.mT @ h @ w if self.one_use else super().sandwich(h)

    def mean_sandwich(self, h: Tensor, jacobian: bool) -> Tensor:
        """The same: J is that of every sample."""
        return self.sandwich(h) if self.one_use else super().mean_sandwich(h, jacobian)


class Embedding(Rule):
    """Rows of a weight by their numbers; x is the weight."""

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return weight[index]."""
        names = ("weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
        m, index = arguments(dict.fromkeys(names), args, kwargs), x
        weight = m["weight"]
        if m["max_norm"] is not None or m["scale_grad_by_freq"]:
            raise Refusal("max_norm and scale_grad_by_freq have no rule: they change the weight, or its gradient")
        self.take(weight)
        self.inputs = {"x": weight, "index": index}
        self.index, self.padding = index, m["padding_idx"]
        return F.embedding(index, weight)

    def _add(self, v: Tensor, index: Tensor) -> Tensor:
        rows = index.reshape(-1)
        if self.padding is not None:
            v = v * (index != self.padding).to(v.dtype)[..., None]
        return torch.zeros_like(self.x).index_add(0, rows, v.reshape(len(rows), -1))

    def vjp(self, v: Tensor) -> Tensor:
        """v added up by rows."""
        return self._add(v, self.index)
