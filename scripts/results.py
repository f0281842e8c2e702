"""A table of what runs reached: python scripts/results.py runs/* [> docs/table.md]

For each environment and optimizer: the mean return of the episodes that ended in the last tenth of the steps, seed by
seed, then mean and 95 % interval (Student's t) over the seeds. A diverged run keeps its place, with the curve it
has; one that has not ended is left out. Other settings have a row of their own, which says what is different.
"""

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "results"
# Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom.
STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def final_return(run: Path, total: int) -> float:
    """Return the mean over the last tenth of `total` steps; the last episode's if none ended there, else NaN."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ended = [
        (row["global_step"], float(row["charts/episodic_return"])) for row in rows if "charts/episodic_return" in row
    ]
    late = [value for step, value in ended if step > 0.9 * total] or [value for _, value in ended[-1:]]
    return statistics.fmean(late) if late else float("nan")


def interval(values: list[float]) -> str:
    """Return "mean ± half width", or the mean alone where seeds are too few or too many for the table of t."""
    mean = statistics.fmean(values)
    if not 2 <= len(values) <= len(STUDENT) + 1:
        return f"{mean:,.0f}"
    return f"{mean:,.0f} ± {STUDENT[len(values) - 2] * statistics.stdev(values) / len(values) ** 0.5:,.0f}"


Cell = tuple[str, str, str]  # environment, agent, optimizer
# What decides nothing about the numbers, or only their last digits.
SESSION = {"seed", "run_dir", "resume", "accept_changes", "quiet", "checkpoint_interval", "track"}
SESSION |= {"torch_threads", "backend", "compile", "device"}


def read(runs: list[Path]) -> dict[Cell, dict[str, list[tuple[int, float, str]]]]:
    """Return (seed, return, status) of the runs that have ended, by cell and, within it, by the other settings."""
    cells: dict[Cell, dict[str, list[tuple[int, float, str]]]] = {}
    for run in runs:
        config = json.loads((run / "config.json").read_text())
        status = json.loads((run / "status.json").read_text())
        if status["status"] not in ("done", "diverged"):
            print(f"{run}: {status['status']}, left out", file=sys.stderr)
            continue
        key = (config["env_id"], config["exp_name"], config["optimizer"])
        settings = json.dumps({k: v for k, v in config.items() if k not in SESSION}, sort_keys=True)
        seeds = cells.setdefault(key, {}).setdefault(settings, [])
        if config["seed"] in [seed for seed, _, _ in seeds]:
            sys.exit(f"{run}: seed {config['seed']} of these settings is there twice; name one of the two")
        seeds.append((config["seed"], final_return(run, status["total_steps"]), status["status"]))
    return cells


def best_rates(*tables: str) -> dict[tuple[str, str], float]:
    """Return the step size of the highest value by task and optimizer, of tables that `plot sensitivity` wrote.

    Tables that are not in docs/results/ are left out.
    """
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for path in (FOLDER / name for name in tables if (FOLDER / name).exists()):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                # Rows with a seed are single runs.
                if not row["seed"] and not row["task"].startswith("all tasks"):
                    key, point = (row["task"], row["optimizer"]), (float(row["value"]), float(row["learning_rate"]))
                    best[key] = max(best.get(key, point), point)
    return {key: rate for key, (_, rate) in best.items()}


def differences(settings: list[str]) -> list[str]:
    """Return for each of several settings what sets it apart: "learning_rate 0.001"."""
    each = [json.loads(one) for one in settings]
    varied = [k for k in each[0] if any(one.get(k) != each[0][k] for one in each)]
    return [", ".join(f"{k} {one.get(k)}" for k in varied) for one in each]


def main() -> None:
    """Print the table of the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    print("| environment | agent | optimizer | seeds | return of each seed | mean, 95 % interval |")
    print("|---|---|---|---|---|---|")
    for (env_id, agent, optimizer), variants in sorted(read(parser.parse_args().runs).items()):
        for (_, seeds), apart in zip(variants.items(), differences(list(variants)), strict=True):
            seeds.sort()
            each = ", ".join(f"{value:,.0f}" + f" ({status})" * (status != "done") for _, value, status in seeds)
            numbers = ", ".join(str(seed) for seed, _, _ in seeds)
            name = optimizer + f" ({apart})" * bool(apart)
            mean = interval([value for _, value, _ in seeds])
            print(f"| {env_id} | {agent} | {name} | {numbers} | {each} | {mean} |")


if __name__ == "__main__":
    main()
