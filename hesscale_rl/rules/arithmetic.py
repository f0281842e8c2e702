"""The rules of arithmetic with broadcasting, each from its function and its partial derivatives."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rule import NotCovered, Rule, Several, Slots, unbroadcast

Partial = Callable[[Any, Any, Any], Any]  # of a, b and y; None: one everywhere, or zero for a second derivative


class Binary(Several):
    """y = f(a, b) entry by entry, a and b tensors that are broadcast or numbers; made by `binary`."""

    diagonal = True
    f: Callable[[Any, Any], Tensor]
    df: dict[str, Partial | None]
    d2f: dict[str, Partial | None]

    def run(self, a: Any, b: Any) -> Tensor:
        """Return f(a, b)."""
        self.a, self.b = a, b
        self.inputs = {name: t for name, t in (("x", a), ("other", b)) if isinstance(t, Tensor)}
        return type(self).f(a, b)

    def keeps_samples(self, n: int) -> bool:
        """Where the samples' axes meet."""
        return all(self.inputs[name].ndim == self.y.ndim for name in self.varying)

    def _df(self, slot: str) -> Any:
        df = self.df[slot]
        return None if df is None else df(self.a, self.b, self.y)

    def whole(self, slot: str, v: Tensor) -> Tensor:
        """J'v before it is summed over broadcast axes."""
        df = self._df(slot)
        return v if df is None else v * df

    def of(self, slot: str, v: Tensor) -> Tensor:
        """The partial derivative times v."""
        return unbroadcast(self.whole(slot, v), self.inputs[slot].shape)

    def of_sq(self, slot: str, d: Tensor) -> Tensor:
        """Its square times d."""
        df = self._df(slot)
        return unbroadcast(d if df is None else d * (df * df), self.inputs[slot].shape)

    def of_second(self, slot: str, g: Tensor) -> Tensor | None:
        """The second partial derivative times g."""
        d2f = self.d2f.get(slot)
        return None if d2f is None else unbroadcast(g * d2f(self.a, self.b, self.y), self.inputs[slot].shape)

    def pull_each(self, v: Tensor, slots: Slots) -> dict[str, Tensor]:
        """Summed over broadcast axes but the samples'."""
        out = {}
        for slot in slots:
            t, shape = self.whole(slot, v), self.inputs[slot].shape
            if len(shape) == t.ndim and len(t) == shape[0] != 1:  # a row for each sample
                t = t[:, None] * torch.eye(len(t), dtype=t.dtype, device=t.device).view(
                    len(t), len(t), *[1] * (t.ndim - 1)
                )
            elif len(shape) == t.ndim:
                t = t[:, None]
            else:
                t = t.reshape(len(t), *[1] * (len(shape) + 1 - t.ndim), *t.shape[1:])
            extra = t.ndim - 1 - len(shape)
            over = [i for i in range(1, t.ndim) if i - 1 < extra or (shape[i - 1 - extra] == 1 and t.shape[i] != 1)]
            out[slot] = (t.sum(over, keepdim=True) if over else t).reshape(len(t), *shape)
        return out


def binary(f: Callable, da: Any, db: Any, d2a: Any = None, d2b: Any = None, joint: bool = True) -> type[Binary]:
    """Return the rule of f(a, b) from its partial derivatives, each a function of a, b and y.

    None: one everywhere, for a second derivative zero. `joint`: whether that in a and b together is zero.
    """
    return type(
        "Binary",
        (Binary,),
        {"f": staticmethod(f), "df": {"x": da, "other": db}, "d2f": {"x": d2a, "other": d2b}, "joint": joint},
    )


def scaled(sign: int) -> type[Binary]:
    """Return the rule of a + sign alpha b."""

    class SignedSum(Binary):
        """a + sign alpha b."""

        df = {"x": None, "other": None}
        d2f = {}
        factor: Any = sign

        def run(self, a: Any, b: Any, *, alpha: Any = 1) -> Tensor:
            """Return the sum."""
            self.factor = sign * alpha
            self.a, self.b = a, b
            self.inputs = {name: t for name, t in (("x", a), ("other", b)) if isinstance(t, Tensor)}
            return a + b if self.factor == 1 else a + self.factor * b if self.factor != -1 else a - b

        def _df(self, slot: str) -> Any:
            return None if slot == "x" or self.factor == 1 else self.factor

    return SignedSum


Add, Sub = scaled(1), scaled(-1)
Rsub = binary(lambda a, b: b - a, lambda a, b, y: -1, None)
Div = binary(
    lambda a, b: a / b,
    lambda a, b, y: 1 / b,
    lambda a, b, y: -y / b,
    None,
    lambda a, b, y: 2 * y / (b * b),
    joint=False,
)


class Square(Rule):
    """a * a, which is no product of two inputs."""

    diagonal = True

    def run(self, x: Tensor) -> Tensor:
        """Return x * x."""
        self.take(x)
        return x * x

    def vjp(self, v: Tensor) -> Tensor:
        """2 x v."""
        return 2 * self.x * v

    def vjp_sq(self, d: Tensor) -> Tensor:
        """4 x^2 d."""
        return 4 * self.x.square() * d

    def second(self, g: Tensor) -> Tensor:
        """2 g."""
        return 2 * g


class Mul(binary(lambda a, b: a * b, lambda a, b, y: b, lambda a, b, y: a, joint=False)):  # type: ignore[misc]
    """a b; of one tensor with itself its square."""

    @classmethod
    def call(cls, func: Any, args: Any, kwargs: Any) -> Rule:
        """Return the rule of the product, or of the square."""
        if len(args) == 2 and args[0] is args[1]:
            return Square.call(func, args[:1], {})
        return super().call(func, args, kwargs)


def _df_of_power(a: Any, b: Any, y: Tensor) -> Any:
    return 1 if isinstance(b, int | float) and b == 1 else b * a ** (b - 1)


def _d2f_of_power(a: Any, b: Any, y: Tensor) -> Any:
    if isinstance(b, int | float) and b in (0, 1):
        return torch.zeros_like(y)
    return b * (b - 1) * a ** (b - 2)


def _log(a: Any) -> Any:
    return torch.log(a) if isinstance(a, Tensor) else math.log(a)


def _larger(a: Any, b: Any, y: Tensor) -> Tensor:
    return (a > b).to(y.dtype) + 0.5 * (a == b).to(y.dtype)


def _smaller(a: Any, b: Any, y: Tensor) -> Tensor:
    return (a < b).to(y.dtype) + 0.5 * (a == b).to(y.dtype)


Power = binary(
    lambda a, b: a**b,
    _df_of_power,
    lambda a, b, y: y * _log(a),
    _d2f_of_power,
    lambda a, b, y: y * _log(a) ** 2,
    joint=False,
)
Rpow = binary(
    lambda a, b: b**a,
    lambda a, b, y: y * _log(b),
    lambda a, b, y: _df_of_power(b, a, y),
    lambda a, b, y: y * _log(b) ** 2,
    lambda a, b, y: _d2f_of_power(b, a, y),
    joint=False,
)
Rdiv = binary(
    lambda a, b: b / a,
    lambda a, b, y: -y / a,
    lambda a, b, y: 1 / a,
    lambda a, b, y: 2 * y / (a * a),
    joint=False,
)
Maximum = binary(torch.maximum, _larger, lambda a, b, y: 1 - _larger(a, b, y))
Minimum = binary(torch.minimum, _smaller, lambda a, b, y: 1 - _smaller(a, b, y))
Atan2 = binary(
    torch.atan2,
    lambda a, b, y: b / (a * a + b * b),
    lambda a, b, y: -a / (a * a + b * b),
    lambda a, b, y: -2 * a * b / (a * a + b * b) ** 2,
    lambda a, b, y: 2 * a * b / (a * a + b * b) ** 2,
    joint=False,
)


class Where(Several):
    """a where a condition holds, else b."""

    def run(self, condition: Tensor, a: Any, b: Any) -> Tensor:
        """Return the choice."""
        self.condition = condition
        self.inputs = {name: t for name, t in (("x", a), ("other", b)) if isinstance(t, Tensor)}
        return torch.where(condition, a, b)

    def keeps_samples(self, n: int) -> bool:
        """Where the samples' axes meet."""
        return self.y.shape[:1] == (n,) and all(self.inputs[name].ndim == self.y.ndim for name in self.varying)

    def of(self, slot: str, v: Tensor) -> Tensor:
        """v where it was taken."""
        zero = torch.zeros_like(v)
        kept = torch.where(self.condition, v, zero) if slot == "x" else torch.where(self.condition, zero, v)
        return unbroadcast(kept, self.inputs[slot].shape)


class MaskedFill(Rule):
    """x, but a number where a mask says so."""

    def run(self, x: Tensor, mask: Tensor, value: Any) -> Tensor:
        """Return it."""
        if isinstance(value, Tensor) and value.requires_grad:
            raise NotCovered
        self.take(x)
        self.mask = mask
        return x.masked_fill(mask, value)

    def vjp(self, v: Tensor) -> Tensor:
        """v where x was left."""
        return unbroadcast(v.masked_fill(self.mask, 0.0), self.x.shape)


class LogisticLoss(
    binary(  # type: ignore[misc]
        lambda a, b: F.binary_cross_entropy_with_logits(a, b, reduction="none"),
        lambda a, b, y: torch.sigmoid(a) - b,
        lambda a, b, y: -a,
        lambda a, b, y: torch.sigmoid(a) * torch.sigmoid(-a),
        joint=False,
    )
):
    """softplus(a) - a b, without weights."""

    def run(self, a: Any, b: Any, weight: Any = None, **named: Any) -> Tensor:
        """Return the losses, not reduced."""
        if (
            weight is not None
            or named.pop("reduction", "mean") != "none"
            or any(v is not None for v in named.values())
        ):
            raise NotCovered
        return super().run(a, b)
