"""Figures of runs, with the numbers behind them: NAME.png, NAME.pdf and NAME.csv.

    hesscale-rl plot curves runs/*               return against steps, each optimizer at its best learning rate
    hesscale-rl plot sensitivity sweeps/NAME     average return against the learning rate, or --over delta
    hesscale-rl plot profile sweeps/NAME         share of the runs above a score, over all tasks
    hesscale-rl plot curves DIR --x seconds --metric loss/train      of supervised runs

RUNS are run directories, or folders that hold some; of a sweep's folder, the runs that its sweep.json lists. Lines
are means over runs that differ in their seeds alone, bands and bars 95 % bootstrap intervals. How a run becomes a
curve, a diverged one too, is told in scripts/analysis/curves.py. Of supervised runs it is the validation loss
against epochs.
"""

import argparse
import csv
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.command_line import path_text
from hesscale_rl.scripts.analysis import curves
from hesscale_rl.scripts.analysis.curves import Group
from hesscale_rl.scripts.analysis.panels import EVERYWHERE, FONTS, Line, axis_names, check_output, draw, target, write
from hesscale_rl.scripts.analysis.read_runs import FINE, RATE, SUPERVISED, TAGS, Run, collect, read
from hesscale_rl.scripts.commands import Parser, obey
from hesscale_rl.system.console import complain, say


def curve_lines(runs: list[Run], args: argparse.Namespace) -> list[Line]:
    """Return against steps: of the best learning rate, or of all."""
    groups, lines = curves.gather(runs, args.bins, together=False, worst=args.diverged), []
    for group in groups if args.all else curves.best(groups):
        bins, fine = group.curves.shape[1], FINE[group.view.axis]
        x, sound = group.length * np.arange(1, bins + 1) / (bins * fine), group.curves[group.sound].ravel()
        ends, rate = curves.interval([group.curves], args.statistic, args.error), f"{group.rate:g}"
        crosses = [(end / fine, value, seed) for end, value, seed in group.ends()]
        lines.append(Line(group.env, group.method, [[group]], x, ends, rate, sound, crosses))
    return lines


def sensitivity_lines(runs: list[Run], args: argparse.Namespace) -> list[Line]:
    """Average return against the rate: on each task, and normalised over all of them."""
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
    """Share of the runs above a score, of each optimizer at the best learning rate of each task."""
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


# Of each kind: what makes its lines.
KINDS: dict[str, Callable] = {"curves": curve_lines, "sensitivity": sensitivity_lines, "profile": profile_lines}


def everywhere(groups: Iterable[Group], key: Callable[[Group], tuple]) -> list[list[Group]]:
    """Return the groups that have a key in common on all tasks: an average over fewer would not compare."""
    cells, tasks = collect(groups, key), len({group.env for group in groups})
    some = [" ".join(filter(None, key)) for key, own in cells.items() if len(own) < tasks]
    if some:
        complain(f"not on all {tasks} tasks, so left out of what is normalised: {'; '.join(some)}")
    return [own for own in cells.values() if len(own) == tasks]


def caption_of(lines: list[Line], given: list[Run], left: Counter[tuple[str, str]], args: argparse.Namespace) -> str:
    """Return what a figure says of itself: from how many runs, which not, with what, when, and by which command.

    given: the agent's runs, of which `lines` may have the best learning rates alone.
    """
    groups = {group for line in lines for cell in line.cells for group in cell}
    runs = [run for group in groups for run in group.runs]

    def each(values: Iterable[Any]) -> str:
        return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in sorted(set(values)))

    error = "one standard error" if args.error == "se" else "95 % bootstrap intervals"
    view = runs[0].view
    fine = FINE[view.axis]
    lengths = each(group.length if fine == 1 else f"{group.length / fine:.3g}" for group in groups)
    parts = [f"{args.statistic}, {error}", f"{lengths} {axis_names('curves', runs[0])[1]}"]
    counts = each(len(g.runs) for g in groups)
    parts += [f"{counts} run{'s' * (counts != '1')} a group, seeds {each(run.config['seed'] for run in runs)}"]
    if own := [f"{n} {why}" for (agent, why), n in left.items() if n and agent in ("", runs[0].config["exp_name"])]:
        parts += [f"left out: {', '.join(own)}"]
    tried = {(run.config["env_id"], run.config["optimizer"], run.config[RATE]) for run in given}
    if args.kind != "sensitivity" and not args.all and len(tried) > len({rate[:2] for rate in tried}):
        parts += ["learning rates: the best of these runs"]
    if lost := [run for group in groups for run in group.diverged]:
        whose = "any run on its task had"
        if (args.diverged or curves.usual_worst(runs)) == "own":
            bare = any(not len(run.steps) for run in lost)
            whose = "its own curve had" + f" or, without an episode, that {whose}" * bare
        parts += [f"a diverged run counts, from its end on, with the worst that {whose}"]
    if view.lower and any(line.panel == EVERYWHERE for line in lines):
        parts += ["score 0: a loss as before training or above"]
    versions = [run.meta["versions"] for run in runs]
    parts += [f"{name} {each(str(v.get(name, '?')) for v in versions)}" for name in ("torch", "gymnasium", "mujoco")]
    places = {*args.runs, args.output}  # of which the last part is enough
    words = [os.path.basename(os.path.abspath(word)) if word in places else word for word in sys.argv[1:]]
    at = sys.argv.index(args.runs[0]) - 1
    if len(args.runs) > 3:
        words[at : at + len(args.runs)] = [f"({len(args.runs)} run directories)"]
    parts += [each(str(run.meta.get("cpu", "CPU ?")) for run in runs), time.strftime("%Y-%m-%d"), "hesscale-rl plot "]
    return "; ".join(parts) + " ".join(words)


def numbers(kind: str, lines: list[Line]) -> bytes:
    """Return the table of what is drawn, as CSV; rows with a seed are diverged runs."""

    def tail(rate: Any, seed: Any) -> tuple[Any, ...]:
        return {"curves": (rate, seed), "sensitivity": (seed,), "profile": (rate,)}[kind]

    x_name = axis_names(kind, lines[0].cells[0][0].runs[0])[0]
    columns = ("task", "optimizer", "settings", x_name, "value", "low", "high", "n", "diverged")
    rows = [(*columns, *tail("learning_rate", "seed"))]
    for line in lines:
        own = (line.panel, *line.method)
        for x, ends, counts in zip(line.x, line.ends.T, line.counts(), strict=True):
            rows.append((*own, x, *("" if np.isnan(e) else e for e in ends), *counts, *tail(line.rate, "")))
        rows += [(*own, x, y, "", "", 1, 1, *tail(line.rate, seed)) for x, y, seed in line.crosses]
    csv.writer(file := io.StringIO(), lineterminator="\n").writerows(rows)
    return file.getvalue().encode()


def plot(args: argparse.Namespace) -> int:
    """Make the figures of one kind, one for each agent; return the exit code."""
    if args.bins < 1:
        raise InputError(f"--bins {args.bins}: must be at least 1")
    if (args.statistic, args.error) == ("iqm", "se"):
        raise InputError("--error se: is the mean's; leave --statistic iqm out, or take --error bootstrap")
    args.over = args.over.replace("-", "_")
    if args.over != RATE and args.kind != "sensitivity":
        raise InputError(f"--over {args.over}: is for plot sensitivity")
    check_output(target(args.output, args.kind))
    import matplotlib

    left: Counter[tuple[str, str]] = Counter()
    found = read(args.runs, args.unfinished, args.metric, args.x, args.over, left)
    agents, contents = collect(found, lambda run: run.config["exp_name"]), {}
    for agent, runs in sorted(agents.items()):
        if args.x not in (None, "steps") and agent != SUPERVISED:
            raise InputError(f"--x {args.x}: is for supervised runs, and those of {agent} are among these")
        if not (lines := KINDS[args.kind](runs, args)):
            needs = "two groups (optimizers, settings, learning rates) or more, the same on every task"
            raise InputError(f"{args.kind}: nothing to normalise among the runs of {agent}; it needs {needs}")
        name = target(args.output, args.kind) + f"_{agent}" * (len(agents) > 1)
        with matplotlib.rc_context(FONTS):
            figure = draw(args.kind, agent, lines, caption_of(lines, runs, left, args))
            for kind, how in (("png", {"dpi": 150}), ("pdf", {"metadata": {"CreationDate": None}})):
                figure.savefig(file := io.BytesIO(), format=kind, **how)
                contents[Path(f"{name}.{kind}")] = file.getvalue()
        contents[Path(f"{name}.csv")] = numbers(args.kind, lines)
    write(contents)
    say(*map(str, contents))
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl plot", __doc__)
    parser.add_argument("kind", choices=KINDS, help="of the figure")
    parser.add_argument("runs", nargs="+", type=path_text, metavar="RUNS", help="run directories, or folders of them")
    parser.add_argument(
        "-o", "--output", type=path_text, metavar="NAME", help="write NAME.png, NAME.pdf, NAME.csv (KIND.png ...)"
    )
    parser.add_argument("--metric", help="of metrics.jsonl (charts/episodic_return; if supervised, loss/validation)")
    parser.add_argument("--x", choices=TAGS, help="axis of the curves (steps; if supervised, epochs)")
    parser.add_argument("--over", metavar="FLAG", default=RATE, help="sensitivity: what is on x (learning-rate)")
    parser.add_argument("--bins", type=int, default=100, help="of a curve (100)")
    parser.add_argument("--statistic", choices=("mean", "iqm"), default="mean", help="over runs (mean)")
    parser.add_argument("--error", choices=("bootstrap", "se"), default="bootstrap", help="se: one standard error")
    parser.add_argument("--diverged", choices=("own", "env"), help="whose worst such a run has (own; of a loss env)")
    parser.add_argument("--all", action="store_true", help="curves: every learning rate, not the best alone")
    parser.add_argument("--normalized", action="store_true", help="sensitivity: only the panel over all tasks")
    parser.add_argument("--unfinished", action="store_true", help="take runs that are not finished as they are")
    return obey(parser, plot, "interrupted; nothing is written")


if __name__ == "__main__":
    sys.exit(main())
