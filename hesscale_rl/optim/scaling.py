"""What optimizers with a diagonal share: moving averages, the bounds on steps, step-size scaling.

Along one parameter the model of the loss is m x + root x^2/2: m the averaged gradient, root that of the averaged
squared curvature. Its minimum, the Newton step x = -m/root, is no longer to be believed where it lies far away: as
curvature vanishes, x grows without bound, and sum root u^2, by which scaling measures a step, vanishes with it. So
the model is taken within |x| <= reach only. Its minimum there is -m/max(root, |m|/reach): the bound's multiplier adds
to the curvature what puts the minimum on the bound (Karush, Kuhn, Tucker). That larger curvature,

    root' = max(root, |m_hat|/reach),

takes the place of root, in the update that divides by it and in h = sum root' u^2. It is in the curvature's units:
with the loss multiplied by c, m and root are so too, and the step stays what it was. `reach` is a length in the space
of parameters; no step at rate lr moves a parameter further than lr reach. Sophia clips its steps so, too (Liu et al.
2023).

An update that does not divide by root (Adam's, the gradient) has no such bound where curvature is huge: one
parameter can ask for more than the whole trust region sum root u^2 <= 2 delta, and eta would shorten all others with
it, for as long as the average of squares remembers that one curvature: thousands of steps for a decay of 0.999. But
every point of the region has root u_i^2 <= 2 delta along each axis, too, whatever the others do. So u is taken to the
nearest point of that box first, and then scaled:

    |u_i| <= sqrt(2 delta/root_i).

Each entry keeps its sign, so the step descends as before and stays inside the region; a parameter that alone asks for
too much takes of the region what one that asks for just all of it would. So k of them, however huge their curvature,
leave at least 1/sqrt(1 + k) of the others' step, if these alone would be inside.

reach=None is the literal rule of Elsayed et al. 2024, without both.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backend
from ..compiled import steps as compiled_steps

Tensors = tuple[Tensor, ...] | list[Tensor]  # what torch's foreach functions take


class Adaptive(NamedTuple):
    """The tensors of a step of Adam's form, each a list over the parameters of a group.

    m averages `grads`, v the squares of `squared`; where the scaling has an average of its own, w, that of
    `curvatures`' squares.
    """

    params: list[Tensor]
    grads: list[Tensor]
    squared: list[Tensor]
    m: list[Tensor]
    v: list[Tensor]
    curvatures: list[Tensor] | None = None
    w: list[Tensor] | None = None


def adaptive_step(group: dict[str, Any], tensors: Adaptive, steps: list[int], newton: bool) -> Tensor | float:
    """Take the step u = lr m_hat/(sqrt(v_hat) + eps); return eta.

    steps: how many each parameter has taken, this one included. newton: v is of curvatures, so that `reach` bounds u;
    else it bounds the curvature alone that scaling measures u by.
    """
    present = [ts for ts in tensors if ts is not None]
    if backend.compiles():
        eta = compiled_steps.adaptive(present, steps, compiled_steps.settings(group, newton))
        if eta is not None:
            return eta
    with torch.no_grad():
        return _torch_step(group, tensors, steps, newton)


def _torch_step(group: dict[str, Any], tensors: Adaptive, steps: list[int], newton: bool) -> Tensor | float:
    """The same, on any device and in any precision."""
    params, grads, squared, m, v, curvatures, w = tensors
    (beta1, beta2), reach = group["betas"], group["reach"]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    torch._foreach_lerp_(m, grads, 1 - beta1)
    root = average_of_squares(v, squared, beta2, steps)
    fades = [1 - beta1**t for t in steps]
    if newton:
        at_least(root, m, reach, fades)
    u = torch._foreach_div(m, torch._foreach_add(root, group["eps"]))
    if curvatures and w:
        root = average_of_squares(w, curvatures, beta2, steps)
        at_least(root, m, reach, fades)
    rates = [float(group["lr"]) / f for f in fades]
    if curvatures and not newton:
        within_alone(group, u, rates, root)
    return scale_and_apply(group, params, u, rates, root)


def average_of_squares(v: list[Tensor], x: list[Tensor], beta: float, steps: list[int]) -> Tensors:
    """Move v <- beta v + (1 - beta) x^2 in place; return the root of v, corrected for its start at zero.

    Where the precision cannot hold the average, it stays at the largest number that leaves room for a sum.
    """
    torch._foreach_mul_(v, beta)
    torch._foreach_addcmul_(v, x, x, 1 - beta)
    torch._foreach_clamp_max_(v, min(torch.finfo(t.dtype).max for t in v) / 4)
    root = torch._foreach_sqrt(v)
    torch._foreach_div_(root, [(1 - beta**t) ** 0.5 for t in steps])
    return root


def at_least(root: Tensors, m: list[Tensor], reach: float | None, fades: list[float]) -> None:
    """Set root <- max(root, |m_hat|/reach) in place, m_hat = m/fade."""
    if reach is not None:
        least = torch._foreach_abs(m)
        torch._foreach_mul_(least, [1 / (reach * f) for f in fades])
        torch._foreach_maximum_(root, least)


def within_alone(group: dict[str, Any], u: Tensors, rates: list[float], root: Tensors) -> None:
    """Shorten each entry of u in place to root (rate u)^2 <= 2 delta, unless `reach` is None."""
    if group["reach"] is not None and all(rates):
        longest = torch._foreach_sqrt(root)
        torch._foreach_reciprocal_(longest)  # infinity where there is no curvature
        torch._foreach_mul_(longest, [(2 * group["delta"]) ** 0.5 / rate for rate in rates])
        torch._foreach_minimum_(u, longest)
        torch._foreach_neg_(longest)
        torch._foreach_maximum_(u, longest)


def scale_and_apply(
    group: dict[str, Any], params: list[Tensor], u: Tensors, rates: list[float], root: Tensors | None
) -> Tensor | float:
    """Set p <- p - eta rate u in place, eta = min(1, sqrt(2 delta/h)), h = sum root (rate u)^2; return eta.

    u and root are used up.
    """
    eta: Tensor | float = 1.0
    if group["delta"] is not None and root is not None:
        torch._foreach_mul_(root, u)
        torch._foreach_mul_(root, u)
        # No entry is negative: the 1-norm is the sum. In float64, so that no step size makes it overflow.
        sums = torch.stack([_gathered(t) for t in torch._foreach_norm(root, 1)]).double()
        h = (sums * torch.tensor(rates, dtype=torch.float64, device=sums.device).square()).sum()
        eta = within(group["delta"], h)
        torch._foreach_mul_(u, eta)
    decay(group, params)
    torch._foreach_mul_(u, rates)
    torch._foreach_sub_(params, u)
    return eta


def within(delta: float, h: Tensor) -> Tensor:
    """Return eta = min(1, sqrt(2 delta/|h|)), 0-d: what scales a step u with u'Hu = h."""
    return (2 * delta / h.abs()).sqrt().clamp(max=1)  # h = 0 gives infinity and so 1


def decay(group: dict[str, Any], params: list[Tensor]) -> None:
    """Decoupled weight decay, as AdamW's: p <- p - lr weight_decay p in place. Step-size scaling leaves it alone."""
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - float(group["lr"]) * group["weight_decay"])


def _gathered(t: Tensor) -> Tensor:
    """The whole of a tensor that is distributed, or the tensor itself."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t
