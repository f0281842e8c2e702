"""Programs at random, with forks, products, sharing and broadcasting: 300 of them against autograd."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hesscale_rl as hs

F64 = torch.float64
N, D = 3, 4
ONE = {  # [N, D] -> [N, D]
    "tanh": torch.tanh,
    "sin": torch.sin,
    "softplus": torch.nn.functional.softplus,
    "softmax": lambda a: a.softmax(1),
    "norm": lambda a: torch.nn.functional.layer_norm(a, (D,)),
    "rows": lambda a: torch.cat([a[:, 2:], a[:, :2]], 1),
    "flip": lambda a: a.T.flip(0).T,
    "spread": lambda a: a - a.mean(1, keepdim=True),
    "by samples": lambda a: a - a.mean(0),
    "split": lambda a: torch.cat([t * (i + 1) for i, t in enumerate(a.split(2, 1))], 1),
    "in place": lambda a: (a * 1.5).tanh_(),
    "scaled": lambda a: 0.5 * a + 1,
    "sorted": lambda a: torch.where(a > 0, a, 0.1 * a),
    "held": lambda a: a * a.detach(),
}
TWO = {
    "add": torch.add,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (1 + b * b),
    "max": torch.maximum,
    "attend": lambda a, b: (a @ b.T).softmax(1) @ b,
    "einsum": lambda a, b: torch.einsum("ni,nj->nij", a, b).sum(2),
}
WITH = {  # a parameter: its shape and what it does
    "linear": ((D, D), lambda a, w: torch.nn.functional.linear(a, w)),
    "bias": ((D,), lambda a, w: a + w),
    "gain": ((D,), lambda a, w: w * a),
    "scalar": ((), lambda a, w: a * w.exp()),
    "column": ((N, 1), lambda a, w: a + torch.tanh(w)),
    "own": ((D, D), lambda a, w: a @ (w @ w.T)),
}
NUMBERS = st.integers(0, 10**6)
STEPS = st.lists(
    st.tuples(st.sampled_from([*ONE, *TWO, *WITH, *WITH]), NUMBERS, NUMBERS, NUMBERS), min_size=2, max_size=9
)


def program(steps, x, params):
    """Run the steps; each takes values from before, so ways part and meet, and parameters are used again."""
    values, last = [x], 0
    for name, i, j, k in steps:
        a, b = values[i % len(values)], values[j % len(values)]
        if name in ONE:
            y = ONE[name](a)
        elif name in TWO:
            y = TWO[name](a, b)
        else:
            y = WITH[name][1](values[-1], params[name][k % 2])
        values.append(y)
        last = last + y.mean(0).square().sum()
    return last + values[-1].sum()


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(STEPS, st.integers(0, 2**31))
def test_the_gradient_is_autograds(steps, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(shape):
        return torch.randn(shape, generator=generator, dtype=F64)

    params = {name: [torch.nn.Parameter(0.5 * draw(shape)) for _ in range(2)] for name, (shape, _) in WITH.items()}
    x, leaves = draw((N, D)), [p for pair in params.values() for p in pair]
    with hs.record() as tape:
        loss = program(steps, x, params)
    value = program(steps, x, params)
    if not value.requires_grad:
        return
    expected = torch.autograd.grad(value, leaves, allow_unused=True)
    torch.testing.assert_close(loss, value.detach(), rtol=1e-10, atol=1e-10)
    tape.backward(loss, hs.HesScale())
    for p, g in zip(leaves, expected, strict=True):
        assert (p.grad is None) == (g is None)
        if g is not None:
            torch.testing.assert_close(p.grad, g, rtol=1e-8, atol=1e-9 * (1 + float(g.abs().max())))
            assert p.hess_diag.shape == p.shape and bool(p.hess_diag.isfinite().all())
