"""The curvatures: each is one message that travels back beside the gradient, and three verbs.

    seed(loss, y, diagonal)           the message at the network's outputs y [N, C]
    pull(rule, g, message, slots)     the messages at an operation's inputs, from the one at its output; g: gradient
    read(message)                     the curvature of a parameter, from the message that has arrived there

Messages that meet at a tensor add up, as gradients do (`add`). D, in the shape of its tensor, is the message of the
diagonal methods: the second derivative of the loss with respect to every entry. A method whose messages are more than
one for each tensor has a `step` of its own instead of `pull` (hbp.py).
"""

from typing import Any

import torch
from torch import Tensor, nn

from .. import oracle
from ..rules import Rule, Slots


def no_message(y: Tensor, like: Any) -> Tensor:
    """Return zeros for an output that the loss does not depend on."""
    return torch.zeros_like(y, dtype=like.dtype)


class Messages(dict[Any, Any]):
    """What has arrived at each tensor, by its id; `uses`: how often each parameter is an input of an operation."""

    uses: dict[int, int]

    def __init__(self, uses: dict[int, int] | None = None):
        super().__init__()
        self.uses = uses or {}

    def put(self, t: Tensor, message: Any) -> None:
        """Add a message to those of t."""
        old = self.get(id(t))
        self[id(t)] = message if old is None else old + message

    def take(self, rule: Rule, zeros: Any = no_message) -> Any:
        """Remove and return what has arrived at the rule's output, None if nothing; a list for several outputs."""
        if not isinstance(rule.y, tuple | list):
            return self.pop(id(rule.y), None)
        found = [self.pop(id(y), None) for y in rule.y]
        like = next((m for m in found if m is not None), None)
        if like is None:
            return None
        return [zeros(y, like) if m is None else m for m, y in zip(found, rule.y, strict=True)]


class Curvature:
    """What the tape asks of every method; this base is the method that computes nothing."""

    on_tape = True  # False: the method works on the network as a whole and has `estimate` instead of the verbs
    wants_diagonal = False  # whether the loss's second derivatives at the outputs are needed
    by_sample = False  # whether it must know which axis holds the samples

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Any:
        """Return the message at the outputs y [N, C]; `diagonal` [N, C] if the method wants it, else None."""
        return None

    def place(self, messages: Messages, y: Tensor, seed: Any) -> None:
        """Start the way back at y."""
        messages.put(y, seed)

    def step(self, rule: Rule, g: Any, messages: Messages) -> None:
        """Move what has arrived at the rule's output to its inputs; g: the gradient at the output."""
        message = messages.take(rule, self.nothing)
        for slot, new in self.pull(rule, g, message, rule.live).items():
            messages.put(rule.inputs[slot], new)

    def nothing(self, y: Tensor, like: Any) -> Any:
        """Return the message of an output that the loss does not depend on; `like`: that of another output."""
        return no_message(y, like)

    def pull(self, rule: Rule, g: Any, message: Any, slots: Slots) -> dict[str, Any]:
        """Return the messages at those of the rule's inputs; of several outputs, g and message are lists."""
        return {}

    def read(self, message: Any) -> Any:
        """Return the curvature of a parameter from its message."""
        return message

    def estimate(self, net: nn.Module, params: dict[str, Tensor], x: Tensor, loss: Any) -> dict[str, Tensor]:
        """Return the curvature of every parameter, for a method that is not on the tape."""
        raise NotImplementedError


class NoCurvature(Curvature):
    """The gradient alone."""


class HesScale(Curvature):
    """The Hessian's diagonal by equations (3) and (4) of Elsayed et al. 2024, exact at the outputs.

    D_l = f'(a_l)^2 (W*W)' D_(l+1) + f''(a_l) W' g_(l+1); for a weight: D_l times its squared input. Off-diagonal
    terms are dropped on the way. Exact for the last linear layer, for the last two where the loss's Hessian at the
    outputs is diagonal, and at width 1. Where two ways meet (x + f(x), x * f(x)) their
    cross terms are dropped as well.
    """

    wants_diagonal = True

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Tensor:
        """The loss's exact diagonal."""
        assert diagonal is not None
        return diagonal

    def pull(self, rule: Rule, g: Any, message: Any, slots: Slots) -> dict[str, Tensor]:
        """(J*J)'D + diag(sum_k g_k Hess f_k)."""
        out = rule.pull_sq(message, slots)
        for slot, own in rule.pull_second(g, slots).items():
            out[slot] = out[slot] + own
        return out


class HesScaleGN(HesScale):
    """HesScale without the f'' term: an approximation of the generalised Gauss-Newton matrix's diagonal."""

    def pull(self, rule: Rule, g: Any, message: Any, slots: Slots) -> dict[str, Tensor]:
        """(J*J)'D."""
        return rule.pull_sq(message, slots)


class BL89(HesScale):
    """Becker and LeCun 1989: HesScale, but a softmax at the outputs is taken as if it were element-wise.

    For losses without a softmax it is HesScale.
    """

    wants_diagonal = False

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Tensor:
        """The loss's diagonal with the softmax's cross derivatives dropped."""
        return loss.bl89_diagonal(y)


class ExactDiagonal(Curvature):
    """The Hessian's exact diagonal, a Hessian-vector product per parameter: for studies and tests.

    `chunk`: how many products are computed at once; memory grows with it.
    """

    on_tape = False

    def __init__(self, chunk: int = 256):
        self.chunk = whole("ExactDiagonal", "chunk", chunk)

    def estimate(self, net: nn.Module, params: dict[str, Tensor], x: Tensor, loss: Any) -> dict[str, Tensor]:
        """Return the diagonal, by autodiff through `net` itself; ValueError if it draws other numbers every time."""
        refuse_dropout("ExactDiagonal", net)
        return oracle.hessian_diagonal(net, params, x, loss, self.chunk)


def whole(method: str, name: str, value: Any) -> int:
    """Return the value of a setting if it is a whole number, at least 1; ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{method}({name}={value!r}): must be at least 1, a whole number")
    return value


def refuse_dropout(method: str, net: nn.Module) -> None:
    """Raise ValueError if `net` drops other entries in every pass: then a second pass has another Hessian."""
    for path, layer in net.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
            raise ValueError(
                f"{method}: layer {path or '(the network itself)'} ({layer}) drops other entries in every pass, so "
                "there is no one Hessian; call net.eval() first, or use HesScale"
            )
