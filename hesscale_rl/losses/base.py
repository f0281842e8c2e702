"""What a loss is: value, gradient and second derivatives at a network's outputs.

A loss is not a layer. It only starts the way back, with its gradient and the diagonal of its Hessian with respect to
the outputs [N, C]. Each loss states itself twice: `per_sample`, the definition that a reader and autodiff understand,
and `terms`, the closed forms that training uses; the tests hold one to the other. `reduction` acts on the samples.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.nn.modules.loss import _Loss as _TorchLoss

from ..errors import InputError
from .checks import eye, is_traced

Terms = tuple[Tensor, Tensor, Tensor]  # value (0-d), gradient [N, C], diagonal of the Hessian [N, C]


class Loss:
    """The base of the closed-form losses; `reduction`: "mean" or "sum" over the N samples."""

    score_gives_hessian = False  # whether the mean of score score' is the Hessian at the outputs

    def __init__(self, reduction: str = "mean"):
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction={reduction!r}: allowed are 'mean' and 'sum'")
        self.reduction = reduction

    def per_sample(self, outputs: Tensor) -> Tensor:
        """Return the losses [N]: the definition, differentiable by autodiff."""
        raise NotImplementedError

    def terms(self, outputs: Tensor, factor: float) -> Terms:
        """Return `factor` times the sum over the samples, its gradient and the diagonal of its Hessian."""
        raise NotImplementedError

    def check(self, outputs: Tensor) -> None:
        """Raise ValueError, with the shapes, if the outputs do not fit the loss's data."""

    def part(self, rows: slice) -> "Loss":
        """Return the loss of some of the samples: every tensor that it holds has the samples on axis 0."""
        own = copy.copy(self)
        vars(own).update({name: data[rows] for name, data in vars(self).items() if isinstance(data, Tensor)})
        return own

    def factor(self, samples: int) -> float:
        """Return what the reduction multiplies the sum over the samples by."""
        return 1.0 if self.reduction == "sum" else 1.0 / samples

    def value(self, outputs: Tensor) -> Tensor:
        """Return the loss, 0-d, by its definition."""
        self.check(outputs)
        return self.per_sample(outputs).sum() * self.factor(outputs.shape[0])

    def value_grad_curvature(self, outputs: Tensor, diagonal: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the loss (0-d), its gradient and the diagonal of its Hessian, both in the outputs' shape.

        `diagonal=False` asks for no second derivatives, for a loss to which they cost something.
        """
        self.check(outputs)
        return self.terms(outputs, self.factor(outputs.shape[0]))

    def bl89_diagonal(self, outputs: Tensor) -> Tensor:
        """Return the diagonal with a softmax taken as element-wise (Becker and LeCun 1989); here: the exact one."""
        d = self.value_grad_curvature(outputs)[2]
        assert d is not None
        return d

    def hessian(self, outputs: Tensor) -> Tensor:
        """Return the Hessian with respect to each sample's outputs, [N, C, C], by autodiff of the definition."""
        gradient = grad(lambda z: self.value(z))
        basis = eye(outputs.shape[1], outputs)
        # Reverse over reverse: forward mode makes torch 2.13 warn of its own deprecated code.
        product = vjp(gradient, outputs)[1]
        columns = vmap(lambda e: product(e.expand_as(outputs))[0])(basis)  # [C, N, C]
        return columns.movedim(0, 2)

    def factors(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return vectors s [V, N, C] and signs [V, N] with sum_v sign s s' the Hessian; None: all are positive."""
        values, vectors = torch.linalg.eigh(self.hessian(outputs))
        return (vectors * values.abs().sqrt()[:, None]).permute(2, 0, 1), values.sign().mT

    def score(self, outputs: Tensor) -> Tensor:
        """Return the gradient of -log p at a label drawn from the model p that the outputs describe, in their shape.

        Times the root of `factor`: the scores' outer products add up to the Fisher matrix of the reduced loss.
        """
        raise ValueError(f"{type(self).__name__} says nothing of a distribution: there is no label to draw from it")

    def fisher(self, outputs: Tensor) -> Tensor:
        """Return the Fisher matrix of the model that the outputs describe, the mean of score score', [N, C, C]."""
        if self.score_gives_hessian:
            return self.hessian(outputs)
        raise ValueError(f"{type(self).__name__} says nothing of a distribution: it has no Fisher matrix")


class Autodiff(Loss):
    """Any loss: `fn` maps the outputs [N, C] to a scalar, or to [N] values that `reduction` then joins.

    Gradient and second derivatives come from torch.func; a pass per entry of the outputs, so it is for small batches
    and for trying out. `fn` must be vmap-safe (gather, not indexing by a tensor). One that couples the samples has a
    gradient, but no curvature by sample, which is what the methods on the tape send back: ValueError.
    """

    def __init__(self, fn: Callable[[Tensor], Tensor], reduction: str = "mean"):
        super().__init__(reduction)
        if not callable(fn):
            raise TypeError(f"a loss must be of hesscale_rl.losses or a callable outputs -> scalar, got {fn!r}")
        self.fn = fn

    def part(self, rows: slice) -> Loss:
        """ValueError: what `fn` holds is not known."""
        raise ValueError("a callable cannot be cut to some of its samples; take a loss of hesscale_rl.losses")

    def value(self, outputs: Tensor) -> Tensor:
        """Return fn(outputs), reduced."""
        value = self.fn(outputs)
        if not isinstance(value, Tensor):
            raise ValueError(f"the loss returned {value!r}, expected a scalar tensor that depends on the outputs")
        if value.ndim and value.shape != outputs.shape[:1]:
            raise ValueError(
                f"the loss returned the shape {list(value.shape)}, expected a scalar or [N] = {[len(outputs)]}"
            )
        return value.sum() * self.factor(outputs.shape[0]) if value.ndim else value

    def _check_graph(self, outputs: Tensor) -> None:
        """Raise ValueError for a loss that autograd could not send back, or would send to more than the outputs."""
        with torch.enable_grad():
            z = outputs.detach().requires_grad_()
            value = self.value(z)
        if not value.requires_grad:
            raise ValueError("the loss does not depend on the outputs, so it has no gradient")
        nodes, seen = [value.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            nodes += [below for below, _ in node.next_functions]
            leaf = getattr(node, "variable", z)
            if leaf is not z:
                raise ValueError(
                    f"the loss reads a tensor {list(leaf.shape)} that requires grad, into which nothing flows back "
                    "here: detach() it, or train it by autograd"
                )

    def _rows(self, outputs: Tensor) -> Tensor:
        """The Hessian over all samples and outputs, [N C, N, C]."""
        gradient = grad(self.value)
        basis = eye(outputs.numel(), outputs).view(-1, *outputs.shape)
        product = vjp(gradient, outputs)[1]
        rows = vmap(lambda e: product(e)[0], chunk_size=256)(basis)
        if not is_traced(rows):
            n = len(outputs)
            other = rows.view(n, -1, n, rows[0, 0].numel()) * (1 - eye(n, rows))[:, None, :, None]
            if bool(other.abs().max() > 1e-6 * rows.abs().max()):
                raise ValueError(
                    "the loss couples the samples of a batch, so it has no curvature by sample; take "
                    "hesscale_rl.ExactDiagonal(), Hutchinson() or GaussNewton(), which see the batch as a whole"
                )
        return rows

    def value_grad_curvature(self, outputs: Tensor, diagonal: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the loss, its gradient and, if asked for, its exact diagonal."""
        if not is_traced(outputs):
            self._check_graph(outputs)
        g, value = torch.func.grad_and_value(self.value)(outputs)
        d = self._rows(outputs).flatten(1).diagonal().view_as(outputs) if diagonal else None
        return value, g, d

    def hessian(self, outputs: Tensor) -> Tensor:
        """Return the samples' own blocks [N, C, C] of the Hessian."""
        n, c = outputs.shape
        return self._rows(outputs).view(n, c, n, c).diagonal(dim1=0, dim2=2).movedim(-1, 0)


# torch's losses, which take outputs and target together, and ours, which hold the target.
_OURS = {
    "CrossEntropyLoss": "CrossEntropy(target)",
    "cross_entropy": "CrossEntropy(target)",
    "MSELoss": "MeanSquaredError(target)",
    "mse_loss": "MeanSquaredError(target)",
}


def as_loss(loss: Loss | Callable[[Tensor], Tensor]) -> Loss:
    """Return the loss itself, or a callable wrapped in Autodiff; InputError for torch's, which lack a target."""
    if isinstance(loss, Loss):
        for name, value in vars(loss).items():
            if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
                raise InputError(f"the loss's {name} requires grad, and nothing flows back into it: detach() it")
        return loss
    name = getattr(loss, "__name__", type(loss).__name__)
    kind: Any = loss if isinstance(loss, type) else type(loss)
    if issubclass(kind, Loss):
        raise InputError(f"loss={name}: a class; make a loss of it with its data, {name}(target, ...)")
    if issubclass(kind, _TorchLoss) or name in _OURS:
        ours = f"hesscale_rl.losses.{_OURS[name]}" if name in _OURS else "one of hesscale_rl.losses"
        raise InputError(
            f"loss={name} lacks its target: take {ours}, or any function of the outputs alone, "
            "lambda outputs: criterion(outputs, target)"
        )
    return Autodiff(loss)
