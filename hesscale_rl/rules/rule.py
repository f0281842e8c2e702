"""One Rule per operation: all that the reverse pass knows of y = f(inputs).

A rule's first input is x, the others are p, by name; a parameter is an input like any other. J is dy/dx:

    vjp(v)          J'v
    vjp_sq(d)       (J*J)'d                       the same with every entry of J squared
    second(g)       diag(sum_k g_k Hess_x y_k)    None where f is piecewise linear in x
    grad(v)         J_p'v for every p, by name
    grad_sq(d)      (J_p*J_p)'d
    grad_second(g)  the second derivatives in p   {} where f is piecewise linear in each of them

Each result has the shape of its input: sums over samples, positions and broadcast axes are part of J'. These are
enough for gradients and diagonals. The methods that keep more (curvature/ggn.py, hbp.py) take samples on axis 0 and

    grad_each(v)   J_p'v of every sample
    rows, cols(v)  of an Affine layer, y = W rows at every position: dL/dW = sum cols(g) rows'
    hessian(g)     the whole of sum_k g_k Hess_x y_k, per sample
    sandwich(h)    J'hJ per sample, made of vjp unless a rule knows better

Two facts give most of them. Where y is linear in x with coefficients w, `vjp_sq` is `vjp` with w*w; where it is
linear in its parameters with coefficients x, `grad_sq` is `grad` with x*x. For a convolution the squares are again
a convolution, so nothing is ever unfolded. Where J holds only zeros and ones (reshape, max-pooling), J*J = J.

A new operation is one row of table.py and one test case; a user's own is a call of `register`.
Letters, here and everywhere: N samples, C outputs, I/O inputs and outputs of a layer.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from ..losses.checks import eye

Slots = Iterable[str]


class UnsupportedLayerError(NotImplementedError):
    """An operation that no rule covers; the message names it, its place and the ways out."""

    def __init__(self, what: str, reason: str):
        super().__init__(
            f"{what}: {reason}. Ways out: register a rule, hesscale_rl.register(torch_function_or_module_type, "
            "MyRule), with MyRule a subclass of hesscale_rl.rules.Rule or rules.elementwise(f, df, d2f); or compose "
            "it of operations that have one; or take a method that needs no rule (hesscale_rl.measure_curvature)"
        )


class Refusal(Exception):
    """Why a rule cannot treat its operation as it was called; the tape adds where that was."""


class Changed(Refusal):
    """What an operation had kept for the way back was changed in place after it ran."""


class NotCovered(Exception):
    """A call of a form that the rule has no formulas for; the tape takes autodiff for it."""


class MissingPrimitive(Exception):
    """A primitive that a curvature needs and a rule does not define; the tape adds the curvature's name."""

    def __init__(self, rule: "Rule", primitive: str):
        super().__init__(f"{type(rule).__name__} defines no {primitive}")
        self.rule, self.primitive = rule, primitive


class CallSettings:
    """The arguments of a call of a torch function that are no inputs, as attributes like those of a module."""

    def __init__(self, **settings: Any):
        for name, value in settings.items():  # not types.SimpleNamespace: torch.compile knows none
            setattr(self, name, value)


class Rule:
    """One call of a module, or of a torch function (see `call`), with its output y.

    `layer`: the module, or the function's settings by name; `x`, `p`: the inputs. The tape sets `live`, the inputs
    that a parameter reaches, and `varying`, those that differ from sample to sample.
    """

    parameters: frozenset[str] = frozenset({"weight", "bias"})  # the names that the rule of a module knows in it
    one_use = False  # whether a parameter acts on one entry of a sample's output at most: (J_p'v)^2 = (J_p*J_p)'v^2
    joint = True  # whether the second derivatives in two inputs at once are zero
    diagonal = False  # whether the second derivatives in one input are a diagonal
    live: list[str]
    varying: Slots = ()
    by_sample = False  # whether y has the samples on axis 0, each made of its own inputs alone; if the tape looks
    mixed = ""  # what has moved or joined the samples, if the tape looks
    place = ""  # where it was called, if the tape keeps that
    called: Any = None  # function, arguments and named arguments, if the tape keeps them
    draws = False  # whether another call gives other numbers
    versions: int | None = None  # changes() when it ran; None where tensors do not count them
    func: Any = None  # the torch function
    layer: Any
    x: Tensor
    p: dict[str, Tensor]
    y: Any  # a tensor, or a tuple of them
    inputs: dict[str, Tensor]  # x and p, under the names "x" and p's

    def __init__(self, layer: Any, p: dict[str, Tensor], x: Tensor):
        self.layer = layer
        self.take(x, **p)
        self.y = self.forward(x)

    @classmethod
    def call(cls, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> "Rule":
        """Return the rule of the call func(*args, **kwargs) of a torch function."""
        rule = cls.__new__(cls)
        rule.func = func
        rule.y = rule.run(*args, **kwargs)
        return rule

    def take(self, x: Tensor, **p: Tensor | None) -> None:
        """Keep the inputs; those that are None are left out."""
        self.x, self.p = x, {name: t for name, t in p.items() if t is not None}
        self.inputs = {"x": x, **self.p}

    def run(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return y of a call of the torch function; its arguments after x are settings."""
        self.take(x)
        self.layer = CallSettings(args=args, **kwargs)
        return self.forward(x)

    def forward(self, x: Tensor) -> Any:
        """Return y; keep what the primitives need. An error of torch's is told with its place."""
        return self.layer(x) if self.func is None else self.func(x, *self.layer.args)

    def need(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the weight `name` has another shape than `shape`: nothing is broadcast."""
        if name in self.p and self.p[name].shape != shape:
            raise ValueError(f"its {name} has the shape {list(self.p[name].shape)}, expected {list(shape)}")

    def keeps_samples(self, n: int) -> bool:
        """Whether y's axis 0 holds the n samples, each from its own of the varying inputs', which have them there."""
        return all(t.shape[:1] == (n,) for t in (self.y if isinstance(self.y, tuple) else (self.y,)))

    def repeats(self, n: int) -> bool:
        """Whether y holds on axis 0 what the operation has made of the same inputs for each of n samples."""
        return False

    def changes(self) -> int:
        """Return a number that grows when an input or an output is changed in place."""
        total = 0
        for t in (*self.inputs.values(), *(self.y if isinstance(self.y, tuple | list) else (self.y,))):
            if isinstance(t, Tensor) and not t.is_inference():
                total += t._version
        return total

    def vjp(self, v: Any) -> Tensor:
        """J'v: v has y's shape, the result x's."""
        raise MissingPrimitive(self, "vjp")

    def vjp_sq(self, d: Any) -> Tensor:
        """(J*J)'d; as it stands where J holds only zeros and ones."""
        return self.vjp(d)

    def second(self, g: Any) -> Tensor | None:
        """diag(sum_k g_k Hess y_k) in x's shape; None where f is piecewise linear in x."""
        return None

    def grad(self, v: Any) -> dict[str, Tensor]:
        """J_p'v, by name."""
        if self.p:
            raise MissingPrimitive(self, "grad")
        return {}

    def grad_sq(self, d: Any) -> dict[str, Tensor]:
        """(J_p*J_p)'d, by name."""
        if self.p:
            raise MissingPrimitive(self, "grad_sq")
        return {}

    def grad_second(self, g: Any) -> dict[str, Tensor]:
        """diag(sum_k g_k Hess_p y_k), by name; without those in which f is piecewise linear."""
        return {}

    def grad_each(self, v: Any) -> dict[str, Tensor]:
        """J_p'v of every sample, [N, *] by name."""
        if self.p:
            raise MissingPrimitive(self, "grad_each")
        return {}

    # What the tape and the curvatures ask for: of some of the inputs, by their names.

    def pull(self, v: Any, slots: Slots) -> dict[str, Tensor]:
        """J'v."""
        return self._join(self.vjp, self.grad, v, slots)

    def pull_sq(self, d: Any, slots: Slots) -> dict[str, Tensor]:
        """(J*J)'d."""
        return self._join(self.vjp_sq, self.grad_sq, d, slots)

    def pull_second(self, g: Any, slots: Slots) -> dict[str, Tensor]:
        """The second derivatives; without inputs in which f is piecewise linear."""
        out = {name: t for name, t in self.grad_second(g).items() if name in slots}
        if "x" in slots and (own := self.second(g)) is not None:
            out["x"] = own
        return out

    def pull_each(self, v: Any, slots: Slots) -> dict[str, Tensor]:
        """J'v of every sample, [N, *]."""
        if "x" not in slots:
            found = self.grad_each(v)
            return {name: found[name] for name in slots}
        basis = eye(len(v), v).view(len(v), len(v), *[1] * (v.ndim - 1))
        return vmap(lambda one: self.pull(v * one, slots))(basis)

    @staticmethod
    def _join(to_x: Callable[[Any], Tensor], to_p: Callable[[Any], dict[str, Tensor]], v: Any, slots: Slots) -> Any:
        out = {"x": to_x(v)} if "x" in slots else {}
        if len(out) < len(list(slots)):
            found = to_p(v)
            out.update({name: found[name] for name in slots if name != "x"})
        return out

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


class Several(Rule):
    """An operation of several inputs that are all alike: its primitives are written once, for any of them."""

    def of(self, slot: str, v: Any) -> Tensor:
        """J'v for the input of that name."""
        raise MissingPrimitive(self, "of")

    def of_sq(self, slot: str, d: Any) -> Tensor:
        """(J*J)'d; as it stands where J holds only zeros and ones."""
        return self.of(slot, d)

    def of_second(self, slot: str, g: Any) -> Tensor | None:
        """The second derivatives; None where f is piecewise linear in that input."""
        return None

    def pull(self, v: Any, slots: Slots) -> dict[str, Tensor]:
        """J'v."""
        return {slot: self.of(slot, v) for slot in slots}

    def pull_sq(self, d: Any, slots: Slots) -> dict[str, Tensor]:
        """(J*J)'d."""
        return {slot: self.of_sq(slot, d) for slot in slots}

    def pull_second(self, g: Any, slots: Slots) -> dict[str, Tensor]:
        """The second derivatives."""
        found = {slot: self.of_second(slot, g) for slot in slots}
        return {slot: t for slot, t in found.items() if t is not None}

    def pull_each(self, v: Any, slots: Slots) -> dict[str, Tensor]:
        """J'v of every sample, one after the other."""
        n = len(v[0]) if isinstance(v, list | tuple) else len(v)
        like = v[0] if isinstance(v, list | tuple) else v

        def one(row: Tensor) -> dict[str, Tensor]:
            parts = [t * row.view(n, *[1] * (t.ndim - 1)) for t in (v if isinstance(v, list | tuple) else [v])]
            return self.pull(parts if isinstance(v, list | tuple) else parts[0], slots)

        return vmap(one)(eye(n, like))

    def vjp(self, v: Any) -> Tensor:
        """J'v for x."""
        return self.of("x", v)

    def vjp_sq(self, d: Any) -> Tensor:
        """(J*J)'d for x."""
        return self.of_sq("x", d)

    def second(self, g: Any) -> Tensor | None:
        """The second derivatives in x."""
        return self.of_second("x", g)


def arguments(defaults: dict[str, Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name; `defaults`: names and values of all, in order."""
    return {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}


def unbroadcast(t: Tensor, shape: torch.Size) -> Tensor:
    """Sum t over the axes along which a tensor of that shape was broadcast."""
    if t.shape == shape:
        return t
    extra = t.ndim - len(shape)
    over = [i for i in range(t.ndim) if i < extra or (shape[i - extra] == 1 and t.shape[i] != 1)]
    return (t.sum(over, keepdim=True) if over else t).reshape(shape)


def columns(f: Callable[[Tensor], Tensor], h: Tensor, shape: Sequence[int]) -> Tensor:
    """Apply f to every column of h [N, d, k], the d entries in `shape`; return [N, entries of the result, k]."""
    stacked = h.permute(2, 0, 1).reshape(h.shape[2], len(h), *shape)
    return vmap(f)(stacked).flatten(2).permute(1, 2, 0)


def described(layer: nn.Module, path: str) -> str:
    """Return how an error names a module that stands at `path`."""
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    return f"layer {path.rstrip('.') or '(the network itself)'} of type {kind}"
