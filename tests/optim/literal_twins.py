"""Literal twins of the optimizers: the equations letter by letter, one parameter at a time, to hold all ways to.

Each takes lists of parameters, gradients and curvatures of one group, and a dictionary that it keeps its state in; it
changes the parameters in place and returns eta.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


SETTINGS: dict[str, Any] = {
    "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "delta": None, "momentum": 0.0,
    "reach": 10.0, "weight_decay": 0.0, "maximize": False, "average": 0.0, "bound": 4.0,
}  # fmt: skip


def adahesscale(
    params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor], state: State, **settings: Any
) -> float:
    """Algorithms 2 and 3 of Elsayed et al. 2024 (their circled dot is a division), with the bound `reach`."""
    s = SETTINGS | settings
    (b1, b2), t = s["betas"], _next(state)
    updates, roots = [], []
    for i, (p, g, d) in enumerate(zip(params, _signed(grads, s), curvatures, strict=True)):
        m = state[f"m{i}"] = b1 * state.get(f"m{i}", torch.zeros_like(p)) + (1 - b1) * g
        v = state[f"v{i}"] = b2 * state.get(f"v{i}", torch.zeros_like(p)) + (1 - b2) * d**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        roots.append(_bounded(v_hat.sqrt(), m_hat, s))
        updates.append(s["lr"] * m_hat / (roots[-1] + s["eps"]))
    return _apply(params, updates, roots, state, s)


def scaled_adam(
    params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor], state: State, **settings: Any
) -> float:
    """Adam, its update scaled by the curvature's own moving average."""
    s = SETTINGS | settings
    (b1, b2), t = s["betas"], _next(state)
    updates, roots = [], []
    for i, (p, g) in enumerate(zip(params, _signed(grads, s), strict=True)):
        m = state[f"m{i}"] = b1 * state.get(f"m{i}", torch.zeros_like(p)) + (1 - b1) * g
        v = state[f"v{i}"] = b2 * state.get(f"v{i}", torch.zeros_like(p)) + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        updates.append(s["lr"] * m_hat / ((v / (1 - b2**t)).sqrt() + s["eps"]))
        if s["delta"] is not None:
            h = state[f"h{i}"] = b2 * state.get(f"h{i}", torch.zeros_like(p)) + (1 - b2) * curvatures[i] ** 2
            roots.append(_bounded((h / (1 - b2**t)).sqrt(), m_hat, s))
            updates[i] = _within_alone(updates[i], roots[i], s)
    return _apply(params, updates, roots, state, s)


def scaled_sgd(
    params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor], state: State, **settings: Any
) -> float:
    """Gradient descent with momentum, its update scaled."""
    s = SETTINGS | settings
    b2, t, momentum = s["betas"][1], _next(state), s["momentum"]
    roots, updates = [], []
    for i, g in enumerate(_signed(grads, s)):
        b = state[f"b{i}"] = momentum * state.get(f"b{i}", torch.zeros_like(g)) + g
        updates.append(s["lr"] * b)
        if s["delta"] is not None:
            v = state[f"v{i}"] = b2 * state.get(f"v{i}", torch.zeros_like(g)) + (1 - b2) * curvatures[i] ** 2
            roots.append(_bounded((v / (1 - b2**t)).sqrt(), (1 - momentum) * b, s))
            updates[i] = _within_alone(updates[i], roots[i], s)
    return _apply(params, updates, roots, state, s)


def kfac(
    params: list[Tensor],
    grads: list[Tensor],
    factors: list[tuple[Tensor, Tensor] | Tensor],
    state: State,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.95),
    damping: float = 1e-2,
    delta: float | None = None,
    inverse_every: int = 10,
) -> float:
    """K-FAC with whole matrices: (a [I, I], b [O, O]) for a weight [O, I], the block [n, n] for other parameters."""
    (b1, b2), t, updates, h = betas, _next(state), [], 0.0
    keep = min(1 - 1 / t, b2)
    for i, (g, new) in enumerate(zip(grads, factors, strict=True)):
        pair = new if isinstance(new, tuple) else (new,)
        old = state.get(f"f{i}", [torch.zeros_like(f) for f in pair])
        f = state[f"f{i}"] = [keep * x + (1 - keep) * y for x, y in zip(old, pair, strict=True)]
        if (t - 1) % inverse_every == 0:
            extra = [damping]
            if len(f) == 2:
                pi = sqrt(float(f[0].trace() / len(f[0])) / float(f[1].trace() / len(f[1])))
                extra = [sqrt(damping) * pi, sqrt(damping) / pi]
            damped = [m + x * torch.eye(len(m)).to(m) for m, x in zip(f, extra, strict=True)]
            state[f"damped{i}"] = damped[0] if len(f) == 1 else torch.kron(damped[1], damped[0])
        d = torch.linalg.solve(state[f"damped{i}"], g.flatten()).view_as(g)
        m = state[f"m{i}"] = b1 * state.get(f"m{i}", torch.zeros_like(g)) + (1 - b1) * d
        u = lr * m / (1 - b1**t)
        whole = f[0] if len(f) == 1 else torch.kron(f[1], f[0])
        h += float(u.flatten() @ whole @ u.flatten())
        updates.append(u)
    eta = min(1.0, sqrt(2 * delta / h)) if delta is not None and h > 0 else 1.0
    for p, u in zip(params, updates, strict=True):
        p.sub_(eta * u)
    return eta


def _next(state: State) -> int:
    state["t"] = state.get("t", 0) + 1
    return state["t"]


def _signed(grads: list[Tensor], s: dict[str, Any]) -> list[Tensor]:
    return [-g if s["maximize"] else g for g in grads]


def _bounded(root: Tensor, m_hat: Tensor, s: dict[str, Any]) -> Tensor:
    return root if s["reach"] is None else torch.maximum(root, m_hat.abs() / s["reach"])


def _within_alone(u: Tensor, root: Tensor, s: dict[str, Any]) -> Tensor:
    """Each entry of u no longer than the trust region is along its axis: root u^2 <= 2 delta."""
    return u if s["reach"] is None else torch.minimum(u.abs(), (2 * s["delta"] / root).sqrt()) * u.sign()


def _apply(
    params: list[Tensor], updates: list[Tensor], roots: list[Tensor], state: State, s: dict[str, Any]
) -> float:
    eta = 1.0
    if s["delta"] is not None:
        h = sum(float((root * u**2).sum()) for root, u in zip(roots, updates, strict=True))
        eta = min(1.0, sqrt(2 * s["delta"] / h)) if h > 0 else 1.0
        if s["average"]:
            hs = state.setdefault("hs", [])
            hs.append(h)
            weights = [s["average"] ** (len(hs) - 1 - i) for i in range(len(hs))]
            mean = sum(w * x for w, x in zip(weights, hs, strict=True)) / sum(weights)
            eta = min(1.0, sqrt(2 * s["delta"] / mean), sqrt(2 * s["bound"] * s["delta"] / h)) if h > 0 else 1.0
    for p, u in zip(params, updates, strict=True):
        p.mul_(1 - s["lr"] * s["weight_decay"])
        p.sub_(eta * u)
    return eta
