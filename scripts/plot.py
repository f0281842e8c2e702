"""Figures of runs, with the numbers behind them: NAME.png, NAME.pdf and NAME.csv.

    hesscale-rl plot curves runs/*               return against steps, each optimizer at its best learning rate
    hesscale-rl plot sensitivity sweeps/NAME     average return against the learning rate
    hesscale-rl plot profile sweeps/NAME         share of the runs above a score, over all environments

RUNS are run directories, or folders that hold some; of a sweep's folder, the runs that its sweep.json lists. Lines
are means over runs that differ in their seeds alone, bands and bars 95 % bootstrap intervals. How a run becomes a
curve, a diverged one too, is told in scripts/curves.py.
"""

import argparse
import csv
import io
import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hesscale_rl.errors import BAD_INPUT, DONE, InputError
from scripts import curves
from scripts.curves import Array, Group, Run, collect, say
from scripts.sweep import tell

EVERYWHERE = "all environments, normalised"
# Colour and marker of each optimizer, the same in every figure (Okabe and Ito's palette, safe for the colour-blind).
# The scaled version has them too, with a dashed line and a hollow marker.
LOOKS = {"adam": ("#0072B2", "o"), "adahesscale": ("#D55E00", "s"), "adahessian": ("#009E73", "^")}
LOOKS |= {"sgd": ("#CC79A7", "D"), "adahesscale-gn": ("#E69F00", "v"), "adabl89": ("#56B4E9", "P")}


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

    def counts(self) -> list[tuple[int, int]]:
        """Of each point, the runs behind it and how many of them diverged."""
        each = [(sum(len(g.runs) for g in cell), sum(len(g.diverged) for g in cell)) for cell in self.cells]
        return each * (len(self.x) // len(each))


def curve_lines(runs: list[Run], args: argparse.Namespace) -> list[Line]:
    """Return against steps: of the best learning rate, or of all."""
    groups, lines = curves.gather(runs, args.bins, together=False, worst=args.diverged), []
    for group in groups if args.all else curves.best(groups):
        steps, sound = group.length * np.arange(1, args.bins + 1) / args.bins, group.curves[group.sound].ravel()
        ends, rate = curves.interval([group.curves], args.statistic, args.error), f"{group.rate:g}"
        lines.append(Line(group.env, group.method, [[group]], steps, ends, rate, sound, group.ends()))
    return lines


def sensitivity_lines(runs: list[Run], args: argparse.Namespace) -> list[Line]:
    """Average return against the learning rate: on each environment, and normalised over all of them."""
    groups, lines = curves.gather(runs, args.bins, together=True, worst=args.diverged), []
    envs = collect(groups, lambda group: group.env)
    parts = [(env, [[group] for group in own], {group: group.averages for group in own}) for env, own in envs.items()]
    if args.normalized or len(envs) > 1:
        scores = curves.normalise(groups, args.statistic)
        cells = everywhere(scores, lambda g: (*g.method, f"{g.rate:g}"))
        parts = [*parts[: 0 if args.normalized else None], (EVERYWHERE, cells, scores)]
    for panel, cells, scores in parts:
        for method, own in collect(cells, lambda cell: cell[0].method).items():
            points = [curves.interval([scores[g] for g in cell], args.statistic, args.error) for cell in own]
            sound = np.concatenate([scores[g][g.sound] for cell in own for g in cell])
            rates, ends = np.array([cell[0].rate for cell in own]), np.transpose(points)
            crosses = [
                (g.rate, average, run.config["seed"])
                for cell in own
                for g in cell
                for run, average in zip(g.runs, g.averages, strict=True)
                if run in g.diverged and panel != EVERYWHERE
            ]
            lines.append(Line(panel, method, own, rates, ends, "", sound, crosses))
    return lines


def profile_lines(runs: list[Run], args: argparse.Namespace) -> list[Line]:
    """Share of the runs above a score, of each optimizer at the best learning rate of each environment."""
    groups, lines = curves.gather(runs, args.bins, together=True, worst=args.diverged), []
    scores = curves.normalise(groups, args.statistic)
    cells = everywhere([group for group in curves.best(groups) if group in scores], lambda g: g.method)
    # The best run may be above 1, the average of the best group; there the share of the runs has come to 0.
    taus = np.linspace(0, max([1.0, *(scores[group].max() for own in cells for group in own)]), 101)
    for own in cells:
        above = [(scores[group][:, None] > taus).astype(float) for group in own]
        rates = "; ".join(f"{group.rate:g} on {group.env}" for group in own)
        lines.append(Line(EVERYWHERE, own[0].method, [own], taus, curves.interval(above, "mean", args.error), rates))
    return lines


FONTS = {"font.size": 7, "axes.labelsize": 8, "axes.titlesize": 9, "legend.fontsize": 7, "pdf.fonttype": 42}
FONTS |= {"axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False, "legend.handlelength": 3.5}
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}  # under words in a panel
# Of each kind: what makes its lines, the name of x in the table, and the names of the axes.
KINDS: dict[str, tuple[Callable, str, str, str]] = {
    "curves": (curve_lines, "step", "environment steps", "return"),
    "sensitivity": (sensitivity_lines, "learning_rate", "learning rate", "average return"),
    "profile": (profile_lines, "tau", "normalised score τ", "share of runs with score > τ"),
}


def everywhere(groups: Iterable[Group], key: Callable[[Group], tuple]) -> list[list[Group]]:
    """Return the groups that have a key in common on all environments: an average over fewer would not compare."""
    cells, tasks = collect(groups, key), len({group.env for group in groups})
    some = [" ".join(filter(None, key)) for key, own in cells.items() if len(own) < tasks]
    if some:
        say(f"not on all {tasks} environments, so left out of what is normalised: {'; '.join(some)}")
    return [own for own in cells.values() if len(own) == tasks]


def look(line: Line, lines: list[Line]) -> dict[str, Any]:
    """Return how to draw a line, with several of one optimizer among `lines` from light to dark."""
    base = line.method[0].removeprefix("scaled-")
    colour, marker = LOOKS.get(base, ("#000000", "Xphd*<>"[sum(base.encode()) % 7]))
    kin = list(dict.fromkeys((other.method, other.rate) for other in lines if other.method[0] == line.method[0]))
    shade = 0.7 - 1.4 * (kin.index((line.method, line.rate)) + 0.5) / len(kin)
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    rgb = rgb + (1 - rgb) * shade if shade > 0 else rgb * (1 + shade)
    hollow = {"linestyle": (0, (4, 2)), "markerfacecolor": "white"} if base != line.method[0] else {}
    name = ", ".join(filter(None, line.method))
    return {"color": tuple(rgb), "marker": marker, "markersize": 4.5, "linewidth": 1.3, "label": name, **hollow}


def draw(kind: str, agent: str, lines: list[Line], caption: str) -> Any:
    """Return the figure, one panel for each environment."""
    from matplotlib.figure import Figure

    panels = collect(lines, lambda line: line.panel)
    columns = min(3, len(panels))
    rows, below = -(-len(panels) // columns), 0.0 if kind == "sensitivity" else 0.16 * max(map(len, panels.values()))
    figure = Figure(figsize=(max(6.4, 4.1 * columns), rows * (3.1 + below) + 0.8), layout="constrained")
    for i, (panel, own) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.set(title=f"{agent.upper()}, {panel}", xlabel=KINDS[kind][2], ylabel=KINDS[kind][3])
        set_limits(axes, own)
        if kind == "sensitivity":
            draw_points(axes, own, lines)
        else:
            draw_bands(axes, own, own if kind == "curves" else lines)
    if kind == "sensitivity":
        named = {
            text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        ncols = int(figure.get_figwidth() / (0.7 + 0.055 * max(map(len, named))))
        figure.legend(named.values(), named, loc="outside upper center", ncols=max(1, ncols))
    figure.supxlabel(textwrap.fill(caption, int(figure.get_figwidth() * 19)), x=0.01, ha="left", fontsize=6.5)
    return figure


def set_limits(axes: Any, lines: list[Line]) -> None:
    """Let no run that exploded decide a panel's y axis; tell in it what lies outside."""
    drawn = {"points": np.concatenate([line.ends[0] for line in lines])}
    drawn["interval ends"] = np.concatenate([line.ends[1:].ravel() for line in lines])
    drawn["diverged runs"] = np.array([y for line in lines for _, y, _ in line.crosses])
    low, high = curves.limits(np.concatenate([*drawn.values()]), np.concatenate([line.sound for line in lines]))
    axes.set_ylim(low, high)
    outside = {name: values[(values < low) | (values > high)] for name, values in drawn.items()}
    values = np.concatenate([*outside.values()])
    if len(values):
        counts = ", ".join(f"{name} {len(some)}" for name, some in outside.items() if len(some))
        note = f"outside: {counts}; {values.min():,.3g} to {values.max():,.3g}"
        axes.text(0.02, 0.98, note, transform=axes.transAxes, fontsize=6.5, va="top", bbox=PAPER)


def draw_crosses(axes: Any, line: Line, colour: Any, aside: float = 1.0) -> None:
    """Draw a line's diverged runs, those outside of the panel at its edge."""
    low, high = axes.get_ylim()
    for x, y, _ in line.crosses:
        axes.plot(x * aside, min(max(y, low), high), "x", color=colour, clip_on=False, zorder=3)


def draw_bands(axes: Any, lines: list[Line], kin: list[Line]) -> None:
    """Draw lines with bands into a panel, their numbers of runs in its legend."""
    for k, line in enumerate(lines):
        style, (n, diverged), every = look(line, kin), line.counts()[0], len(line.x) // 8 + 1
        style["label"] += f", lr {line.rate}" * (line.panel != EVERYWHERE)
        style["label"] += f" (n = {n}{f', {diverged} diverged' if diverged else ''})"
        axes.fill_between(line.x, *line.ends[1:], color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(line.x, line.ends[0], markevery=(k * every // len(lines), every), **style)
        draw_crosses(axes, line, style["color"])
    if any(line.crosses for line in lines):
        axes.plot([], [], "x", color="#555555", label="diverged run, at its end")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14))
    axes.xaxis.set_major_formatter("{x:,.9g}")
    axes.locator_params(axis="x", nbins=6)


def draw_points(axes: Any, lines: list[Line], kin: list[Line]) -> None:
    """Draw lines with bars into a panel, diverged runs as crosses, and how many they are above the x axis."""
    low, high = axes.get_ylim()
    rows = 0
    for k, line in enumerate(lines):
        style, aside = look(line, kin), 1.06 ** (k - (len(lines) - 1) / 2)  # aside, so that no bar hides another
        alike = [g for other in kin if other.method == line.method for cell in other.cells for g in cell]
        seeds = sorted({len(group.runs) for group in alike})
        style["label"] += f" (n = {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))})"
        axes.vlines(line.x * aside, *line.ends[1:], color=style["color"], linewidth=1)
        axes.plot(line.x * aside, line.ends[0], **style)
        draw_crosses(axes, line, style["color"], aside)
        failed = [(x, f"{diverged}/{n}") for x, (n, diverged) in zip(line.x, line.counts(), strict=True) if diverged]
        how = {"ha": "center", "color": style["color"], "fontsize": 6, "bbox": PAPER}
        for x, text in failed:
            axes.text(x, 0.015 + 0.05 * rows, text, transform=axes.get_xaxis_transform(), **how)
        rows += bool(failed)
    rates = [x for line in lines for x in line.x]
    ends = {"xlim": (min(rates) / 2.5, max(rates) * 2.5), "ylim": (low - 0.06 * rows * (high - low), high)}
    axes.set(xscale="log", **ends)
    if any(line.crosses for line in lines):
        axes.plot([], [], "x", color="#555555", label="diverged run")


def caption_of(lines: list[Line], args: argparse.Namespace) -> str:
    """Return what a figure says of itself: from how many runs, with what, when, and by which command."""
    groups = {group for line in lines for cell in line.cells for group in cell}
    runs = [run for group in groups for run in group.runs]

    def each(values: Iterable[Any]) -> str:
        return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in sorted(set(values)))

    error = "one standard error" if args.error == "se" else "95 % bootstrap intervals"
    parts = [f"{args.statistic}, {error}", each(group.length for group in groups) + " steps"]
    counts = each(len(g.runs) for g in groups)
    parts += [f"{counts} run{'s' * (counts != '1')} a group, seeds {each(run.config['seed'] for run in runs)}"]
    parts += ["learning rates: the best of these runs"] * (args.kind != "sensitivity" and not args.all)
    if any(group.diverged for group in groups):
        whose = "its own curve had" if args.diverged == "own" else "any run on its environment had"
        parts += [f"a diverged run counts, from its end on, with the worst that {whose}"]
    versions = [run.meta["versions"] for run in runs]
    parts += [f"{name} {each(str(v.get(name, '?')) for v in versions)}" for name in ("torch", "gymnasium", "mujoco")]
    words = [os.path.basename(os.path.abspath(word)) if "/" in word else word for word in sys.argv[1:]]
    at = sys.argv.index(args.runs[0]) - 1
    if len(args.runs) > 3:
        words[at : at + len(args.runs)] = [f"({len(args.runs)} run directories)"]
    parts += [each(str(run.meta.get("cpu", "CPU ?")) for run in runs), time.strftime("%Y-%m-%d"), "hesscale-rl plot "]
    return "; ".join(parts) + " ".join(words)


def numbers(kind: str, lines: list[Line]) -> bytes:
    """Return the table of what is drawn, as CSV; rows with a seed are diverged runs."""

    def tail(rate: Any, seed: Any) -> tuple[Any, ...]:
        return {"curves": (rate, seed), "sensitivity": (seed,), "profile": (rate,)}[kind]

    columns = ("environment", "optimizer", "settings", KINDS[kind][1], "value", "low", "high", "n", "diverged")
    rows = [(*columns, *tail("learning_rate", "seed"))]
    for line in lines:
        own = (line.panel, *line.method)
        for x, ends, counts in zip(line.x, line.ends.T, line.counts(), strict=True):
            rows.append((*own, x, *("" if np.isnan(e) else e for e in ends), *counts, *tail(line.rate, "")))
        rows += [(*own, x, y, "", "", 1, 1, *tail(line.rate, seed)) for x, y, seed in line.crosses]
    csv.writer(file := io.StringIO(), lineterminator="\n").writerows(rows)
    return file.getvalue().encode()


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


def plot(args: argparse.Namespace) -> int:
    """Make the figures of one kind, one for each agent; return the exit code."""
    if args.bins < 1:
        raise InputError(f"--bins {args.bins}: must be at least 1")
    if (args.statistic, args.error) == ("iqm", "se"):
        raise InputError("--error se: is the mean's; leave --statistic iqm out, or take --error bootstrap")
    check_output(target(args.output, args.kind))
    import matplotlib

    agents, contents = collect(curves.read(args.runs, args.unfinished), lambda run: run.config["exp_name"]), {}
    for agent, runs in sorted(agents.items()):
        if not (lines := KINDS[args.kind][0](runs, args)):
            needs = "two groups (optimizers, settings, learning rates) or more, the same on every environment"
            raise InputError(f"{args.kind}: nothing to normalise among the runs of {agent}; it needs {needs}")
        name = target(args.output, args.kind) + f"_{agent}" * (len(agents) > 1)
        with matplotlib.rc_context(FONTS):
            figure = draw(args.kind, agent, lines, caption_of(lines, args))
            for kind, how in (("png", {"dpi": 150}), ("pdf", {"metadata": {"CreationDate": None}})):
                figure.savefig(file := io.BytesIO(), format=kind, **how)
                contents[Path(f"{name}.{kind}")] = file.getvalue()
        contents[Path(f"{name}.csv")] = numbers(args.kind, lines)
    write(contents)
    tell(*map(str, contents))
    return DONE


def refuse(message: str) -> NoReturn:
    """Raise what is wrong with the command line."""
    raise InputError(f"{message} (hesscale-rl plot --help)")


def main() -> int:
    """Read the command line and return the exit code."""
    whole = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="hesscale-rl plot", description=__doc__, formatter_class=whole)
    parser.add_argument("kind", choices=KINDS, help="of the figure")
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run directories, or folders of them")
    parser.add_argument("-o", "--output", metavar="NAME", help="write NAME.png, NAME.pdf, NAME.csv (KIND.png ...)")
    parser.add_argument("--bins", type=int, default=100, help="of a curve (100)")
    parser.add_argument("--statistic", choices=("mean", "iqm"), default="mean", help="over runs (mean)")
    parser.add_argument("--error", choices=("bootstrap", "se"), default="bootstrap", help="se: one standard error")
    parser.add_argument("--diverged", choices=("own", "env"), default="own", help="whose worst such a run has (own)")
    parser.add_argument("--all", action="store_true", help="curves: every learning rate, not the best alone")
    parser.add_argument("--normalized", action="store_true", help="sensitivity: only the panel over all environments")
    parser.add_argument("--unfinished", action="store_true", help="take runs that are not finished as they are")
    parser.error = refuse  # type: ignore[method-assign]  # one line, without the usage
    try:
        return plot(parser.parse_args())
    except InputError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
