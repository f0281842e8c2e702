"""The rules of step-size scaling, a small function each: how long a step may be.

A step u with curvature u'Hu = h moves the loss's model, or a KL divergence, by h/2. The trust region holds the steps
with h <= 2 delta; what lies outside is shortened by eta = sqrt(2 delta/h): `within`, algorithm 3 of Elsayed et al.
2024. `eta` puts the rules together; compiled/steps.py has its twin, `scaled`.

On the average. So every step outside has the same length, whatever its signal: where gradients cancel, the averaged
gradient and u are small, and eta blows the step up to the radius again. With `average` b > 0 the radius holds on the
average alone: a is the running average of h with decay b, corrected for its start at zero, and eta = sqrt(2 delta/a).
The step's own measure is eta^2 h/2 = delta h/a: small where u is small beside the steps before it, so that Adam's
damping by noise is kept. A single step of huge h would leave the region by any factor: it is held to `bound` times
delta. As in `within`, eta is at most 1:

    eta = min(1, sqrt(2 delta/a), sqrt(2 bound delta/h)).

With b = 0, a = h, and this is `within` for any bound of at least 1. What is remembered stands in the parameter group,
as `curvature_along` = (the average before its correction, its count), and so in the state_dict. `delta` is read at
every step: whoever anneals it sets it in the group, as one sets lr.

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

from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...] | list[Tensor]  # what torch's foreach functions take


def eta(group: dict[str, Any], h: Tensor) -> Tensor | float:
    """Return what a group's step u with u'Hu = h is multiplied by, 0-d; 1 where steps are not scaled."""
    delta = group["delta"]
    if delta is None:
        return 1.0
    if not group["average"]:
        return within(delta, h)
    return torch.minimum(
        within(delta, h.new_tensor(averaged(group, float(h.abs())))), within(group["bound"] * delta, h)
    )


def within(delta: float, h: Tensor) -> Tensor:
    """Return eta = min(1, sqrt(2 delta/|h|)), 0-d: what scales a step u with u'Hu = h."""
    return (2 * delta / h.abs()).sqrt().clamp(max=1)  # h = 0 gives infinity and so 1


def averaged(group: dict[str, Any], h: float) -> float:
    """Move the group's running average of u'Hu by this step's; return it, corrected for its start at zero."""
    mean, steps = group.get("curvature_along", (0.0, 0))
    b = group["average"]
    mean, steps = b * mean + (1 - b) * h, steps + 1
    group["curvature_along"] = (mean, steps)
    return mean / (1 - b**steps)


# --- the bounds of single parameters: definitions, and twins for many at once


def average_of_squares(v: Tensor, x: Tensor, beta: float, t: int) -> Tensor:
    """Move v <- beta v + (1 - beta) x^2 in place; return the root of v, corrected for its start at zero.

    Where the precision cannot hold the average, it stays at the largest number that leaves room for a sum.
    """
    v.copy_((beta * v + (1 - beta) * x**2).clamp_max(torch.finfo(v.dtype).max / 4))
    return v.sqrt() / (1 - beta**t) ** 0.5


def at_least(root: Tensor, m_hat: Tensor, reach: float | None) -> Tensor:
    """Return max(root, |m_hat|/reach): the curvature that keeps a Newton step within reach."""
    return root if reach is None else torch.maximum(root, m_hat.abs() / reach)


def within_alone(u: Tensor, root: Tensor, group: dict[str, Any]) -> Tensor:
    """Return u with each entry no longer than the trust region is along its axis, root u^2 <= 2 delta."""
    if group["reach"] is None:
        return u
    return torch.minimum(u.abs(), (2 * group["delta"] / root).sqrt()) * u.sign()


def average_of_squares_foreach(v: list[Tensor], x: list[Tensor], beta: float, steps: list[int]) -> Tensors:
    """The same for many parameters."""
    torch._foreach_mul_(v, beta)
    torch._foreach_addcmul_(v, x, x, 1 - beta)
    torch._foreach_clamp_max_(v, min(torch.finfo(t.dtype).max for t in v) / 4)
    root = torch._foreach_sqrt(v)
    torch._foreach_div_(root, [(1 - beta**t) ** 0.5 for t in steps])
    return root


def at_least_foreach(root: Tensors, m: list[Tensor], reach: float | None, fades: list[float]) -> None:
    """The same for many parameters: root <- max(root, |m_hat|/reach) in place, m_hat = m/fade."""
    if reach is not None:
        least = torch._foreach_abs(m)
        torch._foreach_mul_(least, [1 / (reach * f) for f in fades])
        torch._foreach_maximum_(root, least)


def within_alone_foreach(u: Tensors, root: Tensors, group: dict[str, Any], rates: list[float]) -> None:
    """The same for many parameters: shorten each entry of u in place to root (rate u)^2 <= 2 delta."""
    if group["reach"] is not None and all(rates):
        longest = torch._foreach_sqrt(root)
        torch._foreach_reciprocal_(longest)  # infinity where there is no curvature
        torch._foreach_mul_(longest, [(2 * group["delta"]) ** 0.5 / rate for rate in rates])
        torch._foreach_minimum_(u, longest)
        torch._foreach_neg_(longest)
        torch._foreach_maximum_(u, longest)


def decay(group: dict[str, Any], params: list[Tensor]) -> None:
    """Decoupled weight decay, as AdamW's: p <- p - lr weight_decay p in place. Step-size scaling leaves it alone."""
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - float(group["lr"]) * group["weight_decay"])
