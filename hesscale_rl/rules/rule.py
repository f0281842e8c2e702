"""One Rule per layer type: all that the reverse pass knows about a layer.

A Rule is one layer y = f(x; p) in one forward pass, with the samples on axis 0, and these primitives:

    vjp(v)      J'v                            J = dy/dx, per sample
    vjp_sq(d)   (J*J)'d                        the same with every entry of J squared
    second(g)   diag(sum_k g_k Hess_x y_k)     None where f is piecewise linear in x
    grad(v)     J_p'v, summed over the samples, and
    grad_sq(d)  (J_p*J_p)'d, likewise; J_p = dy/dp, y linear in p

These are enough for gradients and diagonals. The methods that keep more (gauss_newton.py, blocks.py) also take

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
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from .. import networks


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


class Lacking(Exception):
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
        raise Lacking(self, "vjp")

    def vjp_sq(self, d: Tensor) -> Tensor:
        """(J*J)'d; as it stands where J holds only zeros and ones."""
        return self.vjp(d)

    def second(self, g: Tensor) -> Tensor | None:
        """diag(sum_k g_k Hess y_k) in x's shape; None where f is piecewise linear in x."""
        return None

    def grad(self, v: Tensor) -> dict[str, Tensor]:
        """J_p'v summed over the samples, by parameter name."""
        if self.p:
            raise Lacking(self, "grad")
        return {}

    def grad_sq(self, d: Tensor) -> dict[str, Tensor]:
        """(J_p*J_p)'d summed over the samples, by parameter name."""
        if self.p:
            raise Lacking(self, "grad_sq")
        return {}

    def grad_each(self, v: Tensor) -> dict[str, Tensor]:
        """J_p'v of every sample, [N, *] by parameter name."""
        if self.p:
            raise Lacking(self, "grad_each")
        return {}

    def hessian(self, g: Tensor) -> Tensor | None:
        """sum_k g_k Hess y_k per sample, [N, d, d] with d the entries of x; None where f is piecewise linear."""
        if self.second(g) is not None:
            raise Lacking(self, "hessian")
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


# --- linear layers, and what agents put around them


class Layout(NamedTuple):
    """How a weight's entries are those of G matrices [O, R], one for each group: y = W rows at every position."""

    shape: torch.Size
    groups: int = 1
    transposed: bool = False  # [I, O, *kernel] instead of [O, I, *kernel], as transposed convolutions have it

    def pack(self, w: Tensor) -> Tensor:
        """Return [*, G, O, R] of a weight, or of several, [*, *shape]."""
        lead, g = w.shape[: w.ndim - len(self.shape)], self.groups
        if not self.transposed:
            return w.reshape(*lead, g, self.shape[0] // g, -1)
        split = w.reshape(*lead, g, self.shape[0] // g, self.shape[1], -1)
        return split.transpose(-3, -2).flatten(-2)

    def unpack(self, m: Tensor) -> Tensor:
        """Return [*, *shape] of m [*, G, O, R]."""
        if self.transposed:
            inputs = self.shape[0] // self.groups
            m = m.unflatten(-1, (inputs, -1)).transpose(-3, -2)
        return m.reshape(*m.shape[: m.ndim - 3 - self.transposed], *self.shape)


class Affine(Rule):
    """y = W rows + b at each of Q positions; the base of Linear and of convolutions."""

    layout: Layout

    @cached_property
    def rows(self) -> Tensor:
        """What the weights multiply, [N, G, Q, R]."""
        raise NotImplementedError

    def cols(self, v: Tensor) -> Tensor:
        """v, in the shape of y, as [N, G, Q, O]."""
        raise NotImplementedError

    def grad_each(self, v: Tensor) -> dict[str, Tensor]:
        """cols rows' and the columns' sum over the positions, of every sample."""
        cols = self.cols(v)
        out = {"weight": self.layout.unpack(torch.einsum("ngqo,ngqr->ngor", cols, self.rows))}
        if "bias" in self.p:
            out["bias"] = cols.sum(2).flatten(1)
        return out


class Linear(Affine):
    """y = x W' + b on the last axis; axes between the samples and it are positions that share W."""

    def forward(self, x: Tensor) -> Tensor:
        """x W' + b."""
        shape = self.p["weight"].shape
        if len(shape) != 2:
            raise ValueError(f"its weight has the shape {list(shape)}, expected [O, {x.shape[-1]}]")
        self.need("bias", shape[:1])
        self.one_use = x.ndim == 2
        return F.linear(x, self.p["weight"], self.p.get("bias"))

    def vjp(self, v: Tensor) -> Tensor:
        """V W."""
        return v @ self.p["weight"]

    def vjp_sq(self, d: Tensor) -> Tensor:
        """D (W*W)."""
        return d @ self.p["weight"].square()

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

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        """One group."""
        return Layout(self.p["weight"].shape)

    @cached_property
    def rows(self) -> Tensor:
        """The inputs at every position."""
        return self.cols(self.x)

    def cols(self, v: Tensor) -> Tensor:
        """The axes between the samples and the last as one."""
        return v.reshape(len(v), 1, -1, v.shape[-1])

    def sandwich(self, h: Tensor) -> Tensor:
        """W'hW."""
        w = self.p["weight"]
        return w.mT @ h @ w if self.one_use else super().sandwich(h)

    def mean_sandwich(self, h: Tensor, jacobian: bool) -> Tensor:
        """The same: J is that of every sample."""
        return self.sandwich(h) if self.one_use else super().mean_sandwich(h, jacobian)


class GaussianHead(Rule):
    """y = [x, log_std]: the first half passes, the second is the parameter itself."""

    parameters = frozenset({"log_std"})
    one_use = True

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

    def grad_each(self, v: Tensor) -> dict[str, Tensor]:
        """The second half of v."""
        return {"log_std": v[:, self.x.shape[1] :]}


class Reshape(Rule):
    """Flatten, Unflatten and Identity: the same entries in another shape."""

    parameters = frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """Return x in the layer's shape, with the samples where they were."""
        y: Tensor = self.layer(x)
        if y.shape[:1] != x.shape[:1]:
            raise Refusal(f"it maps {list(x.shape)} to {list(y.shape)}, and axis 0 must stay the samples'")
        return y

    def vjp(self, v: Tensor) -> Tensor:
        """v in x's shape."""
        return v.reshape(self.x.shape)

    def sandwich(self, h: Tensor) -> Tensor:
        """h as it is: the entries keep their order."""
        return h

    def mean_sandwich(self, h: Tensor, jacobian: bool) -> Tensor:
        """The same."""
        return h


# --- compositions


class Branching(Rule):
    """A composition of branches that see the same input: `join` makes y of their outputs, `split` is its way back.

    Both are linear with zeros and ones, so `split` serves gradients and diagonals alike.
    """

    def __init__(self, layer: Any, x: Tensor, branches: Sequence[list[Rule]], outputs: Sequence[Tensor], path: str):
        self.layer, self.x, self.branches, self.outputs, self.path = layer, x, branches, outputs, path
        self.p = self.trained = {}
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

    def branch_vjp(self, i: int, v: Tensor) -> Tensor:
        """J_i'v of branch i alone, J_i = dy/dx through it."""
        v = self.split(v)[i]
        for rule in reversed(self.branches[i]):
            v = rule.vjp(v)
        return v

    def vjp(self, v: Tensor) -> Tensor:
        """The sum over the branches."""
        ends = [self.branch_vjp(i, v) for i in range(len(self.branches))]
        return sum(ends[1:], ends[0])


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
}  # and the rows of activations.py and of layers.py: convolutions, normalisations, pooling


def register(layer: type[nn.Module], rule: type[Rule]) -> None:
    """Make `rule` the rule of the module type `layer` (of exactly this type, not of its subclasses)."""
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise TypeError(f"register: the first argument must be a subclass of torch.nn.Module, got {layer!r}")
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise TypeError(f"register: the second argument must be a subclass of rules.Rule, got {rule!r}")
    RULES[layer], FORWARDS[layer] = rule, layer.forward


from . import activation as _activations  # noqa: E402, F401 - these complete RULES, and need the names above
from . import layers as _layers  # noqa: E402, F401

# What each type's rule computes: a forward that is put in its place later is not that.
_OWN: list[Any] = [nn.Sequential, *RULES]
FORWARDS: dict[Any, Any] = {kind: kind.forward for kind in _OWN}
