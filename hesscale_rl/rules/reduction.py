"""The rules of what is made of several entries along axes: sums, means, variances, norms, extremes."""

from typing import Any

import torch
from torch import Tensor

from .rule import NotCovered, Rule, arguments


class Reduction(Rule):
    """y over some axes of x, all of them without `dim`; `up` brings y's shape back to x's."""

    settings: dict[str, Any] = {"dim": None, "keepdim": False, "dtype": None}

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return y."""
        if "axis" in kwargs:
            kwargs = {**kwargs, "dim": kwargs["axis"]}
            del kwargs["axis"]
        if len(args) > 1 and all(isinstance(a, int) and not isinstance(a, bool) for a in args):  # x.sum(0, 1)
            args = (list(args),)
        m = arguments(self.settings, args, kwargs)
        if m.get("dtype") not in (None, x.dtype) or m.get("out") is not None:
            raise NotCovered
        dim = m["dim"]
        axes = [dim] if isinstance(dim, int) else list(dim) if dim is not None and len(dim) else list(range(x.ndim))
        self.take(x)
        self.over = [i % x.ndim for i in axes]
        self.n = 1
        for i in self.over:
            self.n *= x.shape[i]
        self.kept = torch.Size(1 if i in self.over else s for i, s in enumerate(x.shape))
        self.m = m
        y = self.reduce(x)
        return y if m["keepdim"] else y.reshape([s for i, s in enumerate(x.shape) if i not in self.over])

    def reduce(self, x: Tensor) -> Tensor:
        """Return y with the axes kept."""
        raise NotImplementedError

    def keeps_samples(self, n: int) -> bool:
        """Where the samples are not among the axes."""
        return 0 not in self.over and self.y.shape[:1] == (n,)

    def up(self, v: Tensor) -> Tensor:
        """v as it is broadcast to x."""
        return v.reshape(self.kept)

    def _sum(self, t: Tensor) -> Tensor:
        return t.sum(self.over, keepdim=True) if self.over else t


class Sum(Reduction):
    """The sum."""

    def reduce(self, x: Tensor) -> Tensor:
        """Return it."""
        return self._sum(x)

    def vjp(self, v: Tensor) -> Tensor:
        """v everywhere."""
        return self.up(v).expand(self.x.shape)


class Mean(Reduction):
    """The mean of n entries."""

    def reduce(self, x: Tensor) -> Tensor:
        """Return it."""
        return self._sum(x) / self.n

    def vjp(self, v: Tensor) -> Tensor:
        """v/n everywhere."""
        return (self.up(v) / self.n).expand(self.x.shape)

    def vjp_sq(self, d: Tensor) -> Tensor:
        """d/n^2 everywhere."""
        return (self.up(d) / self.n**2).expand(self.x.shape)


class Curved(Reduction):
    """An operation with the derivatives df and d2f, entry by entry of x."""

    df: Tensor
    d2f: Tensor | None = None

    def vjp(self, v: Tensor) -> Tensor:
        """J v."""
        return self.df * self.up(v)

    def vjp_sq(self, d: Tensor) -> Tensor:
        """J^2 d."""
        return self.df.square() * self.up(d)

    def second(self, g: Tensor) -> Tensor | None:
        """The second derivatives times g."""
        return None if self.d2f is None else self.d2f * self.up(g)


class Var(Curved):
    """The variance, its sum of squares divided by n - correction."""

    settings = {"dim": None, "unbiased": None, "keepdim": False, "correction": None}

    def _degrees(self) -> float:
        correction, unbiased = self.m["correction"], self.m["unbiased"]
        return self.n - (correction if correction is not None else 0 if unbiased is False else 1)

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return y; `unbiased` may come before or without `dim`."""
        if args and isinstance(args[0], bool):
            kwargs, args = {**kwargs, "unbiased": args[0]}, args[1:]
        return super().run(x, *args, **kwargs)

    def reduce(self, x: Tensor) -> Tensor:
        """Return it."""
        k, centred = self._degrees(), x - self._sum(x) / self.n
        self.df = 2 / k * centred
        self.d2f = torch.full_like(x, 2 / k * (1 - 1 / self.n))
        return self._sum(centred.square()) / k


class Std(Var):
    """The root of the variance."""

    def reduce(self, x: Tensor) -> Tensor:
        """Return it."""
        y = super().reduce(x).sqrt()
        assert self.d2f is not None
        self.df = 0.5 * self.df / y
        self.d2f = (0.5 * self.d2f - self.df.square()) / y
        return y


class Norm(Curved):
    """The euclidean norm |x|; J = x/|x|."""

    settings = {"p": None, "dim": None, "keepdim": False, "dtype": None, "out": None}

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return it; other norms are autodiff's."""
        if "ord" in kwargs:
            kwargs = {**kwargs, "p": kwargs["ord"]}
            del kwargs["ord"]
        if arguments(self.settings, args, kwargs)["p"] not in (None, 2, "fro"):
            raise NotCovered
        named = arguments(self.settings, args, kwargs)
        return super().run(x, **named)

    def reduce(self, x: Tensor) -> Tensor:
        """Return it."""
        y = self._sum(x.square()).sqrt()
        self.df = x / y
        self.d2f = (1 - self.df.square()) / y
        return y


class Extreme(Curved):
    """The largest or smallest entry; several alike share the derivative."""

    settings = {"dim": None, "keepdim": False}

    def reduce(self, x: Tensor) -> Tensor:
        """Return it."""
        over = self.over
        y = x.amax(over, keepdim=True) if "max" in self.func.__name__ else x.amin(over, keepdim=True)
        alike = (x == y).to(x.dtype)
        self.df = alike / self._sum(alike)
        return y
