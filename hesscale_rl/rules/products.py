"""The rules of products of matrices: matmul and its kin, and einsum of two operands. Linear in each operand."""

from typing import Any

import torch
from torch import Tensor

from .rule import NotCovered, Several, unbroadcast


class Matmul(Several):
    """y = a b, with torch's rules for vectors and stacks of matrices."""

    joint = False

    def run(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the product."""
        if a.dtype is not b.dtype:
            raise NotCovered
        self.a, self.b = a, b
        self.inputs = {"x": a, "other": b}
        return torch.matmul(a, b)

    def keeps_samples(self, n: int) -> bool:
        """Where axis 0 is that of stacks, or of a's rows."""
        if self.y.shape[:1] != (n,):
            return False
        rows = list(self.varying) == ["x"] and self.a.ndim == self.y.ndim >= self.b.ndim and self.b.ndim <= 2
        stacks = self.y.ndim > 2 and all(self.inputs[slot].ndim == self.y.ndim for slot in self.varying)
        return rows or stacks

    def _of(self, slot: str, v: Tensor, other: Tensor) -> Tensor:
        a, b = (other if slot == "other" else self.a), (other if slot == "x" else self.b)
        if b.ndim == 1:
            v, b = v[..., None], b[:, None]
        if a.ndim == 1:
            v, a = v[..., None, :], a[None]
        if slot == "x":
            t = v @ b.mT
            return unbroadcast(t[..., 0, :] if self.a.ndim == 1 else t, self.a.shape)
        t = a.mT @ v
        return unbroadcast(t[..., 0] if self.b.ndim == 1 else t, self.b.shape)

    def of(self, slot: str, v: Tensor) -> Tensor:
        """v b' and a' v."""
        return self._of(slot, v, self.b if slot == "x" else self.a)

    def of_sq(self, slot: str, d: Tensor) -> Tensor:
        """d (b*b)' and (a*a)' d."""
        return self._of(slot, d, (self.b if slot == "x" else self.a).square())


class Einsum(Several):
    """einsum of two operands with single letters, none of them twice in one operand."""

    joint = False

    def run(self, equation: str, *operands: Any) -> Tensor:
        """Return the sum."""
        tensors = (
            list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
        )
        text = equation.replace(" ", "") if isinstance(equation, str) else "."
        if "." in text or len(tensors) != 2 or "->" not in text:
            raise NotCovered
        left, self.out = text.split("->")
        self.letters = dict(zip(("x", "other"), left.split(","), strict=True))
        if any(len(set(t)) != len(t) for t in (*self.letters.values(), self.out)):
            raise NotCovered
        self.inputs = dict(zip(("x", "other"), tensors, strict=True))
        return torch.einsum(text, *tensors)

    def keeps_samples(self, n: int) -> bool:
        """Where the letter of axis 0 is that of the samples in every operand that has them."""
        return bool(self.out) and all(self.letters[slot][0] == self.out[0] for slot in self.varying)

    def _of(self, slot: str, v: Tensor, square: bool) -> Tensor:
        name = "other" if slot == "x" else "x"
        own, theirs, other = self.letters[slot], self.letters[name], self.inputs[name]
        needed = "".join(c for c in theirs if c in own or c in self.out)
        other = torch.einsum(f"{theirs}->{needed}", other)  # first what is summed over in it alone: J's entries
        alone = [c for c in own if c not in self.out and c not in needed]  # in this operand alone: the same for all
        kept = "".join(c for c in own if c not in alone)
        t = torch.einsum(f"{self.out},{needed}->{kept}", v, other.square() if square else other)
        shape = [1 if c in alone else s for c, s in zip(own, self.inputs[slot].shape, strict=True)]
        return t.reshape(shape).expand(self.inputs[slot].shape)

    def of(self, slot: str, v: Tensor) -> Tensor:
        """The einsum of v and the other operand."""
        return self._of(slot, v, False)

    def of_sq(self, slot: str, d: Tensor) -> Tensor:
        """With the other operand's squares."""
        return self._of(slot, d, True)
