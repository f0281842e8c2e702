"""The rules of convolutions, normalisations, pooling and dropout; rules.py says what a rule is."""

import math
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses.checks import eye
from . import RULES, Affine, Layout, Refusal, Rule

_AXES = {
    getattr(nn, f"{name}{axes}d"): axes
    for name in ("Conv", "ConvTranspose", "MaxPool", "AvgPool", "AdaptiveAvgPool")
    for axes in (1, 2, 3)
}


def axes_of(layer: nn.Module, x: Tensor) -> int:
    """Return how many axes the layer works on, by its type; ValueError unless x [N, C, *] has as many."""
    axes = next((_AXES[kind] for kind in type(layer).__mro__ if kind in _AXES), x.ndim - 2)
    if x.ndim != axes + 2:
        raise ValueError(f"it works on [N, C, *] with {axes} more axes; a channel axis comes by x[:, None]")
    return axes


class Conv(Affine):
    """Convolutions and transposed convolutions of one to three dimensions, with groups, stride, dilation.

    Every product is one call of torch's convolution backward, with W*W and x*x for the squares: nothing is unfolded
    but for the methods that ask for `rows`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x [N, I, *] with W, through the operation that its backward belongs to."""
        m = self.layer
        if m.padding_mode != "zeros":
            raise Refusal(f"padding_mode={m.padding_mode!r} has no rule, only 'zeros'")
        axes = axes_of(m, x)
        self.transposed = isinstance(m, nn.modules.conv._ConvTransposeNd)
        self.kernel = self.p["weight"].shape[2:]  # m.kernel_size is only what it began with
        padding = m.padding
        self.right: list[int] = []  # zeros wanted at the far ends beyond a symmetric padding
        if padding == "valid":
            padding = [0] * axes
        elif padding == "same":
            if any(s != 1 for s in m.stride):
                raise ValueError(f"padding='same' has no meaning for stride={m.stride}")
            total = [d * (k - 1) for d, k in zip(m.dilation, self.kernel, strict=True)]
            padding = [t // 2 for t in total]
            if any(t % 2 for t in total):
                self.right = [n for t in reversed(total) for n in (0, t % 2)]
                self.x = x = F.pad(x, self.right)
        beyond = m.output_padding if self.transposed else [0] * axes
        self.geometry = (m.stride, padding, m.dilation, self.transposed, beyond, m.groups)
        return torch.convolution(x, self.p["weight"], self.p.get("bias"), *self.geometry)

    def _backward(self, v: Tensor, x: Tensor, w: Tensor, wanted: int) -> Tensor:
        mask = [wanted == 0, wanted == 1, False]
        return torch.ops.aten.convolution_backward(v, x, w, None, *self.geometry, mask)[wanted]

    def _to_input(self, v: Tensor, w: Tensor) -> Tensor:
        out = self._backward(v, self.x, w, 0)
        return F.pad(out, [-n for n in self.right]) if self.right else out

    def _to_weight(self, v: Tensor, x: Tensor) -> dict[str, Tensor]:
        out = {"weight": self._backward(v, x, self.p["weight"], 1)}
        if "bias" in self.p:
            out["bias"] = v.flatten(2).sum(2).sum(0)
        return out

    def vjp(self, v: Tensor) -> Tensor:
        """The transposed convolution of v with W."""
        return self._to_input(v, self.p["weight"])

    def vjp_sq(self, d: Tensor) -> Tensor:
        """The transposed convolution of d with W*W."""
        return self._to_input(d, self.p["weight"].square())

    def grad(self, v: Tensor) -> dict[str, Tensor]:
        """The correlation of x and v, and the sum of v."""
        return self._to_weight(v, self.x)

    def grad_sq(self, d: Tensor) -> dict[str, Tensor]:
        """The correlation of x*x and d, and the sum of d."""
        return self._to_weight(d, self.x.square())

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        """As the layer has its groups and its axes."""
        return Layout(self.p["weight"].shape, self.layer.groups, self.transposed)

    @cached_property
    def rows(self) -> Tensor:
        """The patches under the kernel; of a transposed convolution, what it gives with one-hot kernels."""
        if not self.layout.transposed:
            stride, padding, dilation = self.geometry[:3]
            dims, x = len(stride), F.pad(self.x, [n for p in reversed(padding) for n in (p, p)])
            for axis, (k, s, d) in enumerate(zip(self.kernel, stride, dilation, strict=True), start=2):
                x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
            x = x.unflatten(1, (self.layout.groups, -1))  # [N, G, I, *positions, *kernel]
            positions, kernel = range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
            x = x.permute(1, 2, *kernel, 0, *positions).flatten(3 + dims).flatten(1, 1 + dims)
            return x.permute(2, 0, 3, 1)  # lies in memory as [G, R, N, Q], so that KFAC multiplies it as it stands
        layout, w = self.layout, self.p["weight"]
        r = layout.pack(w).shape[-1]
        one_hot = eye(r, w).expand(layout.groups, r, r)
        shape = torch.Size((w.shape[0], r, *w.shape[2:]))
        return self.cols(torch.convolution(self.x, Layout(shape, *layout[1:]).unpack(one_hot), None, *self.geometry))

    def cols(self, v: Tensor) -> Tensor:
        """The channels of every group last, the positions as one axis."""
        return v.reshape(len(v), self.layer.groups, v.shape[1] // self.layer.groups, -1).mT


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


class ZeroPad(Rule):
    """Zeros around the last axes; the way back cuts them off (a negative padding of v)."""

    parameters = frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        if len(self.layer.padding) >= 2 * x.ndim:
            raise ValueError(
                f"padding={self.layer.padding} reaches the samples' axis: a channel axis comes by x[:, None]"
            )
        return super().forward(x)

    def vjp(self, v: Tensor) -> Tensor:
        """v without the margins."""
        return F.pad(v, [-n for n in self.layer.padding])


class Dropout(Rule):
    """y = mask * x with a mask drawn once per pass; the identity in eval mode."""

    parameters = frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """Return mask * x; the mask holds 0 and 1/(1 - p)."""
        self.mask = F.dropout(torch.ones_like(x), self.layer.p, self.layer.training)
        return self.mask * x

    def vjp(self, v: Tensor) -> Tensor:
        """mask * v."""
        return self.mask * v

    def vjp_sq(self, d: Tensor) -> Tensor:
        """mask * mask * d."""
        return self.mask * (self.mask * d)


class MaxPool(Rule):
    """Max-pooling over the last one to three axes: every output is one of the inputs."""

    parameters = frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima; keep where they stood."""
        m = self.layer
        if m.return_indices:
            raise Refusal("return_indices=True makes its output two tensors")
        dims = axes_of(m, x)
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
        y, self.index = pool(
            x, m.kernel_size, m.stride, m.padding, m.dilation, ceil_mode=m.ceil_mode, return_indices=True
        )
        return y

    def vjp(self, v: Tensor) -> Tensor:
        """v put back where the maxima stood; windows may overlap, so it adds up."""
        flat = torch.zeros_like(self.x).flatten(2)
        return flat.scatter_add(2, self.index.flatten(2), v.flatten(2)).view(self.x.shape)


def _per_axis(value: Any, dims: int) -> list[Any]:
    values = list(value) if isinstance(value, tuple | list) else [value]
    return values * dims if len(values) == 1 else values


class MeanPool(Rule):
    """Average pooling: a product of one small matrix P [out, in] per axis, so J*J is that of their squares.

    This covers windows that overlap, leave the image or differ in size, at the price of small dense products.
    """

    parameters = frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; keep each axis's matrix, read off by pooling the identity."""
        axes = range(2, 2 + axes_of(self.layer, x))
        self.matrices = [self._matrix(i, eye(x.shape[a], x)[None])[0].mT for i, a in enumerate(axes)]
        return self.layer(x)

    def _matrix(self, i: int, eye: Tensor) -> Tensor:
        """Pool the identity [1, in, in] as axis i is pooled: [1, in, out]."""
        m, dims = self.layer, self.x.ndim - 2
        kernel, padding = _per_axis(m.kernel_size, dims)[i], _per_axis(m.padding, dims)[i]
        stride = _per_axis(m.stride, dims)[i]
        divisor = m.divisor_override if dims > 1 else None
        out = F.avg_pool1d(eye, kernel, stride, padding, m.ceil_mode, m.count_include_pad)
        if divisor is None:
            return out
        return (out > 0).to(out) / (divisor if i == 0 else 1)  # the divisor once, not once per axis

    def _pull(self, v: Tensor, power: int) -> Tensor:
        for axis, matrix in enumerate(self.matrices, start=2):
            v = (v.movedim(axis, -1) @ matrix**power).movedim(-1, axis)
        return v

    def vjp(self, v: Tensor) -> Tensor:
        """v times P on every axis."""
        return self._pull(v, 1)

    def vjp_sq(self, d: Tensor) -> Tensor:
        """d times P*P on every axis."""
        return self._pull(d, 2)


class AdaptiveMeanPool(MeanPool):
    """Average pooling to a given output size."""

    def _matrix(self, i: int, eye: Tensor) -> Tensor:
        size = _per_axis(self.layer.output_size, self.x.ndim - 2)[i]
        return F.adaptive_avg_pool1d(eye, eye.shape[-1] if size is None else size)


RULES.update(
    {
        nn.Conv1d: Conv,
        nn.Conv2d: Conv,
        nn.Conv3d: Conv,
        nn.ConvTranspose1d: Conv,
        nn.ConvTranspose2d: Conv,
        nn.ConvTranspose3d: Conv,
        nn.LayerNorm: LayerNorm,
        nn.BatchNorm1d: BatchNorm,
        nn.BatchNorm2d: BatchNorm,
        nn.BatchNorm3d: BatchNorm,
        nn.MaxPool1d: MaxPool,
        nn.MaxPool2d: MaxPool,
        nn.MaxPool3d: MaxPool,
        nn.AvgPool1d: MeanPool,
        nn.AvgPool2d: MeanPool,
        nn.AvgPool3d: MeanPool,
        nn.AdaptiveAvgPool1d: AdaptiveMeanPool,
        nn.AdaptiveAvgPool2d: AdaptiveMeanPool,
        nn.AdaptiveAvgPool3d: AdaptiveMeanPool,
        nn.ZeroPad1d: ZeroPad,
        nn.ZeroPad2d: ZeroPad,
        nn.ZeroPad3d: ZeroPad,
        nn.Dropout: Dropout,
    }
)
