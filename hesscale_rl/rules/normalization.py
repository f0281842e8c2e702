"""The rules of layer and batch normalisation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..losses.checks import eye
from .rule import NotCovered, Rule, Several, arguments


class Scale(Rule):
    """y = w h + b entry by entry, w and b shared by the samples: the affine end of the normalisations."""

    h: Tensor  # what w multiplies

    @property
    def one_use(self) -> bool:  # type: ignore[override]
        """Where w varies along all axes but the samples'."""
        return len(self.axes()) == 1

    def axes(self) -> list[int]:
        """Return the axes of y along which w does not vary."""
        raise NotImplementedError

    def grad(self, v: Tensor) -> dict[str, Tensor]:
        """The sums of v h and of v over those axes."""
        return {k: _summed(v * self.h if k == "weight" else v, self.axes()) for k in self.p}

    def grad_sq(self, d: Tensor) -> dict[str, Tensor]:
        """The sums of d h*h and of d over those axes."""
        return {k: _summed(d * self.h.square() if k == "weight" else d, self.axes()) for k in self.p}

    def grad_each(self, v: Tensor) -> dict[str, Tensor]:
        """The sums over those axes but the samples'."""
        return {k: _summed(v * self.h if k == "weight" else v, self.axes()[1:]) for k in self.p}


def _summed(t: Tensor, axes: list[int]) -> Tensor:
    """The sum over some axes; over none it is t, where torch would take all."""
    return t.sum(axes) if axes else t


def spread_over_positions(blocks: Tensor) -> Tensor:
    """Return [N, Q n, Q n] of a block [N, Q, n, n] for every position: zeros between two."""
    n, q, size = blocks.shape[:3]
    return torch.einsum("nqij,qp->nqipj", blocks, eye(q, blocks)).reshape(n, q * size, q * size)


class LayerNorm(Scale):
    """y = w h + b with h = (x - mean)/s over the last axes, s = sqrt(var + eps).

    J = (I - (1 + h h')/n)/s is dense, yet every primitive costs O(n): J is I less a matrix of rank two.
    """

    def axes(self) -> list[int]:
        """All but the normalised ones."""
        return list(range(self.x.ndim - self.k))

    def run(
        self, x: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Tensor:
        """Return w h + b."""
        self.take(x, weight=weight, bias=bias)
        if any(t is not None and t.dtype is not x.dtype for t in (weight, bias)):
            raise NotCovered
        normed = torch.Size(normalized_shape)
        self.k = len(normed)
        if x.ndim < self.k or x.shape[-self.k :] != normed:
            raise ValueError(f"it norms {list(normed)}, which must be the last axes of {list(x.shape)}")
        self.need("weight", normed)
        self.need("bias", normed)
        self.over = list(range(-self.k, 0))
        self.n = math.prod(normed)
        centred = x - x.mean(self.over, keepdim=True)
        self.s = (centred.square().mean(self.over, keepdim=True) + eps).sqrt()
        self.h = centred / self.s
        y = self.h if weight is None else self.h * weight
        return y if bias is None else y + bias

    def keeps_samples(self, n: int) -> bool:
        """Where the samples' axis is not normed."""
        return self.x.ndim > self.k and len(self.y) == n

    def _times_w(self, v: Tensor, power: int = 1) -> Tensor:
        return v * self.p["weight"] ** power if "weight" in self.p else v

    def _sum(self, v: Tensor) -> Tensor:
        return v.sum(self.over, keepdim=True)

    def vjp(self, v: Tensor) -> Tensor:
        """(v - sum(v)/n - h sum(v h)/n)/s with v times w."""
        v = self._times_w(v)
        return (v - (self._sum(v) + self.h * self._sum(v * self.h)) / self.n) / self.s

    def vjp_sq(self, d: Tensor) -> Tensor:
        """Sum_k d_k J_ki^2, J_ki = (delta_ki - (1 + h_k h_i)/n)/s, multiplied out."""
        d, h, n = self._times_w(d, 2), self.h, self.n
        h2 = h * h
        cross = self._sum(d) + 2 * h * self._sum(d * h) + h2 * self._sum(d * h2)
        return (d * (1 - 2 * (1 + h2) / n) + cross / n**2) / self.s**2

    def second(self, g: Tensor) -> Tensor:
        """From ds/dx_i = h_i/n: d(J_ki)/dx_i = -(2 h_i J_ki + h_k J_ii)/(n s)."""
        own = (1 - (1 + self.h * self.h) / self.n) / self.s  # J_ii
        gh = self._sum(self._times_w(g) * self.h)
        return -(2 * self.h * self.vjp(g) + gh * own) / (self.n * self.s)

    def hessian(self, g: Tensor) -> Tensor:
        """-((J'g) h' + h (J'g)' + (g h) J)/(n s), J symmetric and g times w; zero between two positions."""
        v, h = self.vjp(g).flatten(-len(self.over)), self.h.flatten(-len(self.over))  # [N, Q.., n]
        gh, s = (t.flatten(-len(self.over)) for t in (self._sum(self._times_w(g) * self.h), self.s))
        v, h, gh, s = (t.reshape(len(t), -1, t.shape[-1]) for t in (v, h, gh, s))  # [N, Q, n] and [N, Q, 1]
        outer = h[..., :, None] * h[..., None, :]
        j = (eye(self.n, h) - (1 + outer) / self.n) / s[..., None]
        cross = v[..., :, None] * h[..., None, :]
        blocks = -(cross + cross.mT + gh[..., None] * j) / (self.n * s[..., None])  # [N, Q, n, n]
        return spread_over_positions(blocks)


class BatchNorm(Scale):
    """Batch normalisation by running statistics, where it is an affine map per channel (axis 1)."""

    def axes(self) -> list[int]:
        """All but the channels."""
        return [i for i in range(self.x.ndim) if i != 1]

    def run(
        self,
        x: Tensor,
        running_mean: Any,
        running_var: Any,
        weight: Any = None,
        bias: Any = None,
        *rest: Any,
        **settings: Any,
    ) -> Tensor:
        """Return w (x - running mean)/sqrt(running var + eps) + b."""
        m = arguments(dict(training=False, momentum=0.1, eps=1e-5), rest, settings)
        self.take(x, weight=weight, bias=bias)
        for name, t in (self.p | {"running_mean": running_mean, "running_var": running_var}).items():
            if t.shape != x.shape[1:2] or t.dtype is not x.dtype:
                raise ValueError(f"its {name} {list(t.shape)} of {t.dtype} does not belong to x's channels")
        channels = [1, -1] + [1] * (x.ndim - 2)
        inv = (running_var + m["eps"]).rsqrt().view(channels)
        centred = x - running_mean.view(channels)
        self.h = centred * inv
        self.factor = inv if weight is None else inv * weight.view(channels)
        y = self.factor * centred
        return y if bias is None else y + bias.view(channels)

    def vjp(self, v: Tensor) -> Tensor:
        """The channel's factor times v."""
        return self.factor * v

    def vjp_sq(self, d: Tensor) -> Tensor:
        """The factor's square times d."""
        return self.factor.square() * d


class WeightNorm(Several):
    """y = g u with u = v/|v|, |v| over all axes but `dim` (all, if that is -1): what weight_norm makes of a weight.

    J = (I - u u') g/|v| in v.
    """

    joint = False

    def run(self, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
        """Return g v/|v|."""
        self.inputs = {"x": v, "g": g}
        self.over = [i for i in range(v.ndim) if dim == -1 or i != dim % v.ndim]
        self.norm = v.square().sum(self.over, keepdim=True).sqrt() if self.over else v.abs()
        self.u, self.g = v / self.norm, g
        return g * self.u

    def _along(self, v: Tensor) -> Tensor:
        return v.sum(self.over, keepdim=True) if self.over else v

    def of(self, slot: str, v: Tensor) -> Tensor:
        """(v - u sum(v u)) g/|v|, and sum(v u) for g."""
        along = self._along(v * self.u)
        return along.reshape(self.g.shape) if slot == "g" else (v - self.u * along) * (self.g / self.norm)

    def of_sq(self, slot: str, d: Tensor) -> Tensor:
        """J_ki = (delta_ki - u_k u_i) g/|v|, squared and multiplied out."""
        u2 = self.u.square()
        along = self._along(d * u2)
        if slot == "g":
            return along.reshape(self.g.shape)
        return (d * (1 - 2 * u2) + u2 * along) * (self.g / self.norm).square()

    def of_second(self, slot: str, g: Tensor) -> Tensor | None:
        """d2(v_k/|v|)/dv_i2 = (u_k (3 u_i^2 - 1) - 2 delta_ki u_i)/|v|^2."""
        if slot == "g":
            return None
        along = self._along(g * self.u)
        return (along * (3 * self.u.square() - 1) - 2 * g * self.u) * (self.g / self.norm.square())


class RMSNorm(LayerNorm):
    """y = w h with h = x/r over the last axes, r the root of the mean square and eps; J = (I - h h'/n)/r."""

    def run(self, x: Tensor, normalized_shape: Sequence[int], weight: Any = None, eps: Any = None) -> Tensor:  # type: ignore[override]
        """Return w h."""
        self.take(x, weight=weight)
        normed = torch.Size(normalized_shape)
        if x.shape[-len(normed) :] != normed or (weight is not None and weight.dtype is not x.dtype):
            raise NotCovered
        self.k, self.n = len(normed), math.prod(normed)
        self.over = list(range(-self.k, 0))
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        self.s = (x.square().mean(self.over, keepdim=True) + eps).sqrt()
        self.h = x / self.s
        return self.h if weight is None else self.h * weight

    def vjp(self, v: Tensor) -> Tensor:
        """(v - h sum(v h)/n)/r with v times w."""
        v = self._times_w(v)
        return (v - self.h * self._sum(v * self.h) / self.n) / self.s

    def vjp_sq(self, d: Tensor) -> Tensor:
        """J_ki = (delta_ki - h_k h_i/n)/r, squared and multiplied out."""
        d, h2, n = self._times_w(d, 2), self.h.square(), self.n
        return (d * (1 - 2 * h2 / n) + h2 * self._sum(d * h2) / n**2) / self.s**2

    def second(self, g: Tensor) -> Tensor:
        """From dr/dx_i = h_i/n."""
        g, h, n = self._times_w(g), self.h, self.n
        return ((3 * h.square() / n - 1) * self._sum(g * h) - 2 * g * h) / (n * self.s**2)

    def hessian(self, g: Tensor) -> Tensor:
        """((3 h h'/n - I) (g h) - g h' - h g')/(n r^2) with g times w; zero between two positions."""
        g, h, s = (t.expand_as(self.x).flatten(-self.k) for t in (self._times_w(g), self.h, self.s))
        g, h, s = (t.reshape(len(t), -1, self.n) for t in (g, h, s))  # [N, Q, n]
        outer, cross = h[..., :, None] * h[..., None, :], g[..., :, None] * h[..., None, :]
        along = (g * h).sum(-1)[..., None, None]
        blocks = (along * (3 * outer / self.n - eye(self.n, h)) - cross - cross.mT) / (self.n * s[..., None] ** 2)
        return spread_over_positions(blocks)
