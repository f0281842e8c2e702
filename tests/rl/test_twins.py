"""Every compiled twin in rl/fast/ against its definition in rl/: the same signature, and the same bits."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from test_rollout import policy_of

from hesscale_rl import backend
from hesscale_rl.rl import gae, normalize, policy, rollout
from hesscale_rl.rl.normalize import RewardNorm, RunningNorm, normalizers
from hesscale_rl.rl.records import OBSERVATION, REWARD, Account, Outcomes, Step

MODULES = (gae, normalize, policy, rollout)
TWINNED = [f for module in MODULES for f in vars(module).values() if hasattr(f, "__wrapped__")]
T, E, WIDE = 200, 3, 4  # steps, environments, entries of an observation


def both(function, *args):
    """What definition and twin return, each from a copy of its own of what it is given, and these copies."""
    results = []
    for way in (backend.definition, backend.twin):
        own = copy.deepcopy(args)
        results.append((way(function)(*own), own))
    return results


def assert_same_bits(a, b):
    if isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_bits(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    else:
        assert a == b or (math.isnan(a) and math.isnan(b))


def test_these_have_twins():
    names = {f.__name__ for f in TWINNED}
    assert names == {
        *("gae", "function", "sampler", "record", "recorder", "copy_finite", "welford_update", "normalize"),
        *("normalize_and_update", "scale_and_update"),
    }


@pytest.mark.parametrize("function", TWINNED, ids=lambda f: f.__name__)
def test_a_twin_has_the_name_and_the_parameters_of_its_definition(function):
    twin = backend.twin(function)
    twin = getattr(twin, "py_func", twin)
    assert twin.__name__ == function.__name__ and list(inspect.signature(twin).parameters) == list(
        inspect.signature(function).parameters
    )


@pytest.mark.parametrize("shape", [(T,), (T, E)])
def test_advantages(shape):
    rng = np.random.default_rng(0)
    rewards, values, next_values = rng.normal(size=(3, *shape)).astype(np.float32)
    done = rng.random(shape) < 0.1
    terminated = done & (rng.random(shape) < 0.5)
    next_values[terminated] = np.inf  # which nobody may look at
    (a, _), (b, _) = both(gae.gae, rewards, values, next_values, terminated, done, 0.99, 0.95)
    assert_same_bits(a, b)
    assert np.isfinite(a[0]).all()


def test_running_statistics_and_what_they_make_of_an_observation():
    rng, norm = np.random.default_rng(0), RunningNorm((WIDE,), clip=1.0)
    sides = [norm.record(), copy.deepcopy(norm).record()]
    for x in [*rng.normal(1e3, [0.0, 1e-3, 1.0, 1e3], size=(T, WIDE)), np.array([1.0, np.nan, np.inf, 2.0])]:
        outs = [np.empty(WIDE, np.float32) for _ in sides]
        ways = (backend.definition(normalize.normalize_and_update), backend.twin(normalize.normalize_and_update))
        finite = [way(x, stats, out) for way, stats, out in zip(ways, sides, outs, strict=True)]
        assert finite == [bool(np.isfinite(x).all())] * 2
        assert_same_bits(outs[0], outs[1])
        assert_same_bits(tuple(sides[0]), tuple(sides[1]))


def test_an_observation_that_float32_cannot_hold():
    for x, held in ([1.0, -2.0], True), ([1.0, math.nan], False), ([math.inf, 0.0], False), ([1e39, 0.0], False):
        (a, given), (b, others) = both(normalize.copy_finite, np.array(x), np.empty(2))
        assert a == b == held
        assert_same_bits(given, others)


@pytest.mark.parametrize("raw", [False, True], ids=["normalised", "raw"])
def test_the_account_of_a_rollout(raw):
    rng, wrong = np.random.default_rng(1), np.zeros((E, WIDE))
    norms = (None, None) if raw else (RunningNorm((WIDE,)), RewardNorm(0.99, E))
    flags = [np.zeros((T, E), bool) for _ in range(3)]
    rows = Outcomes(np.zeros((T, E, WIDE), np.float32), np.zeros((T, E), np.float32), *flags)
    account, seen = Account(np.zeros(E), np.zeros(E, np.int64)), np.zeros((E, WIDE), np.float32)
    sides = [copy.deepcopy((seen, account, normalizers(*norms, E), rows)) for _ in range(2)]
    ways = [
        way(rollout.recorder)(*side[1:]) for way, side in zip((backend.definition, backend.twin), sides, strict=True)
    ]
    ended = 0
    for t in range(T):
        over, final = rng.random(E) < 0.2, rng.normal(5, 3, (E, WIDE))
        terminated, reset = over & (rng.random(E) < 0.5), bool(over.any())
        obs = rng.normal(size=(E, WIDE)) if reset else final
        step = Step(obs, final, rng.normal(size=E), terminated, over & ~terminated, rng.random(E) < 0.9)
        if t == T - 2:
            step.rewards[1] = np.nan
        if t == T - 1:
            wrong[2, 3] = np.inf
            step = step._replace(obs=wrong, final=wrong)
        results = [way(t, step, reset, side[0]) for way, side in zip(ways, sides, strict=True)]
        expected = {T - 2: REWARD, T - 1: OBSERVATION}.get(t, int((over & step.valid).sum()))
        assert results == [expected] * 2
        ended += max(0, expected)
    assert ended > 20
    assert_same_bits(sides[0], sides[1])


@pytest.mark.parametrize("std", ["parameter", "log-variance", "shared", "network", "discrete"])
def test_the_sampler_and_the_networks_up_to_rounding(std):
    own, rng = policy_of(std), np.random.default_rng(0)
    obs = rng.standard_normal((5, own.observations)).astype(np.float32)
    noise, results = 3 * own.noise(rng, 5), []
    for way in (backend.definition, backend.twin):
        actions = np.empty(5, np.int64) if own.discrete else np.empty_like(noise)
        to_env = np.empty_like(actions)
        sample = way(policy.sampler)(own)
        assert sample(obs, noise, actions, to_env)
        assert not sample(np.full_like(obs, np.nan), noise, actions.copy(), to_env.copy())
        outputs = way(policy.function)(own.actor, own.observations)(obs)
        results.append((actions, to_env, outputs, own.values(obs)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert own.discrete or (np.abs(results[0][1]) == 1).any()


def test_what_has_no_compiled_way_is_acted_with_by_definition():
    own = policy_of("parameter")
    own.double()
    assert backend.twin(policy.sampler)(own) is NotImplemented
    obs, noise = np.ones((1, own.observations), np.float32), own.noise(np.random.default_rng(0), 1)
    actions, to_env = np.empty_like(noise), np.empty_like(noise)
    assert policy.sampler(own)(obs, noise, actions, to_env)
    np.testing.assert_array_equal(actions, own.act(obs, noise))
    assert torch.get_default_dtype() == torch.float32
