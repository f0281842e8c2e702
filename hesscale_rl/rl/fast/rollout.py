"""The account of a step in compiled form: the twin of rl/rollout.py's, to the last bit."""

import math
from collections.abc import Callable

import numpy as np

from ...jit import EXACT, plain
from ..records import (
    OBSERVATION,
    REWARD,
    Account,
    Normalizers,
    Outcomes,
    RewardScale,
    Statistics,
    Step,
    statistics_of,
)
from .normalize import normalize_and_update, scale_and_update

own = EXACT(statistics_of)


@EXACT
def record(
    t: int, step: Step, reset: bool, seen: np.ndarray, account: Account, norms: Normalizers, rows: Outcomes
) -> int:
    """Enter step t of E environments into the rows of a rollout; return how many episodes ended, or what is wrong."""
    over, final, scales = 0, step.final, norms.rewards
    for i in range(len(final)):
        obs, scale = own(norms.obs, i), RewardScale(scales.ret, scales.gamma, own(scales.stats, i))
        rows.terminated[t, i], rows.valid[t, i] = step.terminated[i], step.valid[i]
        rows.done[t, i] = step.terminated[i] or step.truncated[i]
        reward = step.rewards[i]
        if not math.isfinite(reward):
            return REWARD
        if not normalize_and_update(final[i], obs, rows.next_obs[t, i]):
            return OBSERVATION
        for j in range(seen.shape[1]):
            seen[i, j] = rows.next_obs[t, i, j]
        if reset and rows.done[t, i] and not normalize_and_update(step.obs[i], obs, seen[i]):
            return OBSERVATION
        if step.valid[i]:
            rows.rewards[t, i] = scale_and_update(reward, rows.done[t, i], scale, i)
            account.returns[i] += reward
            account.lengths[i] += 1
            over += rows.done[t, i]
        else:
            rows.done[t, i] = True  # it only reset itself: nothing may be summed across it
    return over


@EXACT
def _record(t: int, step: tuple, reset: bool, seen: np.ndarray, kept: tuple) -> int:
    """As `record`, of plain tuples."""
    account, (obs, (ret, gamma, rewards)), rows = kept
    norms = Normalizers(Statistics(*obs), RewardScale(ret, gamma, Statistics(*rewards)))
    return record(t, Step(*step), reset, seen, Account(*account), norms, Outcomes(*rows))


def recorder(account: Account, norms: Normalizers, rows: Outcomes) -> Callable[[int, Step, bool, np.ndarray], int]:
    """As rl/rollout.py says."""
    kept = plain(account), plain(norms), plain(rows)
    return lambda t, step, reset, seen: _record(t, tuple(step), reset, seen, kept)
