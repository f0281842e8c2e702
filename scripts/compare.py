"""Which optimizer is better, and how sure that is: python scripts/compare.py sweeps/best_small --to adam

A table for each agent, of every task and optimizer at its best learning rate: the mean return over the run, or over
the `--last` part of it, with Student's 95 % interval; its difference to that of the optimizer named, with Welch's;
and the probability that a run of it is above one of the other, ties as halves. Over all tasks that has a stratified
bootstrap interval: the probability of improvement of Agarwal et al. 2021, "Deep reinforcement learning at the edge
of the statistical precipice", 0.5 where the two are alike. A diverged run counts as in the plots.
"""

import argparse
import sys

import numpy as np

from hesscale_rl.errors import DONE, InputError
from scripts import curves
from scripts.commands import Parser, obey
from scripts.curves import Array, Group
from scripts.runs import Run, collect, read
from scripts.sweep import tell

HEADER = "| task | optimizer | n | return | difference to {} | P(above) |", "|---|---|---|---|---|---|"


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


def spread(low: float, value: float, high: float) -> str:
    """Return "1,234 [1,000, 1,468]", without the ends where they are not known."""
    return f"{value:,.0f}" + (f" [{low:,.0f}, {high:,.0f}]" if np.isfinite([low, high]).all() else "")


def row(group: Group, mine: Array, other: Array | None) -> str:
    """Return the row of a group: `mine`, the values of its runs, against the `other` ones of the same task."""
    from scipy import stats

    unknown = (np.nan, np.nan)
    low, high = stats.ttest_1samp(mine, 0.0).confidence_interval(0.95) if len(mine) > 1 else unknown
    name = ", ".join(filter(None, group.method)) + f", lr {group.rate:g}"
    lost = f", {len(group.diverged)} diverged" if group.diverged else ""
    cells = [group.env, name, f"{len(mine)}{lost}", spread(low, mine.mean(), high), "", ""]
    if other is not None:
        test = stats.ttest_ind(mine, other, equal_var=False) if min(len(mine), len(other)) > 1 else None
        low, high = test.confidence_interval(0.95) if test else unknown
        cells[4:] = spread(low, mine.mean() - other.mean(), high), f"{above([mine, other]):.2f}"
    return f"| {' | '.join(cells)} |"


def table(runs: list[Run], to: str, last: float, bins: int) -> list[str]:
    """Return the rows of one agent's runs."""
    groups = curves.best(curves.gather(runs, bins, together=True))
    values = {group: group.curves[:, -max(1, round(last * bins)) :].mean(axis=1) for group in groups}
    by_method = {method: {g.env: g for g in own} for method, own in collect(groups, lambda g: g.method).items()}
    others = [own for (optimizer, _), own in by_method.items() if optimizer == to]
    if len(others) != 1:
        known = sorted({optimizer for optimizer, _ in by_method})
        what = f"there is {', '.join(known)}" if not others else f"it is there with {len(others)} settings"
        raise InputError(f"--to {to}: {what}")
    (other,) = others
    rows = [line.format(to) for line in HEADER]
    for group in sorted(groups, key=lambda group: (group.env, group.method)):
        against = other.get(group.env)
        rows.append(row(group, values[group], values[against] if against not in (None, group) else None))
    for (optimizer, settings), own in sorted(by_method.items()):
        if own is other or len(shared := sorted(own.keys() & other.keys())) < 2:
            continue
        pairs = [values[own[env]] for env in shared] + [values[other[env]] for env in shared]
        drawn = curves.stratified_bootstrap(pairs, above, curves.RESAMPLES, np.random.default_rng(0))
        low, high = np.percentile(drawn, [2.5, 97.5])
        name = ", ".join(filter(None, (optimizer, settings)))
        rows.append(f"| {len(shared)} tasks | {name} | | | | {float(above(pairs)):.2f} [{low:.2f}, {high:.2f}] |")
    return rows


def compare(args: argparse.Namespace) -> int:
    """Print the tables and return the exit code."""
    if not 0 < args.last <= 1:
        raise InputError(f"--last {args.last:g}: must be above 0 and at most 1")
    if args.bins < 1:
        raise InputError(f"--bins {args.bins}: must be at least 1")
    try:
        import scipy  # noqa: F401
    except ImportError:
        raise InputError("intervals need scipy, pip install -e '.[plot]'") from None
    found = collect(read(args.runs, unfinished=False), lambda run: run.config["exp_name"])
    tables = {agent: table(runs, args.to, args.last, args.bins) for agent, runs in sorted(found.items())}
    for agent, rows in tables.items():
        tell(*[f"{agent}:"] * (len(tables) > 1), *rows)
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("compare.py", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run directories, or folders of them")
    parser.add_argument("--to", default="adam", metavar="OPTIMIZER", help="whom the others are compared to (adam)")
    parser.add_argument("--last", type=float, default=1.0, help="part of the run that counts, at its end (1)")
    parser.add_argument("--bins", type=int, default=100, help="of a curve (100)")
    return obey(parser, compare)


if __name__ == "__main__":
    sys.exit(main())
