"""Sweeps small enough to publish: hesscale-rl pack sweeps/NAME docs/results/NAME.tar.xz

The archive holds, of every finished run of an agent, what a plot of the return needs: config.json, meta.json,
status.json and in metrics.jsonl one line for each bin of a plot, the mean return of the episodes that ended in it.
Plots of what `tar xf` makes of it are those of the runs themselves, to the last digit; other --bins, and what needs
single episodes, are refused. A sweep with `--dir` there goes on with the runs that are missing.
"""

import argparse
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.command_line import Parser, obey
from hesscale_rl.scripts.analysis.curves import bin_means
from hesscale_rl.scripts.analysis.read_runs import RecordedRun, by_agent, planned_runs, read
from hesscale_rl.system.console import say

RETURN = "charts/episodic_return"


def thinned(run: RecordedRun, bins: int) -> str:
    """Return what is left of a run's metrics.jsonl: each bin's mean, at the last step that it is taken over."""
    inside = run.steps <= run.total  # what came after the planned length is in no bin
    place, counts, means = bin_means(run.steps[inside], run.values[inside], run.total, bins)
    lines = [
        json.dumps({"global_step": int(run.steps[inside][place == k].max()), RETURN: means[k]})
        for k in np.flatnonzero(counts)
    ]
    return "".join(line + "\n" for line in lines)


def files(run: RecordedRun, bins: int) -> dict[str, str]:
    """Return what is kept of a run, by the names of its files, without the paths of the machine it was made on."""

    def text(content: dict[str, Any]) -> str:
        return json.dumps(content, indent=1) + "\n"

    meta = {name: value for name, value in run.meta.items() if name != "argv"} | {"packed_bins": bins}
    return {
        "config.json": text(run.config | {"run_dir": run.path.name, "resume": None}),
        "meta.json": text(meta),
        "status.json": (run.path / "status.json").read_text(),
        "metrics.jsonl": thinned(run, bins),
    }


def archive(contents: dict[str, str]) -> bytes:
    """Return a tar.xz of files by name; the same files make the same bytes."""
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w:xz") as tar:
        for name, text in sorted(contents.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data := text.encode())
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def pack(args: argparse.Namespace) -> int:
    """Write the archive and return the exit code."""
    if args.bins < 1:
        raise InputError(f"--bins {args.bins}: must be at least 1")
    if not args.output.name.endswith(".tar.xz"):
        raise InputError(f"{args.output}: must end in .tar.xz")
    runs = read([str(args.sweep)], unfinished=False)
    runs = [run for own in by_agent(runs).values() for run in own]  # which have returns
    if packed := [run for run in runs if run.packed not in (None, args.bins)]:
        raise InputError(f"--bins {args.bins}: {packed[0].path} is packed in {packed[0].packed}")
    contents = {f"{run.path.name}/{name}": text for run in runs for name, text in files(run, args.bins).items()}
    if planned := planned_runs(args.sweep):
        contents["sweep.json"] = json.dumps({"runs": [*planned]}, indent=1) + "\n"
    from hesscale_rl.runs.directory import atomic_write

    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(args.output, data := archive(contents))
    except OSError as error:
        raise InputError(f"{args.output}: cannot be written ({error.strerror})") from None
    say(f"{args.output}: {len(runs)} runs, {len(data) / 1e3:,.0f} kB")
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl pack", __doc__)
    parser.add_argument("sweep", type=Path, help="the folder of a sweep, or of runs")
    parser.add_argument("output", type=Path, help="the archive, NAME.tar.xz")
    parser.add_argument("--bins", type=int, default=100, help="of a curve (100, as of a plot)")
    return obey(parser, pack)


if __name__ == "__main__":
    sys.exit(main())
