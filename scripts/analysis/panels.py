"""How figures look, and how lines with intervals are drawn: one panel for each task."""

import os
import tempfile
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hesscale_rl.errors import InputError
from hesscale_rl.optim import names
from hesscale_rl.scripts.analysis.lines import EVERYWHERE, Line, drawn, singles, y_range
from hesscale_rl.scripts.analysis.read_runs import SUPERVISED, RecordedRun, collect

# Colour and marker of each optimizer, the same in every figure (Okabe and Ito's palette, safe for the colour-blind).
# The scaled version has them too, with a dashed line and a hollow marker.
LOOKS = {"adam": ("#0072B2", "o"), "adahesscale": ("#D55E00", "s"), "adahessian": ("#009E73", "^")}
LOOKS |= {"sgd": ("#CC79A7", "D"), "adahesscale-gn": ("#E69F00", "v"), "adabl89": ("#56B4E9", "P")}
LOOKS |= {"adaggn-mc": ("#000000", "X"), "kfac": ("#999999", "*"), "hessian-free": ("#5E3C99", "p")}
LOOKS |= {"newton-cg": ("#8C510A", "d")}

FONTS: dict[Any, Any] = {"font.size": 7, "axes.labelsize": 8, "axes.titlesize": 9, "pdf.fonttype": 42}
FONTS |= {"axes.grid": True, "grid.alpha": 0.25}
FONTS |= {"legend.fontsize": 7, "legend.frameon": False, "legend.handlelength": 3.5}
UP, DOWN = r"$\uparrow$", r"$\downarrow$"  # where a diverged run lies outside of a panel
INSET = 0.05  # of a panel's height, from its edge to such an arrow
LABEL = 60  # letters in a line of a legend
NOTE = 0.09  # of a panel's height, for a note at its top
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}  # under words in a panel


def axis_names(kind: str, run: RecordedRun) -> tuple[str, str, str]:
    """Return the name of x in the table, and the names of the axes."""
    if kind == "profile":
        return "tau", "normalised score τ", "share of runs with score > τ"
    metric = " ".join(reversed(run.view.metric.split("/")))
    metric = {"episodic_return charts": "return", "train loss": "training loss"}.get(metric, metric)
    if kind == "sensitivity":
        return run.view.over, run.view.over.replace("_", " "), f"average {metric}"
    supervised = run.config["exp_name"] == SUPERVISED
    names = {"steps": "updates" if supervised else "environment steps", "seconds": "seconds of training"}
    return run.view.axis.removesuffix("s"), names.get(run.view.axis, run.view.axis), metric


def rates_named(lines: list[Line]) -> bool:
    """Whether names have the learning rates of lines in them: where each optimizer's are the same in all panels."""
    rates = collect(lines, lambda line: (line.panel, line.method))
    alike = collect(rates, lambda key: key[1]).values()
    every = all(len({tuple(line.rate for line in rates[key]) for key in keys}) == 1 for keys in alike)
    return every and all(line.rate and line.panel != EVERYWHERE for line in lines)


def label(line: Line, lines: list[Line]) -> str:
    """Return what a legend calls a line among `lines`: its settings where its optimizer is there with others, too."""
    several = len({other.method for other in lines if other.method[0] == line.method[0]}) > 1
    name = line.name.replace("_", " ") if several else line.method[0]
    if rates_named(lines):
        return f"{name}, lr {line.rate}"
    own = [other.rate for other in lines if (other.panel, other.method) == (line.panel, line.method)]
    nth = own.index(line.rate)
    return f"{name}, lr no. {nth + 1}" if nth else name


def entry(line: Line, lines: list[Line]) -> str:
    """Return a line's entry in the legend: what it is called, and how many runs its points have."""
    alike = [other for other in lines if label(other, lines) == label(line, lines)]
    seeds = sorted({len(group.runs) for other in alike for cell in other.cells for group in cell})
    count = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    return textwrap.fill(f"{label(line, lines)} (n = {count})", LABEL, break_on_hyphens=False)


def settings_note(lines: list[Line]) -> str:
    """Return in words the settings of all lines that the legend does not have, "" if there are none."""
    hidden = {line.method: line.name.replace("_", " ") for line in lines if line.method[1]}
    for line in lines:
        if hidden.get(line.method, "") in label(line, lines):
            hidden.pop(line.method, None)
    return "; ".join(f"{name}: {settings.replace('_', ' ')}" for name, settings in hidden)


def look(line: Line, lines: list[Line]) -> dict[str, Any]:
    """Return how to draw a line, with several of one optimizer among `lines` from light to dark."""
    kin = list(dict.fromkeys(label(other, lines) for other in lines if other.method[0] == line.method[0]))
    return look_of(line.method[0], kin.index(label(line, lines)), len(kin))


def look_of(optimizer: str, nth: int = 0, of: int = 1) -> dict[str, Any]:
    """Return how to draw a line of an optimizer, the `nth` of so many."""
    known = names().get(optimizer)
    base = optimizer if known is None else known.plain
    colour, marker = LOOKS.get(base, ("#000000", "Xphd*<>"[sum(base.encode()) % 7]))
    shade = 0.7 - 1.4 * (nth + 0.5) / of
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    rgb = rgb + (1 - rgb) * shade if shade > 0 else rgb * (1 + shade)
    hollow = {"linestyle": (0, (4, 2)), "markerfacecolor": "white"} if base != optimizer else {}
    return {"color": tuple(rgb), "marker": marker, "markersize": 4.5, "linewidth": 1.3, **hollow}


def draw(kind: str, agent: str, lines: list[Line], caption: str) -> Any:
    """Return the figure, one panel for each task."""
    from matplotlib.figure import Figure

    run = lines[0].cells[0][0].runs[0]
    _, xlabel, ylabel = axis_names(kind, run)
    panels = collect(lines, lambda line: line.panel)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(6.4, 4.1 * columns), rows * (3.1 if kind == "sensitivity" else 3.4) + 0.8))
    figure.set_layout_engine("constrained")
    for i, (panel, own) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        title = panel if agent == SUPERVISED else f"{agent.upper()}, {panel}"
        score = panel == EVERYWHERE and kind == "sensitivity"
        axes.set(title=title, xlabel=xlabel, ylabel="average score" if score else ylabel)
        set_limits(axes, own)
        (draw_points if kind == "sensitivity" else draw_bands)(axes, own, lines)
    named = {text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    longest = max(len(part) for text in named for part in text.split("\n"))
    ncols = int(figure.get_figwidth() / (0.7 + 0.055 * longest))
    figure.legend(named.values(), named, loc="outside upper center", ncols=max(1, ncols))
    text = textwrap.fill(caption, int(figure.get_figwidth() * 19), break_on_hyphens=False)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=6.5)
    return figure


def set_limits(axes: Any, lines: list[Line]) -> None:
    """Let no run that exploded decide a panel's y axis; tell in it what lies outside."""
    low, high, powers = y_range(lines)
    axes.set_yscale("log" if powers else "linear")
    values = {name: some[np.isfinite(some)] for name, some in drawn(lines).items()}
    outside = {name: some[(some < low) | (some > high)] for name, some in values.items()}
    there = np.concatenate([*outside.values()])
    if len(there):
        high = high * (high / low) ** NOTE if powers else high + NOTE * (high - low)  # room for the note
        counts = ", ".join(f"{name} {len(some)}" for name, some in outside.items() if len(some))
        note = f"outside: {counts}; {there.min():,.3g} to {there.max():,.3g}"
        axes.text(0.01, 0.985, note, transform=axes.transAxes, fontsize=5.8, va="top", bbox=PAPER)
    axes.set_ylim(low, high)


def inside(axes: Any, values: Any) -> Any:
    """Return values with NaN for those that a panel has no room for: a line ends there, and leads nowhere else."""
    low, high = axes.get_ylim()
    return np.where((values >= low) & (values <= high), values, np.nan)


def draw_crosses(axes: Any, line: Line, colour: Any, aside: float = 1.0) -> None:
    """Draw a line's diverged runs, those outside of the limits there as arrows."""
    low, high = axes.get_ylim()
    for mark in line.crosses:
        if low <= mark.y <= high:
            axes.plot(mark.x * aside, mark.y, "x", color=colour, clip_on=False, zorder=3)
        else:
            part = INSET if mark.y < low else 1 - INSET
            y = low * (high / low) ** part if axes.get_yscale() == "log" else low + part * (high - low)
            axes.plot(mark.x * aside, y, marker=DOWN if part == INSET else UP, markersize=9, color=colour, zorder=4)


def name_marks(axes: Any, lines: list[Line], limits: tuple[float, float], what: str) -> None:
    """Have the marks of diverged and of single runs in the legend, as far as there are any."""
    within = {limits[0] <= mark.y <= limits[1] for line in lines for mark in line.crosses}
    names = {"x": what} if True in within else {}
    names |= {DOWN: f"{what.partition(',')[0]}, outside"} if False in within else {}
    names |= {".": "single run"} if any(line.dots for line in lines) else {}
    for marker, name in names.items():
        axes.plot([], [], linestyle="", marker=marker, color="#555555", label=name)


def draw_bands(axes: Any, lines: list[Line], every: list[Line]) -> None:
    """Draw lines with bands into a panel, or where there is no interval with their single runs."""
    for k, line in enumerate(lines):
        style, apart = look(line, every), len(line.x) // 8 + 1
        axes.fill_between(line.x, *line.ends[1:], color=style["color"], alpha=0.15, linewidth=0)
        for curve in singles(line):
            axes.plot(line.x, inside(axes, curve), color=style["color"], linewidth=0.6, alpha=0.4, zorder=1.5)
        where = (k * apart // len(lines), apart)
        axes.plot(line.x, inside(axes, line.ends[0]), markevery=where, label=entry(line, every), **style)
        draw_crosses(axes, line, style["color"])
    name_marks(axes, lines, axes.get_ylim(), "diverged run, at its end")
    below = {"xycoords": "axes fraction", "textcoords": "offset points", "xytext": (0, -29)}  # the axis and its name
    axes.annotate(rates_note(lines, every), (0.5, 0), fontsize=6, va="top", ha="center", **below)
    lengths = [line.x.max() for line in lines]
    if max(lengths) > 4 * min(lengths):
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=6, integer=max(lengths) > 6)
    axes.xaxis.set_major_formatter("{x:,.9g}")


def rates_note(lines: list[Line], every: list[Line]) -> str:
    """Return what a panel of curves says below: its learning rates if the legend has none, and what diverged."""
    words, named = [], rates_named(every) or lines[0].panel == EVERYWHERE
    for line in lines:
        n, diverged = line.counts()[0]
        lost = f" ({diverged} of {n} diverged)" if diverged else ""
        words += [f"{label(line, every)}{'' if named else f' {line.rate}'}{lost}"] if lost or not named else []
    return textwrap.fill("learning rates: " * (not named) + ", ".join(words), 84, break_on_hyphens=False)


def draw_points(axes: Any, lines: list[Line], every: list[Line]) -> None:
    """Draw lines with bars or single runs into a panel, diverged runs as crosses, and how many above the x axis."""
    low, high = axes.get_ylim()
    rows = 0
    for k, line in enumerate(lines):
        style, aside = look(line, every), 1.06 ** (k - (len(lines) - 1) / 2)  # aside, so that no bar hides another
        x, y = line.x * aside, inside(axes, line.ends[0])
        there = line.shown & np.isfinite(y)
        axes.vlines(x[there], *np.clip(line.ends[1:, there], low, high), color=style["color"], linewidth=1)
        axes.plot(x, np.where(line.lost, np.nan, y), label=entry(line, every), **style)
        if (there := line.lost & line.shown).any():
            grey = style | {"color": "#999999", "linestyle": ""}
            axes.plot(x[there], y[there], label="all runs diverged", **grey)
        for mark in line.dots:
            if low <= mark.y <= high:
                axes.plot(mark.x * aside, mark.y, ".", color=style["color"], markersize=3.5, alpha=0.6, zorder=1.8)
        draw_crosses(axes, line, style["color"], aside)
        failed = [(x, f"{diverged}/{n}") for x, (n, diverged) in zip(line.x, line.counts(), strict=True) if diverged]
        how = {"ha": "center", "color": style["color"], "fontsize": 6, "bbox": PAPER}
        for at, text in failed:
            axes.text(at, 0.015 + 0.05 * rows, text, transform=axes.get_xaxis_transform(), **how)
        rows += bool(failed)
    rates = [x for line in lines for x in line.x]
    room = 0.06 * rows
    bottom = low * (low / high) ** room if axes.get_yscale() == "log" else low - room * (high - low)
    axes.set(xscale="log", xlim=(min(rates) / 2.5, max(rates) * 2.5), ylim=(bottom, high))
    name_marks(axes, lines, (low, high), "diverged run")


def write(contents: dict[Path, bytes]) -> None:
    """Write all files or none: InputError if one cannot be."""
    parts: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = parts[path] = path.with_name(f".{path.name}.{os.getpid()}.part")
            part.write_bytes(content)
        for path, part in parts.items():
            os.replace(part, path)
    except OSError as error:
        raise InputError(f"-o {next(iter(contents)).with_suffix('')}: cannot be written ({error.strerror})") from None
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def check_output(name: str) -> None:
    """Raise InputError if -o NAME could not be written at the end, or no figure drawn: before any work is done."""
    if not all(map(find_spec, ("matplotlib", "scipy"))):  # they take their time, so they are imported once they draw
        raise InputError("a figure needs matplotlib and scipy, pip install 'hesscale-rl[plot]'")
    check_writable(name)


def check_writable(name: str) -> None:
    """Raise InputError if a file of this name could not be written."""
    folder = next(path for path in Path(name).absolute().parents if path.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"-o {name}: cannot be written ({folder}: {error.strerror})") from None


def target(output: str | None, kind: str) -> str:
    """Return the name of the files, without what they end in, for what -o says."""
    if output is None:
        return kind
    if output.endswith(os.sep) or os.path.isdir(output):
        return os.path.join(output, kind)
    stem, suffix = os.path.splitext(output)
    return stem if suffix in (".png", ".pdf", ".csv") else output
