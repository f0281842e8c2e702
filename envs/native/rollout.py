"""Many steps of one environment in one call: acting, the physics, the task, and the account of each step."""

from typing import Any, NamedTuple

import numpy as np

from hesscale_rl.compiled.cache import PROFILE, ready
from hesscale_rl.compiled.clock import ACCOUNT, ACT, TASK, begin, tick
from hesscale_rl.compiled.records import MLP
from hesscale_rl.errors import Diverged
from hesscale_rl.jit import EXACT, plain
from hesscale_rl.rl.fast.policy import GaussianActor, actor_record, sample_gaussian
from hesscale_rl.rl.fast.rollout import record
from hesscale_rl.rl.policy import Policy
from hesscale_rl.rl.records import (
    LARGEST,
    Account,
    Normalizers,
    Outcomes,
    RewardScale,
    Rows,
    Statistics,
    Step,
)

from . import tasks
from .stepping import NativeStep

MOST = np.iinfo(np.int64).max  # steps of an episode without a limit
GOING, OVER, UNFIT = range(3)  # how `advance` ended: all steps taken; an episode is over; or a step is for Python


class Seen(NamedTuple):
    """What the next action is for, normalised [1, O]; what step has just been taken; steps of the episode [1].

    `limit`: how many an episode has at most. `clock`: None, or where the time of each part is counted.
    """

    obs: np.ndarray
    step: Step
    elapsed: np.ndarray
    limit: int
    clock: Any


@EXACT
def _actor(actor: Any) -> GaussianActor:
    """The record of a plain GaussianActor."""
    distribution, separate, mean, variance, low, high = actor
    return GaussianActor(distribution, separate, MLP(*mean), MLP(*variance), low, high)


@EXACT
def _advance(
    blocks: np.ndarray, actor: Any, rows: Any, seen: Any, account: Any, norms: Any, t: int
) -> tuple[int, int]:
    """As `advance`, of plain tuples."""
    obs, (ret, gamma, rewards) = norms
    norms = Normalizers(Statistics(*obs), RewardScale(ret, gamma, Statistics(*rewards)))
    rows = Rows(rows[0], rows[1], rows[2], rows[3], Outcomes(*rows[4]))
    seen = Seen(seen[0], Step(*seen[1]), seen[2], seen[3], seen[4])
    return advance(blocks, _actor(actor), rows, seen, Account(*account), norms, t)


@EXACT
def advance(
    blocks: np.ndarray, actor: GaussianActor, rows: Rows, seen: Seen, account: Account, norms: Normalizers, t: int
) -> tuple[int, int]:
    """Take the steps from row t on, as `Rollout.collect` does; return the row of the last one, and how it ended.

    GOING: behind the last row. OVER: the step of that row ended an episode, by itself or at the limit of steps; it
    stands in seen.step and is not entered. UNFIT: the step of that row was not entered, since something of it is not
    finite; what it is stands in seen.step, or the action in rows.
    """
    step = seen.step
    begin(seen.clock)
    while t < len(rows.obs):
        for j in range(seen.obs.shape[1]):
            rows.obs[t, 0, j] = seen.obs[0, j]
        if not sample_gaussian(actor, seen.obs, rows.noise[t], rows.actions[t], rows.to_env[t]):
            return t, UNFIT
        tick(seen.clock, ACT)
        reward, terminated = tasks.step(blocks, rows.to_env[t, 0], step.final[0], seen.clock)
        seen.elapsed[0] += 1
        step.rewards[0], step.terminated[0] = reward, terminated
        step.truncated[0] = seen.elapsed[0] >= seen.limit
        held = abs(reward) <= LARGEST
        for x in step.final[0]:
            held = held and abs(x) <= LARGEST
        if not held:
            return t, UNFIT
        if step.terminated[0] or step.truncated[0]:
            return t, OVER
        record(t, step, False, seen.obs, account, norms, rows.outcomes)  # all is finite
        tick(seen.clock, ACCOUNT)
        t += 1
    return t, GOING


class RolloutDriver:
    """Takes the steps of rollouts of one environment, `env` as checking.py has it, with a policy's actor.

    The actor's parameters may change in place, but must not be moved or replaced. `clock`: None, or where the time of
    each part is counted.
    """

    def __init__(self, env: Any, own: NativeStep, actor: GaussianActor):
        self.env, self.native, self.actor = env, own, actor
        final, ends = np.empty((1, env.length)), (np.zeros(1, bool), np.zeros(1, bool), np.ones(1, bool))
        self.first, self.step = np.empty((1, env.length)), Step(final, final, np.zeros(1), *ends)
        self.elapsed = np.zeros(1, np.int64)
        self.clock: np.ndarray | None = None
        self._actor, self._step = plain(actor), tuple(self.step)

    @property
    def ready(self) -> bool:
        """Whether the next steps can be taken, and the actions are as many as the model's controls."""
        return self.native.takes_steps and self.native.length == len(self.actor.low)

    def drive(
        self, t: int, rows: Rows, seen: np.ndarray, account: Account, norms: Normalizers
    ) -> tuple[int, Step | None]:
        """Take steps from row t on and enter them; return the row behind the last, and None.

        Or, where an episode ended, the row of that step, and the step, which is still to be entered; the next episode
        has begun then. Diverged for an action that is not finite, EnvironmentFault for an observation or a reward.
        """
        limit: Any = self.native.limit
        self.elapsed[0] = 0 if limit is None else limit._elapsed_steps
        most = MOST if limit is None else limit._max_episode_steps
        if self.clock is not None:
            ready(PROFILE)
        now = seen, self._step, self.elapsed, most, self.clock
        given = (*rows[:4], tuple(rows.outcomes)), now, tuple(account), plain(norms)
        t, how = _advance(self.native.block, self._actor, *given, t)
        if limit is not None:
            limit._elapsed_steps = int(self.elapsed[0])
        if how == GOING:
            return t, None
        if how == UNFIT:
            if not np.isfinite(rows.actions[t]).all():
                raise Diverged("an action is not finite")
            raise self.env.fault_of(self.step.final[0], float(self.step.rewards[0]))
        self.env.reset_into(self.first[0])
        if self.clock is not None:
            tick(self.clock, TASK)
        return t, self.step._replace(obs=self.first)


def driver(env: Any, policy: Policy) -> RolloutDriver | None:
    """Return what takes a rollout's steps in an environment with a policy, None where only single steps are known."""
    if env.native is None or policy.discrete or not policy.box.as_it_is:
        return None
    actor = actor_record(policy)
    return RolloutDriver(env, env.native, actor) if isinstance(actor, GaussianActor) else None
