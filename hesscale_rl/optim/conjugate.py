"""Conjugate gradients for many independent systems at once; what NewtonCG and HessianFree share."""

from collections.abc import Callable

import torch
from torch import Tensor

Vectors = list[Tensor]


class Systems:
    """Which of K independent systems each entry of a list of tensors belongs to.

    `owners`: for every tensor the system of each entry, flat, or one number for all of them.
    """

    def __init__(self, owners: list[Tensor | int], count: int):
        self.owners, self.count = owners, count

    def dot(self, u: Vectors, v: Vectors) -> Tensor:
        """Return the K scalar products."""
        total = torch.zeros(self.count, dtype=u[0].dtype, device=u[0].device)
        for x, y, own in zip(u, v, self.owners, strict=True):
            if isinstance(own, int):
                total[own] += (x * y).sum()
            else:
                total.index_add_(0, own, (x * y).flatten())
        return total

    def scale(self, c: Tensor, v: Vectors) -> Vectors:
        """Return v, every entry times its system's factor of c [K]."""
        pairs = zip(v, self.owners, strict=True)
        return [x * (c[own] if isinstance(own, int) else c[own].view_as(x)) for x, own in pairs]


def conjugate_gradients(
    product: Callable[[Vectors, Tensor], Vectors],
    b: Vectors,
    systems: Systems,
    tolerance: float,
    iterations: int,
    start: Vectors | None = None,
) -> Vectors:
    """Return x with A x = b, where each system ends by itself once its residual is `tolerance` times its b.

    `product(v, alive)`: A v; `alive` [K] tells which systems still need it. `start`: where to begin, else at zero.
    A direction of negative curvature ends its system where it stands; at the start at zero, x is b itself. So does
    one whose curvature is rounding beside the largest that was met: where A is singular, steps would have no bound.
    """

    def plus(u: Vectors, v: Vectors) -> Vectors:
        return [x + y for x, y in zip(u, v, strict=True)]

    alive = torch.ones(systems.count, dtype=torch.bool, device=b[0].device)
    x = [torch.zeros_like(t) for t in b] if start is None else start
    r = b if start is None else plus(b, [-t for t in product(start, alive)])
    p, squares, goal = r, systems.dot(r, r), systems.dot(b, b) * tolerance**2
    flat, top = 10 * torch.finfo(squares.dtype).eps, torch.zeros_like(squares)
    for i in range(iterations):
        alive = alive & (squares > goal)
        if not bool(alive.any()):
            break
        ap = product(p, alive)
        pap = systems.dot(p, ap)  # p'Ap
        if i == 0 and start is None:
            x = systems.scale(((pap <= 0) & alive).to(pap), b)
        curvature = pap / systems.dot(p, p)
        top = torch.maximum(top, curvature.nan_to_num(0.0))
        alive = alive & (pap > 0) & (curvature > flat * top)
        step = torch.where(alive, squares / pap, 0.0)
        x, r = plus(x, systems.scale(step, p)), plus(r, systems.scale(-step, ap))
        before, squares = squares, torch.where(alive, systems.dot(r, r), squares)
        p = plus(r, systems.scale(torch.where(alive, squares / before, 0.0), p))
    return x
