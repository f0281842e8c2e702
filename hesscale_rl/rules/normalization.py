"""The rules of layer and batch normalisation."""

import math

import torch
from torch import Tensor

from ..losses.checks import eye
from .rule import Refusal, Rule


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
        return {k: (v * self.h if k == "weight" else v).sum(self.axes()) for k in self.p}

    def grad_sq(self, d: Tensor) -> dict[str, Tensor]:
        """The sums of d h*h and of d over those axes."""
        return {k: (d * self.h.square() if k == "weight" else d).sum(self.axes()) for k in self.p}

    def grad_each(self, v: Tensor) -> dict[str, Tensor]:
        """The sums over those axes but the samples'."""
        axes = self.axes()[1:]
        each = {k: v * self.h if k == "weight" else v for k in self.p}
        return {k: e.sum(axes) for k, e in each.items()} if axes else each


class LayerNorm(Scale):
    """y = w h + b with h = (x - mean)/s over the last axes, s = sqrt(var + eps).

    J = (I - (1 + h h')/n)/s is dense, yet every primitive costs O(n): J is I less a matrix of rank two.
    """

    def axes(self) -> list[int]:
        """All but the normalised ones."""
        return list(range(self.x.ndim - len(self.layer.normalized_shape)))

    def forward(self, x: Tensor) -> Tensor:
        """Return w h + b."""
        normed = torch.Size(self.layer.normalized_shape)
        k = len(normed)
        if x.ndim <= k or x.shape[-k:] != normed:
            raise ValueError(f"it norms {list(normed)}, which must be the last axes and leave that of the samples")
        self.need("weight", normed)
        self.need("bias", normed)
        self.over = list(range(-k, 0))
        self.n = math.prod(self.layer.normalized_shape)
        centred = x - x.mean(self.over, keepdim=True)
        self.s = (centred.square().mean(self.over, keepdim=True) + self.layer.eps).sqrt()
        self.h = centred / self.s
        y = self.h * self.p["weight"] if "weight" in self.p else self.h
        return y + self.p["bias"] if "bias" in self.p else y

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
        q = blocks.shape[1]
        whole = torch.einsum("nqij,qp->nqipj", blocks, eye(q, h))
        return whole.reshape(len(v), q * self.n, q * self.n)


class BatchNorm(Scale):
    """Batch normalisation in eval mode, where it is an affine map per channel (axis 1)."""

    def axes(self) -> list[int]:
        """All but the channels."""
        return [i for i in range(self.x.ndim) if i != 1]

    def forward(self, x: Tensor) -> Tensor:
        """Return w (x - running mean)/sqrt(running var + eps) + b."""
        m = self.layer
        if m.training or m.running_mean is None:
            raise Refusal(
                "batch normalisation by the batch's own statistics couples the samples, so no curvature per "
                "sample exists; call .eval() on it or use LayerNorm"
            )
        m._check_input_dim(x)
        for name, t in (self.p | {"running_mean": m.running_mean, "running_var": m.running_var}).items():
            if t.shape != x.shape[1:2] or t.dtype is not x.dtype:
                raise ValueError(f"its {name} {list(t.shape)} of {t.dtype} does not belong to x's channels")
        channels = [1, -1] + [1] * (x.ndim - 2)
        inv = (m.running_var + m.eps).rsqrt().view(channels)
        self.h = (x - m.running_mean.view(channels)) * inv
        self.factor = inv * self.p["weight"].view(channels) if "weight" in self.p else inv
        y = self.factor * (x - m.running_mean.view(channels))
        return y + self.p["bias"].view(channels) if "bias" in self.p else y

    def vjp(self, v: Tensor) -> Tensor:
        """The channel's factor times v."""
        return self.factor * v

    def vjp_sq(self, d: Tensor) -> Tensor:
        """The factor's square times d."""
        return self.factor.square() * d
