"""The policy losses: policy gradient and PPO's clipped ratio, for normal and softmax policies.

A distribution gives log pi(a) and its first and second derivatives s1, s2 with respect to each output, and by
`hessian_factors` its whole Hessian: vectors b and signs, sum sign bb'. Both losses follow by the chain rule: -A s1
and -A s2 for -A log pi, -A r s1 and -A r (s1^2 + s2) for -A r with r = pi/pi_old.
Source: Elsayed et al. 2024, appendices B and C, here for losses that are minimised.
A: advantage, r: probability ratio, q: softmax probabilities, e: one-hot action, z = (action - mean)/sigma.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .base import Loss, Terms
from .checks import check_classes, classes, eye, finite, pick, real, shaped, vector
from .supervised import softmax_factors, softmax_score


class _Gaussian:
    """Independent normal actions; outputs [mean, p] side by side, p by the parametrization."""

    ALLOWED = ("log_std", "log_var", "var")

    def __init__(self, parametrization: str):
        if parametrization not in self.ALLOWED:
            raise ValueError(f"parametrization={parametrization!r}: allowed are {', '.join(self.ALLOWED)}")
        self.parametrization = parametrization

    def actions(self, actions: Tensor) -> Tensor:
        if finite("actions", actions).ndim != 2:
            raise ValueError(f"actions have the shape {list(actions.shape)}, expected [N, A]")
        return actions

    def check(self, outputs: Tensor, actions: Tensor) -> None:
        n, a = actions.shape
        shaped(
            "outputs",
            outputs,
            (n, 2 * a),
            f"[mean, {self.parametrization}] for actions {list(actions.shape)}",
        )

    def _log_std(self, p: Tensor) -> Tensor:
        if self.parametrization == "log_std":
            return p
        return 0.5 * (p if self.parametrization == "log_var" else p.log())

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Terms:
        mean, p = outputs.chunk(2, 1)
        log_std = self._log_std(p)
        inverse = torch.exp(-log_std)  # 1/sigma
        z = (actions - mean) * inverse
        z2 = z * z
        logp = (-0.5 * z2 - log_std).sum(1) - 0.5 * math.log(2 * math.pi) * actions.shape[1]
        if self.parametrization == "log_std":
            s1, s2 = z2 - 1, -2 * z2
        elif self.parametrization == "log_var":
            s1, s2 = 0.5 * (z2 - 1), -0.5 * z2
        else:
            s1, s2 = 0.5 * (z2 - 1) / p, (0.5 - z2) / (p * p)
        return logp, torch.cat([z * inverse, s1], 1), torch.cat([-inverse * inverse, s2], 1)

    def hessian_factors(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        mean, p = outputs.chunk(2, 1)
        inverse = torch.exp(-self._log_std(p))
        z = (actions - mean) * inverse
        # For each action alone: -uu' + vv', u = [1/sigma, du], v = [0, dv].
        if self.parametrization == "log_std":
            du, dv = 2 * z, 2**0.5 * z
        elif self.parametrization == "log_var":
            du, dv = z, 0.5**0.5 * z
        else:
            du, dv = z / p, 0.5**0.5 / p
        one = eye(z.shape[1], z)[:, None]  # [A, 1, A]
        u, v = torch.cat([one * inverse, one * du], 2), torch.cat([one * torch.zeros_like(z), one * dv], 2)
        sign = torch.ones_like(u[:, :1, 0])
        return torch.cat([u, v]), torch.cat([-sign, sign])

    def fisher(self, outputs: Tensor) -> Tensor:
        mean, p = outputs.chunk(2, 1)
        own = {"log_std": 2 + 0 * p, "log_var": 0.5 + 0 * p, "var": 0.5 / (p * p)}[self.parametrization]
        return torch.cat([torch.exp(-2 * self._log_std(p)), own], 1).diag_embed()

    def score(self, outputs: Tensor) -> Tensor:
        mean, p = outputs.chunk(2, 1)
        drawn = mean + self._log_std(p).exp() * torch.randn_like(mean)
        return -self.log_prob(outputs, drawn)[1]

    def entropy(self, outputs: Tensor) -> Terms:
        mean, p = outputs.chunk(2, 1)
        value = (self._log_std(p) + 0.5 * math.log(2 * math.pi * math.e)).sum(1)
        none = torch.zeros_like(mean)
        if self.parametrization == "var":
            s1, s2 = 0.5 / p, -0.5 / (p * p)
        else:
            s1, s2 = torch.full_like(p, 1.0 if self.parametrization == "log_std" else 0.5), none
        return value, torch.cat([none, s1], 1), torch.cat([none, s2], 1)


class _Categorical:
    """A softmax over C classes."""

    def actions(self, actions: Tensor) -> Tensor:
        return classes("actions", actions)

    def check(self, outputs: Tensor, actions: Tensor) -> None:
        check_classes("actions", actions, outputs)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Terms:
        logq = outputs.log_softmax(1)
        q, column = logq.exp(), actions[:, None]
        return pick("actions", actions, logq)[:, 0], torch.scatter_add(-q, 1, column, torch.ones_like(q)), q * q - q

    def hessian_factors(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        s = softmax_factors(outputs)
        return s, -torch.ones_like(s[:, :1, 0])

    def fisher(self, outputs: Tensor) -> Tensor:
        q = outputs.softmax(1)
        return q.diag_embed() - q[:, :, None] * q[:, None]

    def score(self, outputs: Tensor) -> Tensor:
        return softmax_score(outputs)

    def entropy(self, outputs: Tensor) -> Terms:
        logq = outputs.log_softmax(1)
        q = logq.exp()
        value = -(q * logq).sum(1)
        u = logq + value[:, None]
        return value, -q * u, -q * ((1 - 2 * q) * u + 1 - q)


class _PolicyLoss(Loss):
    """What both policy losses share: the distribution, the actions, the advantages, the entropy bonus."""

    def __init__(self, distribution: Any, actions: Tensor, advantages: Tensor, entropy_coef: float, reduction: str):
        super().__init__(reduction)
        self.distribution, self.entropy_coef = distribution, real("entropy_coef", entropy_coef)
        self.actions = distribution.actions(actions)
        self.advantages = vector("advantages", finite("advantages", advantages))
        shaped("advantages", advantages, actions.shape[:1], "one advantage for each action")

    def check(self, outputs: Tensor) -> None:
        """The outputs must be those of a policy for these actions."""
        self.distribution.check(outputs, self.actions)

    def objective(self, logp: Tensor) -> Tensor:
        """Return the losses [N] without the entropy, from log pi(a) [N]: the definition."""
        raise NotImplementedError

    def derivatives(self, logp: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the objective for the advantages `a` and its first two derivatives in log pi(a), [N] each."""
        raise NotImplementedError

    def log_prob(self, outputs: Tensor) -> Tensor:
        """Return log pi(a) of the actions, [N]."""
        return self.distribution.log_prob(outputs, self.actions)[0]

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the policy's entropy per sample, [N]."""
        return self.distribution.entropy(outputs)[0]

    def per_sample(self, outputs: Tensor) -> Tensor:
        """The objective less the entropy bonus."""
        return self.objective(self.log_prob(outputs)) - self.entropy_coef * self.entropy(outputs)

    def terms(self, outputs: Tensor, factor: float) -> Terms:
        """The chain rule through log pi(a): f' s1 and f'' s1^2 + f' s2."""
        logp, s1, s2 = self.distribution.log_prob(outputs, self.actions)
        values, df, d2f = self.derivatives(logp, self.advantages * factor)
        value = values.sum()
        g, d = df[:, None] * s1, d2f[:, None] * (s1 * s1) + df[:, None] * s2
        if self.entropy_coef:
            h, h1, h2 = self.distribution.entropy(outputs)
            c = self.entropy_coef * factor
            value, g, d = value - c * h.sum(), g - c * h1, d - c * h2
        return value, g, d

    def factors(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """By the chain rule: the factors of the second derivatives of log pi times f', and s1 s1' times f''."""
        if self.entropy_coef:
            return super().factors(outputs)
        self.check(outputs)
        logp, s1, _ = self.distribution.log_prob(outputs, self.actions)
        _, df, d2f = self.derivatives(logp, self.advantages * self.factor(len(outputs)))
        s, sign = self.distribution.hessian_factors(outputs, self.actions)  # [V, N, C], [V, 1]
        own = (s1 * d2f.abs().sqrt()[:, None])[None]
        return torch.cat([s * df.abs().sqrt()[:, None], own]), torch.cat([sign * df.sign(), d2f.sign()[None]])

    def score(self, outputs: Tensor) -> Tensor:
        """The gradient of -log pi at an action that the policy draws, whatever advantages, ratio and entropy are."""
        self.check(outputs)
        return self.distribution.score(outputs) * self.factor(len(outputs)) ** 0.5

    def fisher(self, outputs: Tensor) -> Tensor:
        """The Fisher matrix of the policy."""
        self.check(outputs)
        return self.distribution.fisher(outputs) * self.factor(len(outputs))

    def bl89_diagonal(self, outputs: Tensor) -> Tensor:
        """With a softmax as element-wise, q_i' = q_i - q_i^2 and q_i'' = q_i' (1 - 2 q_i) for every class alone."""
        if not isinstance(self.distribution, _Categorical):
            return super().bl89_diagonal(outputs)
        self.check(outputs)
        logq = outputs.log_softmax(1)
        q = logq.exp()
        # The loss sees only q_a of the action a: f(log q_a), so d log q_a = 1 - q and d2 log q_a = -(q - q^2).
        _, df, d2f = self.derivatives(logq.gather(1, self.actions[:, None])[:, 0], self.advantages)
        own = d2f[:, None] * (1 - q).square() - df[:, None] * (q - q * q)
        column = self.actions[:, None]
        d = torch.zeros_like(q).scatter(1, column, own.gather(1, column))
        # Entropy -sum q log q: first derivative -(log q + 1), second -1/q, in q.
        h2 = -q * (1 - q).square() - (q - q * q) * (1 - 2 * q) * (logq + 1)
        return (d - self.entropy_coef * h2) * self.factor(outputs.shape[0])


class _PolicyGradient(_PolicyLoss):
    """-A log pi(a)."""

    def objective(self, logp: Tensor) -> Tensor:
        return -self.advantages * logp

    def derivatives(self, logp: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return -a * logp, -a, torch.zeros_like(logp)


class _PPO(_PolicyLoss):
    """max(-A r, -A clip(r)), r = pi(a)/pi_old(a) clipped to 1 +- clip."""

    def __init__(
        self,
        distribution: Any,
        actions: Tensor,
        old_logprob: Tensor,
        advantages: Tensor,
        clip: float,
        entropy_coef: float,
        reduction: str,
    ):
        super().__init__(distribution, actions, advantages, entropy_coef, reduction)
        if not clip > 0:
            raise ValueError(f"clip={clip}: must be positive")
        self.clip = clip
        self.old_logprob = vector("old_logprob", finite("old_logprob", old_logprob))
        shaped("old_logprob", old_logprob, advantages.shape, "one log-probability for each action")

    def objective(self, logp: Tensor) -> Tensor:
        r = (logp - self.old_logprob).exp()
        clipped = r.clamp(1 - self.clip, 1 + self.clip)
        return torch.maximum(-self.advantages * r, -self.advantages * clipped)

    def derivatives(self, logp: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r = (logp - self.old_logprob).exp()
        # The clipped branch is constant; it is the larger one where r has gone too far along the advantage's sign.
        clipped = torch.where(a >= 0, r > 1 + self.clip, r < 1 - self.clip)
        df = torch.where(clipped, 0.0, -a * r)  # r' = r'' = r with respect to log pi
        held = torch.where(clipped, r.clamp(1 - self.clip, 1 + self.clip), r)
        return -a * held, df, df


class GaussianPolicyGradient(_PolicyGradient):
    """-A log pi(a) of a normal policy: actions [N, A], advantages [N], outputs [mean, p] [N, 2 A]."""

    def __init__(
        self,
        actions: Tensor,
        advantages: Tensor,
        entropy_coef: float = 0.0,
        parametrization: str = "log_std",
        reduction: str = "mean",
    ):
        super().__init__(_Gaussian(parametrization), actions, advantages, entropy_coef, reduction)


class CategoricalPolicyGradient(_PolicyGradient):
    """-A log pi(a) of a softmax policy: actions [N] integers, advantages [N], outputs (logits) [N, C]."""

    def __init__(self, actions: Tensor, advantages: Tensor, entropy_coef: float = 0.0, reduction: str = "mean"):
        super().__init__(_Categorical(), actions, advantages, entropy_coef, reduction)


class GaussianPPO(_PPO):
    """PPO's clipped ratio loss of a normal policy: actions [N, A], old_logprob and advantages [N]."""

    def __init__(
        self,
        actions: Tensor,
        old_logprob: Tensor,
        advantages: Tensor,
        clip: float = 0.2,
        entropy_coef: float = 0.0,
        parametrization: str = "log_std",
        reduction: str = "mean",
    ):
        super().__init__(_Gaussian(parametrization), actions, old_logprob, advantages, clip, entropy_coef, reduction)


class CategoricalPPO(_PPO):
    """PPO's clipped ratio loss of a softmax policy: actions [N] integers, old_logprob and advantages [N]."""

    def __init__(
        self,
        actions: Tensor,
        old_logprob: Tensor,
        advantages: Tensor,
        clip: float = 0.2,
        entropy_coef: float = 0.0,
        reduction: str = "mean",
    ):
        super().__init__(_Categorical(), actions, old_logprob, advantages, clip, entropy_coef, reduction)
