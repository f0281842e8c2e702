"""How figures look, and how lines with intervals are drawn: one panel for each task."""

import os
import tempfile
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hesscale_rl.errors import InputError
from hesscale_rl.scripts.analysis import curves
from hesscale_rl.scripts.analysis.curves import Array, Group
from hesscale_rl.scripts.analysis.read_runs import SUPERVISED, Run, collect

EVERYWHERE = "all tasks, normalised"
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
FAR = 30  # times the median: what lies above it of a loss is not worth a decade of its axis
NOTE = 0.09  # of a panel's height, for a note at its top
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}  # under words in a panel


@dataclass
class Line:
    """A line of a panel. `cells`: the groups behind each point, or behind all; `ends`: [value, low, high; points].

    `sound`: what runs that did not diverge have, by itself; `crosses`: x, y and seed of those that did.
    """

    panel: str
    method: tuple[str, str]  # the optimizer, and what sets it apart
    cells: list[list[Group]]
    x: Array
    ends: Array
    rate: str = ""  # the learning rate where it is not x
    sound: Array = field(default_factory=lambda: np.empty(0))
    crosses: list[tuple[float, float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Give a loss, which was read negative, its own sign."""
        if self.panel != EVERYWHERE and self.cells[0][0].view.lower:
            self.ends, self.sound = -self.ends[[0, 2, 1]], -self.sound
            self.crosses = [(x, -y, seed) for x, y, seed in self.crosses]

    @property
    def name(self) -> str:
        """The optimizer, and what sets it apart."""
        return ", ".join(filter(None, self.method))

    def counts(self) -> list[tuple[int, int]]:
        """Of each point, the runs behind it and how many of them diverged."""
        each = [(sum(len(g.runs) for g in cell), sum(len(g.diverged) for g in cell)) for cell in self.cells]
        return each * (len(self.x) // len(each))


def axis_names(kind: str, run: Run) -> tuple[str, str, str]:
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


def wrapped(label: str) -> str:
    """Return an entry of a legend in lines that fit under a panel."""
    return textwrap.fill(label, LABEL, break_on_hyphens=False)


def look(line: Line, lines: list[Line]) -> dict[str, Any]:
    """Return how to draw a line, with several of one optimizer among `lines` from light to dark."""
    base = line.method[0].removeprefix("scaled-")
    colour, marker = LOOKS.get(base, ("#000000", "Xphd*<>"[sum(base.encode()) % 7]))
    kin = list(dict.fromkeys((other.method, other.rate) for other in lines if other.method[0] == line.method[0]))
    shade = 0.7 - 1.4 * (kin.index((line.method, line.rate)) + 0.5) / len(kin)
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    rgb = rgb + (1 - rgb) * shade if shade > 0 else rgb * (1 + shade)
    hollow = {"linestyle": (0, (4, 2)), "markerfacecolor": "white"} if base != line.method[0] else {}
    return {"color": tuple(rgb), "marker": marker, "markersize": 4.5, "linewidth": 1.3, "label": line.name, **hollow}


def draw(kind: str, agent: str, lines: list[Line], caption: str) -> Any:
    """Return the figure, one panel for each task."""
    from matplotlib.figure import Figure

    run = lines[0].cells[0][0].runs[0]
    _, xlabel, ylabel = axis_names(kind, run)
    panels = collect(lines, lambda line: line.panel)
    columns = min(3, len(panels))
    words = {panel: sum(wrapped(line.name).count("\n") + 1 for line in own) for panel, own in panels.items()}
    rows, below = -(-len(panels) // columns), 0.0 if kind == "sensitivity" else 0.16 * max(words.values())
    figure = Figure(figsize=(max(6.4, 4.1 * columns), rows * (3.1 + below) + 0.8), layout="constrained")
    for i, (panel, own) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        title = panel if agent == SUPERVISED else f"{agent.upper()}, {panel}"
        score = panel == EVERYWHERE and kind == "sensitivity"
        axes.set(title=title, xlabel=xlabel, ylabel="average score" if score else ylabel)
        set_limits(axes, own, panel != EVERYWHERE and run.view.lower)
        if kind == "sensitivity":
            draw_points(axes, own, lines)
        else:
            draw_bands(axes, own, own if kind == "curves" else lines)
    if kind == "sensitivity":
        named = {
            text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        longest = max(len(part) for text in named for part in text.split("\n"))
        ncols = int(figure.get_figwidth() / (0.7 + 0.055 * longest))
        figure.legend(named.values(), named, loc="outside upper center", ncols=max(1, ncols))
    text = textwrap.fill(caption, int(figure.get_figwidth() * 19), break_on_hyphens=False)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=6.5)
    return figure


def set_limits(axes: Any, lines: list[Line], loss: bool) -> None:
    """Let no run that exploded decide a panel's y axis; tell in it what lies outside. A `loss` has powers of ten."""
    drawn = {"points": np.concatenate([line.ends[0] for line in lines])}
    drawn["interval ends"] = np.concatenate([line.ends[1:].ravel() for line in lines])
    drawn["diverged runs"] = np.array([y for line in lines for _, y, _ in line.crosses])
    every, sound = np.concatenate([*drawn.values()]), np.concatenate([line.sound for line in lines])
    if loss and (every[np.isfinite(every)] > 0).all():
        axes.set_yscale("log")
        usual = np.median(sound) if len(sound) else np.nanmedian(every)
        top = min(np.nanmax(every), FAR * usual)  # a loss explodes upwards
        low, high = (10**end for end in curves.limits(*2 * [np.log10(np.minimum(every, top))]))
    elif loss:
        high, low = (-end for end in curves.limits(-every, -sound))
    else:
        low, high = curves.limits(every, sound)
    known = every[np.isfinite(every)]
    if ((known < low) | (known > high)).any():  # room for the note
        high = high * (high / low) ** NOTE if axes.get_yscale() == "log" else high + NOTE * (high - low)
    axes.set_ylim(low, high)
    outside = {name: values[(values < low) | (values > high)] for name, values in drawn.items()}
    values = np.concatenate([*outside.values()])
    if len(values):
        counts = ", ".join(f"{name} {len(some)}" for name, some in outside.items() if len(some))
        note = f"outside: {counts}; {values.min():,.3g} to {values.max():,.3g}"
        axes.text(0.01, 0.985, note, transform=axes.transAxes, fontsize=5.8, va="top", bbox=PAPER)


def draw_crosses(axes: Any, line: Line, colour: Any, aside: float = 1.0) -> None:
    """Draw a line's diverged runs, those outside of the limits there as arrows."""
    low, high = axes.get_ylim()
    for x, y, _ in line.crosses:
        if low <= y <= high:
            axes.plot(x * aside, y, "x", color=colour, clip_on=False, zorder=3)
        else:
            part = INSET if y < low else 1 - INSET
            y = low * (high / low) ** part if axes.get_yscale() == "log" else low + part * (high - low)
            axes.plot(x * aside, y, marker=DOWN if part == INSET else UP, markersize=9, color=colour, zorder=4)


def name_crosses(axes: Any, lines: list[Line], limits: tuple[float, float], what: str) -> None:
    """Have the marks of diverged runs in the legend, as far as there are any."""
    inside = {limits[0] <= y <= limits[1] for line in lines for _, y, _ in line.crosses}
    for there, marker, name in ((True, "x", what), (False, DOWN, f"{what.partition(',')[0]}, outside")):
        if there in inside:
            axes.plot([], [], linestyle="", marker=marker, color="#555555", label=name)


def draw_bands(axes: Any, lines: list[Line], kin: list[Line]) -> None:
    """Draw lines with bands into a panel, their numbers of runs in its legend."""
    for k, line in enumerate(lines):
        style, (n, diverged), every = look(line, kin), line.counts()[0], len(line.x) // 8 + 1
        style["label"] += f", lr {line.rate}" * (line.panel != EVERYWHERE)
        style["label"] = wrapped(f"{style['label']} (n = {n}{f', {diverged} diverged' if diverged else ''})")
        axes.fill_between(line.x, *line.ends[1:], color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(line.x, line.ends[0], markevery=(k * every // len(lines), every), **style)
        draw_crosses(axes, line, style["color"])
    name_crosses(axes, lines, axes.get_ylim(), "diverged run, at its end")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14))
    lengths = [line.x.max() for line in lines]
    if max(lengths) > 4 * min(lengths):
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=6, integer=max(lengths) > 6)
    axes.xaxis.set_major_formatter("{x:,.9g}")


def draw_points(axes: Any, lines: list[Line], kin: list[Line]) -> None:
    """Draw lines with bars into a panel, diverged runs as crosses, and how many they are above the x axis."""
    low, high = axes.get_ylim()
    rows = 0
    for k, line in enumerate(lines):
        style, aside = look(line, kin), 1.06 ** (k - (len(lines) - 1) / 2)  # aside, so that no bar hides another
        alike = [g for other in kin if other.method == line.method for cell in other.cells for g in cell]
        seeds = sorted({len(group.runs) for group in alike})
        count = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
        style["label"] = wrapped(f"{style['label']} (n = {count})")
        axes.vlines(line.x * aside, *line.ends[1:], color=style["color"], linewidth=1)
        axes.plot(line.x * aside, line.ends[0], **style)
        draw_crosses(axes, line, style["color"], aside)
        failed = [(x, f"{diverged}/{n}") for x, (n, diverged) in zip(line.x, line.counts(), strict=True) if diverged]
        how = {"ha": "center", "color": style["color"], "fontsize": 6, "bbox": PAPER}
        for x, text in failed:
            axes.text(x, 0.015 + 0.05 * rows, text, transform=axes.get_xaxis_transform(), **how)
        rows += bool(failed)
    rates = [x for line in lines for x in line.x]
    room = 0.06 * rows
    bottom = low * (low / high) ** room if axes.get_yscale() == "log" else low - room * (high - low)
    axes.set(xscale="log", xlim=(min(rates) / 2.5, max(rates) * 2.5), ylim=(bottom, high))
    name_crosses(axes, lines, (low, high), "diverged run")


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
    try:
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError:
        raise InputError("a figure needs matplotlib and scipy, pip install -e '.[plot]'") from None
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
