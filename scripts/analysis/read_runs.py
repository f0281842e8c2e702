"""What run directories say, for the plots: a metric of metrics.jsonl against steps, epochs or seconds.

Higher is better in all that is read: a loss is read with the other sign, and drawn with its own.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesscale_rl.errors import InputError
from hesscale_rl.runs.checkpoint import EVALUATING, HOW
from hesscale_rl.runs.command_line import near
from hesscale_rl.system.console import complain

FINISHED = ("done", "diverged")
RATE = "learning_rate"
NAMES = {"exp_name": str, "env_id": str, "optimizer": str, "seed": int}  # what every config.json must have beside it
MOST = 2**53  # steps: more is no number of steps, and no integer of numpy's once it is multiplied
SUPERVISED = "supervised"  # the command of that name, taken as an agent
TAGS = {"steps": "global_step", "epochs": "charts/epoch", "seconds": "charts/seconds"}  # of each axis
LOSSES = ("loss/", "losses/policy_loss", "losses/value_loss")  # how metrics begin of which less is better
# Flags that decide nothing about a run's numbers, or only their last digits.
SESSION = {"seed", "run_dir", "resume", "accept_changes", "quiet", "checkpoint_interval", "track"}
SESSION |= {"trust_env_module", "torch_threads", "backend", "compile", "device"} | EVALUATING | HOW
FINE = {"steps": 1, "epochs": 1, "seconds": 1000}  # parts of its unit that are told apart


@dataclass(frozen=True)
class View:
    """What is read: `metric`, a tag of metrics.jsonl; `axis`, one of TAGS; `over`, the flag that is a run's rate."""

    metric: str
    axis: str
    over: str

    @property
    def lower(self) -> bool:
        """Whether lower is better."""
        return self.metric.startswith(LOSSES)


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """What a run directory says, seen in one way.

    `steps` [values]: where on the axis, in integers: milliseconds, for seconds; `values` [values]: the metric, a loss
    negative; `start`: what it was before training, or NaN. `total`: the length that the run was to have; `end`: where
    it ended; `tags`: the metrics that it has; `reason`: why it diverged or failed; `at`, `planned`: the step that it
    is at, and that it is to come to.
    """

    path: Path
    config: dict[str, Any]
    meta: dict[str, Any]
    status: str
    view: View
    total: int
    end: int
    steps: NDArray[Any]
    values: NDArray[Any]
    start: float
    tags: set[str]
    reason: str
    at: int
    planned: int

    @property
    def packed(self) -> int | None:
        """The bins that `hesscale-rl pack` has made of its curve, None if it is as it was written."""
        return self.meta.get("packed_bins")


Kept = dict[Path, tuple[Any, RecordedRun]]  # of a directory, the state of its files and what they said


def collect(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Return the items by their key."""
    cells: dict[Any, list[Any]] = {}
    for item in items:
        cells.setdefault(key(item), []).append(item)
    return cells


def read(
    given: list[str],
    unfinished: bool,
    metric: str | None = None,
    axis: str | None = None,
    over: str = RATE,
    left: Counter[tuple[str, str]] | None = None,
    kept: Kept | None = None,
) -> list[RecordedRun]:
    """Return the runs of run directories and of folders that hold some, and say on stderr which are left out.

    `unfinished` takes runs that are not done, as far as they have come. `metric` and `axis`: None for the return
    against steps or, of supervised runs, the validation loss against epochs. `over`: a flag of positive numbers.
    `left` counts those left out, by agent ("" where that is not known) and why. `kept` has what was read before, for
    one who looks again and again: a run of which no file has changed is not read anew.
    """
    runs, broken, left = [], [], Counter() if left is None else left
    for path in find([Path(name) for name in given], left):
        stamp = None if kept is None else _stamp(path)
        try:
            if kept is None or path not in kept or kept[path][0] != stamp:
                runs.append(_run(path, metric, axis, over))
            else:
                runs.append(kept[path][1])
            if kept is not None:
                kept[path] = stamp, runs[-1]
        except InputError as error:
            broken.append(str(error))
    if broken:
        what = f"{len(broken)} of {len(runs) + len(broken)} runs cannot be read, the first: {broken[0]}"
        if not runs:
            raise InputError(f"{what}; there is nothing to plot")
        complain(f"{what}; left out")
        left["", "cannot be read"] = len(broken)
    silent = [run.path.name for run in runs if not run.meta["versions"]]
    if silent:
        complain(
            f"{len(silent)} of {len(runs)} runs have no versions in meta.json, the first: {silent[0]}; taken without"
        )
    going = [f"{run.path.name} ({run.status})" for run in runs if run.status not in FINISHED]
    if going:
        taken = "taken as far as they are" if unfinished else "left out; --unfinished takes them"
        complain(f"{len(going)} of {len(runs)} runs are not finished, the first: {', '.join(going[:3])}; {taken}")
    if len(going) == len(runs) and not unfinished:
        raise InputError(f"{given[0]}: no finished run among {len(runs)}; --unfinished takes them as they are")
    if unfinished:
        return runs
    left.update((run.config["exp_name"], "not finished") for run in runs if run.status not in FINISHED)
    return [run for run in runs if run.status in FINISHED]


def seen(run: RecordedRun, metric: str) -> RecordedRun:
    """Return the same run with another metric."""
    return _run(run.path, metric, run.view.axis, run.view.over)


def by_agent(runs: Iterable[RecordedRun]) -> dict[str, list[RecordedRun]]:
    """Return runs by their agent, in order, without supervised ones, which have no returns, and say so.

    InputError if all of them are.
    """
    found = collect(runs, lambda run: run.config["exp_name"])
    if own := found.pop(SUPERVISED, []):
        what = f"{own[0].path}: a supervised run has no returns; hesscale-rl plot takes it"
        if not found:
            raise InputError(what)
        complain(f"{what}; left out" + f", with {len(own) - 1} more" * (len(own) > 1))
    return dict(sorted(found.items()))


def by_seed(runs: Iterable[RecordedRun]) -> dict[int, RecordedRun]:
    """Return runs of one group by their seeds, in order; of those with one seed the newest, and say so."""
    found = collect(runs, lambda run: run.config["seed"])
    for seed, same in found.items():
        same.sort(key=lambda run: (str(run.meta.get("started", "")), run.path.stat().st_mtime_ns))
        if len(same) > 1:
            complain(f"seed {seed} is there {len(same)} times with one setting: {same[-1].path}, the newest, counts")
    return {seed: same[-1] for seed, same in sorted(found.items())}


def find(given: list[Path], left: Counter[tuple[str, str]]) -> list[Path]:
    """Return the run directories that are meant, each once; InputError for a path where there is none."""
    found: dict[Path, Path] = {}
    empty = []
    for folder in given:
        single = (folder / "config.json").is_file()
        own = (
            [folder] if single else _asked(folder, sorted(path.parent for path in folder.glob("*/config.json")), left)
        )
        found = {path.resolve(): path for path in own} | found
        # DIR/* takes in what a sweep keeps beside its runs.
        if not own and not folder.is_file() and folder.name not in ("logs", "slurm"):
            empty.append(folder)
    if not found or not all(folder.exists() for folder in empty):
        nowhere = next((folder for folder in empty if not folder.exists()), given[0])
        raise InputError(f"{nowhere}: no runs there; name run directories or the folder of a sweep")
    if empty:
        complain(f"{len(empty)} of {len(given)} folders hold no runs, the first: {empty[0]}; left out")
    return list(found.values())


def planned_runs(folder: Path) -> dict[str, int]:
    """Return the names of the runs that a sweep's folder was asked for, by sweep.json, with their steps.

    {} if there is no such file; 0 for steps that it does not tell.
    """
    if not (path := folder / "sweep.json").exists():
        return {}
    asked = _json(path)
    planned, steps = asked.get("runs"), asked.get("steps")
    if not isinstance(planned, list) or not all(isinstance(name, str) for name in planned):
        raise InputError(f"{path}: runs is {planned!r}, no list of names")
    known = steps if isinstance(steps, dict) else {}
    return {name: known[name] if isinstance(known.get(name), int) else 0 for name in planned}


def _asked(folder: Path, own: list[Path], left: Counter[tuple[str, str]]) -> list[Path]:
    """Of the runs in a folder those that the last sweep there asked for, by sweep.json; all if there is none."""
    try:
        planned = planned_runs(folder)
    except InputError as error:
        complain(f"{error}; so all {len(own)} runs there are taken")
        return own
    if not planned:
        return own
    there, wanted = {run.name for run in own}, set(planned)
    missing, others = [name for name in planned if name not in there], sorted(there - wanted)
    if missing:
        names = ", ".join(missing[:3])
        complain(f"{folder}: {len(missing)} of {len(planned)} planned runs are missing, the first: {names}")
        left["", "missing"] += len(missing)
    if others:
        what = f"{len(others)} of {len(own)} runs there are not in sweep.json, of an earlier spec"
        complain(f"{folder}: {what}, the first: {', '.join(others[:3])}; left out")
        left["", "of an earlier spec"] += len(others)
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


def _config(path: Path, over: str) -> dict[str, Any]:
    """The arguments of a run, those of a supervised one under the names that agents use."""
    config = _json(path / "config.json")
    if "task" in config:
        what = f"{config['task']}, digits" if config.get("data") == "digits" else config["task"]
        config |= {"exp_name": SUPERVISED, "env_id": what}
    needed = NAMES | ({"epochs": int} if "task" in config else {})
    for name, kind in needed.items():
        if name not in config:
            raise InputError(f"{path / 'config.json'}: no {name!r}")
        if not isinstance(config[name], kind):
            raise InputError(f"{path / 'config.json'}: {name} is {config[name]!r}")
    if over not in config:
        numbers = [name for name, value in config.items() if type(value) in (int, float)]
        raise InputError(f"{path / 'config.json'}: no flag {over!r}: {near(over, numbers)}")
    for name in (RATE, over):
        value = config.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < np.inf:
            raise InputError(f"{path / 'config.json'}: {name} is {value!r}, no positive number")
    return config


def _run(path: Path, metric: str | None, axis: str | None, over: str) -> RecordedRun:
    """The run in a directory; InputError for one whose files are damaged beyond single lines of metrics.jsonl."""
    config, status, metrics = _config(path, over), _json(path / "status.json"), path / "metrics.jsonl"
    usual = ("loss/validation", "epochs") if config["exp_name"] == SUPERVISED else ("charts/episodic_return", "steps")
    view = View(metric or usual[0], axis or usual[1], over)
    state, reason = str(status.get("status", "no status.json")), str(status.get("reason", ""))
    try:
        content = metrics.read_bytes() if metrics.is_file() else b""
    except OSError as error:
        raise InputError(f"{metrics}: cannot be read ({error.strerror})") from None
    # What a run has not written to its end is no damage.
    lines = content[: content.rfind(b"\n") + 1].splitlines() if state == "running" else content.splitlines()
    broken, points, tags = 0, [], set()  # a point: the step, where on the axis, the value if there is one
    for line in lines:
        try:
            row = json.loads(line)
            step, x, value = int(row["global_step"]), row.get(TAGS[view.axis]), row.get(view.metric)
            if not 0 <= step < MOST:
                raise ValueError
            if x is not None:
                points.append((step, round(float(x) * FINE[view.axis]), None if value is None else float(value)))
            tags |= row.keys()
        except (ValueError, KeyError, TypeError, OverflowError):
            broken += 1
    if broken:
        complain(f"{metrics}: {broken} of {len(lines)} lines are broken and skipped")
    for name in ("total_steps", "global_step"):
        number = status.get(name, 0)
        if not isinstance(number, int) or not 0 <= number < MOST:
            raise InputError(f"{path / 'status.json'}: {name} is {number!r}")
    step, last, _ = max(points, default=(0, 0, None), key=lambda point: point[:2])
    planned = status.get("total_steps", step)
    pace = last / step if step else 0.0  # of the axis, for a step
    if view.axis != "seconds":
        pace = config.get("epochs", 1) / planned if view.axis == "epochs" and planned else 1.0
    total = round(planned * pace) if state in FINISHED else last
    end = max(last, math.ceil(status.get("global_step", 0) * pace))
    sign = -1 if view.lower else 1
    series = [(x, sign * value) for _, x, value in points if value is not None]
    start = next((value for x, value in series if x == 0), math.nan)
    series = [point for point in series if point[0] > 0]
    steps, values = np.array([x for x, _ in series], dtype=int), np.array([value for _, value in series])
    finite = np.isfinite(values)
    if not finite.all():
        complain(f"{metrics}: {np.sum(~finite)} values are not finite and count as the worst of the run")
        values = np.where(finite, values, values[finite].min(initial=np.inf))
        steps, values = steps[values < np.inf], values[values < np.inf]  # none, if none was finite
    at = max(step, status.get("global_step", 0))
    return RecordedRun(
        path, config, _meta(path), state, view, total, end, steps, values, start, tags, reason, at, max(planned, at)
    )


def _stamp(path: Path) -> list[tuple[int, int]]:
    """When the files of a run were written last, and their sizes."""
    there = [path / name for name in ("config.json", "status.json", "metrics.jsonl", "meta.json")]
    return [(found.st_mtime_ns, found.st_size) for file in there if file.exists() and (found := file.stat())]


def _meta(path: Path) -> dict[str, Any]:
    """What meta.json says, with no versions where it says none: they are for the caption alone."""
    try:
        meta = _json(path / "meta.json")
    except InputError:
        meta = {}
    return meta | {"versions": meta["versions"] if isinstance(meta.get("versions"), dict) else {}}
