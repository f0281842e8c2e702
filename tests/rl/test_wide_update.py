"""The compiled update of wide minibatches: blocks of rows, in any number of threads, to the same bits."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from test_learner import batch, objective, pair
from test_rollout import policy_of

from hesscale_rl.agents import ppo
from hesscale_rl.backend import use
from hesscale_rl.compiled.cache import ready
from hesscale_rl.jit import PLAIN
from hesscale_rl.rl.fast import learner as module
from hesscale_rl.rl.fast.learner import make_learner
from hesscale_rl.rl.fast.minibatch import ROWS, Minibatches, Work, _block, blocks_of
from hesscale_rl.system.threads import Threads


@pytest.mark.parametrize("n", [1, 5, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 257, 1024, 4097, 12_345])
def test_blocks_cut_the_rows_by_their_number_alone(n):
    ready()
    minibatches = Minibatches(np.arange(n), np.array([0, n]), np.array([0, 1]))
    parts, losses, outputs = (np.empty(shape, np.float32) for shape in ((0, 2, 1), (1, 2), (n, 2)))
    work = Work(0, parts, np.zeros((1, 2)), losses, outputs, np.ones((1, 1)), np.zeros(1, int))
    blocks = [_block(0, b, minibatches, work) for b in range(blocks_of(n))]
    assert np.concatenate([block.rows for block in blocks]).tolist() == list(range(n))
    sizes = [len(block.rows) for block in blocks]
    assert min(sizes) > 0 and max(sizes) <= ROWS and all(size % 4 == 0 for size in sizes[:-1])
    assert n > ROWS or sizes == [n]


def learned(kind, name, threads, n=600, minibatches=2):
    """All that a pass decides."""
    args, sides, _ = pair(ppo, kind, name, max_grad_norm=0.5)
    fast = make_learner(*sides[1], True, threads)
    rows = batch(sides[1][0], n, 1)
    results = [fast.learn(rows, torch.arange(n).flip(0), minibatches, objective(ppo, args)) for _ in range(3)]
    tensors = [
        *sides[1][0].state_dict().values(),
        *(p.grad for p in fast.params),
        *(p.hess_diag for p in fast.params),
    ]
    tensors += [t for state in fast.states for t in state.values() if isinstance(t, torch.Tensor)]
    flat = [(actor, critic, outputs.numpy().tobytes(), etas) for actor, critic, outputs, etas in results]
    return flat, [t.numpy().tobytes() for t in tensors]


@pytest.mark.parametrize(
    "kind, name", [("parameter", "scaled-adahesscale"), ("network", "adahessian"), ("discrete", "adahesscale")]
)
def test_threads_change_no_number(monkeypatch, kind, name):
    monkeypatch.setattr(module, "WIDE", 0)
    one, *more = (learned(kind, name, threads) for threads in (1, 2, 8))
    assert all(math.isfinite(actor + critic) for actor, critic, _, _ in one[0])
    assert all(other == one for other in more)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_loss_that_is_not_finite_ends_the_pass_before_its_step(monkeypatch, threads):
    monkeypatch.setattr(module, "WIDE", 0)
    args, sides, _ = pair(ppo, "parameter", "adahesscale")
    policy, fast = sides[1][0], make_learner(*sides[1], True, threads)
    rows = batch(policy, 900, 1)
    rows["returns"][650] = math.nan
    first = fast.learn({k: v[:300] for k, v in rows.items()}, torch.arange(300), 1, objective(ppo, args))
    assert len(first[3]) == 1
    actor, critic, outputs, etas = fast.learn(rows, torch.arange(900), 3, objective(ppo, args))
    assert math.isnan(critic) and len(etas) == 2 and len(outputs) == 300
    assert all(p.isfinite().all() for p in policy.parameters())


@pytest.mark.skipif(PLAIN, reason="one thread without a compiler")
def test_a_thread_that_raises_leaves_none_waiting(monkeypatch):
    monkeypatch.setattr(module, "WIDE", 0)
    args, sides, _ = pair(ppo, "discrete", "adahesscale")
    fast = make_learner(*sides[1], True, 3)
    rows = batch(sides[1][0], 900, 1)
    rows["actions"][400] = 17
    with pytest.raises(IndexError, match="class"):
        fast.learn(rows, torch.arange(900), 3, objective(ppo, args))


def test_jobs_are_done_once_and_the_first_of_their_errors_is_raised():
    done = []

    def job(i):
        done.append(i)
        if i in (2, 5):
            raise ValueError(str(i))
        return i * i

    for number in (1, 3):
        threads = Threads(number)
        assert threads.run([partial(job, i) for i in (0, 1, 3)]) == [0, 1, 9]
        with pytest.raises(ValueError, match="2"):
            threads.run([partial(job, i) for i in range(8)])
    assert done.count(7) == 1  # the single thread ended with what was raised


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_values_of_many_rows_are_the_same_in_any_number_of_threads(backend):
    obs = np.random.default_rng(0).normal(size=(1030, 3, 11))
    with use(backend):
        policy = policy_of("parameter")
        few = np.concatenate([policy.values(part) for part in np.array_split(obs, 3)])
        one = policy.values(obs)
        policy.threads = Threads(3)
        assert policy.values(obs).tobytes() == one.tobytes() and one.shape == (1030, 3)
    np.testing.assert_allclose(one, few, rtol=1e-4, atol=1e-5)
    assert "threads" not in copy.deepcopy(policy).__dict__
