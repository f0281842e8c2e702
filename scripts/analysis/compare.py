"""Which optimizer is better, and how sure that is: hesscale-rl compare sweeps/best_small --to adam

A table for each agent, of every task and optimizer at its best learning rate: the mean return over the run, or over
the `--last` part of it, with Student's 95 % interval; its difference to that of the optimizer named, with Welch's;
and the probability that a run of it is above one of the other, ties as halves. Over all tasks that has a stratified
bootstrap interval: the probability of improvement of Agarwal et al. 2021, "Deep reinforcement learning at the edge
of the statistical precipice", 0.5 where the two are alike. A diverged run counts as in the plots. The best of several
learning rates by these same runs flatters its optimizer: give runs of other seeds, at rates that were chosen before.
"""

import argparse
import difflib
import math
import sys
from dataclasses import dataclass

import numpy as np

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.command_line import Parser, obey, path_text
from hesscale_rl.scripts.analysis import curves
from hesscale_rl.scripts.analysis.curves import Array, Group
from hesscale_rl.scripts.analysis.read_runs import RecordedRun, by_agent, collect, read
from hesscale_rl.system.console import complain, say


@dataclass(frozen=True)
class Table:
    """Rows of cells under `titles`, and what is to be said below ("" if nothing is)."""

    titles: list[str]
    rows: list[list[str]]
    note: str

    def lines(self) -> list[str]:
        """Return it as text, in Markdown."""
        head, *rows = (f"| {' | '.join(cells)} |" for cells in (self.titles, *self.rows))
        return [head, "|---" * len(self.titles) + "|", *rows, *[f"\n{self.note}"] * bool(self.note)]


def above(pairs: list[Array]) -> Array:
    """Return the probability that a run has more than one of the other's, mean over tasks: [...].

    `pairs`: the runs of every task, [runs, ...] each, then in the same order the other's.
    """
    half = len(pairs) // 2
    each = []
    for mine, other in zip(pairs[:half], pairs[half:], strict=True):
        more = mine[:, None] > other[None]
        each.append((more + 0.5 * (mine[:, None] == other[None])).mean(axis=(0, 1)))
    return np.mean(each, axis=0)


def spread(low: float, value: float, high: float, places: int) -> str:
    """Return "1,234 [1,000, 1,468]", without the ends where they are not known."""
    ends = f" [{low:,.{places}f}, {high:,.{places}f}]" if np.isfinite([low, high]).all() else ""
    return f"{value:,.{places}f}{ends}"


def row(group: Group, mine: Array, other: Array | None, places: int) -> list[str]:
    """Return the cells of a group: `mine`, the values of its runs, against the `other` ones of the same task."""
    low, high = curves.student(mine)
    lost = f", {len(group.diverged)} diverged" if group.diverged else ""
    name = f"{title(group.method)}, lr {group.rate:g}"
    cells = [group.env, name, f"{len(mine)}{lost}", spread(low, mine.mean(), high, places), "", ""]
    if other is not None:
        low, high = curves.welch(mine, other)
        cells[4:] = spread(low, mine.mean() - other.mean(), high, places), f"{above([mine, other]):.2f}"
    return cells


def title(method: tuple[str, str]) -> str:
    """Return the name of an optimizer with what sets it apart."""
    return ", ".join(filter(None, method))


def chosen(methods: list[tuple[str, str]], to: str) -> tuple[str, str]:
    """Return the method that `--to` names: an optimizer, or one with its settings."""
    found = [method for method in methods if title(method) == to] or [m for m in methods if m[0] == to]
    if len(found) != 1:
        names = [title(method) for method in sorted(found or methods)]
        close, every = difflib.get_close_matches(to, names, n=1, cutoff=0.5), "; ".join(names)  # a name has commas
        what = f"did you mean {close[0]!r}?" if close else f"there is {every}"
        what = f"it is there with several settings, name one of {every}" if found else what
        raise InputError(f"--to {to}: {what}")
    return found[0]


def table(runs: list[RecordedRun], to: str, last: float, bins: int) -> Table:
    """Return the comparison of one agent's runs."""
    groups = curves.gather(runs, bins, together=True)
    tried = [len(own) for own in collect(groups, lambda group: (group.env, group.method)).values()]
    groups = curves.best(groups)
    values = {group: group.curves[:, -round(last * bins) :].mean(axis=1) for group in groups}
    by_method = {method: {g.env: g for g in own} for method, own in collect(groups, lambda g: g.method).items()}
    other = by_method[chosen([*by_method], to)]
    rows = []
    for env, there in sorted(collect(groups, lambda group: group.env).items()):
        largest = max(abs(values[group].mean()) for group in there)
        places = max(0, 2 - math.floor(math.log10(largest))) if 0 < largest < 100 else 0
        for group in sorted(there, key=lambda group: group.method):
            against = other.get(env)
            rows.append(row(group, values[group], values[against] if against not in (None, group) else None, places))
    for method, own in sorted(by_method.items()):
        if own is other or len(shared := sorted(own.keys() & other.keys())) < 2:
            continue
        pairs = [values[own[env]] for env in shared] + [values[other[env]] for env in shared]
        low, high = curves.bootstrap_ends(pairs, above)
        cell = spread(low, float(above(pairs)), high, 2)
        rows.append([f"{len(shared)} tasks: {', '.join(shared)}", title(method), "", "", "", cell])
    of = " to ".join(f"{number}" for number in sorted({min(tried), max(tried)}))
    note = f"learning rates: of {of} each the best by the averages of these same runs, which flatters"
    titles = ["task", "optimizer", "n", "return", f"difference to {to}", "P(above)"]
    return Table(titles, rows, note if max(tried) > 1 else "")


def compare(args: argparse.Namespace) -> int:
    """Print the tables and return the exit code."""
    if not 0 < args.last <= 1:
        raise InputError(f"--last {args.last:g}: must be above 0 and at most 1")
    if args.bins < 1:
        raise InputError(f"--bins {args.bins}: must be at least 1")
    if round(args.last * args.bins, 9) % 1:
        raise InputError(f"--last {args.last:g}: is no whole number of {args.bins} bins (--bins)")
    found = by_agent(read(args.runs, unfinished=False))
    tables: dict[str, Table] = {}
    for agent, runs in found.items():
        try:
            tables[agent] = table(runs, args.to, args.last, args.bins)
        except InputError as error:
            if len(found) == 1:
                raise
            complain(f"{agent}: {error}; left out")
    for agent, own in tables.items():
        say(*[f"{agent}:"] * (len(found) > 1), *own.lines())
    if not tables:
        raise InputError("there is nothing to compare")
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl compare", __doc__)
    parser.add_argument("runs", nargs="+", type=path_text, metavar="RUNS", help="run directories, or folders of them")
    parser.add_argument("--to", default="adam", metavar="OPTIMIZER", help="whom the others are compared to (adam)")
    parser.add_argument("--last", type=float, default=1.0, help="part of the run that counts, at its end (1)")
    parser.add_argument("--bins", type=int, default=100, help="of a curve (100)")
    return obey(parser, compare)


if __name__ == "__main__":
    sys.exit(main())
