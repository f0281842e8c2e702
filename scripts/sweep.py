"""Carry out a sweep; the same command again continues it.

    hesscale-rl sweep scripts/sweeps/ppo_sensitivity_small.toml -j 4

scripts/grid.py says what a spec is, scripts/launchers.py where the runs are carried out. DIR holds one directory a
run, logs/ with their output, and sweep.json with the list of all runs that were asked for.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE, EXIT_CODES, InputError
from hesscale_rl.run import lock, write_json
from scripts import grid, launchers
from scripts.grid import Planned

FAILED = 1
POLL = 0.5  # seconds between looks at the runs
SHOW = 2.0  # seconds between states of the live table
PLAIN = 30.0  # seconds between lines when the output is not a terminal
TAIL = 8  # lines of a crashed run's log that are shown


def last_step(directory: Path) -> int:
    """Return the step that a run has reached by the last whole line of metrics.jsonl."""
    try:
        with open(directory / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["global_step"]) if len(lines) > 1 else 0
    except (OSError, ValueError, KeyError):
        return 0


class Account:
    """What has become of every run, and how fast it goes."""

    def __init__(self, runs: list[Planned], folder: Path):
        self.runs, self.folder = runs, folder
        self.codes = {run: code for run in runs if (code := launchers.exit_code(folder / run.name)) is not None}
        self.found = len(self.codes)  # finished before
        self.began, self.at_start = time.monotonic(), self._steps()[0]

    def open(self) -> list[Planned]:
        """Return the runs that are not finished."""
        return [run for run in self.runs if run not in self.codes]

    def _steps(self) -> tuple[int, int]:
        """Steps taken by all runs, and the number of runs that are being worked on."""
        taken, running = 0, 0
        for run in self.runs:
            if run in self.codes:
                taken += run.steps
            elif launchers.held(self.folder / run.name):
                taken, running = taken + last_step(self.folder / run.name), running + 1
        return taken, running

    def state(self) -> dict[str, str]:
        """Return the columns of the table."""
        taken, running = self._steps()
        kinds = Counter(self.codes.values())
        done, diverged = kinds.pop(DONE, 0), kinds.pop(DIVERGED, 0)
        speed = (taken - self.at_start) / max(time.monotonic() - self.began, 1e-9)
        left = (sum(run.steps for run in self.runs) - taken) / speed if speed > 0 else 0
        hours, minutes = divmod(round(left / 60), 60)
        return {
            "done": f"{done}/{len(self.runs)}",
            "running": str(running),
            "diverged": str(diverged),
            "failed": str(kinds.total()),
            "steps/s": f"{speed:,.0f}",
            "time left": f"{hours}:{minutes:02}" if speed > 0 else "",
        }


def show(account: Account) -> Table:
    """Return the live table."""
    state = account.state()
    table = Table(*state, title=str(account.folder), title_justify="left")
    table.add_row(*state.values())
    return table


def work(account: Account, launcher: launchers.Launcher, console: Console) -> bool:
    """Wait until every run has ended; return False if a signal ended it before."""
    stop: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: stop.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    due = 0.0
    try:
        with Live(console=console, auto_refresh=False, transient=False) as live:
            while account.open() and not stop:
                for run, code in launcher.poll():
                    account.codes[run] = code
                if time.monotonic() >= due:
                    if console.is_terminal:
                        live.update(show(account), refresh=True)
                    else:
                        console.print("  ".join(f"{k} {v}" for k, v in account.state().items() if v), highlight=False)
                    due = time.monotonic() + (SHOW if console.is_terminal else PLAIN)
                time.sleep(POLL)
            if stop:
                console.print("ending the runs at their next checkpoint; the same command goes on", highlight=False)
                signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
                launcher.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return not stop


def report(account: Account, console: Console) -> int:
    """Say what came of it, with the end of the log of every run that crashed; return the exit code."""
    state = account.state()
    minutes, seconds = divmod(round(time.monotonic() - account.began), 60)
    words = [f"{state[word]} {word}" for word in ("done", "diverged", "failed")]
    console.print(
        f"{', '.join(words)}; {account.found} were finished before; {minutes}:{seconds:02}", highlight=False
    )
    failed = [run for run, code in account.codes.items() if code not in (DONE, DIVERGED)]
    for run in failed:
        path = launchers.log_path(account.folder, run)
        print(f"\n{run.name}: exit code {account.codes[run]}, {path}", file=sys.stderr)
        if path.exists():
            print(*path.read_text(errors="replace").splitlines()[-TAIL:], sep="\n", file=sys.stderr)
    if not failed:
        console.print(f"next  hesscale-rl plot sensitivity {account.folder}", highlight=False)
    return FAILED if failed else DONE


def sweep(args: argparse.Namespace) -> int:
    """Carry out the sweep and return the exit code."""
    runs = grid.read(args.spec)
    if args.dry_run:
        print(*(run.name for run in runs), sep="\n")
        return DONE
    if args.jobs < 1:
        raise InputError(f"-j {args.jobs}: must be at least 1")
    folder = Path(args.dir or Path("sweeps", args.spec.stem)).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = lock(folder, f"--dir {folder}: another sweep is at work there")
        write_json(folder / "sweep.json", {"spec": str(args.spec), "runs": [run.name for run in runs]})
    except OSError as error:
        raise InputError(f"--dir {folder}: cannot be written ({error.strerror})") from None
    console, account = Console(), Account(runs, folder)
    _compile()
    try:
        if not work(account, _launcher(args, account.open(), folder), console):
            return EXIT_CODES["interrupted"]
    finally:
        os.close(handle)
    return report(account, console)


def _compile() -> None:
    """Compile the loops before many processes want them."""
    from hesscale_rl.compiled.warm import ready

    ready()


def _launcher(args: argparse.Namespace, runs: list[Planned], folder: Path) -> launchers.Launcher:
    if args.launcher == "local":
        return launchers.Local(runs, folder, args.jobs)
    if args.launcher == "ray":
        return launchers.OnRay(runs, folder, args.ray_address)
    options: dict[str, Any] = {"timeout_min": args.time_limit}
    for pair in args.slurm:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--slurm {pair}: must be NAME=VALUE, one of sbatch's options")
        options[f"slurm_{name.replace('-', '_')}"] = int(value) if value.isdigit() else value
    return launchers.OnSlurm(runs, folder, args.jobs, args.launcher.removeprefix("submitit-"), options)


def main() -> int:
    """Read the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, help="a TOML or Python file")
    parser.add_argument("--dir", type=Path, help="where the runs are; default sweeps/NAME OF SPEC")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count(), help="runs at once; default one a core")
    parser.add_argument(
        "--launcher",
        default="local",
        choices=("local", "ray", "slurm", "submitit-local", "submitit-debug"),
        help="processes here, Ray, or Slurm by submitit (whose local and debug executors are for trying out)",
    )
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="of a Ray cluster; default one on this machine")
    parser.add_argument("--time-limit", type=int, default=240, metavar="MINUTES", help="of a Slurm job")
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="NAME=VALUE", help="options of sbatch: partition=cpu"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and do nothing")
    args = parser.parse_args()
    try:
        return sweep(args)
    except InputError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
