"""A table of what runs reached: hesscale-rl results runs/* [> docs/table.md]

For each environment and optimizer: the mean return of the episodes that ended in the last tenth of the steps, seed by
seed, then mean and 95 % interval (Student's t) over the seeds. A diverged run keeps its place, with the curve it
has; one that has not ended is left out. Other settings have a row of their own, which says what is different.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.command_line import Parser, obey, path_text
from hesscale_rl.scripts.analysis import curves
from hesscale_rl.scripts.analysis.read_runs import RATE, RecordedRun, by_agent, by_seed, collect, read
from hesscale_rl.system.console import say

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results"


def final_return(run: RecordedRun) -> float:
    """Return the mean over the last tenth of the steps; the last episode's if none ended there, else NaN."""
    late = run.values[run.steps > 0.9 * run.total]
    return float(np.mean(late if len(late) else run.values[-1:])) if len(run.values) else np.nan


def rows(runs: list[RecordedRun]) -> list[str]:
    """Return the rows of one agent's runs."""
    if packed := [run for run in runs if run.packed]:
        raise InputError(
            f"{packed[0].path}: is packed, without its episodes; hesscale-rl compare --last 0.1 takes it"
        )
    labels, table = curves.apart(runs), []
    by_env = collect(runs, lambda run: (run.config["env_id"], run.config["exp_name"], run.config["optimizer"]))
    for (env_id, agent, optimizer), same in sorted(by_env.items()):
        settings = collect(same, lambda run: (labels[run], run.config[RATE], run.total))
        several = [len(set(values)) > 1 for values in zip(*settings, strict=True)]
        for (label, rate, total), own in sorted(settings.items()):
            words = (label, f"{RATE} {rate:g}", f"{total:,} steps")
            apart = ", ".join(word for word, varied in zip(words, several, strict=True) if varied)
            seeds = by_seed(own)
            values = np.array([final_return(run) for run in seeds.values()])
            each = [
                f"{v:,.0f}" + f" ({run.status})" * (run.status != "done")
                for v, run in zip(values, seeds.values(), strict=True)
            ]
            low, high = curves.student(values)
            mean = f"{values.mean():,.0f}" + (f" ± {(high - low) / 2:,.0f}" if np.isfinite(high) else "")
            name = optimizer + f" ({apart})" * bool(apart)
            table.append(
                f"| {env_id} | {agent} | {name} | {', '.join(map(str, seeds))} | {', '.join(each)} | {mean} |"
            )
    return table


def best_rates(*tables: str) -> dict[tuple[str, str], float]:
    """Return the step size of the highest value by task and optimizer, of tables that `plot sensitivity` wrote.

    The tables are in docs/results/; OSError if one is not there, ValueError if settings are varied in one.
    """
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for name in tables:
        with open(FOLDER / name, newline="") as file:
            for row in csv.DictReader(file):
                if row["settings"]:
                    raise ValueError(f"{name}: {row['optimizer']} with {row['settings']}: which settings are meant?")
                # Rows with a seed are single runs.
                if not row["seed"] and not row["task"].startswith("all tasks"):
                    key, point = (row["task"], row["optimizer"]), (float(row["value"]), float(row["learning_rate"]))
                    best[key] = max(best.get(key, point), point)
    return {key: rate for key, (_, rate) in best.items()}


def show(args: argparse.Namespace) -> int:
    """Print the table of the runs named on the command line."""
    table = [row for runs in by_agent(read(args.runs, unfinished=False)).values() for row in rows(runs)]
    say("| environment | agent | optimizer | seeds | return of each seed | mean, 95 % interval |", "|---" * 6 + "|")
    say(*table)
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl results", __doc__)
    parser.add_argument("runs", nargs="+", type=path_text, metavar="RUNS", help="run directories, or folders of them")
    return obey(parser, show)


if __name__ == "__main__":
    sys.exit(main())
