"""Slow twins of the optimizers: the equations letter by letter, one parameter at a time, to hold the fast ones to.

Each takes lists of parameters, gradients and curvatures of one group, and a dictionary that it keeps its state in; it
changes the parameters in place and returns eta.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


def adahesscale(
    params: list[Tensor],
    grads: list[Tensor],
    curvatures: list[Tensor],
    state: State,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    delta: float | None = None,
) -> float:
    """Algorithms 2 and 3 of Elsayed et al. 2024 (their circled dot is a division)."""
    (b1, b2), t = betas, _next(state)
    updates, roots = [], []
    for i, (p, g, d) in enumerate(zip(params, grads, curvatures, strict=True)):
        m = state[f"m{i}"] = b1 * state.get(f"m{i}", torch.zeros_like(p)) + (1 - b1) * g
        v = state[f"v{i}"] = b2 * state.get(f"v{i}", torch.zeros_like(p)) + (1 - b2) * d**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        updates.append(lr * m_hat / (v_hat.sqrt() + eps))
        roots.append(v_hat.sqrt())
    return _apply(params, updates, roots, delta)


def scaled_adam(
    params: list[Tensor],
    grads: list[Tensor],
    curvatures: list[Tensor],
    state: State,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    delta: float | None = None,
) -> float:
    """Adam, its update scaled by the curvature's own moving average."""
    (b1, b2), t = betas, _next(state)
    updates, roots = [], []
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        m = state[f"m{i}"] = b1 * state.get(f"m{i}", torch.zeros_like(p)) + (1 - b1) * g
        v = state[f"v{i}"] = b2 * state.get(f"v{i}", torch.zeros_like(p)) + (1 - b2) * g**2
        updates.append(lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps))
        if delta is not None:
            h = state[f"h{i}"] = b2 * state.get(f"h{i}", torch.zeros_like(p)) + (1 - b2) * curvatures[i] ** 2
            roots.append((h / (1 - b2**t)).sqrt())
    return _apply(params, updates, roots, delta)


def scaled_sgd(
    params: list[Tensor],
    grads: list[Tensor],
    curvatures: list[Tensor],
    state: State,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    delta: float | None = None,
    momentum: float = 0.0,
) -> float:
    """Gradient descent with momentum, its update scaled."""
    b2, t = betas[1], _next(state)
    roots, updates = [], []
    for i, g in enumerate(grads):
        b = state[f"b{i}"] = momentum * state.get(f"b{i}", torch.zeros_like(g)) + g
        updates.append(lr * b)
    for i, d in enumerate(curvatures if delta is not None else []):
        v = state[f"v{i}"] = b2 * state.get(f"v{i}", torch.zeros_like(d)) + (1 - b2) * d**2
        roots.append((v / (1 - b2**t)).sqrt())
    return _apply(params, updates, roots, delta)


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


def _apply(params: list[Tensor], updates: list[Tensor], roots: list[Tensor], delta: float | None) -> float:
    eta = 1.0
    if delta is not None:
        h = sum(float((root * u**2).sum()) for root, u in zip(roots, updates, strict=True))
        eta = min(1.0, sqrt(2 * delta / h)) if h > 0 else 1.0
    for p, u in zip(params, updates, strict=True):
        p.sub_(eta * u)
    return eta
