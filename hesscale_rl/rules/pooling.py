"""The rules of pooling, padding and dropout."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.checks import eye
from .rule import Refusal, Rule, axes_of


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
