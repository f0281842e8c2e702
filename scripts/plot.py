"""Figures of runs, with the numbers behind them: NAME.png, NAME.pdf and NAME.csv.

    hesscale-rl plot curves runs/*               return against steps, each optimizer at its best learning rate
    hesscale-rl plot sensitivity sweeps/NAME     average return against the learning rate, or --over delta
    hesscale-rl plot profile sweeps/NAME         share of the runs above a score, over all tasks
    hesscale-rl plot curves DIR --x seconds --metric loss/train      of supervised runs

RUNS are run directories, or folders that hold some; of a sweep's folder, the runs that its sweep.json lists. Lines
are means over runs that differ in their seeds alone, bands and bars 95 % bootstrap intervals, or where there are
fewer than five runs those runs. A line of a sensitivity stops where all runs diverged. How a run becomes a curve, a
diverged one too, is told in scripts/analysis/curves.py. Of supervised runs it is the validation loss against epochs.
"""

import argparse
import csv
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.command_line import Parser, obey, path_text
from hesscale_rl.scripts.analysis import curves
from hesscale_rl.scripts.analysis.lines import EVERYWHERE, KINDS, Line, LineOptions
from hesscale_rl.scripts.analysis.panels import (
    FONTS,
    axis_names,
    check_output,
    draw,
    settings_note,
    target,
    write,
)
from hesscale_rl.scripts.analysis.read_runs import FINE, RATE, SUPERVISED, TAGS, RecordedRun, collect, read
from hesscale_rl.system.console import say


def caption_of(
    lines: list[Line], given: list[RecordedRun], left: Counter[tuple[str, str]], args: argparse.Namespace
) -> str:
    """Return what a figure says of itself: from how many runs, which not, with what, when, and by which command.

    given: the agent's runs, of which `lines` may have the best learning rates alone.
    """
    groups = {group for line in lines for cell in line.cells for group in cell}
    runs = [run for group in groups for run in group.runs]

    def each(values: Iterable[Any]) -> str:
        return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in sorted(set(values)))

    view = runs[0].view
    fine = FINE[view.axis]
    lengths = each(group.length if fine == 1 else f"{group.length / fine:.3g}" for group in groups)
    parts = [f"{args.statistic}, {spread_of(lines, args)}", f"{lengths} {axis_names('curves', runs[0])[1]}"]
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
    if note := settings_note(lines):
        parts += [note]
    versions = [run.meta["versions"] for run in runs]
    parts += [f"{name} {each(str(v.get(name, '?')) for v in versions)}" for name in ("torch", "gymnasium", "mujoco")]
    places = {*args.runs, args.output}  # of which the last part is enough
    words = [os.path.basename(os.path.abspath(word)) if word in places else word for word in sys.argv[1:]]
    at = sys.argv.index(args.runs[0]) - 1
    if len(args.runs) > 3:
        words[at : at + len(args.runs)] = [f"({len(args.runs)} run directories)"]
    parts += [each(str(run.meta.get("cpu", "CPU ?")) for run in runs), time.strftime("%Y-%m-%d"), "hesscale-rl plot "]
    return "; ".join(parts) + " ".join(words)


def spread_of(lines: list[Line], args: argparse.Namespace) -> str:
    """Return in words what stands for the spread over runs: intervals, or single runs where there are too few."""
    known = [bool(np.isfinite(ends).all()) for line in lines for ends in line.ends[1:].T]
    interval = "one standard error" if args.error == "se" else "95 % bootstrap intervals"
    least = 2 if args.error == "se" else curves.FEWEST
    few = "no intervals" if args.kind == "profile" else "single runs"
    if all(known):
        return interval
    return f"{interval} of {least} runs or more, else {few}" if any(known) else f"{few}: fewer than {least} a group"


def numbers(kind: str, lines: list[Line]) -> bytes:
    """Return the table of what is drawn, as CSV; rows with a seed are single runs."""

    def tail(rate: Any, seed: Any) -> tuple[Any, ...]:
        return {"curves": (rate, seed), "sensitivity": (seed,), "profile": (rate,)}[kind]

    x_name = axis_names(kind, lines[0].cells[0][0].runs[0])[0]
    columns = ("task", "optimizer", "settings", x_name, "value", "low", "high", "n", "diverged")
    rows = [(*columns, *tail("learning_rate", "seed"))]
    for line in lines:
        own = (line.panel, *line.method)
        for x, ends, counts in zip(line.x, line.ends.T, line.counts(), strict=True):
            rows.append((*own, x, *("" if np.isnan(e) else e for e in ends), *counts, *tail(line.rate, "")))
        for diverged, marks in ((1, line.crosses), (0, line.dots)):
            rows += [(*own, m.x, m.y, "", "", 1, diverged, *tail(line.rate, m.run.config["seed"])) for m in marks]
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
    left: Counter[tuple[str, str]] = Counter()
    found = read(args.runs, args.unfinished, args.metric, args.x, args.over, left)
    import matplotlib

    agents, contents = collect(found, lambda run: run.config["exp_name"]), {}
    for agent, runs in sorted(agents.items()):
        if args.x not in (None, "steps") and agent != SUPERVISED:
            raise InputError(f"--x {args.x}: is for supervised runs, and those of {agent} are among these")
        options = LineOptions(args.bins, args.statistic, args.error, args.diverged, args.all, args.normalized)
        if not (lines := KINDS[args.kind](runs, options)):
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
