"""Curvature from random Hessian-vector products: unbiased, and noisy."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import oracle
from ..losses.checks import is_traced
from .base import Curvature, refuse_dropout, whole


class Hutchinson(Curvature):
    """The diagonal as the mean of z * Hz over `samples` draws of random signs z (Hutchinson 1990; Yao et al. 2021).

    Exact in one draw where the Hessian is diagonal. The signs come from torch's global generator.
    """

    on_tape = False

    def __init__(self, samples: int = 1):
        self.samples = whole("Hutchinson", "samples", samples)

    def estimate(self, net: nn.Module, params: dict[str, Tensor], x: Tensor, loss: Any) -> dict[str, Tensor]:
        """Return the estimate by name, from `samples` Hessian-vector products by autodiff."""
        refuse_dropout("Hutchinson", net)
        product = oracle.hessian_product(
            net, params, x, loss, traced=any(is_traced(t) for t in (x, *params.values()))
        )
        total = {name: torch.zeros_like(p) for name, p in params.items()}
        for _ in range(self.samples):
            signs = {name: 2.0 * torch.randint_like(p, 2) - 1.0 for name, p in params.items()}
            for name, v in product(signs).items():
                total[name] = total[name] + signs[name] * v  # not in place: under vmap v may be many
        return {name: t / self.samples for name, t in total.items()}
