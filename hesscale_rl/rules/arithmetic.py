"""The rules of arithmetic with broadcasting, each from its function and its partial derivatives."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .rule import Several, Slots, unbroadcast

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

    def _slope(self, slot: str) -> Any:
        df = self.df[slot]
        return None if df is None else df(self.a, self.b, self.y)

    def whole(self, slot: str, v: Tensor) -> Tensor:
        """J'v before it is summed over broadcast axes."""
        slope = self._slope(slot)
        return v if slope is None else v * slope

    def of(self, slot: str, v: Tensor) -> Tensor:
        """The partial derivative times v."""
        return unbroadcast(self.whole(slot, v), self.inputs[slot].shape)

    def of_sq(self, slot: str, d: Tensor) -> Tensor:
        """Its square times d."""
        slope = self._slope(slot)
        return unbroadcast(d if slope is None else d * (slope * slope), self.inputs[slot].shape)

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

    class Sum(Binary):
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

        def _slope(self, slot: str) -> Any:
            return None if slot == "x" or self.factor == 1 else self.factor

    return Sum


Add, Sub = scaled(1), scaled(-1)
Rsub = binary(lambda a, b: b - a, lambda a, b, y: -1, None)
Mul = binary(lambda a, b: a * b, lambda a, b, y: b, lambda a, b, y: a, joint=False)
Div = binary(
    lambda a, b: a / b,
    lambda a, b, y: 1 / b,
    lambda a, b, y: -y / b,
    None,
    lambda a, b, y: 2 * y / (b * b),
    joint=False,
)
