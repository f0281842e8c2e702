"""The rules of operations that only move entries: views, permutations, selections, copies, joins."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rule import Rule, Several, Slots, arguments, unbroadcast


class Reshape(Rule):
    """The same entries in the same order in another shape."""

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return x in another shape."""
        self.take(x)
        return self.func(x, *args, **kwargs)

    def keeps_samples(self, n: int) -> bool:
        """Where axis 0 keeps its length."""
        return self.y.shape[:1] == (n,)

    def vjp(self, v: Tensor) -> Tensor:
        """v in x's shape."""
        return v.reshape(self.x.shape)

    def sandwich(self, h: Tensor) -> Tensor:
        """h as it is: the entries keep their order."""
        return h

    def mean_sandwich(self, h: Tensor, jacobian: bool) -> Tensor:
        """The same."""
        return h


class Selection(Rule):
    """Every entry of y is one of x's, or a constant: the way back is torch's own, and J*J = J.

    y may be several tensors (split, unbind): v then is a list.
    """

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return func(x, *args, **kwargs)."""
        self.take(x)
        self.select: Callable[[Tensor], Any] = lambda t: self.func(t, *args, **kwargs)
        return self.select(x)

    def keeps_samples(self, n: int) -> bool:
        """Whether entries of sample i stay in row i: what becomes of the numbers of their samples."""
        number = torch.arange(n, device=self.x.device)
        moved = self.select(number.view(n, *[1] * (self.x.ndim - 1)).expand(self.x.shape).to(self.x.dtype))
        return all(
            t.shape[:1] == (n,) and bool((t.reshape(n, -1) == number[:, None]).all())
            for t in (moved if isinstance(moved, tuple | list) else (moved,))
        )

    def vjp(self, v: Any) -> Tensor:
        """v back where it came from, added up."""
        out, back = torch.func.vjp(self.select, torch.zeros_like(self.x))[:2]
        return back(type(out)(v) if isinstance(out, tuple | list) else v)[0]


class Parts(Selection):
    """x cut into pieces along an axis, by default the first: the way back puts them side by side again."""

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the pieces; `args`: where to cut, and the axis."""
        self.axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return super().run(x, *args, **kwargs)

    def vjp(self, v: Any) -> Tensor:
        """v joined."""
        return torch.cat(list(v), self.axis)


class Unbind(Parts):
    """x cut into slices that lose the axis."""

    def run(self, x: Tensor, dim: int = 0) -> Any:
        """Return the slices."""
        return super().run(x, dim=dim)

    def vjp(self, v: Any) -> Tensor:
        """v stacked."""
        return torch.stack(list(v), self.axis)


class Permutation(Selection):
    """x with its axes in another order."""

    def vjp(self, v: Tensor) -> Tensor:
        """v with its axes as they were."""
        sizes = range(1, self.x.ndim + 1)  # all different, so that they tell where each axis has gone
        order = self.select(torch.empty(*sizes, device="meta")).shape
        return v.permute([order.index(size) for size in sizes])


class Slice(Selection):
    """A part of x that is no copy: indices without tensors, narrow, select."""

    @classmethod
    def call(cls, func: Any, args: Any, kwargs: Any) -> Rule:
        """Return the rule; tensors and lists as an index may name an entry twice."""
        index = args[1] if len(args) > 1 else ()
        plain = all(
            i is None or i is ... or type(i) in (int, slice) for i in (index if type(index) is tuple else (index,))
        )
        return super().call(func, args, kwargs) if plain else Selection.call(func, args, kwargs)

    def vjp(self, v: Tensor) -> Tensor:
        """Zeros around v."""
        out = v.new_zeros(self.x.shape)
        self.select(out).copy_(v)
        return out


class Expand(Selection):
    """x repeated along axes; [*] -> [N, *] makes it a sample's own."""

    def repeats(self, n: int) -> bool:
        """Where axis 0 is one along which x was repeated."""
        return len(self.y) == n and (self.x.ndim < self.y.ndim or len(self.x) == 1)

    def pull_each(self, v: Tensor, slots: Slots) -> dict[str, Tensor]:
        """v summed over the axes that x was repeated along, but the samples'."""
        x = self.x
        extra = v.ndim - x.ndim
        over = [i for i in range(1, v.ndim) if i < extra or (x.shape[i - extra] == 1 and v.shape[i] != 1)]
        return {"x": (v.sum(over) if over else v).reshape(len(v), *x.shape)}


class Cat(Several):
    """Tensors one after the other along an axis."""

    def run(self, x: Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the tensors x joined."""
        named, tensors = arguments({"dim": 0}, args, kwargs), list(x)
        self.dim = named.get("axis", named["dim"])
        names = ["x", *(str(i) for i in range(1, len(tensors)))]
        self.inputs = dict(zip(names, tensors, strict=True))
        self.x, self.p = tensors[0], dict(list(self.inputs.items())[1:])
        y = torch.cat(tensors, self.dim)
        start = 0
        self.starts = {}
        for name, t in self.inputs.items():
            self.starts[name] = start
            start += t.shape[self.dim] if t.ndim == y.ndim else 0
        return y

    def keeps_samples(self, n: int) -> bool:
        """Unless it is the samples that stand side by side."""
        return self.dim % self.y.ndim != 0

    def of(self, slot: str, v: Tensor) -> Tensor:
        """Its own entries of v."""
        return v.narrow(self.dim, self.starts[slot], self.inputs[slot].shape[self.dim])


class Pad(Rule):
    """A constant around the last axes; the way back cuts it off (a negative padding of v)."""

    @classmethod
    def call(cls, func: Any, args: Any, kwargs: Any) -> Rule:
        """Return the rule; other modes than a constant repeat entries."""
        named = arguments({"pad": None, "mode": "constant", "value": None}, args[1:], kwargs)
        if named["mode"] != "constant":
            return Selection.call(func, args, kwargs)
        return super().call(func, args, kwargs)

    def run(self, x: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Tensor:
        """Return x with margins."""
        self.take(x)
        self.pad = pad
        return F.pad(x, pad, mode, value)

    def keeps_samples(self, n: int) -> bool:
        """Unless there are margins of samples."""
        return len(self.pad) < 2 * self.x.ndim

    def vjp(self, v: Tensor) -> Tensor:
        """v without the margins."""
        return F.pad(v, [-n for n in self.pad])


class Cast(Rule):
    """The same numbers in another precision, or on another device."""

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return x as it is wanted."""
        self.take(x)
        return self.func(x, *args, **kwargs)

    def vjp(self, v: Tensor) -> Tensor:
        """v as x is."""
        return v.to(dtype=self.x.dtype, device=self.x.device)


class Stack(Cat):
    """Tensors side by side along a new axis."""

    def run(self, x: Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the tensors x stacked."""
        self.dim = arguments({"dim": 0}, args, kwargs)["dim"]
        names = ["x", *(str(i) for i in range(1, len(x)))]
        self.inputs = dict(zip(names, x, strict=True))
        return torch.stack(list(x), self.dim)

    def of(self, slot: str, v: Tensor) -> Tensor:
        """Its own slice of v."""
        return v.select(self.dim, 0 if slot == "x" else int(slot))


class SetItem(Several):
    """x with some entries replaced, as by x[index] = value; what it gives is another tensor."""

    def run(self, x: Tensor, index: Any, value: Any) -> Tensor:
        """Return a changed copy."""
        self.index = index
        self.inputs = {name: t for name, t in (("x", x), ("value", value)) if isinstance(t, Tensor)}
        y = x.clone()
        y[index] = value
        return y

    def keeps_samples(self, n: int) -> bool:
        """Only by chance."""
        return False

    def of(self, slot: str, v: Tensor) -> Tensor:
        """v without these entries, or they."""
        if slot == "value":
            return unbroadcast(v[self.index], self.inputs["value"].shape)
        v = v.clone()
        v[self.index] = 0
        return v
