"""The rules of softmax and of what is made of it; q is the softmax of x along an axis."""

import math
from typing import Any

import torch
from torch import Tensor

from .rule import NotCovered, Rule, Several, arguments, unbroadcast


class _Along(Rule):
    """y depends on x along one axis."""

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return y."""
        named = arguments({"dim": None, "_stacklevel": 3, "dtype": None}, args, kwargs)
        if not isinstance(named["dim"], int) or named["dtype"] not in (None, x.dtype):
            raise NotCovered
        self.take(x)
        self.dim = named["dim"]
        return self.forward(x)

    def keeps_samples(self, n: int) -> bool:
        """Where it is not the samples' axis."""
        return self.dim % self.x.ndim != 0 and self.y.shape[:1] == (n,)

    def _sum(self, t: Tensor) -> Tensor:
        return t.sum(self.dim, keepdim=True)


class LogSoftmax(_Along):
    """y_k = x_k - log sum_i exp x_i; J_ki = delta_ki - q_i; second derivatives -(diag(q) - qq') for every k."""

    def forward(self, x: Tensor) -> Tensor:
        """Return log q."""
        y = x.log_softmax(self.dim)
        self.q = y.exp()
        return y

    def vjp(self, v: Tensor) -> Tensor:
        """v - q sum(v)."""
        return v - self.q * self._sum(v)

    def vjp_sq(self, d: Tensor) -> Tensor:
        """sum_k d_k (delta_ki - q_i)^2."""
        return d * (1 - 2 * self.q) + self.q.square() * self._sum(d)

    def second(self, g: Tensor) -> Tensor:
        """-(q - q^2) sum(g)."""
        return (self.q * self.q - self.q) * self._sum(g)


class Softmax(_Along):
    """y = q; J_ki = q_k (delta_ki - q_i)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return q."""
        return x.softmax(self.dim)

    def vjp(self, v: Tensor) -> Tensor:
        """q (v - sum(v q))."""
        return self.y * (v - self._sum(v * self.y))

    def vjp_sq(self, d: Tensor) -> Tensor:
        """sum_k d_k q_k^2 (delta_ki - q_i)^2."""
        q2 = self.y.square()
        return q2 * (d * (1 - 2 * self.y) + self._sum(d * q2))

    def second(self, g: Tensor) -> Tensor:
        """q (1 - 2 q) (g - sum(g q))."""
        return (1 - 2 * self.y) * self.vjp(g)


class LogSumExp(Rule):
    """y = log sum exp x over some axes; J = q, second derivatives q - q^2."""

    def run(self, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
        """Return y."""
        self.take(x)
        self.dim = [i % x.ndim for i in (dim if isinstance(dim, tuple | list) else [dim])]
        y = torch.logsumexp(x, self.dim, keepdim=True)
        self.q, self.kept = (x - y).exp(), y.shape
        return y if keepdim else torch.logsumexp(x, self.dim)

    def keeps_samples(self, n: int) -> bool:
        """Where the samples are not summed over."""
        return 0 not in self.dim and self.y.shape[:1] == (n,)

    def vjp(self, v: Tensor) -> Tensor:
        """q v."""
        return self.q * v.reshape(self.kept)

    def vjp_sq(self, d: Tensor) -> Tensor:
        """q^2 d."""
        return self.q.square() * d.reshape(self.kept)

    def second(self, g: Tensor) -> Tensor:
        """(q - q^2) g."""
        return (self.q - self.q.square()) * g.reshape(self.kept)


class Attention(Several):
    """y_t = sum_s p_ts v_s, p the softmax over s of q_t k_s scale, with masks: [*, T, E], [*, S, E], [*, S, C].

    Whole, as the two products and the softmax taken apart would lose what couples the entries of p.
    """

    joint = False

    def run(self, x: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return y."""
        names = {"key": None, "value": None}
        settings = names | {
            "attn_mask": None,
            "dropout_p": 0.0,
            "is_causal": False,
            "scale": None,
            "enable_gqa": False,
        }
        m = arguments(settings, args, kwargs)
        k, v = m["key"], m["value"]
        if m["dropout_p"] or x.shape[:-2] != k.shape[:-2] or k.shape[:-2] != v.shape[:-2]:
            raise NotCovered
        self.inputs = {"x": x, "k": k, "v": v}
        mask = m["attn_mask"]
        if mask is not None and mask.dtype is not torch.bool:
            self.inputs["mask"] = mask
        self.q, self.k, self.v = x, k, v
        self.scale = x.shape[-1] ** -0.5 if m["scale"] is None else m["scale"]
        scores = x @ k.mT * self.scale
        if m["is_causal"]:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril()
        if mask is not None and mask.dtype is torch.bool:
            scores = scores.masked_fill(~mask, -math.inf)
        elif mask is not None:
            scores = scores + mask
        self.prob = scores.softmax(-1)
        return self.prob @ v

    def keeps_samples(self, n: int) -> bool:
        """Where there is an axis before those of attention."""
        return (
            self.y.ndim > 2 and self.y.shape[0] == n and all(self.inputs[s].ndim == self.y.ndim for s in self.varying)
        )

    def _scores(self, v: Tensor) -> Tensor:
        """What v is for the scores, [*, T, S]: p (w - sum(p w)), w_ts = v_t v_s'."""
        w = v @ self.v.mT
        return self.prob * (w - (self.prob * w).sum(-1, keepdim=True))

    def of(self, slot: str, v: Tensor) -> Tensor:
        """J'v."""
        if slot == "v":
            return self.prob.mT @ v
        scores = self._scores(v)
        if slot == "mask":
            return unbroadcast(scores, self.inputs["mask"].shape)
        return scores @ self.k * self.scale if slot == "x" else scores.mT @ self.q * self.scale

    def of_sq(self, slot: str, d: Tensor) -> Tensor:
        """(J*J)'d."""
        if slot == "v":
            return self.prob.square().mT @ d
        if slot == "x":  # J_tce = sum_s p_ts k_se v_sc - mean k_te y_tc
            j = (self.prob[..., None, :] * self.k.mT[..., None, :, :]).flatten(-3, -2) @ self.v
            j = j.unflatten(-2, self.q.shape[-2:]) - (self.prob @ self.k)[..., None] * self.y[..., None, :]
            return (j.square() @ d[..., None])[..., 0] * self.scale**2
        # J_tc,s = p_ts (v_sc - y_tc), for every score
        spread = d @ self.v.square().mT - 2 * (d * self.y) @ self.v.mT + (d * self.y.square()).sum(-1, keepdim=True)
        scores = self.prob.square() * spread
        if slot == "mask":
            return unbroadcast(scores, self.inputs["mask"].shape)
        return scores.mT @ self.q.square() * self.scale**2

    def of_second(self, slot: str, g: Tensor) -> Tensor | None:
        """The softmax's second derivatives, as q and k enter the scores linearly."""
        if slot == "v":
            return None
        if slot == "x":
            w = self._scores(g)  # p (w - mean w): d2y/dq_e2 = mean of w ((k_e - mean k)^2 - its mean)
            mean = self.prob @ self.k
            return (w @ self.k.square() - 2 * mean * (w @ self.k)) * self.scale**2
        scores = (1 - 2 * self.prob) * self._scores(g)
        if slot == "mask":
            return unbroadcast(scores, self.inputs["mask"].shape)
        return scores.mT @ self.q.square() * self.scale**2
