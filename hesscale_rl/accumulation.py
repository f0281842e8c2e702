"""Adding what a pass found to `p.grad`, `p.hess_diag` and `p.hess_block`, as autograd adds to `p.grad`."""

from typing import Any

import torch
from torch import Tensor

from .curvature.blocks import Block
from .errors import InputError
from .rules import checks


def accumulate(found: dict[Tensor, tuple[Tensor, Any]], hooks: bool = True) -> None:
    """Add to every parameter the gradient and the curvature that were found of it."""
    hooked = {}
    for p, (grad, curvature) in found.items():
        _add_curvature(p, curvature)
        if hooks and checks.has_hooks(p):  # as autograd itself does
            if p.grad is not None:
                p.grad = p.grad.detach().clone()  # autograd adds in place
            hooked[p] = grad.clone()
        else:
            p.grad = grad if p.grad is None else grad + p.grad.detach()  # in this order it may be sparse
    if hooked:
        torch.autograd.backward(list(hooked), list(hooked.values()))


def _add_curvature(p: Tensor, curvature: Any) -> None:
    """Sum out of place, so that an earlier result keeps its values.

    Curvature is summed where the gradient is: one whose gradient was cleared (net.zero_grad() knows no hess_diag), or
    that a step has used, is of the past. It remembers which version of the parameter it belongs to.
    """
    if curvature is not None:
        name = "hess_block" if isinstance(curvature, Block) else "hess_diag"
        old = getattr(p, name, None)
        stale = old is None or p.grad is None or hasattr(old, "used_at_version")
        total = curvature if stale else old + curvature
        total.of_version = version(p)
        setattr(p, name, total)


def version(p: Tensor) -> int:
    """How often a parameter was changed in place."""
    try:
        return p._version
    except RuntimeError:
        raise InputError(
            f"a parameter {list(p.shape)} was made under torch.inference_mode and keeps no count of its changes: "
            "make the network outside of it, or take copy.deepcopy(net) there"
        ) from None
