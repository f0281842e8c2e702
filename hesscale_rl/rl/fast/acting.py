"""Acting and its accounting in compiled form: one call for the actions of a step, one for what followed from them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from ...compiled.cache import ready
from ...compiled.kernels import outputs
from ...compiled.mlp import branches, fast_mlps
from ...jit import EXACT, FAST, at
from . import normalize as running


@FAST
def _gaussian(
    params, sizes, codes, log_std, variance, v_sizes, v_codes, kind, low, high, obs, noise, actions, bounded
):
    """Fill actions [E, A] with mean + deviation * noise and `bounded` with the same within low and high [A].

    The second half of the policy's outputs is a vector at the address log_std, or the second network's, or else the
    second half of the first network's; kind as in seeds. Returns whether all actions are finite.
    """
    z, finite, a = outputs(params, sizes, codes, obs), True, actions.shape[1]
    p, first = z, a
    if len(v_codes) > 0:
        p, first = outputs(variance, v_sizes, v_codes, obs), 0
    elif log_std != 0:
        p, first = at(log_std, 1, a), 0
    for i in range(len(actions)):
        row = p[i if len(p) > 1 else 0]
        for j in range(a):
            v = row[first + j]
            deviation = math.exp(v) if kind == 0 else math.exp(v / np.float32(2)) if kind == 1 else math.sqrt(v)
            x = z[i, j] + deviation * noise[i, j]
            finite &= math.isfinite(x)
            actions[i, j] = x
            x = low[j] if x < low[j] else x
            bounded[i, j] = high[j] if x > high[j] else x
    return finite


@FAST
def _categorical(params, sizes, codes, start, obs, noise, actions, numbers):
    """Fill actions [E] with the largest of logits + noise, and `numbers` with the same counted from `start`.

    Returns whether all logits are finite.
    """
    z, finite = outputs(params, sizes, codes, obs), True
    for i in range(len(z)):
        best, top = 0, z[i, 0] + noise[i, 0]
        for j in range(z.shape[1]):
            v = z[i, j] + noise[i, j]
            finite &= math.isfinite(v)
            if v > top:
                best, top = j, v
        actions[i], numbers[i] = best, best + start
    return finite


Sampler = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], bool]


def sampler(policy: Any) -> Sampler | None:
    """Return sample(obs, noise, actions, to_env): it fills both for noise of `policy.noise`; None if no loop can.

    False: an action is not finite. The parameters may change in place, but must not be moved or replaced.
    """
    x, actor = torch.zeros(1, policy.observations), policy.actor
    found = fast_mlps(branches(actor), x)
    if found is None or len(found) > 2 or (policy.discrete and (len(found) > 1 or found[0].log_std is not None)):
        return None
    ready()
    mean = found[0].arrays()
    if policy.discrete:
        return partial(_categorical, *mean, policy.start)
    log_std = 0 if found[0].log_std is None else found[0].log_std.data_ptr()
    variance = found[1].arrays() if len(found) == 2 else tuple(a[:0] for a in mean)
    return partial(_gaussian, *mean, log_std, *variance, policy.kind, policy.low.numpy(), policy.high.numpy())


REWARD, OBSERVATION = -1, -2  # what is not finite


@EXACT
def record(
    t, obs, final, step_rewards, ended, cut, counts, reset, returns, lengths, seen, next_obs, rewards, terminated,
    done, valid, mean, var, count, eps, clip, ret, gamma, r_mean, r_var, r_count, r_eps, r_clip,
):  # fmt: skip
    """Enter step t of E environments into the rollout's arrays [T, E, ...]; return how many episodes ended.

    obs to counts: as envs/vector.py has them; reset: where an episode ended, obs begins the next one. seen [E, O]:
    the observations that the next actions are for, replaced. mean, var [O], count [1]: of the observations, ret [E]
    and r_...: of the rewards; an empty count or r_count: no normalisation. REWARD, OBSERVATION: one is not finite.
    """
    over = 0
    for i in range(len(final)):
        terminated[t, i], done[t, i], valid[t, i] = ended[i], ended[i] or cut[i], counts[i]
        reward = step_rewards[i]
        # MuJoCo answers a NaN action with a reset of its own and a NaN reward.
        if not math.isfinite(reward):
            return REWARD
        if not running.normalize_and_update(final[i], mean, var, count, eps, clip, next_obs[t, i]):
            return OBSERVATION
        for j in range(seen.shape[1]):
            seen[i, j] = next_obs[t, i, j]
        if reset and done[t, i] and not running.normalize_and_update(obs[i], mean, var, count, eps, clip, seen[i]):
            return OBSERVATION
        if counts[i]:
            scaled = reward
            if len(r_count) > 0:
                own = ret[i : i + 1]
                scaled = running.scale(reward, done[t, i], gamma, own, r_mean, r_var, r_count, r_eps, r_clip)
            rewards[t, i] = scaled
            returns[i] += reward
            lengths[i] += 1
            over += done[t, i]
        else:
            done[t, i] = True  # it only reset itself: nothing may be summed across it
    return over
