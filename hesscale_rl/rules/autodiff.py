"""The rule of operations that have none: torch's own derivatives, squared entry by entry where they are few."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..losses.checks import eye
from ..oracle import Elementary
from .rule import Refusal, Several


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that it takes one row after the other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        yield


LARGEST = 2**22  # entries of a Jacobian, or of a Hessian, that are computed at once


class ByAutodiff(Several):
    """y = f(...) by torch.func: J'v always; (J*J)'d and second derivatives by a row for each entry of y and of x."""

    joint = False
    where: dict[str, int]  # an input's number among the leaves of the arguments
    apply: Callable[[dict[str, Tensor]], Any]  # the call with some inputs exchanged

    @classmethod
    def of_call(cls, func: Any, args: Sequence[Any], kwargs: dict[str, Any], y: Any) -> "ByAutodiff":
        """Return the rule of func(*args, **kwargs) = y; its inputs are all real tensors in the arguments."""
        rule = cls.__new__(cls)
        rule.func, rule.p = func, {}
        leaves, tree = tree_flatten((list(args), kwargs))
        at = [i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.dtype.is_floating_point]
        rule.inputs = {"x" if k == 0 else str(k): leaves[i] for k, i in enumerate(at)}
        rule.where = dict(zip(rule.inputs, at, strict=True))

        def apply(changed: dict[str, Tensor]) -> Any:
            filled = list(leaves)
            for slot, t in changed.items():
                filled[rule.where[slot]] = t
            a, k = tree_unflatten(filled, tree)
            with Elementary():
                return func(*a, **k)

        rule.apply = apply
        rule.y = y
        return rule

    def _along(self, slot: str) -> Callable[[Tensor], Any]:
        """The outputs as a list, as a function of one input."""

        def f(t: Tensor) -> list[Tensor]:
            y = self.apply({slot: t})
            return [o for o in (y if isinstance(y, tuple | list) else [y]) if o.dtype.is_floating_point]

        return f

    def _real(self, v: Any) -> list[Tensor]:
        if not isinstance(self.y, tuple | list):
            return [v]
        return [t for t, o in zip(v, self.y, strict=True) if o.dtype.is_floating_point]

    def of(self, slot: str, v: Any) -> Tensor:
        """J'v."""
        return vjp(self._along(slot), self.inputs[slot])[1](self._real(v))[0]

    def _check(self, size: int, slot: str) -> None:
        if size > LARGEST:
            name = getattr(self.func, "__name__", self.func)
            raise Refusal(
                f"{name} has no rule, and its derivatives in {list(self.inputs[slot].shape)} are too many for "
                f"autodiff ({size:,}; at most {LARGEST:,})"
            )

    def of_sq(self, slot: str, d: Any) -> Tensor:
        """Row by row of J."""
        x, total = self.inputs[slot], torch.zeros_like(self.inputs[slot])
        back = vjp(self._along(slot), x)[1]
        d = self._real(d)
        self._check(sum(t.numel() for t in d) * x.numel(), slot)
        for k, t in enumerate(d):
            zeros = [torch.zeros_like(o) for o in d]
            with _quiet():
                rows = vmap(lambda e, k=k, zeros=zeros: back([*zeros[:k], e, *zeros[k + 1 :]])[0])(
                    eye(t.numel(), t).view(t.numel(), *t.shape)
                )
            total = total + torch.tensordot(t.flatten(), rows.square(), 1)
        return total

    def of_second(self, slot: str, g: Any) -> Tensor | None:
        """Row by row of the Hessian."""
        x, g = self.inputs[slot], self._real(g)
        self._check(x.numel() ** 2, slot)
        along = self._along(slot)
        try:
            product = vjp(lambda t: vjp(along, t)[1](g)[0], x)[1]
            with _quiet():
                rows = vmap(lambda e: product(e)[0])(eye(x.numel(), x).view(x.numel(), *x.shape))
        except RuntimeError as error:  # torch knows no second derivative
            name = getattr(self.func, "__name__", self.func)
            raise Refusal(f"{name} has no rule, and autodiff says: {str(error).partition(chr(10))[0]}") from None
        return rows.flatten(1).diagonal().view(x.shape)
