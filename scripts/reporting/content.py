"""What a page says: the state of every run, figures, comparisons, in plain dictionaries, lists and numbers.

The runs are those that read_runs.py reads, the lines of the figures those of `hesscale-rl plot`, the tables those of
`hesscale-rl compare`: what is new here is that it all stands in one place.
"""

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hesscale_rl.errors import InputError
from hesscale_rl.scripts.analysis import compare, curves
from hesscale_rl.scripts.analysis.curves import FEWEST
from hesscale_rl.scripts.analysis.lines import KINDS, Line, LineOptions
from hesscale_rl.scripts.analysis.panels import settings_note
from hesscale_rl.scripts.analysis.read_runs import (
    FINISHED,
    NAMES,
    RATE,
    SESSION,
    SUPERVISED,
    Kept,
    RecordedRun,
    collect,
    planned_runs,
    read,
)
from hesscale_rl.scripts.reporting.figures import Json, figure, series, unfinished
from hesscale_rl.scripts.sweeping.state import log_end
from hesscale_rl.system.console import complaints
from hesscale_rl.system.locks import held

STATES = ("done", "diverged", "failed", "running", "interrupted", "stopped", "missing")
LONGEST = 400  # letters of a reason or of a log's line: more is no help on a page
TITLES = {"sensitivity": "Sensitivity", "curves": "Learning curves", "profile": "Score profile"}


@dataclass(frozen=True)
class Asked:
    """What a page is made of: run directories or folders of them, and how they are seen."""

    runs: tuple[str, ...]
    metric: str | None = None
    axis: str | None = None
    over: str = RATE
    to: str | None = None
    bins: int = 100


def content(asked: Asked, kept: Kept | None = None) -> Json:
    """Return what the page says now; InputError if there is nothing that can be read.

    `kept` has what was read before, for a page that is made again and again.
    """
    with complaints() as notes:
        found = read([*asked.runs], True, asked.metric, asked.axis, asked.over, Counter(), kept)
    told = "are not finished, the first", "planned runs are missing"  # by the table
    notes = [note for note in notes if not any(words in note for words in told)]
    places = {run: place for place, run in enumerate(found)}
    agents = collect(found, lambda run: run.config["exp_name"])
    sections = [section(agent, runs, places, asked) for agent, runs in sorted(agents.items())]
    lost = missing(asked.runs, {run.path.name for run in found})
    shared = common(found)
    table = [row(run, place, shared) for run, place in places.items()] + lost
    return {
        "title": ", ".join(os.path.basename(os.path.abspath(name)) for name in asked.runs[:3]),
        "folders": [*asked.runs[:8]],
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "counts": {state: n for state in STATES if (n := sum(entry["state"] == state for entry in table))},
        "progress": progress(found, lost),
        "agents": sections,
        "runs": table,
        "common": shared,
        "notes": notes,
    }


def state(run: RecordedRun) -> str:
    """Return what has become of a run; one that says it runs may have been killed."""
    if run.status == "running":
        return "running" if held(run.path) else "stopped"
    return run.status if run.status in STATES else "stopped"


def row(run: RecordedRun, place: int, shared: Iterable[str]) -> Json:
    """Return what the page knows of a run."""
    x, y = series(run)
    own, left_out = state(run), {*SESSION, *shared, *NAMES, RATE}
    log = log_end(run.path.parent, run.path.name) if own in ("failed", "stopped") else []
    return {
        "id": place,
        "name": run.path.name,
        "state": own,
        "agent": run.config["exp_name"],
        "env": run.config["env_id"],
        "optimizer": run.config["optimizer"],
        "rate": run.config[RATE],
        "seed": run.config["seed"],
        "at": run.at,
        "planned": run.planned,
        "last": y[-1] if y else None,
        "reason": run.reason[:LONGEST],
        "log": [line[:LONGEST] for line in log],
        "settings": {name: str(value) for name, value in run.config.items() if name not in left_out},
        "x": x,
        "y": y,
    }


def missing(given: Iterable[str], there: set[str]) -> list[Json]:
    """Return the runs that a sweep was asked for and that have no directory, with the end of their log."""
    rows = []
    for folder in map(Path, given):
        with complaints():  # whoever reads the runs has told
            try:
                planned = planned_runs(folder) if not (folder / "config.json").exists() else {}
            except InputError:
                planned = {}
        for name, steps in planned.items():
            if name not in there and not (folder / name / "config.json").exists():
                log = [line[:LONGEST] for line in log_end(folder, name)]
                rows.append({"name": name, "state": "missing", "at": 0, "planned": steps, "log": log})
    return rows


def progress(runs: list[RecordedRun], lost: list[Json]) -> Json:
    """Return the steps that are done, and those that all runs are to do, those that are missing among them."""
    usual = max((run.planned for run in runs), default=0)  # of a sweep whose sweep.json does not tell
    over = [run.at if run.status in FINISHED else run.planned for run in runs]
    return {"at": sum(run.at for run in runs), "of": sum(over) + sum(entry["planned"] or usual for entry in lost)}


def section(agent: str, runs: list[RecordedRun], places: dict[RecordedRun, int], asked: Asked) -> Json:
    """Return the figures and the comparison of an agent's runs, and why one of them is not there."""

    def ids(some: Iterable[RecordedRun]) -> list[int]:
        return [places[run] for run in some]

    done, going = [run for run in runs if run.status in FINISHED], [run for run in runs if run.status not in FINISHED]
    found: list[Json] = []
    with complaints() as notes:
        for kind in kinds(done):
            try:
                lines = KINDS[kind](done, LineOptions(bins=asked.bins))
            except InputError as error:
                notes.append(f"{TITLES[kind]}: {error}")
                continue
            if lines:
                found.append(figure(kind, agent, lines, ids, note_of(kind, lines)) | {"title": TITLES[kind]})
        if shown := [run for run in going if len(run.steps)]:
            found.append(unfinished(agent, shown, ids) | {"title": "Not finished yet"})
        table = comparison(agent, done, asked) if done else None
    return {"agent": agent, "figures": found, "comparison": table, "notes": list(dict.fromkeys(notes))}


def kinds(runs: list[RecordedRun]) -> list[str]:
    """Return the figures that show anything: a sensitivity has several rates, a profile several optimizers."""
    if not runs:
        return []
    labels = curves.apart(runs)
    rates, methods = (
        {run.config[run.view.over] for run in runs},
        {(run.config["optimizer"], labels[run]) for run in runs},
    )
    return ["sensitivity"] * (len(rates) > 1) + ["curves"] + ["profile"] * (len(methods) > 1)


def note_of(kind: str, lines: list[Line]) -> str:
    """Return in words what a figure shows."""
    few = any(len(group.runs) < FEWEST for line in lines for cell in line.cells for group in cell)
    spread = {
        "sensitivity": "bars: 95 % bootstrap intervals over runs",
        "curves": "each optimizer at its best step size; bands: 95 % bootstrap intervals over runs",
        "profile": "each optimizer at its best step size; bands: 95 % stratified bootstrap intervals",
    }[kind]
    instead = {"sensitivity": "dots are single runs", "curves": "thin lines are single runs", "profile": "no band"}[
        kind
    ]
    words = [spread + f", of fewer than {FEWEST} runs: {instead}" * few]
    words += ["a line ends where all runs diverged; crosses are diverged runs"] * (kind == "sensitivity")
    return "; ".join([*words, *filter(None, [settings_note(lines)])])


def comparison(agent: str, runs: list[RecordedRun], asked: Asked) -> Json | None:
    """Return the comparison of optimizers, None if there is none to be made."""
    names = sorted({run.config["optimizer"] for run in runs})
    if agent == SUPERVISED or (len(names) < 2 and asked.to is None):
        return None
    to = asked.to or ("adam" if "adam" in names else names[0])
    try:
        table = compare.table(runs, to, 1.0, asked.bins)
    except InputError as error:
        return {"titles": [], "rows": [], "note": str(error)}
    how = "the mean return over the run; Student's and Welch's 95 % intervals; P(above): that a run is above one of "
    how += f"{to}'s, over several tasks with its stratified bootstrap interval"
    return {"titles": table.titles, "rows": table.rows, "note": "; ".join(filter(None, [how, table.note]))}


def common(runs: list[RecordedRun]) -> dict[str, Any]:
    """Return the settings that all runs share, as text."""
    if not runs:
        return {}
    first, *rest = (run.config for run in runs)
    return {
        name: str(value)
        for name, value in sorted(first.items())
        if name not in SESSION and all(name in other and other[name] == value for other in rest)
    }
