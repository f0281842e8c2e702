"""The end of a program that no parameter enters any more: the loss as a function of the network's outputs.

An own loss's operations meet again (a log-probability's two ways from the standard deviation, a clipped ratio), and
what the diagonal methods drop there would be lost at the outputs already. So this end is taken as one function,
replayed from the tape; its gradient and its Hessian's diagonal are exact, by autodiff, where it is small enough.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from .curvature.base import Curvature, Messages, NoCurvature
from .losses.checks import eye
from .oracle import Elementary
from .recording import each, latest
from .rules import Rule

# Numbers that all products with the Hessian may give; one product for each entry of a sample's outputs.
LARGEST = 2**24


def start(rules: list[Rule], loss: Tensor, uses: dict[int, int], curvature: Curvature) -> tuple[Messages, Messages]:
    """Return gradients and messages with which to walk back from the 0-d `loss`; cuts the rules of its end off.

    `uses`: the parameters by id. Where the end is too large, or cannot be replayed, all rules stay, and the way back
    starts at the loss itself.
    """
    grads, messages = Messages(), Messages(uses)
    if not isinstance(curvature, NoCurvature):
        end = _end(rules, uses, loss)
        if end and end[-1].y is loss and (found := _derivatives(end, loss)) is not None:
            for t, g, d in zip(*found, strict=True):
                grads.put(t, g)
                curvature.place(messages, t, d)
            cut = {id(rule) for rule in end}
            rules[:] = [rule for rule in rules if id(rule) not in cut]
            return grads, messages
        curvature.place(messages, loss, torch.zeros_like(loss))
    grads.put(loss, torch.ones_like(loss))
    return grads, messages


def _end(rules: list[Rule], uses: dict[int, int], loss: Tensor) -> list[Rule]:
    """Those on the way to the loss that stand behind every parameter, and behind every operation that has one."""
    wanted: set[int] = set()
    needed = {id(loss)}
    end = []
    for rule in reversed(rules):
        if not any(id(y) in needed for y in each(rule.y)):
            continue
        inputs = [id(rule.inputs[slot]) for slot in rule.live]
        needed.update(inputs)
        if any(i in uses for i in inputs) or any(id(y) in wanted for y in each(rule.y)):
            wanted.update(inputs)
        else:
            end.append(rule)
    return end[::-1]


def _function(end: list[Rule], inputs: list[Tensor]) -> Callable[[list[Tensor]], Tensor]:
    """The operations as a function of the tensors that enter them."""

    def replay(given: list[Tensor]) -> Tensor:
        now = {id(t): new for t, new in zip(inputs, given, strict=True)}

        y: Any = None
        with Elementary():
            for rule in end:
                func, args, kwargs = rule.called
                y = func(*latest(args, now), **latest(kwargs, now))
                now.update({id(old): new for old, new in zip(each(rule.y), each(y), strict=True)})
        return y

    return replay


def _derivatives(end: list[Rule], loss: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]] | None:
    """The tensors that enter the end, the gradient and the Hessian's diagonal there; None if that cannot be had."""
    if any(rule.called is None or rule.draws for rule in end):
        return None
    made: set[int] = set()
    for rule in end:  # an operation may hand an input on (broadcast_tensors of equal shapes)
        made |= {id(y) for y in each(rule.y)} - {id(t) for t in rule.inputs.values()}
    entering = {id(t): t for rule in end for t in (rule.inputs[slot] for slot in rule.live) if id(t) not in made}
    inputs = list(entering.values())
    f = _function(end, inputs)
    leading = Counter(len(t) for t in inputs if t.ndim and len(t) > 1)
    n = leading.most_common(1)[0][0] if leading else 0
    by_sample = [bool(n) and t.ndim > 0 and len(t) == n for t in inputs]
    total = sum(t.numel() for t in inputs)
    if sum(t.numel() // (n if own else 1) for t, own in zip(inputs, by_sample, strict=True)) * 2 * total > LARGEST:
        return None
    try:
        if not torch.allclose(f(inputs), loss, rtol=1e-4):
            return None
        slope, product = vjp(grad(f), inputs)[:2]
        diagonals = [
            _by_sample(product, inputs, k) if own else _entries(product, inputs, k) for k, own in enumerate(by_sample)
        ]
        if any(d is None for d in diagonals):  # samples that the loss couples
            if 2 * total * total > LARGEST:
                return None
            diagonals = [_entries(product, inputs, k) for k in range(len(inputs))]
    except RuntimeError:  # an operation that torch.func does not know
        return None
    return inputs, list(slope), [d for d in diagonals if d is not None]


def _along(product: Callable[[Any], Any], inputs: list[Tensor], k: int, directions: Tensor) -> Tensor:
    """Products with directions [K, *] in input k, of which the part in input k is returned."""
    zeros = [torch.zeros_like(t) for t in inputs]
    return vmap(lambda v: product([*zeros[:k], v, *zeros[k + 1 :]])[0][k], chunk_size=256)(directions)


def _entries(product: Callable[[Any], Any], inputs: list[Tensor], k: int) -> Tensor:
    """The diagonal, a product for every entry."""
    t = inputs[k]
    rows = _along(product, inputs, k, eye(t.numel(), t).view(-1, *t.shape))
    return rows.reshape(t.numel(), -1).diagonal().reshape(t.shape)


def _by_sample(product: Callable[[Any], Any], inputs: list[Tensor], k: int) -> Tensor | None:
    """The diagonal, a product for every entry of a sample, with a random sign for each; None if samples are coupled.

    What couples two samples comes with the product of their signs, so two draws tell it.
    """
    t = inputs[k]
    entries = eye(t[0].numel(), t).view(-1, 1, *t.shape[1:])
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(2):
        signs = (2 * torch.randint(2, (len(t),), generator=generator) - 1).to(t)
        signs = signs.view(-1, *[1] * (t.ndim - 1))
        rows = _along(product, inputs, k, entries * signs) * signs
        found.append((rows * entries).sum(0))
    one, other = found
    close = float((one - other).abs().max()) <= 1e-4 * float(one.abs().max())
    return one if close else None
