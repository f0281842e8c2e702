"""One Rule per layer type: all that the reverse pass knows about a layer.

A Rule is one layer y = f(x; p) in one forward pass, with the samples on axis 0, and these primitives:

    vjp(v)      J'v                            J = dy/dx, per sample
    vjp_sq(d)   (J*J)'d                        the same with every entry of J squared
    second(g)   diag(sum_k g_k Hess_x y_k)     None where f is piecewise linear in x
    grad(v)     J_p'v, summed over the samples, and
    grad_sq(d)  (J_p*J_p)'d, likewise; J_p = dy/dp, y linear in p

Two facts give most of them. Where y is linear in x with coefficients w, `vjp_sq` is `vjp` with w*w; where it is
linear in its parameters with coefficients x, `grad_sq` is `grad` with x*x. For a convolution the squares are again
a convolution, so nothing is ever unfolded. Where J holds only zeros and ones (reshape, max-pooling), J*J = J.

A new layer is one row of RULES (or a call of `register`) and one test case.
Letters, here and everywhere: N samples, C outputs, I/O inputs and outputs of a layer.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import networks


class UnsupportedLayerError(NotImplementedError):
    """A layer that no rule covers; the message names its path, its type and the ways out."""

    def __init__(self, path: str, layer: nn.Module, reason: str):
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        super().__init__(
            f"layer {path.rstrip('.') or '(the network itself)'!s} of type {kind}: {reason}. Ways out: compose "
            "the network from supported layers with nn.Sequential, hesscale_rl.networks.Skip and Heads; or "
            f"register a rule, hesscale_rl.register({type(layer).__qualname__}, MyRule), with MyRule a subclass of "
            "hesscale_rl.rules.Rule; or train this network by autograd and set p.hess_diag yourself"
        )


class Refusal(Exception):
    """Why a rule cannot treat its layer as it is configured; `record` adds where the layer stands."""


def has_hooks(layer: Any) -> bool:
    """Whether a layer has hooks, which no pass here would run: reparametrisations, or a user's own."""
    return bool(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )


class Rule:
    """One layer in one forward pass: `layer`, its parameters `p` by name, the input `x`, the output `y`."""

    parameters = frozenset({"weight", "bias"})  # the names that the rule knows in a layer
    path = ""  # where the layer stands in the network, "2.body.0."; set by the tape
    branches: Sequence[list["Rule"]] = ()  # tapes that run side by side; only in a Branching rule

    def __init__(self, layer: Any, p: dict[str, Tensor], x: Tensor):
        self.layer, self.p, self.x = layer, p, x
        self.y = self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return y; keep what the primitives need."""
        return self.layer(x)

    def vjp(self, v: Tensor) -> Tensor:
        """J'v: v has y's shape, the result x's."""
        raise NotImplementedError(f"{type(self).__name__} defines no vjp")

    def vjp_sq(self, d: Tensor) -> Tensor:
        """(J*J)'d; as it stands where J holds only zeros and ones."""
        return self.vjp(d)

    def second(self, g: Tensor) -> Tensor | None:
        """diag(sum_k g_k Hess y_k) in x's shape; None where f is piecewise linear in x."""
        return None

    def grad(self, v: Tensor) -> dict[str, Tensor]:
        """J_p'v summed over the samples, by parameter name."""
        return {}

    def grad_sq(self, d: Tensor) -> dict[str, Tensor]:
        """(J_p*J_p)'d summed over the samples, by parameter name."""
        return {}


# --- element-wise functions


class Elementwise(Rule):
    """y = f(x) entry by entry, from f, its slope f' and its bend f''; made by `elementwise`."""

    f: Callable[[Any, Tensor], Tensor]
    slope: Callable[[Any, Tensor, Tensor], Tensor]
    bend: Callable[[Any, Tensor, Tensor, Tensor], Tensor] | None

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x), never by the module itself: it may work in place and destroy x."""
        y = type(self).f(self.layer, x)
        self.dy = type(self).slope(self.layer, x, y)
        return y

    def vjp(self, v: Tensor) -> Tensor:
        """f'(x) v."""
        return self.dy * v

    def vjp_sq(self, d: Tensor) -> Tensor:
        """f'(x)^2 d."""
        return self.dy * (self.dy * d)

    def second(self, g: Tensor) -> Tensor | None:
        """f''(x) g."""
        bend = type(self).bend
        return None if bend is None else bend(self.layer, self.x, self.y, self.dy) * g


def elementwise(f: Callable, slope: Callable, bend: Callable | None = None) -> type[Elementwise]:
    """Return the rule of an element-wise layer m.

    f(m, x); slope(m, x, y) = f'(x); bend(m, x, y, dy) = f''(x) with dy = f'(x), None for a piecewise linear f.
    """
    return type("Elementwise", (Elementwise,), {"f": f, "slope": slope, "bend": bend})


def _phi(x: Tensor) -> Tensor:
    """The standard normal density."""
    return torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def _gelu_slope(m: nn.GELU, x: Tensor, y: Tensor) -> Tensor:
    if m.approximate == "none":
        return torch.special.ndtr(x) + x * _phi(x)
    t, du, _ = _gelu_tanh(x)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du


def _gelu_bend(m: nn.GELU, x: Tensor, y: Tensor, dy: Tensor) -> Tensor:
    if m.approximate == "none":
        return _phi(x) * (2 - x * x)
    t, du, d2u = _gelu_tanh(x)
    return (1 - t * t) * (du + 0.5 * x * (d2u - 2 * t * du * du))


def _gelu_tanh(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tanh u, u' and u'' for GELU's approximation y = x (1 + tanh u)/2, u = k (x + c x^3)."""
    k, c = math.sqrt(2 / math.pi), 0.044715
    return torch.tanh(k * (x + c * x**3)), k * (1 + 3 * c * x * x), 6 * k * c * x


def _softplus_slope(m: nn.Softplus, x: Tensor, y: Tensor) -> Tensor:
    # Above the threshold torch returns x itself: slope one, no bend.
    return torch.where(m.beta * x > m.threshold, 1.0, torch.sigmoid(m.beta * x))


def _exp_below_zero(x: Tensor, a: float) -> Tensor:
    """a e^x for x <= 0, else 0; the exponent is held at 0 above so that it cannot overflow."""
    return torch.where(x > 0, 0.0, a * torch.exp(x.clamp(max=0)))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

_RELU = elementwise(lambda m, x: torch.relu(x), lambda m, x, y: (x > 0).to(x.dtype))
_LEAKY_RELU = elementwise(
    lambda m, x: F.leaky_relu(x, m.negative_slope),
    lambda m, x, y: torch.where(x > 0, torch.ones_like(x), m.negative_slope),
)
_ELU = elementwise(
    lambda m, x: F.elu(x, m.alpha),
    lambda m, x, y: (x > 0) + _exp_below_zero(x, m.alpha),
    lambda m, x, y, dy: _exp_below_zero(x, m.alpha),
)
_SELU = elementwise(
    lambda m, x: F.selu(x),
    lambda m, x, y: _SELU_SCALE * ((x > 0) + _exp_below_zero(x, _SELU_ALPHA)),
    lambda m, x, y, dy: _SELU_SCALE * _exp_below_zero(x, _SELU_ALPHA),
)
_GELU = elementwise(lambda m, x: F.gelu(x, approximate=m.approximate), _gelu_slope, _gelu_bend)
_TANH = elementwise(lambda m, x: torch.tanh(x), lambda m, x, y: 1 - y * y, lambda m, x, y, dy: (-2 * y) * dy)
_SIGMOID = elementwise(
    lambda m, x: torch.sigmoid(x), lambda m, x, y: y * (1 - y), lambda m, x, y, dy: dy * (1 - 2 * y)
)
_LOG_SIGMOID = elementwise(
    lambda m, x: F.logsigmoid(x), lambda m, x, y: torch.sigmoid(-x), lambda m, x, y, dy: -dy * (1 - dy)
)
_SOFTPLUS = elementwise(
    lambda m, x: F.softplus(x, m.beta, m.threshold),
    _softplus_slope,
    lambda m, x, y, dy: m.beta * dy * (1 - dy),
)
_EXP = elementwise(lambda m, x: x.exp(), lambda m, x, y: y, lambda m, x, y, dy: y)


class SiLU(Elementwise):
    """y = x s with s the sigmoid of x; f' = s + y (1 - s), f'' = s (1 - s) (2 + x (1 - 2 s))."""

    f = staticmethod(lambda m, x: F.silu(x))
    slope = staticmethod(lambda m, x, y: (s := torch.sigmoid(x)) + y * (1 - s))
    bend = staticmethod(lambda m, x, y, dy: (s := torch.sigmoid(x)) * (1 - s) * (2 + x * (1 - 2 * s)))


# --- linear layers, and what agents put around them


class Linear(Rule):
    """y = x W' + b on the last axis; axes between the samples and it are positions that share W."""

    def vjp(self, v: Tensor) -> Tensor:
        """V W."""
        return v @ self.p["weight"]

    def vjp_sq(self, d: Tensor) -> Tensor:
        """D (W*W)."""
        return d @ self.p["weight"].square()

    def forward(self, x: Tensor) -> Tensor:
        """x W' + b."""
        return F.linear(x, self.p["weight"], self.p.get("bias"))

    def _read(self, v: Tensor, x: Tensor) -> dict[str, Tensor]:
        if v.ndim > 2:
            v, x = v.flatten(0, -2), x.flatten(0, -2)
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


class GaussianHead(Rule):
    """y = [x, log_std]: the first half passes, the second is the parameter itself."""

    parameters = frozenset({"log_std"})

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 2 n]."""
        if x.shape[1:] != self.p["log_std"].shape:
            raise Refusal(f"it has {self.p['log_std'].numel()} actions, and its input the shape {list(x.shape)}")
        return torch.cat([x, self.p["log_std"].expand_as(x)], dim=1)

    def vjp(self, v: Tensor) -> Tensor:
        """The first half of v."""
        return v[:, : self.x.shape[1]]

    def grad(self, v: Tensor) -> dict[str, Tensor]:
        """The sum of the second half of v; its Jacobian holds only zeros and ones."""
        return {"log_std": v[:, self.x.shape[1] :].sum(0)}

    def grad_sq(self, d: Tensor) -> dict[str, Tensor]:
        """The same."""
        return self.grad(d)


class Reshape(Rule):
    """Flatten, Unflatten and Identity: the same entries in another shape."""

    def vjp(self, v: Tensor) -> Tensor:
        """v in x's shape."""
        return v.reshape(self.x.shape)


# --- compositions


class Branching(Rule):
    """A composition of branches that see the same input: `join` makes y of their outputs, `split` is its way back.

    Both are linear with zeros and ones, so `split` serves gradients and diagonals alike.
    """

    def __init__(self, layer: Any, x: Tensor, branches: Sequence[list[Rule]], outputs: Sequence[Tensor], path: str):
        self.layer, self.p, self.x, self.branches, self.outputs, self.path = layer, {}, x, branches, outputs, path
        self.y = self.join()

    @staticmethod
    def parts(layer: Any) -> dict[str, nn.Module]:
        """Return the branches by their names in the layer."""
        raise NotImplementedError

    def join(self) -> Tensor:
        """Return y from the branches' outputs."""
        raise NotImplementedError

    def split(self, v: Tensor) -> list[Tensor]:
        """Return what of v (in y's shape) belongs to each branch's output."""
        raise NotImplementedError


class Skip(Branching):
    """y = x + body(x): an empty branch beside the body."""

    @staticmethod
    def parts(layer: Any) -> dict[str, nn.Module]:
        """Nothing, which passes x, and the body."""
        return {"": nn.Sequential(), "body": layer.body}

    def join(self) -> Tensor:
        """Return the sum."""
        if self.outputs[1].shape != self.x.shape:
            shapes = f"{list(self.x.shape)} to {list(self.outputs[1].shape)}"
            raise ValueError(f"Skip {self.path.rstrip('.') or '(the network itself)'}: its body maps {shapes}")
        return self.x + self.outputs[1]

    def split(self, v: Tensor) -> list[Tensor]:
        """V for both."""
        return [v, v]


class Heads(Branching):
    """y = the branches' outputs side by side."""

    @staticmethod
    def parts(layer: Any) -> dict[str, nn.Module]:
        """The branches."""
        return {f"branches.{i}": branch for i, branch in enumerate(layer.branches)}

    def join(self) -> Tensor:
        """Return [N, sum C_i]."""
        return torch.cat(list(self.outputs), dim=1)

    def split(self, v: Tensor) -> list[Tensor]:
        """Each branch's columns of v."""
        return list(v.split([y.shape[1] for y in self.outputs], dim=1))


RULES: dict[type[nn.Module], type[Rule]] = {
    nn.Linear: Linear,
    networks.GaussianHead: GaussianHead,
    networks.Skip: Skip,
    networks.Heads: Heads,
    nn.Flatten: Reshape,
    nn.Unflatten: Reshape,
    nn.Identity: Reshape,
    nn.ReLU: _RELU,
    nn.LeakyReLU: _LEAKY_RELU,
    nn.ELU: _ELU,
    nn.SELU: _SELU,
    nn.GELU: _GELU,
    nn.SiLU: SiLU,
    nn.Tanh: _TANH,
    nn.Sigmoid: _SIGMOID,
    nn.LogSigmoid: _LOG_SIGMOID,
    nn.Softplus: _SOFTPLUS,
    networks.Exp: _EXP,
}  # and the rows of layers.py: convolutions, normalisations, pooling


def register(layer: type[nn.Module], rule: type[Rule]) -> None:
    """Make `rule` the rule of the module type `layer` (of exactly this type, not of its subclasses)."""
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise TypeError(f"register: the first argument must be a subclass of torch.nn.Module, got {layer!r}")
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise TypeError(f"register: the second argument must be a subclass of rules.Rule, got {rule!r}")
    RULES[layer] = rule


from . import layers as _layers  # noqa: E402, F401 - its rows complete RULES, and it needs the names above
