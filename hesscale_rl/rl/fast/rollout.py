"""The account of a step in compiled form: the twin of rl/rollout.py's, to the last bit."""

import math

from ...jit import EXACT
from ..records import OBSERVATION, REWARD
from .normalize import normalize_and_update, scale_and_update


@EXACT
def record(t, step, reset, seen, account, norms, rows):
    """Enter step t of E environments into the rows of a rollout; return how many episodes ended, or what is wrong."""
    over, final = 0, step.final
    for i in range(len(final)):
        rows.terminated[t, i], rows.valid[t, i] = step.terminated[i], step.valid[i]
        rows.done[t, i] = step.terminated[i] or step.truncated[i]
        reward = step.rewards[i]
        if not math.isfinite(reward):
            return REWARD
        if not normalize_and_update(final[i], norms.obs, rows.next_obs[t, i]):
            return OBSERVATION
        for j in range(seen.shape[1]):
            seen[i, j] = rows.next_obs[t, i, j]
        if reset and rows.done[t, i] and not normalize_and_update(step.obs[i], norms.obs, seen[i]):
            return OBSERVATION
        if step.valid[i]:
            rows.rewards[t, i] = scale_and_update(reward, rows.done[t, i], norms.rewards, i)
            account.returns[i] += reward
            account.lengths[i] += 1
            over += rows.done[t, i]
        else:
            rows.done[t, i] = True  # it only reset itself: nothing may be summed across it
    return over
