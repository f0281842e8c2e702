"""The rule of convolutions and transposed convolutions."""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.checks import eye
from .linear import Affine, Layout
from .rule import NotCovered, arguments


def per_axis(value: Any, axes: int) -> list[Any]:
    """Return a setting for every axis."""
    values = list(value) if isinstance(value, tuple | list) else [value]
    return values * axes if len(values) == 1 else values


class Conv(Affine):
    """Convolutions and transposed convolutions of one to three dimensions, with groups, stride, dilation.

    Every product is one call of torch's convolution backward, with W*W and x*x for the squares: nothing is unfolded
    but for the methods that ask for `rows`.
    """

    transposed = False

    settings = dict(stride=1, padding=0, dilation=1, groups=1)  # as the torch function has them, in order

    def run(self, x: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """Return the convolution of x [N, I, *] with W."""
        geometry = arguments(self.settings, args, kwargs)
        return self.convolve(x, weight, bias, geometry)

    def convolve(self, x: Tensor, weight: Tensor, bias: Any, geometry: dict[str, Any]) -> Tensor:
        """Return y, through the operation that its backward belongs to."""
        axes = weight.ndim - 2
        if x.ndim != axes + 2:
            raise NotCovered
        self.take(x, weight=weight, bias=bias)
        padding, self.groups = geometry["padding"], geometry["groups"]
        stride, dilation = (per_axis(geometry[name], axes) for name in ("stride", "dilation"))
        beyond = per_axis(geometry.get("output_padding", 0), axes)
        self.kernel = weight.shape[2:]
        self.right: list[int] = []  # zeros wanted at the far ends beyond a symmetric padding
        if padding == "valid":
            padding = 0
        elif padding == "same":
            if any(s != 1 for s in stride):
                raise ValueError(f"padding='same' has no meaning for stride={stride}")
            total = [d * (k - 1) for d, k in zip(dilation, self.kernel, strict=True)]
            padding = [t // 2 for t in total]
            if any(t % 2 for t in total):
                self.right = [n for t in reversed(total) for n in (0, t % 2)]
                self.x = x = F.pad(x, self.right)
        self.geometry = (stride, per_axis(padding, axes), dilation, self.transposed, beyond, self.groups)
        return torch.convolution(x, weight, bias, *self.geometry)

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
        return Layout(self.p["weight"].shape, self.groups, self.transposed)

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
        return v.reshape(len(v), self.groups, v.shape[1] // self.groups, -1).mT


class ConvTranspose(Conv):
    """A transposed convolution; its weight is [I, O, *kernel]."""

    transposed = True
    settings = dict(stride=1, padding=0, output_padding=0, groups=1, dilation=1)
