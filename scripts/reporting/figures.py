"""The figures of a page, as Plotly's data: traces and layouts in plain dictionaries, with numbers of five digits.

Plotly reads tags in what it shows as text; so every name that comes from a file is escaped here. `ids` are the places
of runs in the page's list: of a point (`customdata`) or of a whole trace (`meta`), for the curves behind it.
"""

import copy
import html
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from hesscale_rl.optim import is_scaled
from hesscale_rl.scripts.analysis.curves import Group, bin_means
from hesscale_rl.scripts.analysis.lines import EVERYWHERE, Line, Mark, singles, y_range
from hesscale_rl.scripts.analysis.panels import axis_names, label, look, look_of
from hesscale_rl.scripts.analysis.read_runs import FINE, SUPERVISED, RecordedRun, collect

BINS = 100  # points of a single run's curve
# Plotly's names of the markers that figures have.
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross"}
SYMBOLS |= {"X": "x", "*": "star", "p": "pentagon", "d": "diamond-tall", "h": "hexagon"}
SYMBOLS |= {"<": "triangle-left", ">": "triangle-right"}
GRID, GREY = "#e3e6ea", "#9aa3ad"
Ids = Callable[[Iterable[RecordedRun]], list[int]]
Json = dict[str, Any]


def escaped(text: object) -> str:
    """Return text for a place where Plotly reads tags."""
    return html.escape(str(text), quote=False)


def told(title: str, *lines: str) -> str:
    """Return what a box beside the pointer says, in lines short enough for a telephone."""
    rows = [row for line in lines if line for row in textwrap.wrap(line, 46)]
    return "<br>".join([f"<b>{escaped(title)}</b>", *map(escaped, rows)])


def five(values: Iterable[Any], digits: int = 5) -> list[float | None]:
    """Return numbers with five digits, None for those that are not known."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def short(value: float) -> str:
    """Return a number for people: 1,234 or 0.0123."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def series(run: RecordedRun) -> tuple[list[float | None], list[float | None]]:
    """Return x and y of a run's own curve in at most BINS points: the means in bins of its length, in its units."""
    sign, length = -1 if run.view.lower else 1, max(run.total, run.end, 1)
    if not len(run.steps):
        return [], []
    _, counts, means = bin_means(np.minimum(run.steps, length), run.values, length, BINS)
    there = np.flatnonzero(counts)
    start = [] if np.isnan(run.start) else [(0.0, sign * run.start)]
    points = [*start, *((length * (k + 1) / (BINS * FINE[run.view.axis]), sign * means[k]) for k in there)]
    return five((x for x, _ in points), 8), five(y for _, y in points)


def figure(kind: str, agent: str, lines: list[Line], ids: Ids, note: str) -> Json:
    """Return a figure: panels, each with traces and a layout, and the legend that they share."""
    legend = {}
    for line in lines:
        style = look(line, lines)
        key, dashed = label(line, lines), "linestyle" in style
        legend[key] = {"key": key, "color": colour(style["color"]), "dashed": dashed, "title": line.name}
    panels = []
    for panel, own in collect(lines, lambda line: line.panel).items():
        title = panel if agent == SUPERVISED else f"{agent.upper()}, {panel}"
        low, high, powers = y_range(own)
        traces: list[Json] = []
        for k, line in enumerate(own):
            if kind == "sensitivity":  # aside, so that no bar hides another
                line = aside(line, 1.06 ** (k - (len(own) - 1) / 2))
            traces += (points if kind == "sensitivity" else bands)(line, lines, ids, (low, high))
        _, xlabel, ylabel = axis_names(kind, own[0].cells[0][0].runs[0])
        if panel == EVERYWHERE and kind == "sensitivity":
            ylabel = "average score"
        shape = layout(xlabel, ylabel, (low, high), powers)
        if kind == "sensitivity":
            rates = np.concatenate([line.x for line in own])
            shape["xaxis"] |= {"type": "log", "exponentformat": "power"}
            shape["xaxis"] |= {"dtick": 1} if rates.max() >= 100 * rates.min() else {}
        panels.append({"title": title, "traces": traces, "layout": shape})
    return {"kind": kind, "note": note, "legend": [*legend.values()], "panels": panels}


def layout(xlabel: str, ylabel: str, ends: tuple[float, float] | None = None, powers: bool = False) -> Json:
    """Return the layout of a panel."""
    axis: Json = {
        "gridcolor": GRID,
        "zeroline": False,
        "automargin": True,
        "linecolor": GREY,
        "ticks": "outside",
    }
    y: Json = axis | {"title": {"text": escaped(ylabel)}, "type": "log" if powers else "linear"}
    if ends is not None:
        y["range"] = five(np.log10(ends) if powers else ends)
    return {
        "xaxis": axis | {"title": {"text": escaped(xlabel)}, "nticks": 6},
        "yaxis": y | {"nticks": 7, "exponentformat": "power"},
        "margin": {"l": 50, "r": 10, "t": 8, "b": 40},
        "font": {"size": 11, "family": "system-ui, sans-serif"},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": "white", "bordercolor": GREY, "font": {"color": "#1c2127"}},
        "showlegend": False,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
    }


def colour(rgb: Iterable[float], alpha: float | None = None) -> str:
    """Return a colour as pages write it."""
    parts = ", ".join(f"{round(255 * part)}" for part in rgb)
    return f"rgb({parts})" if alpha is None else f"rgba({parts}, {alpha:g})"


def aside(line: Line, factor: float) -> Line:
    """Return a line of a sensitivity a little aside; what is said of its points is as it was."""
    crosses, dots = ([replace(mark, x=mark.x * factor) for mark in some] for some in (line.crosses, line.dots))
    moved = copy.copy(line)  # a new one would give a loss its sign again
    moved.x, moved.crosses, moved.dots = line.x * factor, crosses, dots
    return moved


def points(line: Line, lines: list[Line], ids: Ids, limits: tuple[float, float]) -> list[Json]:
    """Return the traces of a sensitivity: its points with bars or single runs, and diverged runs as crosses."""
    style, key = look(line, lines), label(line, lines)
    ink, kept = colour(style["color"]), within(line.ends[0], limits)
    values = np.where(line.lost, np.nan, kept)
    over = line.cells[0][0].view.over.replace("_", " ")
    hover = [
        told(key, f"{over} {cell[0].rate:g}", _value(ends), *_of(cell))
        for ends, cell in zip(line.ends.T, line.cells, strict=True)
    ]
    common: Json = {"type": "scatter", "name": key, "hoverinfo": "text", "x": five(line.x, 8)}
    behind = [ids(run for group in cell for run in group.runs) for cell in line.cells]
    half = np.nan_to_num(np.abs(line.ends[1:] - line.ends[0]))
    bars = {"type": "data", "symmetric": False, "array": five(half[1]), "arrayminus": five(half[0])}
    traces: list[Json] = [
        common
        | {
            "mode": "lines+markers",
            "y": five(values),
            "text": hover,
            "customdata": behind,
            "line": {"color": ink, "width": 1.8, "dash": "dash" if "linestyle" in style else "solid"},
            "marker": {"symbol": _symbol(style), "size": 8, "color": ink, "line": {"width": 1.5, "color": ink}},
            "error_y": bars | {"color": ink, "thickness": 1.2, "width": 0},
        }
    ]
    if (grey := line.lost & line.shown).any():
        shown = np.where(grey, kept, np.nan)
        marker = {"symbol": _symbol(style), "size": 8, "color": GREY, "line": {"color": GREY}}
        said = [f"{text}<br>all runs diverged" for text in hover]
        traces.append(
            common | {"mode": "markers", "y": five(shown), "text": said, "customdata": behind, "marker": marker}
        )
    if line.dots:
        there = [mark for mark in line.dots if limits[0] <= mark.y <= limits[1]]
        traces.insert(0, marks(there, key, ids, {"symbol": "circle", "size": 4, "color": ink, "opacity": 0.6}))
    return [*traces, *crosses(line, key, ink, ids, limits)]


def bands(line: Line, lines: list[Line], ids: Ids, limits: tuple[float, float]) -> list[Json]:
    """Return the traces of a curve: a band, or where there is none single runs; the line; diverged runs' ends."""
    style, key = look(line, lines), label(line, lines)
    ink, traces = colour(style["color"]), list[Json]()
    runs = [run for cell in line.cells for group in cell for run in group.runs]
    common: Json = {"type": "scatter", "mode": "lines", "name": key, "x": five(line.x, 8), "meta": ids(runs)}
    if np.isfinite(line.ends[1:]).all():
        low, high = np.clip(line.ends[1:], *limits)
        edge = common | {"line": {"width": 0}, "hoverinfo": "skip"}
        fill = {"fill": "tonexty", "fillcolor": colour(style["color"], 0.15)}
        traces = [edge | {"y": five(low)}, edge | {"y": five(high)} | fill]
    for run, curve in zip(runs, singles(line), strict=False):
        kept = within(curve, limits)
        thin = {"line": {"color": colour(style["color"], 0.35), "width": 1}, "text": _run_text(run, key)}
        traces.append(common | thin | {"y": five(kept), "meta": ids([run]), "hoverinfo": "text"})
    rate = "" if line.panel == EVERYWHERE else f"lr {line.rate}"
    how = {"color": ink, "width": 1.8, "dash": "dash" if "linestyle" in style else "solid"}
    said = told(line.method[0], rate, *_of(line.cells[0]))
    traces.append(
        common
        | {"y": five(within(line.ends[0], limits)), "line": how, "text": said}
        | {"hovertemplate": "%{text}<br>%{y:,.4~r} at %{x:,}<extra></extra>"}
    )
    return [*traces, *crosses(line, key, ink, ids, limits)]


def marks(places: list[Mark], key: str, ids: Ids, marker: Json) -> Json:
    """Return the trace of single runs."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": key,
        "x": five((mark.x for mark in places), 8),
        "y": five(mark.y for mark in places),
        "text": [_run_text(mark.run, key, short(mark.y)) for mark in places],
        "customdata": [ids([mark.run]) for mark in places],
        "hoverinfo": "text",
        "marker": marker,
    }


def crosses(line: Line, key: str, ink: str, ids: Ids, limits: tuple[float, float]) -> list[Json]:
    """Return the traces of a line's diverged runs: crosses, and at the edge of the panel arrows for those outside."""
    low, high = limits
    there = [mark for mark in line.crosses if low <= mark.y <= high]
    below, above = [mark for mark in line.crosses if mark.y < low], [mark for mark in line.crosses if mark.y > high]
    traces = []
    if there:
        thin = {"symbol": "x-thin", "size": 8, "color": ink, "line": {"width": 2, "color": ink}}
        traces.append(marks(there, key, ids, thin))
    for edge, symbol, outside in ((low, "arrow-down", below), (high, "arrow-up", above)):
        if outside:
            trace = marks(outside, key, ids, {"symbol": symbol, "size": 10, "color": ink})
            traces.append(trace | {"y": five([edge] * len(outside)), "cliponaxis": False})
    return traces


def unfinished(agent: str, runs: list[RecordedRun], ids: Ids) -> Json:
    """Return the figure of runs that are not finished, each by itself as far as it is."""
    panels, colours = [], dict[str, str]()
    for env, own in collect(runs, lambda run: run.config["env_id"]).items():
        traces = []
        for run in own:
            name = run.config["optimizer"]
            colours[name] = colour(look_of(name)["color"])
            x, y = series(run)
            line = {"color": colours[name], "width": 1.5, "dash": "dash" if is_scaled(name) else "solid"}
            said = {"hovertemplate": "%{text}<br>%{y:,.4~r} at %{x:,}<extra></extra>", "text": _run_text(run, name)}
            base: Json = {
                "type": "scatter",
                "mode": "lines" if len(x) > 1 else "markers",
                "name": name,
                "meta": ids([run]),
            }
            traces.append(base | {"x": x, "y": y, "line": line, "marker": {"color": colours[name]}} | said)
        _, xlabel, ylabel = axis_names("curves", own[0])
        title = env if agent == SUPERVISED else f"{agent.upper()}, {env}"
        panels.append({"title": title, "traces": traces, "layout": layout(xlabel, ylabel)})
    legend = [{"key": name, "color": ink, "dashed": is_scaled(name), "title": name} for name, ink in colours.items()]
    return {"kind": "unfinished", "note": "each run by itself, as far as it is", "legend": legend, "panels": panels}


def within(values: Any, limits: tuple[float, float]) -> Any:
    """Return values with NaN for those outside of a panel: a line ends there, and leads nowhere else."""
    return np.where((values >= limits[0]) & (values <= limits[1]), values, np.nan)


def _symbol(style: Json) -> str:
    return SYMBOLS.get(style["marker"], "circle") + "-open" * ("linestyle" in style)


def _value(ends: Any) -> str:
    value, low, high = ends
    return f"{short(value)} [{short(low)}, {short(high)}]" if np.isfinite(low) else short(value)


def _of(cell: list[Group]) -> list[str]:
    """What is behind a point: settings, runs with their seeds, how many diverged."""
    runs = [run for group in cell for run in group.runs]
    seeds, lost = sorted({run.config["seed"] for run in runs}), sum(len(group.diverged) for group in cell)
    counts = f"{len(runs)} run{'s' * (len(runs) > 1)}" + f", {lost} diverged" * bool(lost)
    return [cell[0].method[1].replace("_", " "), counts, f"seeds {_range(seeds)}"]


def _range(seeds: list[int]) -> str:
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _run_text(run: RecordedRun, key: str, value: str = "") -> str:
    """What the box beside a single run says."""
    lost = f"diverged at {run.at:,}: {run.reason[:200]}" if run.status == "diverged" else ""
    return told(key, f"lr {run.config['learning_rate']:g}, seed {run.config['seed']}", value, lost)
