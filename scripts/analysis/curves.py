"""The numbers behind the plots: runs on one grid, and statistics over them.

A curve is cut into equal bins of steps. A bin's value is the mean return of the episodes that ended in it; where none
ended, the value before. A run that diverged counts from its end on with the worst value it had or, if asked for and
for a loss, which has no bound, with the worst that any run on its environment had: it is never dropped.
read_runs.py reads the runs, for other metrics and axes too, and scripts/plot.py draws what is computed here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesscale_rl.errors import InputError
from hesscale_rl.scripts.analysis.read_runs import FINE, NAMES, SESSION, RecordedRun, View, by_seed, collect
from hesscale_rl.system.console import complain

RESAMPLES = 2000
FEWEST = 5  # runs: a bootstrap of fewer is too narrow to be called a 95 % interval
Array = NDArray[Any]
Statistic = Callable[[list[Array]], Array]


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but their seeds, on one grid. `curves`: [runs, bins], over `length` steps.

    `rate`: the learning rate, or the value of the flag that the view has in its place.
    """

    env: str
    method: tuple[str, str]  # the optimizer, and what sets the group apart from others or ""
    rate: float
    length: int
    runs: list[RecordedRun]
    curves: Array

    @property
    def view(self) -> View:
        """How its runs are seen."""
        return self.runs[0].view

    @property
    def averages(self) -> Array:
        """The average return of each run, [runs]: the area under its curve by the curve's length."""
        return self.curves.mean(axis=1)

    @property
    def diverged(self) -> list[RecordedRun]:
        """The runs that diverged."""
        return [run for run in self.runs if run.status == "diverged"]

    @property
    def sound(self) -> Array:
        """Whether a run did not diverge, [runs]."""
        return np.array([run.status != "diverged" for run in self.runs])

    def ends(self) -> list[tuple[int, float, RecordedRun]]:
        """Step and return of each run that diverged within the length, where it did."""
        inside = [(i, run) for i, run in enumerate(self.runs) if run.status == "diverged" and run.end <= self.length]
        place = [bin_of(run.end, self.length, self.curves.shape[1]) for _, run in inside]
        return [(run.end, self.curves[i, k], run) for (i, run), k in zip(inside, place, strict=True)]


def apart(runs: list[RecordedRun]) -> dict[RecordedRun, str]:
    """Return what sets each run apart from others on its environment, seeds and rates aside: "delta 1e-06"."""
    # More epochs begin as fewer do, and can be cut to them.
    ignored = SESSION | NAMES.keys() | {runs[0].view.over, "task", "epochs"}
    own = {run: {k: v for k, v in run.config.items() if k not in ignored} for run in runs}
    for settings in own.values():
        # A longer run begins as a shorter one, too, unless its step size is annealed.
        if not settings.get("anneal_lr"):
            settings.pop("total_timesteps", None)

    def varied(key: str, *by: str) -> bool:
        cells = collect(runs, lambda run: tuple(str(run.config.get(name)) for name in by))
        # A run from before there was a flag lacks it, and is not told apart by it.
        kinds = [{str(own[run][key]) for run in cell if key in own[run]} for cell in cells.values()]
        # None is what a flag has that is not the optimizer's own.
        return any(len(kind if "optimizer" in by else kind - {"None"}) > 1 for kind in kinds)

    every = sorted(set().union(*own.values()))
    differing = [key for key in every if varied(key, "env_id") or varied(key, "env_id", "optimizer")]
    if "preset" in differing:  # its name says all that it alone decides
        differing = ["preset", *(key for key in differing if varied(key, "env_id", "preset"))]
    return {run: ", ".join(f"{k} {own[run][k]}" for k in differing if own[run].get(k) is not None) for run in runs}


def bin_of(step: Any, length: int, bins: int) -> Any:
    """Return the number of the bin that holds a step, or each of several; a bin holds its right end."""
    # Integers throughout: a division would put ends of bins now here, now there.
    return np.maximum((step * bins + length - 1) // length - 1, 0)


def bin_means(steps: Array, values: Array, length: int, bins: int) -> tuple[Array, Array, Array]:
    """Return the bin of each value, [values], and how many values each bin has and their mean, [bins] each."""
    place = bin_of(steps, length, bins)
    counts = np.bincount(place, minlength=bins)
    return place, counts, np.bincount(place, weights=values, minlength=bins) / np.maximum(counts, 1)


def on_grid(run: RecordedRun, length: int, bins: int) -> Array | None:
    """Return the curve of a run over its first `length` steps, [bins]; None if it has no value there.

    Of a run that diverged the value before training is enough.
    """
    there = run.steps <= length
    if not there.any() and (np.isnan(run.start) or run.status != "diverged"):
        return None
    place, counts, means = bin_means(run.steps[there], run.values[there], length, bins)
    last = np.maximum.accumulate(np.where(counts > 0, np.arange(bins), -1))
    curve = np.where(last < 0, means[place.min()] if np.isnan(run.start) else run.start, means[last])
    if run.status == "diverged":
        rest = bin_of(run.end, length, bins) + 1
        curve[rest:] = curve[:rest].min()
    return curve


def usual_worst(runs: list[RecordedRun]) -> str:
    """Return whose worst value a diverged run counts with, where nothing is said: a loss's own may well be small."""
    return "env" if runs[0].view.lower else "own"


def gather(runs: list[RecordedRun], bins: int, together: bool, worst: str | None = None) -> list[Group]:
    """Return the runs of one agent as groups, by environment, optimizer, settings and rate.

    Runs of different length are cut to the shortest of their group, or with `together` of their environment: averages
    compare over the same steps only. A diverged run counts with the `worst` of its own, or of its env.
    """
    worst = worst or usual_worst(runs)
    labels, keys = apart(runs), {}
    lengths: dict[RecordedRun, int] = {}
    for run in runs:
        env, optimizer, rate = (run.config[name] for name in ("env_id", "optimizer", run.view.over))
        keys[run] = (env, (optimizer, labels[run]), float(rate))
    for own in collect(runs, lambda run: keys[run][: 1 if together else 3]).values():
        lengths |= dict.fromkeys(own, _cut(own))
    for run in runs:
        if run.packed not in (None, bins) or run.packed and run.total != lengths[run]:
            what = f"is packed in {run.packed} bins of {run.total:,} steps, not in {bins} of {lengths[run]:,}"
            raise InputError(f"{run.path}: {what}; take --bins {run.packed} and no shorter runs beside it")
    # An epoch has one value.
    parts = {run: min(bins, lengths[run]) if run.view.axis == "epochs" else bins for run in runs}
    curves = {run: curve for run in runs if (curve := on_grid(run, lengths[run], parts[run])) is not None}
    bare = []
    for run in [run for run in runs if run not in curves]:
        same = [curve.min() for other, curve in curves.items() if keys[other][0] == keys[run][0]]
        if run.status == "diverged" and same:
            curves[run] = np.full(parts[run], min(same))
        else:
            length = f" in {lengths[run] / FINE[run.view.axis]:,.9g} {run.view.axis}" if lengths[run] else " yet"
            bare.append(f"{run.path}: no {run.view.metric}{length}; left out")
    if not curves:
        tags = ", ".join(sorted(tag for tag in runs[0].tags if "/" in tag))
        what = f"no {runs[0].view.metric} in any of {len(runs)} runs; there is nothing to plot"
        raise InputError(f"{runs[0].path}: {what}" + f" (--metric: {tags})" * bool(tags))
    if bare:
        complain(*bare)
    if worst == "env":
        for own in collect(curves, lambda run: keys[run][0]).values():
            floor = min(curves[run].min() for run in own)
            for run in own:
                if run.status == "diverged":
                    curves[run][bin_of(run.end, lengths[run], parts[run]) + 1 :] = floor
    groups = []
    for (env, method, rate), own in sorted(collect(curves, keys.get).items()):
        own = [*by_seed(own).values()]
        groups.append(Group(env, method, rate, lengths[own[0]], own, np.array([curves[run] for run in own])))
    return groups


def _cut(runs: list[RecordedRun]) -> int:
    """The length that runs have in common; of seconds, which always differ, that of the fastest sound run."""
    known = [run for run in runs if len(run.steps) or run.status == "diverged"]
    if known and known[0].view.axis == "seconds":
        return max(1, min(run.total for run in [run for run in known if run.status != "diverged"] or known))
    totals = {run.total: run for run in known}
    length = min(totals, default=0)
    if len(totals) > 1:
        what = f"{len(runs)} runs of {length:,} to {max(totals):,} {known[0].view.axis} are cut to {length:,}"
        complain(f"{runs[0].config['env_id']}: {what}, the length of {totals[length].path.name}")
    return length


def best(groups: list[Group]) -> list[Group]:
    """Return of every optimizer on every environment the longest group; of several, that of the highest average."""

    def rank(group: Group) -> tuple[int, float]:
        # No two groups take the same seconds.
        return 0 if group.view.axis == "seconds" else group.length, group.averages.mean()

    cells = collect(groups, lambda group: (group.env, group.method))
    return [max(own, key=rank) for own in cells.values()]


def normalise(groups: list[Group], statistic: str) -> dict[Group, Array]:
    """Return the average returns of each group's runs, [runs], between 0 and 1 for the worst and the best group.

    A loss above that before training, which explosions have no bound for, counts as that.
    """
    scores: dict[Group, Array] = {}
    for env, own in collect(groups, lambda group: group.env).items():
        starts = [run.start for group in own for run in group.runs if group.view.lower]
        bottom = np.nanmedian(starts) if np.isfinite(starts).any() else -np.inf
        averages = {group: np.maximum(group.averages, bottom) for group in own}
        values = [float(STATISTICS[statistic]([averages[group]])) for group in own]
        low, high = min(values), max(values)
        if low == high:
            what = "all groups have the same average" if len(own) > 1 else "there is a single group"
            complain(f"{env}: {what}; it has no part in what is normalised")
        else:
            scores |= {group: (averages[group] - low) / (high - low) for group in own}
    return scores


def mean(tasks: list[Array]) -> Array:
    """Return the mean over runs, then over tasks; each task is [runs, ...]."""
    return np.mean([scores.mean(axis=0) for scores in tasks], axis=0)


def iqm(tasks: list[Array]) -> Array:
    """Return the mean of the middle half of all scores of all tasks together; each task is [runs, ...]."""
    return _stats().trim_mean(np.concatenate(tasks), 0.25, axis=0)


def _stats() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise InputError("intervals need scipy, pip install 'hesscale-rl[plot]'") from None
    return stats


STATISTICS: dict[str, Statistic] = {"mean": mean, "iqm": iqm}


def stratified_bootstrap(
    scores: Array | list[Array], statistic: Statistic, reps: int, rng: np.random.Generator
) -> Array:
    """Return the statistic of `reps` resamples, [reps, ...]: the runs of every task are drawn anew, with replacement.

    `scores` is [runs, tasks], or a list with [runs, ...] for each task, which may differ in their runs.
    """
    tasks = scores if isinstance(scores, list) else list(scores.T)
    return statistic([task[rng.integers(len(task), size=(len(task), reps))] for task in tasks])


def bootstrap_ends(tasks: list[Array], statistic: Statistic) -> Array:
    """Return the ends of the 95 % stratified bootstrap interval, [2, ...]; NaN where a task has a single run."""
    if min(map(len, tasks)) < 2:
        return np.full((2, *np.shape(statistic(tasks))), np.nan)
    # A generator of its own for each: the same runs have the same interval whatever else is computed.
    drawn = stratified_bootstrap(tasks, statistic, RESAMPLES, np.random.default_rng(0))
    return np.percentile(drawn, [2.5, 97.5], axis=0)


def interval(tasks: list[Array], statistic: str, error: str) -> Array:
    """Return the statistic and the ends of its interval, [3, ...]: 95 % bootstrap, or one standard error for "se".

    Each task is [runs, ...]. Where one has a single run, whose spread nobody knows, or for a bootstrap fewer than
    FEWEST, there is no interval: NaN.
    """
    value = np.asarray(STATISTICS[statistic](tasks))
    if min(map(len, tasks)) < (2 if error == "se" else FEWEST):
        return np.array([value, np.full_like(value, np.nan), np.full_like(value, np.nan)])
    if error == "se":
        variances = [task.var(axis=0, ddof=1) / len(task) for task in tasks]
        half = np.sqrt(np.sum(variances, axis=0)) / len(tasks)
        return np.array([value, value - half, value + half])
    return np.array([value, *bootstrap_ends(tasks, STATISTICS[statistic])])


def student(values: Array) -> tuple[float, float]:
    """Return the ends of Student's 95 % interval of the mean of some runs; NaN for a single one."""
    if len(values) < 2:
        return np.nan, np.nan
    half = _stats().t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


def welch(values: Array, others: Array) -> tuple[float, float]:
    """Return the ends of Welch's 95 % interval of the difference of two means; NaN where one is of a single run."""
    if min(len(values), len(others)) < 2:
        return np.nan, np.nan
    difference = values.mean() - others.mean()
    if values.std() == others.std() == 0:
        return difference, difference
    low, high = _stats().ttest_ind(values, others, equal_var=False).confidence_interval(0.95)
    return low, high


def limits(values: Array, sound: Array) -> tuple[float, float]:
    """Return the ends of a y axis for values, among them those of runs that exploded, which may stay outside.

    Outside is what lies ten times further down than the middle half is wide or the median is large, or a hundred
    times further up: a good curve may end far above most values, but only an explosion so far below. Middle half and
    median are those of the `sound` values, of runs that did not diverge, if there are any.
    """
    values, sound = values[np.isfinite(values)], sound[np.isfinite(sound)]
    low, middle, high = np.percentile(sound if len(sound) else values, [25, 50, 75])
    size = max(high - low, abs(middle))
    inside = values[(values >= low - 10 * size) & (values <= high + 100 * size)]
    first, last = (inside if len(inside) else values).min(), (inside if len(inside) else values).max()
    margin = 0.05 * (last - first or abs(middle) or 1)
    return first - margin, last + margin
