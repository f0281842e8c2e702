"""The rules of compositions: branches that see the same input, and how their outputs become one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .rule import Rule


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
