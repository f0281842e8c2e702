"""What step-size scaling leaves of the step size.

    hesscale-rl effective-steps sweeps/ppo_sensitivity_small

A step of step size lr is scaled by eta = min(1, sqrt(2 delta/h)), and h grows with lr^2: where the trust region acts,
eta lr does not depend on lr. For every task and scaled optimizer: the median of eta lr over a run, for each network;
its range over all runs with step sizes from --least on; and, of each step size, how many seeds had to the last digit
the same returns as with the largest one.
"""

import argparse
import sys

import numpy as np

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.optim import is_scaled
from hesscale_rl.runs.command_line import Parser, obey, path_text
from hesscale_rl.scripts.analysis import curves
from hesscale_rl.scripts.analysis.read_runs import RATE, RecordedRun, by_seed, collect, read, seen
from hesscale_rl.system.console import say

ETA, LOGGED = "optim/eta_", "charts/learning_rate"


def same(run: RecordedRun, other: RecordedRun) -> bool:
    """Whether two runs had the same episodes, one at least, and the same end."""
    alike = (run.status, run.end, run.total) == (other.status, other.end, other.total)
    alike = alike and np.array_equal(run.steps, other.steps) and np.array_equal(run.values, other.values)
    return alike and len(run.steps) > 0


def effective_steps(run: RecordedRun) -> dict[str, float]:
    """Return the median of eta lr by network."""
    networks = sorted(tag.removeprefix(ETA) for tag in run.tags if tag.startswith(ETA))
    lr = seen(run, LOGGED).values if LOGGED in run.tags else rate(run)  # annealed or not, beside every factor
    factors = {name: seen(run, ETA + name).values for name in networks}
    return {name: float(np.median(eta * lr)) for name, eta in factors.items() if len(eta)}  # else none was finite


def rows(runs: list[RecordedRun], least: float) -> list[list[str]]:
    """Return the rows of one agent's runs: which, effective steps, equal ones."""
    labels = curves.apart(runs)
    table = []
    scaled = [run for run in runs if is_scaled(run.config["optimizer"])]
    for key, own in sorted(collect(scaled, lambda r: (r.config["env_id"], r.config["optimizer"], labels[r])).items()):
        by_rate = {r: by_seed(some) for r, some in collect(own, rate).items()}
        *smaller, largest = sorted(by_rate)
        if largest < least:
            continue
        found = [effective_steps(run) for run in own if rate(run) >= least]
        names = sorted(set().union(*found))
        if not names:
            raise InputError(f"{own[0].path}: no {ETA}... in metrics.jsonl" + ": it is packed" * bool(own[0].packed))
        spans = [[steps[name] for steps in found if name in steps] for name in names]
        steps = [f"{name} {min(span):.2g} to {max(span):.2g}" for name, span in zip(names, spans, strict=True)]
        equal = []
        for r in (r for r in smaller if r >= least):
            pairs = [(run, by_rate[largest][seed]) for seed, run in by_rate[r].items() if seed in by_rate[largest]]
            equal.append(f"{r:g}: {sum(same(*pair) for pair in pairs)} of {len(pairs)}")
        compared = f"{', '.join(equal)} as at {largest:g}" if equal else ""
        table.append([", ".join(filter(None, key)), "; ".join(steps), compared])
    return table


def rate(run: RecordedRun) -> float:
    """Its step size."""
    return float(run.config[RATE])


def show(args: argparse.Namespace) -> int:
    """Print the table."""
    agents = collect(read(args.runs, unfinished=False), lambda run: run.config["exp_name"])
    table = [[agent, *cells] for agent, own in agents.items() for cells in rows(own, args.least)]
    if not table:
        raise InputError(f"{args.runs[0]}: no run of a scaled optimizer with a step size from {args.least:g} on")
    say("| agent | runs | eta times step size | the same returns |\n|---|---|---|---|")
    for cells in table:
        say(f"| {' | '.join(cells)} |")
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl effective-steps", __doc__)
    parser.add_argument("runs", nargs="+", type=path_text, metavar="RUNS", help="run directories, or folders of them")
    parser.add_argument("--least", type=float, default=1e-3, help="smallest step size that is looked at (0.001)")
    return obey(parser, show)


if __name__ == "__main__":
    sys.exit(main())
