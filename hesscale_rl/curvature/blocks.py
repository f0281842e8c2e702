"""Blocks: the curvature of one parameter with itself, [n, n] for its n entries, in the form in which a method has it.

Every block gives its diagonal in the parameter's shape, its product with a vector of that shape and, for tests and
small networks, the whole matrix. Einsum letters: n samples, g h groups, o s outputs, i j rows, p q positions.
"""

from functools import reduce
from operator import add

import torch
from torch import Tensor

from ..rules import Layout


class Block:
    """A symmetric matrix over the entries of one parameter of the shape `shape`."""

    shape: torch.Size

    def diagonal(self) -> Tensor:
        """Return the diagonal in the parameter's shape."""
        raise NotImplementedError

    def matmul(self, v: Tensor) -> Tensor:
        """Return the product with v, both in the parameter's shape."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """Return the matrix [n, n]."""
        raise NotImplementedError

    def owners(self, k: int) -> Tensor:
        """Return which of k groups of rows, about equal and in order, each entry of the parameter belongs to."""
        n = self.shape[0]
        return (torch.arange(n, device="cpu") * k // n).view(-1, *[1] * (len(self.shape) - 1)).expand(self.shape)

    def split(self, k: int) -> "Block":
        """Return the block without what couples two groups of rows."""
        raise NotImplementedError

    def __add__(self, other: "Block") -> "BlockSum":
        parts = [block.parts if isinstance(block, BlockSum) else [block] for block in (self, other)]
        return BlockSum(parts[0] + parts[1])


class BlockSum(Block):
    """What several passes gave for one parameter."""

    def __init__(self, parts: list[Block]):
        self.parts, self.shape = parts, parts[0].shape

    def diagonal(self) -> Tensor:
        """The sum of the diagonals."""
        return reduce(add, (part.diagonal() for part in self.parts))

    def matmul(self, v: Tensor) -> Tensor:
        """The sum of the products."""
        return reduce(add, (part.matmul(v) for part in self.parts))

    def dense(self) -> Tensor:
        """The sum of the matrices."""
        return reduce(add, (part.dense() for part in self.parts))

    def owners(self, k: int) -> Tensor:
        """Those of each part."""
        return self.parts[0].owners(k)

    def split(self, k: int) -> "BlockSum":
        """The sum of the split parts."""
        return BlockSum([part.split(k) for part in self.parts])


class Dense(Block):
    """The matrix itself, [n, n]."""

    matrices = ("matrix",)

    def __init__(self, matrix: Tensor, shape: torch.Size):
        self.matrix, self.shape = matrix, shape

    def replaced(self, matrix: Tensor) -> "Dense":
        """Return such a block of another matrix."""
        return Dense(matrix, self.shape)

    def diagonal(self) -> Tensor:
        """Its diagonal."""
        return self.matrix.diagonal().reshape(self.shape)

    def matmul(self, v: Tensor) -> Tensor:
        """Its product."""
        return (self.matrix @ v.flatten()).view(self.shape)

    def dense(self) -> Tensor:
        """The matrix."""
        return self.matrix

    def split(self, k: int) -> "Dense":
        """Zeros between the groups."""
        own = self.owners(k).flatten().to(self.matrix.device)
        return self if k == 1 else Dense(self.matrix * (own[:, None] == own), self.shape)


class _Weight(Block):
    """A block of a weight [G, O, R], rows of each group multiplied by its outputs (rules.Affine)."""

    def __init__(self, layout: Layout):
        self.layout, self.shape = layout, layout.shape

    def _outputs(self, k: int) -> Tensor:
        """The group of every output, [G, O]: what makes one output is a row."""
        groups, outputs, _ = self.layout.pack(torch.empty(self.shape, device="meta")).shape
        return (torch.arange(groups * outputs, device="cpu") * k // (groups * outputs)).view(groups, outputs)

    def owners(self, k: int) -> Tensor:
        """The group of the output that an entry is for."""
        packed = self.layout.pack(torch.empty(self.shape, device="meta")).shape
        return self.layout.unpack(self._outputs(k)[:, :, None].expand(packed))

    def _whole(self, m: Tensor) -> Tensor:
        """The matrix from m [G, O, R, G, O, R], its axes in the order of the weight's own."""
        columns = self.layout.unpack(m).flatten(3)  # [G, O, R, n]
        return self.layout.unpack(columns.movedim(-1, 0)).flatten(1).mT


class Kronecker(_Weight):
    """For each group b x a: entry (o i, s j) is b[o, s] a[i, j]. `a` [G, R, R] of the rows, `b` [G, O, O]."""

    matrices = ("a", "b")

    def __init__(self, a: Tensor, b: Tensor, layout: Layout):
        super().__init__(layout)
        self.a, self.b = a, b

    def replaced(self, a: Tensor, b: Tensor) -> "Kronecker":
        """Return such a block of other factors."""
        return Kronecker(a, b, self.layout)

    def diagonal(self) -> Tensor:
        """The products of the diagonals."""
        a, b = (t.diagonal(dim1=1, dim2=2) for t in (self.a, self.b))
        return self.layout.unpack(b[:, :, None] * a[:, None])

    def matmul(self, v: Tensor) -> Tensor:
        """B V a."""
        return self.layout.unpack(self.b @ self.layout.pack(v) @ self.a)

    def split(self, k: int) -> "Kronecker":
        """b with zeros between the groups."""
        own = self._outputs(k).to(self.b.device)
        return self if k == 1 else self.replaced(self.a, self.b * (own[:, :, None] == own[:, None]))

    def dense(self) -> Tensor:
        """The Kronecker products."""
        return self._whole(
            torch.einsum(
                "gos,gij,gh->goihsj", self.b, self.a, torch.eye(len(self.a), dtype=self.a.dtype, device=self.a.device)
            )
        )


class PerSample(_Weight):
    """Sum over samples and positions of h[.., o.., s..] rows rows': what a layer's outputs make of its weight.

    `h` [N, G, Q, O, G, Q, O]: the curvature over the layer's outputs; `rows` [N, G, Q, R].
    """

    def __init__(self, h: Tensor, rows: Tensor, layout: Layout):
        super().__init__(layout)
        self.h, self.rows = h, rows

    def diagonal(self) -> Tensor:
        """Per position and pair of positions."""
        return self.layout.unpack(torch.einsum("ngqogpo,ngqi,ngpi->goi", self.h, self.rows, self.rows))

    def split(self, k: int) -> "PerSample":
        """h with zeros between the groups."""
        own = self._outputs(k).to(self.h.device)
        same = own[:, None, :, None, None, None] == own[None, None, None, :, None, :]  # [G, 1, O, G, 1, O]
        return self if k == 1 else PerSample(self.h * same, self.rows, self.layout)

    def matmul(self, v: Tensor) -> Tensor:
        """From the change of the outputs, never holding the block."""
        change = torch.einsum("nhpj,hsj->nhps", self.rows, self.layout.pack(v))
        pull = torch.einsum("ngqohps,nhps->ngqo", self.h, change)
        return self.layout.unpack(torch.einsum("ngqo,ngqi->goi", pull, self.rows))

    def dense(self) -> Tensor:
        """The sum of the outer products."""
        return self._whole(torch.einsum("ngqohps,ngqi,nhpj->goihsj", self.h, self.rows, self.rows))
