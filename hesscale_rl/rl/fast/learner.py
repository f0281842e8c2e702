"""Passes over a batch, each in one call; what the readable way does with hesscale_rl.backward and an optimizer.

For actors and critics that are MLPs and the optimizers with a kernel; PPO's losses, and A2C's as PPO's
without a clip. The tests hold one way to the other.
"""

from functools import lru_cache, partial
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import backend, jit
from ...compiled import losses, steps
from ...compiled.cache import HUTCHINSON, ready
from ...compiled.mlp import FastMLP, branches, fast_mlps
from ...compiled.records import (
    DISTRIBUTIONS,
    NO_CURVATURE,
    WITH_D2F,
    WITHOUT_D2F,
    ActorCritic,
    Batch,
    Draws,
    Network,
)
from ...curvature.base import HesScale, HesScaleGN
from ...curvature.hutchinson import Hutchinson
from ...errors import InputError
from ...system.console import complain
from ...system.threads import Threads
from ..policy import Policy
from .minibatch import ROWS, SHARED, STOP, TURN, Objective, Work, moments, take_part

WIDE = 1024  # rows of a pass from which on it is worth calling other threads


class Plan(NamedTuple):
    """How a pass over some number of rows is cut into minibatches and these into blocks, and its scratch.

    cuts, firsts: as Minibatches have them. most: blocks of a minibatch. shared, which lies at `address`, losses and
    learned: as Work has them.
    """

    cuts: np.ndarray
    firsts: np.ndarray
    most: int
    shared: np.ndarray
    address: int
    losses: np.ndarray
    learned: np.ndarray


class Learner:
    """The compiled update of one policy with one optimizer, made by `make_learner` when both have been loaded."""

    def __init__(self, policy: Policy, optimizer: Any, curvature: Any, fast_mlps: list[FastMLP], threads: int = 1):
        self.policy, self.optimizer, self.fast_mlps = policy, optimizer, fast_mlps
        self.threads = Threads(1 if jit.PLAIN else threads)
        mean, *variance, _ = fast_mlps
        self.outputs = mean.sizes[-1] * (2 if variance or mean.log_std is not None else 1)
        self.curvature = CODES[type(curvature)]
        self.samples = curvature.samples if type(curvature) is Hutchinson else 0
        self.params: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.grads = {p: torch.zeros_like(p) for p in self.params}
        self.curvatures = {p: torch.zeros_like(p) for p in self.params}
        self.bounds = np.cumsum([0, *(len(group["params"]) for group in optimizer.param_groups)])
        self.addresses = [p.data_ptr() for p in self.params]
        self.kernel = optimizer.kernel
        self._make_table()
        self._make_room(1)
        self.plans: dict[tuple[int, int], Plan] = {}  # by rows and minibatches
        for p in self.params:
            p.grad = self.grads[p]
            if curvature is not None:
                p.hess_diag = self.curvatures[p]  # type: ignore[attr-defined]

    def _make_table(self) -> None:
        """Set `where` and `counts` of a steps.StepTable, what they were made of, and states that are new."""
        rows, counts = [], []
        self.states: list[dict[str, Any]] = []
        self.averages = [self.optimizer.averages(group) for group in self.optimizer.param_groups]
        for group, names in zip(self.optimizer.param_groups, self.averages, strict=True):
            for p in group["params"]:
                state = self.optimizer.make_state(group, p)
                averages = [state[name].data_ptr() if name in names else 0 for name in self.kernel.averages]
                tensors = (p, self.grads[p], self.curvatures[p])
                rows.append([p.numel(), *(t.data_ptr() for t in tensors), *averages])
                counts.append(state.get("step", 0))
                self.states.append(state)
        self.where, self.counts = np.array(rows), np.array(counts)

    def _follow_settings(self) -> None:
        """Take up what was set in the optimizer's groups; an error for what cannot be, before anything moves."""
        groups = self.optimizer.param_groups
        self.optimizer.check_groups()
        params = [p for group in groups for p in group["params"]]
        if len(params) != len(self.params) or not all(map(is_, params, self.params)):
            raise RuntimeError("the optimizer's groups have other parameters now: make a new Learner")
        if self.optimizer.reads_curvature and self.curvature == NO_CURVATURE:
            raise RuntimeError("delta was set, and this Learner computes no curvature: make a new one")
        if [self.optimizer.averages(group) for group in groups] != self.averages:
            self._make_table()

    def _make_room(self, blocks: int) -> None:
        """Have a place for the gradients and curvatures of so many blocks of a minibatch: `parts` of Work, `nets`."""
        ends = np.cumsum(self.where[:, 0])
        self.parts = np.empty((blocks - 1, 2, ends[-1]), np.float32)
        flat = self.parts.ctypes.data + 4 * np.arange(2 * (blocks - 1)).reshape(-1, 2) * ends[-1]
        starts = dict(zip(map(id, self.params), 4 * (ends - self.where[:, 0]), strict=True))

        def network(fast_mlp: FastMLP) -> Network:
            own = fast_mlp.network(self.grads, self.curvatures)
            at = np.array([starts[id(p)] for p in fast_mlp.params.values()])
            rows = (np.stack([first, *(part + at for part in flat[:, i])]) for i, first in enumerate(own[1:]))
            return Network(own.mlp, *rows)

        mean, *variance, critic = map(network, self.fast_mlps)
        kind = DISTRIBUTIONS[self.policy.parametrization]
        self.nets = jit.plain(ActorCritic(kind, bool(variance), mean, variance[0] if variance else mean, critic))

    def learn(
        self,
        batch: dict[str, Tensor],
        order: Tensor,
        minibatches: int,
        objective: Objective,
    ) -> tuple[float, float, Tensor, list[list[float]]]:
        """Learn from the batch's rows in this order, in minibatches as torch.tensor_split makes them.

        Returns the last minibatch's losses of actor and critic, the actor's outputs before its step, and every
        minibatch's scaling factors by parameter group. batch [B, ...]: obs, actions, advantages, returns, values and,
        for PPO, logprob. A loss that is not finite ends the pass before its step, and is returned. `Hutchinson`'s
        signs follow from one seed a call, of torch's global generator, which checkpoints save (hutchinson.draw).
        """
        replaced = [p.data_ptr() for p in self.params] != self.addresses
        if replaced or self.optimizer.state.get(self.params[0], self.states[0]) is not self.states[0]:
            raise RuntimeError("the parameters or the optimizer's state were replaced: make a new Learner")
        self._follow_settings()
        groups, count = self.optimizer.param_groups, len(order)
        numbers = steps.numbers(groups, self.kernel)
        plan = self._plan(count, minibatches)
        cuts, most, shared = plan.cuts, plan.most, plan.shared
        draws = Draws(np.uint64(torch.randint(2**63 - 1, ()).item()), self.samples) if self.samples else None
        if most > len(self.parts) + 1:
            self._make_room(most)
        shared[:] = 0
        rows, whole = self._batch(batch), order.numpy()
        norms = moments(rows.advantages, whole, cuts) if objective.norm_adv else np.empty((minibatches, 2))
        outputs = np.empty((int(cuts[1]), self.outputs), np.float32)
        work = Work(
            plan.address, self.parts, norms, plan.losses, outputs, np.ones((minibatches, len(groups))), plan.learned
        )
        plan.learned[0] = 0
        measure, apply = self.kernel.calls
        table = steps.StepTable(measure, apply, self.where, self.counts, self.bounds, numbers)
        objective = Objective(bool(objective[0]), *map(float, objective[1:]))  # an int would be another type
        parts = tuple(rows), (whole, cuts, plan.firsts), tuple(objective)
        share = partial(self._take_part, shared, *parts, draws, tuple(table), tuple(work))
        self.threads.run([share] * (min(self.threads.number, most * self._tasks) if count >= WIDE else 1))
        (actor, critic), done = work.losses[0].tolist(), int(work.learned[0])
        last = min(done, minibatches - 1)
        outputs = outputs[: cuts[last + 1] - cuts[last]]
        steps.remember(groups, numbers)
        # Torch must know: the optimizer its counts of steps, autograd that the parameters have changed.
        factors = work.etas[:done].tolist()
        self.optimizer._eta = factors[-1] if factors else []
        for state, count in zip(self.states, self.counts.tolist(), strict=True):
            state["step"] = count
        torch.autograd.graph.increment_version(self.params)
        return actor, critic, torch.from_numpy(outputs), factors

    @property
    def _tasks(self) -> int:
        """How many tasks a block of rows is."""
        return 1 if self.samples else 2

    def _plan(self, count: int, minibatches: int) -> Plan:
        """How so many rows are cut, and what their passes share; kept, since a short pass takes no longer."""
        if (key := (count, minibatches)) not in self.plans:
            cuts, blocks = _split(count, minibatches)
            firsts, most = np.append(0, np.cumsum(blocks)) * self._tasks, int(blocks.max())
            shared, learned = np.zeros(SHARED, np.int64), np.zeros(1, np.int64)
            loss = np.empty((most, 2), np.float32)
            self.plans[key] = Plan(cuts, firsts, most, shared, shared.ctypes.data, loss, learned)
        return self.plans[key]

    def _take_part(
        self, shared: np.ndarray, batch: Any, minibatches: Any, objective: Any, draws: Any, table: Any, work: Any
    ) -> None:
        """Take part in a pass until it is over."""
        try:
            take_part(self.nets, batch, minibatches, objective, self.curvature, draws, table, work)
        except BaseException:
            shared[STOP], shared[TURN] = 1, np.iinfo(np.int64).max  # or the others would wait for ever
            raise

    def _batch(self, batch: dict[str, Tensor]) -> Batch:
        """The rows as the loops take them. A2C's have no old probabilities, and nobody looks at them."""
        rows = {name: losses.array(t) for name, t in batch.items()}
        actions, choices = (_NONE, rows["actions"]) if self.policy.discrete else (rows["actions"], _NO_CHOICES)
        names = ("advantages", "returns", "values")
        old = rows.get("logprob", rows["advantages"])
        return Batch(rows["obs"], actions, choices, old, *(rows[name] for name in names))


CODES = {type(None): NO_CURVATURE, HesScaleGN: WITHOUT_D2F, HesScale: WITH_D2F, Hutchinson: WITH_D2F}
_NONE, _NO_CHOICES = np.empty((0, 0), np.float32), np.empty(0, np.int64)


@lru_cache(maxsize=8)
def _split(count: int, minibatches: int) -> tuple[np.ndarray, np.ndarray]:
    """The cuts [K + 1] of so many rows, as tensor_split makes them, and the blocks [K] of each minibatch."""
    # The first ones get what is left over.
    cuts = np.array([k * (count // minibatches) + min(k, count % minibatches) for k in range(minibatches + 1)])
    return cuts, (np.diff(cuts) + ROWS - 1) // ROWS


def make_learner(
    policy: Policy, optimizer: Any, curvature: Any, quiet: bool = False, threads: int = 1
) -> Learner | None:
    """Return the compiled update, in so many threads, if the backend has one, else None, for the readable way.

    InputError for "compiled" where there is none; one line on stderr, unless `quiet`, where "auto" has to do without
    for an optimizer that learns the whole policy. One that learns a part of it belongs to an update of another kind.
    """
    if not backend.compiles():
        return None
    found = _fast_mlps(policy, optimizer, curvature)
    if found is not None:
        ready()
        if type(curvature) is Hutchinson:
            ready(HUTCHINSON)
        return Learner(policy, optimizer, curvature, found, threads)
    if backend.current() == "compiled":
        raise InputError("--backend compiled: no compiled update for this network and optimizer; take auto or torch")
    whole = {*policy.parameters()} == {p for group in optimizer.param_groups for p in group["params"]}
    if whole and not quiet:
        complain("backend torch: no compiled update for this network and optimizer")
    return None


def _fast_mlps(policy: Policy, optimizer: Any, curvature: Any) -> list[FastMLP] | None:
    """The MLPs of the actor, one or two, and of the critic; None for what only the readable way does."""
    if getattr(optimizer, "kernel", None) is None or type(curvature) not in CODES:
        return None
    actor = policy.actor
    found = fast_mlps((*branches(actor), policy.critic), torch.zeros(1, policy.observations))
    if found is None or len(found) > 3 or (len(found) == 3 and found[0].sizes[-1] != found[1].sizes[-1]):
        return None
    known = {id(p) for fast_mlp in found for p in fast_mlp.params.values()}
    tensors = [t for p in policy.parameters() for t in (p, *optimizer.state.get(p, {}).values())]
    if not all(steps.is_plain(t) for t in tensors if isinstance(t, Tensor)):
        return None
    return found if known == {id(p) for group in optimizer.param_groups for p in group["params"]} else None
