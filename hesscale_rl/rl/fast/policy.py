"""Acting in compiled form, one call for the actions of a step: the twins of rl/policy.py, up to rounding."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ... import compiled
from ...compiled.kernels import outputs
from ...compiled.mlp import branches, fast_mlps
from ...compiled.records import DISTRIBUTIONS, LOG_STD, LOG_VAR, MLP
from ...jit import FAST, plain


class GaussianActor(NamedTuple):
    """The networks of a normal distribution, and the bounds [A] of its actions.

    `distribution`: what p, the outputs' second half, is. `separate`: whether it is `variance`'s outputs, which are
    else not looked at.
    """

    distribution: int
    separate: bool
    mean: MLP
    variance: MLP
    low: np.ndarray
    high: np.ndarray


class CategoricalActor(NamedTuple):
    """The network of a softmax, and the number of the environment's first action."""

    logits: MLP
    start: int


@FAST
def sample_gaussian(
    actor: GaussianActor, obs: np.ndarray, noise: np.ndarray, actions: np.ndarray, to_env: np.ndarray
) -> bool:
    """Fill actions [E, A] with mean + deviation * noise and to_env with the same within the bounds.

    Returns whether all actions are finite.
    """
    kind, z, finite, a = actor.distribution, outputs(actor.mean, obs), True, actions.shape[1]
    p, first = z, a
    if actor.separate:
        p, first = outputs(actor.variance, obs), 0
    for i in range(len(actions)):
        for j in range(a):
            v = p[i, first + j]
            half = v / np.float32(2)
            deviation = math.exp(v) if kind == LOG_STD else math.exp(half) if kind == LOG_VAR else math.sqrt(v)
            x = z[i, j] + deviation * noise[i, j]
            finite &= math.isfinite(x)
            actions[i, j] = x
            x = actor.low[j] if x < actor.low[j] else x
            to_env[i, j] = actor.high[j] if x > actor.high[j] else x
    return finite


@FAST
def sample_categorical(
    actor: CategoricalActor, obs: np.ndarray, noise: np.ndarray, actions: np.ndarray, to_env: np.ndarray
) -> bool:
    """Fill actions [E] with the largest of logits + noise, and to_env with the same counted from the first action.

    Returns whether all logits are finite.
    """
    z, finite = outputs(actor.logits, obs), True
    for i in range(len(z)):
        best, top = 0, z[i, 0] + noise[i, 0]
        for j in range(z.shape[1]):
            v = z[i, j] + noise[i, j]
            finite &= math.isfinite(v)
            if v > top:
                best, top = j, v
        actions[i], to_env[i] = best, best + actor.start
    return finite


def actor_record(policy: Any) -> GaussianActor | CategoricalActor | None:
    """Return what the loops need of a policy; None for networks that they do not cover.

    The parameters may change in place, but must not be moved or replaced.
    """
    found = fast_mlps(branches(policy.actor), torch.zeros(1, policy.observations))
    if found is None or len(found) > 2 or (policy.discrete and (len(found) > 1 or found[0].log_std is not None)):
        return None
    mean, *variance = (fast_mlp.record() for fast_mlp in found)
    if policy.discrete:
        return CategoricalActor(mean, policy.start)
    kind, bounds = DISTRIBUTIONS[policy.parametrization], (policy.low.numpy(), policy.high.numpy())
    return GaussianActor(kind, bool(variance), mean, variance[0] if variance else mean, *bounds)


@FAST
def _gaussian(actor: tuple, obs: np.ndarray, noise: np.ndarray, actions: np.ndarray, to_env: np.ndarray) -> bool:
    """As `sample_gaussian`, of plain tuples."""
    distribution, separate, mean, variance, low, high = actor
    record = GaussianActor(distribution, separate, MLP(*mean), MLP(*variance), low, high)
    return sample_gaussian(record, obs, noise, actions, to_env)


@FAST
def _categorical(actor: tuple, obs: np.ndarray, noise: np.ndarray, actions: np.ndarray, to_env: np.ndarray) -> bool:
    """As `sample_categorical`, of plain tuples."""
    return sample_categorical(CategoricalActor(MLP(*actor[0]), actor[1]), obs, noise, actions, to_env)


def sampler(policy: Any) -> Callable[..., bool]:
    """As rl/policy.py says."""
    actor = actor_record(policy)
    if actor is None:
        return NotImplemented
    return partial(_categorical if policy.discrete else _gaussian, plain(actor))


def function(net: nn.Module, observations: int) -> Callable[[np.ndarray], np.ndarray]:
    """As rl/policy.py says."""
    return compiled.function(net, torch.zeros(1, observations)) or NotImplemented
