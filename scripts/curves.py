"""The numbers behind the plots: runs read from their directories, put on one grid of steps, and statistics over them.

A curve is cut into equal bins of steps. A bin's value is the mean return of the episodes that ended in it; where none
ended, the value before. A run that diverged counts from its end on with the worst value it had, or that any run on
its environment had: it is never dropped. scripts/plot.py draws what is computed here.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesscale_rl.errors import InputError
from scripts.results import SESSION

RESAMPLES = 2000
FINISHED = ("done", "diverged")
# What every config.json must have.
NAMES = {"exp_name": str, "env_id": str, "optimizer": str, "learning_rate": (int, float), "seed": int}
MOST = 2**53  # steps: more is no number of steps, and no integer of numpy's once it is multiplied
Array = NDArray[Any]
Statistic = Callable[[list[Array]], Array]


@dataclass(frozen=True, eq=False)
class Run:
    """What a run directory says. `steps`, `returns`: [episodes]; `total`: the steps that the run was to have."""

    path: Path
    config: dict[str, Any]
    meta: dict[str, Any]
    status: str
    total: int
    end: int
    steps: Array
    returns: Array


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but their seeds, on one grid. `curves`: [runs, bins], over `length` steps."""

    env: str
    method: tuple[str, str]  # the optimizer, and what sets the group apart from others or ""
    rate: float
    length: int
    runs: list[Run]
    curves: Array

    @property
    def averages(self) -> Array:
        """The average return of each run, [runs]: the area under its curve by the curve's length."""
        return self.curves.mean(axis=1)

    @property
    def diverged(self) -> list[Run]:
        """The runs that diverged."""
        return [run for run in self.runs if run.status == "diverged"]

    @property
    def sound(self) -> Array:
        """Whether a run did not diverge, [runs]."""
        return np.array([run.status != "diverged" for run in self.runs])

    def ends(self) -> list[tuple[int, float, int]]:
        """Step, return and seed of each run that diverged within the length, where it did."""
        inside = [(i, run) for i, run in enumerate(self.runs) if run.status == "diverged" and run.end <= self.length]
        place = [bin_of(run.end, self.length, self.curves.shape[1]) for _, run in inside]
        return [(run.end, self.curves[i, k], run.config["seed"]) for (i, run), k in zip(inside, place, strict=True)]


def say(text: str) -> None:
    """Tell on stderr."""
    print(text, file=sys.stderr)


def collect(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Return the items by their key."""
    cells: dict[Any, list[Any]] = {}
    for item in items:
        cells.setdefault(key(item), []).append(item)
    return cells


def read(given: list[str], unfinished: bool) -> list[Run]:
    """Return the runs of run directories and of folders that hold some, and say on stderr which are left out.

    `unfinished` takes runs that are not done, as far as they have come.
    """
    runs, broken = [], []
    for path in find([Path(name) for name in given]):
        try:
            runs.append(_run(path))
        except InputError as error:
            broken.append(str(error))
    if broken:
        what = f"{len(broken)} of {len(runs) + len(broken)} runs cannot be read, the first: {broken[0]}"
        if not runs:
            raise InputError(f"{what}; there is nothing to plot")
        say(f"{what}; left out")
    silent = [run.path.name for run in runs if not run.meta["versions"]]
    if silent:
        say(f"{len(silent)} of {len(runs)} runs have no versions in meta.json, the first: {silent[0]}; taken without")
    going = [f"{run.path.name} ({run.status})" for run in runs if run.status not in FINISHED]
    if going:
        taken = "taken as far as they are" if unfinished else "left out; --unfinished takes them"
        say(f"{len(going)} of {len(runs)} runs are not finished, the first: {', '.join(going[:3])}; {taken}")
    if len(going) == len(runs) and not unfinished:
        raise InputError(f"{given[0]}: no finished run among {len(runs)}; --unfinished takes them as they are")
    return [run for run in runs if unfinished or run.status in FINISHED]


def find(given: list[Path]) -> list[Path]:
    """Return the run directories that are meant, each once; InputError for a path where there is none."""
    found: dict[Path, Path] = {}
    empty = []
    for folder in given:
        single = (folder / "config.json").is_file()
        own = [folder] if single else _asked(folder, sorted(path.parent for path in folder.glob("*/config.json")))
        found = {path.resolve(): path for path in own} | found
        # DIR/* takes in what a sweep keeps beside its runs.
        if not own and not folder.is_file() and folder.name not in ("logs", "slurm"):
            empty.append(folder)
    if not found or not all(folder.exists() for folder in empty):
        nowhere = next((folder for folder in empty if not folder.exists()), given[0])
        raise InputError(f"{nowhere}: no runs there; name run directories or the folder of a sweep")
    if empty:
        say(f"{len(empty)} of {len(given)} folders hold no runs, the first: {empty[0]}; left out")
    return list(found.values())


def _asked(folder: Path, own: list[Path]) -> list[Path]:
    """Of the runs in a folder those that the last sweep there asked for, by sweep.json; all if there is none."""
    path = folder / "sweep.json"
    if not path.exists():
        return own
    try:
        planned = _json(path).get("runs")
        if not isinstance(planned, list) or not all(isinstance(name, str) for name in planned):
            raise InputError(f"{path}: runs is {planned!r}, no list of names")
    except InputError as error:
        say(f"{error}; so all {len(own)} runs there are taken")
        return own
    there, wanted = {run.name for run in own}, set(planned)
    missing, others = [name for name in planned if name not in there], sorted(there - wanted)
    if missing:
        names = ", ".join(missing[:3])
        say(f"{folder}: {len(missing)} of {len(planned)} planned runs are missing, the first: {names}")
    if others:
        what = f"{len(others)} of {len(own)} runs there are not in sweep.json, of an earlier spec"
        say(f"{folder}: {what}, the first: {', '.join(others[:3])}; left out")
    return [run for run in own if run.name in wanted]


def _json(path: Path) -> dict[str, Any]:
    """The object in a file, {} if there is no file."""
    try:
        content = json.loads(path.read_text()) if path.exists() else {}
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return content
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _run(path: Path) -> Run:
    """The run in a directory; InputError for one whose files are damaged beyond single lines of metrics.jsonl."""
    config, status = _json(path / "config.json"), _json(path / "status.json")
    for name, kind in NAMES.items():
        if name not in config:
            raise InputError(f"{path / 'config.json'}: no {name!r}")
        if not isinstance(config[name], kind):
            raise InputError(f"{path / 'config.json'}: {name} is {config[name]!r}")
    if not 0 < config["learning_rate"] < np.inf:
        raise InputError(f"{path / 'config.json'}: learning_rate is {config['learning_rate']!r}")
    metrics = path / "metrics.jsonl"
    try:
        lines = metrics.read_bytes().splitlines() if metrics.is_file() else []
    except OSError as error:
        raise InputError(f"{metrics}: cannot be read ({error.strerror})") from None
    last, broken, episodes = 0, 0, []
    for line in lines:
        try:
            row = json.loads(line)
            step = int(row["global_step"])
            if not 0 <= step < MOST:
                raise ValueError
            last = max(last, step)
            if "charts/episodic_return" in row:
                episodes.append((step, float(row["charts/episodic_return"])))
        except (ValueError, KeyError, TypeError, OverflowError):
            broken += 1
    if broken:
        say(f"{metrics}: {broken} of {len(lines)} lines are broken and skipped")
    steps, returns = np.array([step for step, _ in episodes], dtype=int), np.array([value for _, value in episodes])
    finite = np.isfinite(returns)
    if not finite.all():
        say(f"{metrics}: {np.sum(~finite)} returns are not finite and count as the worst of the run")
        returns = np.where(finite, returns, returns[finite].min(initial=np.inf))
        steps, returns = steps[returns < np.inf], returns[returns < np.inf]  # none, if none was finite
    state = str(status.get("status", "no status.json"))
    for name in ("total_steps", "global_step"):
        value = status.get(name, 0)
        if not isinstance(value, int) or not 0 <= value < MOST:
            raise InputError(f"{path / 'status.json'}: {name} is {value!r}")
    total = status.get("total_steps", last) if state in FINISHED else last
    return Run(path, config, _meta(path), state, total, max(last, status.get("global_step", 0)), steps, returns)


def _meta(path: Path) -> dict[str, Any]:
    """What meta.json says, with no versions where it says none: they are for the caption alone."""
    try:
        meta = _json(path / "meta.json")
    except InputError:
        meta = {}
    return meta | {"versions": meta["versions"] if isinstance(meta.get("versions"), dict) else {}}


def apart(runs: list[Run]) -> dict[Run, str]:
    """Return what sets each run apart from others on its environment, seeds and step sizes aside: "delta 1e-06"."""
    own = {run: {k: v for k, v in run.config.items() if k not in SESSION.union(NAMES)} for run in runs}
    for settings in own.values():
        # A longer run begins as a shorter one and can be cut to it, unless its step size is annealed.
        if not settings.get("anneal_lr"):
            settings.pop("total_timesteps", None)

    def varied(key: str, *by: str) -> bool:
        cells = collect(runs, lambda run: tuple(str(run.config.get(name)) for name in by))
        return any(len({str(own[run].get(key)) for run in cell}) > 1 for cell in cells.values())

    differing = [key for key in sorted(set().union(*own.values())) if varied(key, "env_id")]
    if "preset" in differing:  # its name says all that it alone decides
        differing = ["preset", *(key for key in differing if varied(key, "env_id", "preset"))]
    return {run: ", ".join(f"{key} {own[run].get(key)}" for key in differing) for run in runs}


def bin_of(step: Any, length: int, bins: int) -> Any:
    """Return the number of the bin that holds a step, or each of several; a bin holds its right end."""
    # Integers throughout: a division would put ends of bins now here, now there.
    return np.maximum((step * bins + length - 1) // length - 1, 0)


def on_grid(run: Run, length: int, bins: int) -> Array | None:
    """Return the curve of a run over its first `length` steps, [bins]; None if no episode ended in them."""
    there = run.steps <= length
    if not there.any():
        return None
    place = bin_of(run.steps[there], length, bins)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, weights=run.returns[there], minlength=bins)
    last = np.maximum.accumulate(np.where(counts > 0, np.arange(bins), place.min()))
    curve = sums[last] / counts[last]
    if run.status == "diverged":
        rest = bin_of(run.end, length, bins) + 1
        curve[rest:] = curve[:rest].min()
    return curve


def gather(runs: list[Run], bins: int, together: bool, worst: str = "own") -> list[Group]:
    """Return the runs of one agent as groups, by environment, optimizer, settings and learning rate.

    Runs of different length are cut to the shortest of their group, or with `together` of their environment: averages
    compare over the same steps only. A diverged run counts with the `worst` of its own, or of its env.
    """
    labels, keys, taken, lengths = apart(runs), {}, {}, {}
    for run in runs:
        env, optimizer, rate, seed = (run.config[name] for name in [*NAMES][1:])
        keys[run] = (env, (optimizer, labels[run]), float(rate))
        other = taken.setdefault((keys[run], seed), run)
        if other is not run:
            raise InputError(f"seed {seed} twice in one group, in {other.path} and {run.path}; name one of the two")
    for own in collect(runs, lambda run: keys[run][: 1 if together else 3]).values():
        lengths |= dict.fromkeys(own, _cut(own))
    curves = {run: curve for run in runs if (curve := on_grid(run, lengths[run], bins)) is not None}
    for run in runs:
        same = [curve.min() for other, curve in curves.items() if keys[other][0] == keys[run][0]]
        if run not in curves and run.status == "diverged" and same:
            curves[run] = np.full(bins, min(same))
        elif run not in curves:
            say(f"{run.path}: no episode ended in {lengths[run]:,} steps; left out")
    if not curves:
        raise InputError(f"{runs[0].path}: no episode ended in any of {len(runs)} runs; there is nothing to plot")
    if worst == "env":
        for own in collect(curves, lambda run: keys[run][0]).values():
            floor = min(curves[run].min() for run in own)
            for run in own:
                if run.status == "diverged":
                    curves[run][bin_of(run.end, lengths[run], bins) + 1 :] = floor
    groups = []
    for key, own in sorted(collect(curves, keys.get).items()):
        own.sort(key=lambda run: run.config["seed"])
        groups.append(Group(*key, lengths[own[0]], own, np.array([curves[run] for run in own])))
    return groups


def _cut(runs: list[Run]) -> int:
    """The length that runs have in common."""
    totals = {run.total: run for run in runs if len(run.steps) or run.status == "diverged"}
    length = min(totals, default=0)
    if len(totals) > 1:
        what = f"{len(runs)} runs of {length:,} to {max(totals):,} steps are cut to {length:,}"
        say(f"{runs[0].config['env_id']}: {what}, the length of {totals[length].path.name}")
    return length


def best(groups: list[Group]) -> list[Group]:
    """Return of every optimizer on every environment the longest group; of several, that of the highest average."""
    cells = collect(groups, lambda group: (group.env, group.method))
    return [max(own, key=lambda group: (group.length, group.averages.mean())) for own in cells.values()]


def normalise(groups: list[Group], statistic: str) -> dict[Group, Array]:
    """Return the average returns of each group's runs, [runs], between 0 and 1 for the worst and the best group."""
    scores = {}
    for env, own in collect(groups, lambda group: group.env).items():
        values = [float(STATISTICS[statistic]([group.averages])) for group in own]
        low, high = min(values), max(values)
        if low == high:
            what = "all groups have the same average" if len(own) > 1 else "there is a single group"
            say(f"{env}: {what}; it has no part in what is normalised")
        else:
            scores |= {group: (group.averages - low) / (high - low) for group in own}
    return scores


def mean(tasks: list[Array]) -> Array:
    """Return the mean over runs, then over tasks; each task is [runs, ...]."""
    return np.mean([scores.mean(axis=0) for scores in tasks], axis=0)


def iqm(tasks: list[Array]) -> Array:
    """Return the mean of the middle half of all scores of all tasks together; each task is [runs, ...]."""
    from scipy.stats import trim_mean  # here, so that the command can tell of its absence

    return trim_mean(np.concatenate(tasks), 0.25, axis=0)


STATISTICS: dict[str, Statistic] = {"mean": mean, "iqm": iqm}


def stratified_bootstrap(
    scores: Array | list[Array], statistic: Statistic, reps: int, rng: np.random.Generator
) -> Array:
    """Return the statistic of `reps` resamples, [reps, ...]: the runs of every task are drawn anew, with replacement.

    `scores` is [runs, tasks], or a list with [runs, ...] for each task, which may differ in their runs.
    """
    tasks = scores if isinstance(scores, list) else list(scores.T)
    return statistic([task[rng.integers(len(task), size=(len(task), reps))] for task in tasks])


def interval(tasks: list[Array], statistic: str, error: str) -> Array:
    """Return the statistic and the ends of its interval, [3, ...]: 95 % bootstrap, or one standard error for "se".

    Each task is [runs, ...]. Where no task has two runs there is no interval: NaN.
    """
    value = np.asarray(STATISTICS[statistic](tasks))
    if max(map(len, tasks)) < 2:
        return np.array([value, value * np.nan, value * np.nan])
    if error == "se":
        variances = [task.var(axis=0, ddof=1) / len(task) for task in tasks if len(task) > 1]
        half = np.sqrt(np.sum(variances, axis=0)) / len(tasks)
        return np.array([value, value - half, value + half])
    # A generator of its own for each: the same runs have the same interval whatever else a figure shows.
    drawn = stratified_bootstrap(tasks, STATISTICS[statistic], RESAMPLES, np.random.default_rng(0))
    return np.array([value, *np.percentile(drawn, [2.5, 97.5], axis=0)])


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
