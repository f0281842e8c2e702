"""The losses of supervised learning and of value functions."""

import torch
from torch import Tensor

from .base import Loss, Terms
from .checks import check_classes, classes, eye, finite, pick, real, shaped, vector


def softmax_factors(outputs: Tensor) -> Tensor:
    """Return s_c = sqrt(q_c) (e_c - q) for every class c, [C, N, C], q the softmax: sum_c s s' = diag(q) - qq'."""
    q = outputs.softmax(1)
    return (eye(q.shape[1], q)[:, None] - q) * q.mT.sqrt()[:, :, None]


def softmax_score(outputs: Tensor) -> Tensor:
    """Return q - e [N, C] of a class drawn from the softmax q of each row of outputs."""
    q = outputs.softmax(1)
    # The first of C exponential clocks that run at the speeds q rings; unlike multinomial, this goes through vmap.
    first = (-torch.log1p(-torch.rand_like(q)) / q).argmin(1, keepdim=True)
    return torch.scatter_add(q, 1, first, torch.full_like(first, -1, dtype=q.dtype))


class MeanSquaredError(Loss):
    """Per sample the mean over its m outputs of (y - t)^2, as in torch; gradient 2 (y - t)/m, second derivative 2/m.

    `target` has the outputs' shape [N, ...]. Its model is normal, of variance m/2.
    """

    score_gives_hessian = True

    def __init__(self, target: Tensor, reduction: str = "mean"):
        super().__init__(reduction)
        self.target = finite("target", target)

    def check(self, outputs: Tensor) -> None:
        """The target must have the outputs' shape: nothing is broadcast."""
        shaped("target", self.target, outputs.shape, "the shape of the outputs, net(x)")

    def per_sample(self, outputs: Tensor) -> Tensor:
        """Mean of the squares."""
        return (outputs - self.target).square().flatten(1).mean(1)

    def terms(self, outputs: Tensor, factor: float) -> Terms:
        """Closed forms."""
        c = factor / outputs[0].numel()
        error = outputs - self.target
        return error.square().sum() * c, error * (2 * c), torch.full_like(outputs, 2 * c)

    def factors(self, outputs: Tensor) -> tuple[Tensor, None]:
        """The root of 2/m for every output alone."""
        m = outputs[0].numel()
        root = (2 * self.factor(len(outputs)) / m) ** 0.5
        scaled = eye(m, outputs) * root
        return scaled[:, None].expand(m, len(outputs), m).reshape(m, *outputs.shape), None

    def score(self, outputs: Tensor) -> Tensor:
        """Normal numbers of the variance 2/m."""
        return torch.randn_like(outputs) * (2 * self.factor(len(outputs)) / outputs[0].numel()) ** 0.5


class CrossEntropy(Loss):
    """-log softmax(outputs)[target]; gradient q - e, second derivatives q - q^2. `target` [N]: classes, integers."""

    score_gives_hessian = True

    def __init__(self, target: Tensor, reduction: str = "mean"):
        super().__init__(reduction)
        self.target = classes("target", target)

    def check(self, outputs: Tensor) -> None:
        """The outputs must be [N, C], the targets classes below C."""
        check_classes("target", self.target, outputs)

    def per_sample(self, outputs: Tensor) -> Tensor:
        """The negative log-likelihood."""
        return -pick("target", self.target, outputs.log_softmax(1))[:, 0]

    def terms(self, outputs: Tensor, factor: float) -> Terms:
        """Closed forms."""
        logq, column = outputs.log_softmax(1), self.target[:, None]
        value = pick("target", self.target, logq).sum() * -factor
        q = logq.exp()
        p = q * factor
        g = torch.scatter_add(p, 1, column, torch.full_like(column, -factor, dtype=p.dtype))
        return value, g, torch.addcmul(p, p, q, value=-1)

    def factors(self, outputs: Tensor) -> tuple[Tensor, None]:
        """Those of the softmax, for every class one."""
        self.check(outputs)
        return softmax_factors(outputs) * self.factor(len(outputs)) ** 0.5, None

    def score(self, outputs: Tensor) -> Tensor:
        """Return q - e of a class drawn from q."""
        self.check(outputs)
        return softmax_score(outputs) * self.factor(len(outputs)) ** 0.5

    def bl89_diagonal(self, outputs: Tensor) -> Tensor:
        """q_y - q_y^2 for the target y, 0 elsewhere."""
        d = super().bl89_diagonal(outputs)
        return torch.zeros_like(d).scatter(1, self.target[:, None], d.gather(1, self.target[:, None]))


class ValueLoss(Loss):
    """(v - R)^2/2, or with `clip` PPO's max((v - R)^2, (w - R)^2)/2 with w = v held within `clip` of the old value.

    `returns` R and `old_values` [N], outputs v [N, 1]. `coef` multiplies the loss. Gradient v - R, second derivative
    1; both are 0 where the clipped branch is the larger one. Its model is normal, of variance one.
    """

    score_gives_hessian = True

    def __init__(
        self,
        returns: Tensor,
        old_values: Tensor | None = None,
        clip: float | None = None,
        coef: float = 1.0,
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        if clip is not None and (old_values is None or not clip > 0):
            raise ValueError(f"ValueLoss(clip={clip}): clipping needs old_values [N] and clip > 0")
        self.returns = vector("returns", finite("returns", returns))
        self.old_values = None if old_values is None else finite("old_values", old_values)
        if self.old_values is not None:
            shaped("old_values", self.old_values, returns.shape, "one old value for each return")
        self.clip, self.coef = clip, real("coef", coef)
        if coef < 0:
            raise ValueError(f"coef={coef}: must not be negative")

    def check(self, outputs: Tensor) -> None:
        """The outputs must be [N, 1]."""
        shaped("outputs", outputs, (len(self.returns), 1), f"one value for each return {list(self.returns.shape)}")

    def _clipped(self, v: Tensor) -> Tensor:
        assert self.old_values is not None and self.clip is not None
        return self.old_values + (v - self.old_values).clamp(-self.clip, self.clip)

    def per_sample(self, outputs: Tensor) -> Tensor:
        """Half the larger square."""
        v = outputs[:, 0]
        square = (v - self.returns).square()
        if self.clip is not None:
            square = torch.maximum(square, (self._clipped(v) - self.returns).square())
        return 0.5 * self.coef * square

    def terms(self, outputs: Tensor, factor: float) -> Terms:
        """Closed forms."""
        c, v = self.coef * factor, outputs[:, 0]
        error = v - self.returns
        square = error.square()
        if self.clip is None:
            return square.sum() * (0.5 * c), (error * c)[:, None], torch.full_like(outputs, c)
        other = (self._clipped(v) - self.returns).square()
        # Inside the clipping range the two branches are one and the same; only rounding tells them apart there.
        assert self.old_values is not None
        held = (v - self.old_values).abs() > self.clip
        on = torch.where(held & (other > square), 0.0, torch.full_like(v, c))
        return torch.maximum(square, other).sum() * (0.5 * c), (on * error)[:, None], on[:, None]

    def factors(self, outputs: Tensor) -> tuple[Tensor, None]:
        """The root of the second derivative."""
        self.check(outputs)
        return self.terms(outputs, self.factor(len(outputs)))[2].sqrt()[None], None

    def score(self, outputs: Tensor) -> Tensor:
        """Normal numbers with the second derivative as variance."""
        return self.factors(outputs)[0][0] * torch.randn_like(outputs)
