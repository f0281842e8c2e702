"""An optimizer's step over all its tensors: the loop around its kernel, the scaling, and what kernels share.

A kernel is two functions of one tensor, which stand in the optimizer's own file. The loop calls them by their
addresses, so that it is compiled once for all optimizers, those of a user's own among them.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from torch import Tensor, nn

from ..jit import FAST, PLAIN, at, calling
from .cache import ready

LARGEST = np.float32(2.0**126)  # an average of squares stays below it: a quarter of what float32 holds
OFF = np.inf  # the radius of steps that are not scaled

ADDRESSES, NUMBERS = types.Array(types.int64, 1, "C"), types.Array(types.float64, 1, "C")
ARGUMENTS = (ADDRESSES, types.int64, types.int64, NUMBERS, types.float64)
MEASURE = types.float64(*ARGUMENTS)
APPLY = types.void(*ARGUMENTS, types.float64)
_measure, _apply = calling(MEASURE), calling(APPLY)


class KernelCalls(NamedTuple):
    """The addresses of a kernel's functions; without a compiler the functions themselves."""

    measure: Any
    apply: Any


class Kernel:
    """The compiled step of an optimizer.

    measure(tensors, n, t, s, delta): move the averages of one tensor of n numbers at its step t; return u'Hu of its
    step u, or 0 where `delta`, the trust-region radius, is OFF. apply(tensors, n, t, s, delta, eta): take eta u from
    its parameter. tensors: the addresses of parameter, gradient and curvature, and of the `averages`; 0 for one that
    the group does not have. s: numbers, the group's `settings` in this order: two for a pair, 1 for True, infinity
    for None. in_step: whether `step()` has it do the work; else only an agent's compiled update does.
    """

    def __init__(
        self,
        measure: Callable[..., float],
        apply: Callable[..., None],
        averages: tuple[str, ...],
        settings: tuple[str, ...],
        in_step: bool = True,
    ):
        self.functions = KernelCalls(measure, apply)
        self.averages, self.of, self.in_step = averages, itemgetter(*settings), in_step

    @cached_property
    def calls(self) -> KernelCalls:
        """How the loop calls it; compiled, or taken from the cache, when first asked for."""
        if PLAIN:
            return self.functions
        found = zip(self.functions, (MEASURE, APPLY), strict=True)
        results: list[Any] = [function.get_compile_result(signature) for function, signature in found]
        return KernelCalls(*(r.library.get_pointer_to_function(r.fndesc.llvm_cfunc_wrapper_name) for r in results))


class StepTable(NamedTuple):
    """What a step works on: P tensors in G groups.

    measure, apply: the kernel's. where [P, 4 + A]: of each tensor how many numbers it has, and the kernel's
    `tensors`; counts [P]: the step that it is at; group i is the tensors from bounds[i] to bounds[i + 1]; groups
    [G, 6 + S]: the radius, `average`, `bound`, lr weight_decay, what `scaled` remembers, and the kernel's s.
    """

    measure: Any
    apply: Any
    where: np.ndarray
    counts: np.ndarray
    bounds: np.ndarray
    groups: np.ndarray


DELTA, AVERAGE, BOUND, DECAY, MEAN, STEPS, SETTINGS = range(7)  # columns of a table's groups


@FAST
def step(table: StepTable, etas: np.ndarray) -> None:
    """Take a step: measure all groups, scale, apply. Fills etas [G]."""
    bounds, h = table.bounds, np.zeros(len(etas))
    for i in range(len(etas)):
        group = table.groups[i]
        for k in range(bounds[i], bounds[i + 1]):
            row = table.where[k]
            h[i] += _measure(table.measure, (row[1:], row[0], table.counts[k], group[SETTINGS:], group[DELTA]))
            if group[DELTA] == OFF:  # at once, while the tensor is at hand
                _decay_and_apply(table, i, k, 1.0)
    for i in range(len(etas)):
        etas[i] = scaled(h[i], table.groups[i])
    for i in range(len(etas)):
        if table.groups[i, DELTA] != OFF:
            for k in range(bounds[i], bounds[i + 1]):
                _decay_and_apply(table, i, k, etas[i])


@FAST
def scaled(h: float, group: np.ndarray) -> float:
    """Return eta, as scaling.eta does, and remember the running average of h before its correction."""
    if group[DELTA] == OFF:
        return 1.0
    if group[AVERAGE] == 0:
        return _within(group[DELTA], h)
    group[MEAN] = group[AVERAGE] * group[MEAN] + (1 - group[AVERAGE]) * h
    group[STEPS] += 1
    mean = group[MEAN] / (1 - group[AVERAGE] ** group[STEPS])
    return smaller(_within(group[DELTA], mean), _within(group[BOUND] * group[DELTA], h))


@FAST
def _within(delta: float, h: float) -> float:
    """The factor that makes u'Hu = h at most 2 delta; 1 for no curvature."""
    return min(1.0, math.sqrt(2 * delta / h)) if h > 0 else 1.0 + (h - h)  # a NaN stays one


@FAST
def _decay_and_apply(table: StepTable, i: int, k: int, eta: float) -> None:
    """Decoupled weight decay, p <- p - lr weight_decay p, and then the step of one tensor."""
    row, group = table.where[k], table.groups[i]
    if group[DECAY] != 0:
        p, keep = floats(row[1], row[0]), np.float32(1 - group[DECAY])
        for j in range(len(p)):
            p[j] *= keep
    _apply(table.apply, (row[1:], row[0], table.counts[k], group[SETTINGS:], group[DELTA], eta))


@FAST
def _step_of(
    measure: Any,
    apply: Any,
    where: np.ndarray,
    counts: np.ndarray,
    bounds: np.ndarray,
    groups: np.ndarray,
    etas: np.ndarray,
) -> None:
    """The same for whoever has no table yet: records take numba longer to look at than arrays do."""
    step(StepTable(measure, apply, where, counts, bounds, groups), etas)


# --- for kernels


@FAST
def floats(address: int, n: int) -> np.ndarray:
    """The n numbers that begin at the address."""
    return at(address, 1, n)[0]


@FAST
def larger(a: float, b: float) -> float:
    """The larger of two; a where it is NaN."""
    return b if b > a else a


@FAST
def smaller(a: float, b: float) -> float:
    """The smaller of two; a where it is NaN."""
    return b if b < a else a


@FAST
def _moved(v: float, x: float, keep: float, rest: float) -> float | np.float32:
    """Return keep v + rest x^2, or LARGEST in place of more."""
    new = keep * v + rest * (x * x)
    if new > LARGEST:  # perhaps the square alone is more than float32 holds
        other = v - rest * v + (rest * x) * x
        return LARGEST if other > LARGEST else other
    return new


@FAST
def move_averages(
    g: np.ndarray, s: np.ndarray, m: np.ndarray, v: np.ndarray, betas: tuple[float, float], sign: float
) -> None:
    """Move m to beta1 m + (1 - beta1) sign g, and v to beta2 v + (1 - beta2) s^2."""
    # 1 - beta before it is rounded: afterwards it would be 1e-5 off for 0.999.
    rest1, b2, rest2 = np.float32(1 - betas[0]), np.float32(betas[1]), np.float32(1 - betas[1])
    for i in range(len(m)):
        m[i] += rest1 * (sign * g[i] - m[i])
        v[i] = _moved(v[i], s[i], b2, rest2)


@FAST
def move_average_of_squares(w: np.ndarray, d: np.ndarray, beta2: float) -> None:
    """Move w to beta2 w + (1 - beta2) d^2."""
    b2, rest2 = np.float32(beta2), np.float32(1 - beta2)
    for i in range(len(w)):
        w[i] = _moved(w[i], d[i], b2, rest2)


@FAST
def longest_alone(delta: float, rate: float, reach: float) -> np.float32:
    """What an entry of u without its rate may count as, root u^2: the whole region; for reach=None no bound."""
    return np.float32(np.inf if reach == OFF or rate == 0 else 2 * delta / (rate * rate))


# --- from torch


def numbers(groups: Sequence[dict[str, Any]], kernel: Kernel) -> np.ndarray:
    """Return the `groups` of a StepTable."""
    flat: list[float] = []
    for group in groups:
        delta = OFF if group["delta"] is None else group["delta"]
        flat += (delta, group["average"], group["bound"], float(group["lr"]) * group["weight_decay"])
        flat += group.get("curvature_along", (0.0, 0.0))
        for value in kernel.of(group):
            if type(value) is float:
                flat.append(value)
            elif isinstance(value, list | tuple):
                flat += value
            else:
                flat.append(OFF if value is None else float(value))
    return np.array(flat, np.float64).reshape(len(groups), -1)


def remember(groups: Sequence[dict[str, Any]], table: np.ndarray) -> None:
    """Write what the scaling remembers back to the groups that have it remember anything."""
    for i, group in enumerate(groups):
        if group["average"] and group["delta"] is not None:
            group["curvature_along"] = (float(table[i, MEAN]), int(table[i, STEPS]))


def is_plain(t: Tensor) -> bool:
    """Whether the loops may read the tensor where it lies: contiguous float32 on the CPU, of no subclass.

    A subclass (DTensor, say) has its numbers elsewhere.
    """
    return type(t) in _PLAIN and t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()


_PLAIN = (Tensor, nn.Parameter)


def take(kernel: Kernel, groups: Sequence[dict[str, Any]], columns: list[list[Any]]) -> list[float] | None:
    """Take a step in place; return eta of each group, or None where the loop cannot do it.

    columns: for every group the parameters, gradients, curvatures, averages, lists of tensors or of None for what the
    group does not have; then the step that each parameter is at.
    """
    # By columns, each over all groups: lengths, then the addresses of each list.
    where: list[list[int]] = [[] for _ in columns[0]]
    counts: list[int] = []
    bounds = [0]
    for *lists, steps in columns:
        own = [p.numel() for p in lists[0]]
        where[0] += own
        counts += steps
        bounds.append(len(counts))
        for column, tensors in zip(where[1:], lists, strict=True):
            if tensors is None:
                column += [0] * len(own)
                continue
            column += [t.data_ptr() for t in tensors if is_plain(t)]
            if len(column) < len(counts) or [t.numel() for t in tensors] != own:
                return None  # of a wrong shape torch says what is wrong
    if not counts:
        return [1.0] * len(columns)
    ready()
    etas, flat = np.ones(len(columns)), [x for column in where for x in column]
    tensors_of = np.ascontiguousarray(np.array(flat).reshape(len(where), -1).T)
    table = numbers(groups, kernel)
    _step_of(*kernel.calls, tensors_of, np.array(counts), np.array(bounds), table, etas)
    remember(groups, table)
    # Autograd must see the change: it refuses to go back through a tensor that was changed since.
    changed = [ts for params, _, _, *rest, _ in columns for ts in (params, *rest) if ts is not None]
    torch.autograd.graph.increment_version([t for ts in changed for t in ts])
    return etas.tolist()
