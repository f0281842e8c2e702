"""The rules of element-wise functions, each from its function and its two derivatives."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rule import CallSettings, Rule, arguments


class Elementwise(Rule):
    """y = f(x) entry by entry, from f, df = f' and d2f = f''; made by `elementwise`."""

    diagonal = True
    parameters = frozenset()
    f: Callable[[Any, Tensor], Tensor]
    df: Callable[[Any, Tensor, Tensor], Tensor]
    d2f: Callable[[Any, Tensor, Tensor, Tensor], Tensor] | None
    settings: dict[str, Any] = {}  # the torch function's arguments after x, in order, with their defaults
    _dy: Tensor | None = None  # torch.compile knows no functools.cached_property

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return f(x) with the settings of a call of the torch function."""
        self.take(x)
        self.layer = CallSettings(**arguments(self.settings, args, kwargs))
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x), never by the module itself: it may work in place and destroy x."""
        return type(self).f(self.layer, x)

    @property
    def dy(self) -> Tensor:
        """f'(x), not before it is asked for: from the pass forward on it would be a third of all that is held."""
        if self._dy is None:
            self._dy = type(self).df(self.layer, self.x, self.y)
        return self._dy

    def vjp(self, v: Tensor) -> Tensor:
        """f'(x) v."""
        return self.dy * v

    def vjp_sq(self, d: Tensor) -> Tensor:
        """f'(x)^2 d."""
        return self.dy * (self.dy * d)

    def second(self, g: Tensor) -> Tensor | None:
        """f''(x) g."""
        d2f = type(self).d2f
        return None if d2f is None else d2f(self.layer, self.x, self.y, self.dy) * g

    def hessian(self, g: Tensor) -> Tensor | None:
        """f''(x) g on the diagonal."""
        d2f = self.second(g)
        return None if d2f is None else d2f.flatten(1).diag_embed()

    def sandwich(self, h: Tensor) -> Tensor:
        """f' h f'."""
        dy = self.dy.flatten(1)
        return dy[:, :, None] * h * dy[:, None]

    def mean_sandwich(self, h: Tensor, jacobian: bool) -> Tensor:
        """h times the mean of f' f'', or the means' product, entry by entry."""
        dy = self.dy.flatten(1)
        return h * (torch.outer(dy.mean(0), dy.mean(0)) if jacobian else dy.mT @ dy / len(dy))


def elementwise(f: Callable, df: Callable, d2f: Callable | None = None, **settings: Any) -> type[Elementwise]:
    """Return the rule of an element-wise module m, or of a torch function, m then its `settings` as they were given.

    f(m, x); df(m, x, y) = f'(x); d2f(m, x, y, dy) = f''(x) with dy = f'(x), None for a piecewise linear f.
    `settings`: the function's arguments after x, in order, with their defaults.
    """
    return type("Elementwise", (Elementwise,), {"f": f, "df": df, "d2f": d2f, "settings": settings})


def _phi(x: Tensor) -> Tensor:
    """The standard normal density."""
    return torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def _gelu_df(m: Any, x: Tensor, y: Tensor) -> Tensor:
    if m.approximate == "none":
        return torch.special.ndtr(x) + x * _phi(x)
    t, du, _ = _gelu_tanh(x)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du


def _gelu_d2f(m: Any, x: Tensor, y: Tensor, dy: Tensor) -> Tensor:
    if m.approximate == "none":
        return _phi(x) * (2 - x * x)
    t, du, d2u = _gelu_tanh(x)
    return (1 - t * t) * (du + 0.5 * x * (d2u - 2 * t * du * du))


def _gelu_tanh(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tanh u, u' and u'' for GELU's approximation y = x (1 + tanh u)/2, u = k (x + c x^3)."""
    k, c = math.sqrt(2 / math.pi), 0.044715
    return torch.tanh(k * (x + c * x**3)), k * (1 + 3 * c * x * x), 6 * k * c * x


def _softplus_df(m: Any, x: Tensor, y: Tensor) -> Tensor:
    # Above the threshold torch returns x itself: f' = 1, f'' = 0.
    return torch.where(m.beta * x > m.threshold, 1.0, torch.sigmoid(m.beta * x))


def _elu_df(x: Tensor, a: float) -> Tensor:
    """1 for x > 0, else a e^x; the exponent is held at 0 above so that it cannot overflow."""
    dy = x.clamp(max=0).exp()
    return dy if a == 1 else torch.where(x > 0, 1.0, a * dy)


def _below_zero(x: Tensor, dy: Tensor) -> Tensor:
    """What dy is for x <= 0, where such an f is its own derivative but for a constant; else 0."""
    return torch.where(x > 0, 0.0, dy)


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

ReLU = elementwise(lambda m, x: torch.relu(x), lambda m, x, y: (x > 0).to(x.dtype))
LeakyReLU = elementwise(
    lambda m, x: F.leaky_relu(x, m.negative_slope),
    lambda m, x, y: torch.where(x > 0, torch.ones_like(x), m.negative_slope),
    negative_slope=0.01,
)
ELU = elementwise(
    lambda m, x: F.elu(x, m.alpha),
    lambda m, x, y: _elu_df(x, m.alpha),
    lambda m, x, y, dy: _below_zero(x, dy),
    alpha=1.0,
)
SELU = elementwise(
    lambda m, x: F.selu(x),
    lambda m, x, y: _SELU_SCALE * _elu_df(x, _SELU_ALPHA),
    lambda m, x, y, dy: _below_zero(x, dy),
)
GELU = elementwise(lambda m, x: F.gelu(x, approximate=m.approximate), _gelu_df, _gelu_d2f, approximate="none")
Tanh = elementwise(lambda m, x: torch.tanh(x), lambda m, x, y: 1 - y * y, lambda m, x, y, dy: (-2 * y) * dy)
Sigmoid = elementwise(
    lambda m, x: torch.sigmoid(x), lambda m, x, y: y * (1 - y), lambda m, x, y, dy: dy * (1 - 2 * y)
)
LogSigmoid = elementwise(
    lambda m, x: F.logsigmoid(x), lambda m, x, y: torch.sigmoid(-x), lambda m, x, y, dy: -dy * (1 - dy)
)
Softplus = elementwise(
    lambda m, x: F.softplus(x, m.beta, m.threshold),
    _softplus_df,
    lambda m, x, y, dy: m.beta * dy * (1 - dy),
    beta=1.0,
    threshold=20.0,
)
Exp = elementwise(lambda m, x: x.exp(), lambda m, x, y: y, lambda m, x, y, dy: y)


class SiLU(Elementwise):
    """y = x s with s the sigmoid of x; f' = s + y (1 - s), f'' = s (1 - s) (2 + x (1 - 2 s))."""

    f = staticmethod(lambda m, x: F.silu(x))
    df = staticmethod(lambda m, x, y: (s := torch.sigmoid(x)) + y * (1 - s))
    d2f = staticmethod(lambda m, x, y, dy: (s := torch.sigmoid(x)) * (1 - s) * (2 + x * (1 - 2 * s)))
