"""The rules of pooling and dropout."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.checks import eye
from .convolution import per_axis
from .rule import Rule


class Dropout(Rule):
    """y = mask * x with a mask drawn once per pass; the identity in eval mode."""

    draws = True

    def run(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Return mask * x; the mask holds 0 and 1/(1 - p)."""
        self.take(x)
        if not training or p == 0:
            return x
        self.mask = self.func(torch.ones_like(x), p, training)
        return self.mask * x

    def vjp(self, v: Tensor) -> Tensor:
        """mask * v."""
        return self.mask * v

    def vjp_sq(self, d: Tensor) -> Tensor:
        """mask * mask * d."""
        return self.mask * (self.mask * d)


class MaxPool(Rule):
    """Max-pooling over the last one to three axes: every output is one of the inputs."""

    def run(
        self,
        x: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        """Return the maxima, and where they stood if that is asked for."""
        self.take(x)
        self.axes = int(self.func.__name__[-2])  # max_pool2d
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[self.axes - 1]
        y, self.index = pool(x, kernel_size, stride, padding, dilation, ceil_mode=ceil_mode, return_indices=True)
        return (y, self.index) if return_indices else y

    def vjp(self, v: Tensor) -> Tensor:
        """v put back where the maxima stood; windows may overlap, so it adds up."""
        v, k = v[0] if isinstance(v, list) else v, -self.axes
        flat = torch.zeros_like(self.x).flatten(k)
        return flat.scatter_add(-1, self.index.flatten(k), v.flatten(k)).view(self.x.shape)


class MeanPool(Rule):
    """Average pooling: a product of one small matrix P [out, in] per axis, so J*J is that of their squares.

    This covers windows that overlap, leave the image or differ in size, at the price of small dense products.
    """

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return y; keep each axis's matrix, read off by pooling the identity."""
        self.take(x)
        self.axes = int(self.func.__name__[-2])  # avg_pool2d
        self.read(*args, **kwargs)
        first = x.ndim - self.axes
        self.matrices = [self._matrix(i, eye(x.shape[first + i], x)[None])[0].mT for i in range(self.axes)]
        return self.func(x, *args, **kwargs)

    def read(  # noqa: D102
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        stride = kernel_size if stride is None or stride == [] else stride
        windows = (per_axis(value, self.axes) for value in (kernel_size, stride, padding))
        self.windows = list(zip(*windows, strict=True))
        self.edges = ceil_mode, count_include_pad
        self.divisor = divisor_override

    def _matrix(self, i: int, eye: Tensor) -> Tensor:
        """Pool the identity [1, in, in] as axis i is pooled: [1, in, out]."""
        out: Tensor = F.avg_pool1d(eye, *self.windows[i], *self.edges)  # type: ignore[call-arg]
        if self.divisor is None:
            return out
        return (out > 0).to(out) / (self.divisor if i == 0 else 1)  # the divisor once, not once per axis

    def _pull(self, v: Tensor, power: int) -> Tensor:
        for axis, matrix in enumerate(self.matrices, start=-self.axes):
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

    def read(self, output_size: Any) -> None:  # type: ignore[override]  # noqa: D102
        self.sizes = per_axis(output_size, self.axes)

    def _matrix(self, i: int, eye: Tensor) -> Tensor:
        size = self.sizes[i]
        return F.adaptive_avg_pool1d(eye, eye.shape[-1] if size is None else size)


class Resize(MeanPool):
    """Interpolation: separable too, its matrices read off by resizing the identity along one axis at a time."""

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return x in another size."""
        self.take(x)
        self.axes = x.ndim - 2
        self.matrices = []
        for axis in range(2, x.ndim):
            n = x.shape[axis]
            one = eye(n, x).view(n, 1, *(n if i == axis else 1 for i in range(2, x.ndim)))
            one = one.expand(n, 1, *x.shape[2:])  # weights along the other axes add up to one
            resized = self.func(one, *args, **kwargs)
            self.matrices.append(resized.movedim(axis, -1).flatten(1, -2)[:, 0].mT)
        return self.func(x, *args, **kwargs)


class AdaptiveMaxPool(MaxPool):
    """Max-pooling to a given output size."""

    def run(self, x: Tensor, output_size: Any, return_indices: bool = False) -> Any:  # type: ignore[override]
        """Return the maxima, and where they stood if that is asked for."""
        self.take(x)
        self.axes = int(self.func.__name__[-2])
        pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[self.axes - 1]
        y, self.index = pool(x, output_size, return_indices=True)
        return (y, self.index) if return_indices or self.func is not pool else y  # torch's own give both
