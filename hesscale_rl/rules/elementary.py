"""The rules of further element-wise functions: the rest of torch.nn's activations, and elementary mathematics."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import elementwise
from .rule import NotCovered


def _mish_d2f(m: Any, x: Tensor, y: Tensor, dy: Tensor) -> Tensor:
    t, s = torch.tanh(F.softplus(x)), torch.sigmoid(x)
    dt = (1 - t * t) * s
    return 2 * dt + x * (dt * (1 - s) - 2 * t * dt * s)


def _mish_df(m: Any, x: Tensor, y: Tensor) -> Tensor:
    t = torch.tanh(F.softplus(x))
    return t + x * (1 - t * t) * torch.sigmoid(x)


def _inside(x: Tensor, low: Any, high: Any) -> Tensor:
    """One where x is not held by the bounds, which may be None."""
    inside = torch.ones_like(x, dtype=torch.bool)
    inside = inside if low is None else inside & (x >= low)
    return (inside if high is None else inside & (x <= high)).to(x.dtype)


def _rrelu(m: Any) -> float:
    if m.training:
        raise NotCovered
    return (m.lower + m.upper) / 2


def _number(value: Any) -> Any:
    """A bound that is a number; one that is a tensor is an input, and not of an element-wise function of one."""
    if isinstance(value, Tensor):
        raise NotCovered
    return value


_ROOT_PI, _LN2, _LN10 = math.sqrt(math.pi), math.log(2), math.log(10)

Hardtanh = elementwise(
    lambda m, x: F.hardtanh(x, m.min_val, m.max_val),
    lambda m, x, y: ((x > m.min_val) & (x < m.max_val)).to(x.dtype),
    min_val=-1.0,
    max_val=1.0,
)
ReLU6 = elementwise(lambda m, x: F.relu6(x), lambda m, x, y: ((x > 0) & (x < 6)).to(x.dtype))
Hardsigmoid = elementwise(lambda m, x: F.hardsigmoid(x), lambda m, x, y: ((x > -3) & (x < 3)).to(x.dtype) / 6)
Hardswish = elementwise(
    lambda m, x: F.hardswish(x),
    lambda m, x, y: torch.where(x > 3, 1.0, torch.where(x < -3, 0.0, (2 * x + 3) / 6)),
    lambda m, x, y, dy: ((x > -3) & (x < 3)).to(x.dtype) / 3,
)
Softsign = elementwise(
    lambda m, x: F.softsign(x),
    lambda m, x, y: (1 + x.abs()) ** -2,
    lambda m, x, y, dy: -2 * x.sign() * (1 + x.abs()) ** -3,
)
Mish = elementwise(lambda m, x: F.mish(x), _mish_df, _mish_d2f)
CELU = elementwise(
    lambda m, x: F.celu(x, m.alpha),
    lambda m, x, y: (x.clamp(max=0) / m.alpha).exp(),
    lambda m, x, y, dy: torch.where(x > 0, 0.0, dy / m.alpha),
    alpha=1.0,
)
Tanhshrink = elementwise(
    lambda m, x: F.tanhshrink(x),
    lambda m, x, y: torch.tanh(x) ** 2,
    lambda m, x, y, dy: 2 * torch.tanh(x) * (1 - dy),
)
Softshrink = elementwise(
    lambda m, x: F.softshrink(x, m.lambd), lambda m, x, y: (x.abs() > m.lambd).to(x.dtype), lambd=0.5
)
Hardshrink = elementwise(
    lambda m, x: F.hardshrink(x, m.lambd), lambda m, x, y: (x.abs() > m.lambd).to(x.dtype), lambd=0.5
)
Threshold = elementwise(
    lambda m, x: F.threshold(x, m.threshold, m.value),
    lambda m, x, y: (x > m.threshold).to(x.dtype),
    threshold=0.0,
    value=0.0,
)
RReLU = elementwise(
    lambda m, x: F.leaky_relu(x, _rrelu(m)),
    lambda m, x, y: torch.where(x > 0, torch.ones_like(x), _rrelu(m)),
    lower=1 / 8,
    upper=1 / 3,
    training=False,
)
Clamp = elementwise(
    lambda m, x: x.clamp(_number(m.min), _number(m.max)),
    lambda m, x, y: _inside(x, m.min, m.max),
    min=None,
    max=None,
)
Neg = elementwise(lambda m, x: -x, lambda m, x, y: -torch.ones_like(x))
Abs = elementwise(lambda m, x: x.abs(), lambda m, x, y: x.sign())
Square = elementwise(lambda m, x: x * x, lambda m, x, y: 2 * x, lambda m, x, y, dy: torch.full_like(x, 2.0))
Sqrt = elementwise(lambda m, x: x.sqrt(), lambda m, x, y: 0.5 / y, lambda m, x, y, dy: -0.5 * dy / x)
Rsqrt = elementwise(lambda m, x: x.rsqrt(), lambda m, x, y: -0.5 * y / x, lambda m, x, y, dy: -1.5 * dy / x)
Reciprocal = elementwise(lambda m, x: 1 / x, lambda m, x, y: -y * y, lambda m, x, y, dy: -2 * y * dy)
Exp2 = elementwise(lambda m, x: x.exp2(), lambda m, x, y: _LN2 * y, lambda m, x, y, dy: _LN2 * dy)
Expm1 = elementwise(lambda m, x: x.expm1(), lambda m, x, y: y + 1, lambda m, x, y, dy: dy)
Log = elementwise(lambda m, x: x.log(), lambda m, x, y: 1 / x, lambda m, x, y, dy: -dy * dy)
Log1p = elementwise(lambda m, x: x.log1p(), lambda m, x, y: 1 / (1 + x), lambda m, x, y, dy: -dy * dy)
Log2 = elementwise(lambda m, x: x.log2(), lambda m, x, y: 1 / (_LN2 * x), lambda m, x, y, dy: -dy / x)
Log10 = elementwise(lambda m, x: x.log10(), lambda m, x, y: 1 / (_LN10 * x), lambda m, x, y, dy: -dy / x)
Sin = elementwise(lambda m, x: x.sin(), lambda m, x, y: x.cos(), lambda m, x, y, dy: -y)
Cos = elementwise(lambda m, x: x.cos(), lambda m, x, y: -x.sin(), lambda m, x, y, dy: -y)
Tan = elementwise(lambda m, x: x.tan(), lambda m, x, y: 1 + y * y, lambda m, x, y, dy: 2 * y * dy)
Asin = elementwise(lambda m, x: x.asin(), lambda m, x, y: (1 - x * x).rsqrt(), lambda m, x, y, dy: x * dy**3)
Acos = elementwise(lambda m, x: x.acos(), lambda m, x, y: -(1 - x * x).rsqrt(), lambda m, x, y, dy: x * dy**3)
Atan = elementwise(lambda m, x: x.atan(), lambda m, x, y: 1 / (1 + x * x), lambda m, x, y, dy: -2 * x * dy * dy)
Sinh = elementwise(lambda m, x: x.sinh(), lambda m, x, y: x.cosh(), lambda m, x, y, dy: y)
Cosh = elementwise(lambda m, x: x.cosh(), lambda m, x, y: x.sinh(), lambda m, x, y, dy: y)
Asinh = elementwise(lambda m, x: x.asinh(), lambda m, x, y: (1 + x * x).rsqrt(), lambda m, x, y, dy: -x * dy**3)
Atanh = elementwise(lambda m, x: x.atanh(), lambda m, x, y: 1 / (1 - x * x), lambda m, x, y, dy: 2 * x * dy * dy)
Erf = elementwise(
    lambda m, x: torch.erf(x),
    lambda m, x, y: 2 / _ROOT_PI * (-x * x).exp(),
    lambda m, x, y, dy: -2 * x * dy,
)
