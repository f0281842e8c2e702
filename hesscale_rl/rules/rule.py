"""One Rule per layer type: all that the reverse pass knows about a layer.

A Rule is one layer y = f(x; p) in one forward pass, with the samples on axis 0, and these primitives:

    vjp(v)      J'v                            J = dy/dx, per sample
    vjp_sq(d)   (J*J)'d                        the same with every entry of J squared
    second(g)   diag(sum_k g_k Hess_x y_k)     None where f is piecewise linear in x
    grad(v)     J_p'v, summed over the samples, and
    grad_sq(d)  (J_p*J_p)'d, likewise; J_p = dy/dp, y linear in p

These are enough for gradients and diagonals. The methods that keep more (curvature/ggn.py, hbp.py) also take

    grad_each(v)   J_p'v of every sample
    rows, cols(v)  of an Affine layer, y = W rows at every position: dL/dW = sum cols(g) rows'
    hessian(g)     the whole of sum_k g_k Hess_x y_k, per sample
    sandwich(h)    J'hJ per sample, made of vjp unless a rule knows better

Two facts give most of them. Where y is linear in x with coefficients w, `vjp_sq` is `vjp` with w*w; where it is
linear in its parameters with coefficients x, `grad_sq` is `grad` with x*x. For a convolution the squares are again
a convolution, so nothing is ever unfolded. Where J holds only zeros and ones (reshape, max-pooling), J*J = J.

A new layer is one row of RULES (or a call of `register`) and one test case.
Letters, here and everywhere: N samples, C outputs, I/O inputs and outputs of a layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import vmap


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


class MissingPrimitive(Exception):
    """A primitive that a curvature needs and a rule does not define; the tape adds the curvature's name."""

    def __init__(self, rule: "Rule", primitive: str):
        super().__init__(f"{type(rule).__name__} defines no {primitive}")
        self.rule, self.primitive = rule, primitive


class Rule:
    """One layer in one forward pass: `layer`, its weights `p` by name, the input `x`, the output `y`.

    `trained`: those of `p` that are the layer's parameters; others are buffers or plain tensors, and constants.
    """

    parameters: frozenset[str] = frozenset({"weight", "bias"})  # the names that the rule knows in a layer
    path = ""  # where the layer stands in the network, "2.body.0."; set by the tape
    one_use = False  # whether a parameter acts on one entry of a sample's output at most: (J_p'v)^2 = (J_p*J_p)'v^2
    branches: Sequence[list["Rule"]] = ()  # tapes that run side by side; only in a Branching rule

    def __init__(self, layer: Any, p: dict[str, Tensor], x: Tensor):
        self.layer, self.p, self.x = layer, p, x
        self.trained = p
        self.y = self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return y; keep what the primitives need. An error of torch's is told with the layer's place."""
        return self.layer(x)

    def need(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the weight `name` has another shape than `shape`: nothing is broadcast."""
        if name in self.p and self.p[name].shape != shape:
            raise ValueError(f"its {name} has the shape {list(self.p[name].shape)}, expected {list(shape)}")

    def vjp(self, v: Tensor) -> Tensor:
        """J'v: v has y's shape, the result x's."""
        raise MissingPrimitive(self, "vjp")

    def vjp_sq(self, d: Tensor) -> Tensor:
        """(J*J)'d; as it stands where J holds only zeros and ones."""
        return self.vjp(d)

    def second(self, g: Tensor) -> Tensor | None:
        """diag(sum_k g_k Hess y_k) in x's shape; None where f is piecewise linear in x."""
        return None

    def grad(self, v: Tensor) -> dict[str, Tensor]:
        """J_p'v summed over the samples, by parameter name."""
        if self.p:
            raise MissingPrimitive(self, "grad")
        return {}

    def grad_sq(self, d: Tensor) -> dict[str, Tensor]:
        """(J_p*J_p)'d summed over the samples, by parameter name."""
        if self.p:
            raise MissingPrimitive(self, "grad_sq")
        return {}

    def grad_each(self, v: Tensor) -> dict[str, Tensor]:
        """J_p'v of every sample, [N, *] by parameter name."""
        if self.p:
            raise MissingPrimitive(self, "grad_each")
        return {}

    def hessian(self, g: Tensor) -> Tensor | None:
        """sum_k g_k Hess y_k per sample, [N, d, d] with d the entries of x; None where f is piecewise linear."""
        if self.second(g) is not None:
            raise MissingPrimitive(self, "hessian")
        return None

    def left(self, h: Tensor) -> Tensor:
        """J'h per sample: h is [N, entries of y, k], the result [N, entries of x, k]."""
        return columns(self.vjp, h, self.y.shape[1:])

    def sandwich(self, h: Tensor) -> Tensor:
        """J'hJ per sample: h [N, d, d] is symmetric over the entries of y, the result over those of x."""
        return self.left(self.left(h).mT)

    def mean_sandwich(self, h: Tensor, jacobian: bool) -> Tensor:
        """The samples' mean of J'hJ for one h [1, d, d]; with `jacobian`, J'hJ for the samples' mean of J."""
        n = len(self.x)
        if not jacobian:
            return self.sandwich(h.expand(n, -1, -1)).mean(0, keepdim=True)
        half = self.left(h.expand(n, -1, -1)).mean(0, keepdim=True)
        return self.left(half.mT.expand(n, -1, -1)).mean(0, keepdim=True)


def columns(f: Callable[[Tensor], Tensor], h: Tensor, shape: Sequence[int]) -> Tensor:
    """Apply f to every column of h [N, d, k], the d entries in `shape`; return [N, entries of the result, k]."""
    stacked = h.permute(2, 0, 1).reshape(h.shape[2], len(h), *shape)
    return vmap(f)(stacked).flatten(2).permute(1, 2, 0)


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
