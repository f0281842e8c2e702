"""A table of what runs reached: python scripts/results.py runs/* [> docs/table.md]

For each environment and optimizer: the mean return of the episodes that ended in the last tenth of the steps, seed by
seed, then mean and 95 % interval (Student's t) over the seeds. A diverged run keeps its place, with the curve it has.
"""

import argparse
import json
import statistics
from pathlib import Path

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


def main() -> None:
    """Print the table of the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    cells: dict[tuple[str, str], list[tuple[int, float, str]]] = {}
    for run in parser.parse_args().runs:
        config = json.loads((run / "config.json").read_text())
        status = json.loads((run / "status.json").read_text())
        key = (config["env_id"], config["optimizer"])
        value = final_return(run, status["total_steps"])
        cells.setdefault(key, []).append((config["seed"], value, status["status"]))
    print("| environment | optimizer | seeds | return of each seed | mean, 95 % interval |\n|---|---|---|---|---|")
    for (env_id, optimizer), seeds in sorted(cells.items()):
        seeds.sort()
        each = ", ".join(f"{value:,.0f}" + (f" ({status})" if status != "done" else "") for _, value, status in seeds)
        numbers = ", ".join(str(seed) for seed, _, _ in seeds)
        print(f"| {env_id} | {optimizer} | {numbers} | {each} | {interval([value for _, value, _ in seeds])} |")


if __name__ == "__main__":
    main()
