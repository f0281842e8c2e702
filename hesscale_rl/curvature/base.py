"""The curvatures: each is one message that travels back beside the gradient, and five verbs.

    seed(loss, y, diagonal)     the message at the network's outputs y [N, C]
    pull(rule, g, message)      the message at a layer's input, from the one at its output; g the gradient there
    read(rule, message)         the curvature of the layer's parameters
    split(rule, message)        the message for each branch of a composition
    merge(rule, message, ends)  the message at a composition's input, from those at its branches' inputs

D [N, *] is the message of the diagonal methods: per sample, the second derivative of the loss with respect to
every entry of an activation.
"""

from typing import Any

from torch import Tensor, nn

from .. import oracle
from ..rules import Branching, Rule


class Curvature:
    """What the tape asks of every method; this base is the method that computes nothing."""

    on_tape = True  # False: the method works on the network as a whole and has `estimate` instead of the verbs
    wants_diagonal = False  # whether the loss's second derivatives at the outputs are needed

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Any:
        """Return the message at the outputs y [N, C]; `diagonal` [N, C] if the method wants it, else None."""
        return None

    def pull(self, rule: Rule, g: Tensor, message: Any) -> Any:
        """Return the message at the layer's input; g: the gradient at its output."""
        return None

    def read(self, rule: Rule, message: Any) -> dict[str, Tensor]:
        """Return the curvature of the layer's parameters, by name."""
        return {}

    def split(self, rule: Branching, message: Any) -> list[Any]:
        """Return the message at each branch's output."""
        return [None] * len(rule.branches)

    def merge(self, rule: Branching, message: Any, ends: list[Any]) -> Any:
        """Return the message at the composition's input."""
        return None

    def estimate(self, net: nn.Module, params: dict[str, Tensor], x: Tensor, loss: Any) -> dict[str, Tensor]:
        """Return the curvature of every parameter, for a method that is not on the tape."""
        raise NotImplementedError


class NoCurvature(Curvature):
    """The gradient alone."""


class HesScale(Curvature):
    """The Hessian's diagonal by equations (3) and (4) of Elsayed et al. 2024, exact at the outputs.

    D_l = f'(a_l)^2 (W*W)' D_(l+1) + f''(a_l) W' g_(l+1); for a weight: D_l times its squared input. Off-diagonal
    terms are dropped on the way. Exact for the last linear layer, for the last two where the loss's Hessian at the
    outputs is diagonal, and at width 1. Through Skip the terms 2 D_i J_ii are dropped as well.
    """

    wants_diagonal = True

    def seed(self, loss: Any, y: Tensor, diagonal: Tensor | None) -> Tensor:
        """The loss's exact diagonal."""
        assert diagonal is not None
        return diagonal

    def pull(self, rule: Rule, g: Tensor, message: Tensor) -> Tensor:
        """(J*J)'D + diag(sum_k g_k Hess f_k)."""
        d, d2f = rule.vjp_sq(message), rule.second(g)
        return d if d2f is None else d + d2f

    def read(self, rule: Rule, message: Tensor) -> dict[str, Tensor]:
        """(J_p*J_p)'D, summed over the samples."""
        return rule.grad_sq(message)

    def split(self, rule: Branching, message: Tensor) -> list[Tensor]:
        """The same entries that the gradient's split takes."""
        return rule.split(message)

    def merge(self, rule: Branching, message: Tensor, ends: list[Tensor]) -> Tensor:
        """Their sum."""
        return sum(ends[1:], ends[0])


class HesScaleGN(HesScale):
    """HesScale without the f'' term: an approximation of the generalised Gauss-Newton matrix's diagonal."""

    def pull(self, rule: Rule, g: Tensor, message: Tensor) -> Tensor:
        """(J*J)'D."""
        return rule.vjp_sq(message)


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
