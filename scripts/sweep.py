"""Carry out a sweep; the same command again continues it.

    hesscale-rl sweep mine.toml -j 4
    hesscale-rl sweep ppo_sensitivity_small      a spec that comes with this package, by its name

sweeping/spec.py says what a spec is, sweeping/launchers.py where the runs are carried out. DIR holds one directory a
run, logs/ with their output, and sweep.json with the list of all runs that were asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from hesscale_rl.errors import DIVERGED, DONE, INTERRUPTED, InputError
from hesscale_rl.runs.command_line import Parser, obey
from hesscale_rl.scripts.sweeping.state import exit_code, locate, log_end, log_path, reached, saved
from hesscale_rl.system.console import complain, say

if TYPE_CHECKING:  # what takes its time to import waits until Ctrl-C is heeded
    from hesscale_rl.scripts.sweeping import launchers
    from hesscale_rl.scripts.sweeping.spec import Planned

FAILED = 1
POLL = 0.5  # seconds between looks at the runs
SHOW = 2.0  # seconds between states of the live table
PLAIN = 30.0  # seconds between lines when the output is not a terminal
TAILS = 5  # crashed runs whose logs' ends are shown


def duration(seconds: float) -> str:
    """Return a time in words: 40 s, 12 min, 5 h 39 min."""
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Tally:
    """What has become of every run, and how fast it goes."""

    def __init__(self, runs: list[Planned], folder: Path):
        from hesscale_rl.system.locks import held

        self.runs, self.folder = runs, folder
        self.codes = {run: code for run in runs if (code := exit_code(folder / run.name)) is not None}
        self.found = len(self.codes)  # finished before
        self.began = time.monotonic()
        # The steps from which the runs go on: what came after a run's last checkpoint is done again.
        paths = {run: folder / run.name for run in self.open()}
        self.origin = {run: reached(path) if held(path) else saved(path) for run, path in paths.items()}
        self.at = dict(self.origin)

    def open(self) -> list[Planned]:
        """Return the runs that are not finished."""
        return [run for run in self.runs if run not in self.codes]

    def end(self, run: Planned, code: int) -> None:
        """Take in that a run has ended."""
        self.codes[run] = code
        self._look(run)

    def _look(self, run: Planned) -> None:
        self.at[run] = max(reached(self.folder / run.name), self.origin[run])

    def state(self) -> dict[str, str]:
        """Return the columns of the table."""
        from hesscale_rl.system.locks import held

        running = [run for run in self.open() if held(self.folder / run.name)]
        for run in running:
            self._look(run)
        kinds = Counter(self.codes.values())
        done, diverged = kinds.pop(DONE, 0), kinds.pop(DIVERGED, 0)
        speed = sum(self.at[run] - origin for run, origin in self.origin.items()) / (time.monotonic() - self.began)
        left = sum(max(run.steps - self.at[run], 0) for run in self.open())
        return {
            "done": f"{done}/{len(self.runs)}",
            "running": str(len(running)),
            "diverged": str(diverged),
            "failed": str(kinds.total()),
            "steps/s": f"{speed:,.0f}" if speed > 0 else "",
            "time left": duration(left / speed) if speed > 0 else "",
        }


def work(tally: Tally, launcher: launchers.Launcher) -> bool:
    """Wait until every run has ended; return False if a signal ended it before."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    console, due = Console(), 0.0
    with told_to_stop() as stop:
        table = Live(console=console, auto_refresh=False)
        with table if console.is_terminal else contextlib.nullcontext():
            while tally.open() and not stop:
                for run, code in launcher.poll():
                    tally.end(run, code)
                if time.monotonic() >= due:
                    state = tally.state()
                    if console.is_terminal:
                        rows = Table(*state, title=str(tally.folder), title_justify="left")
                        rows.add_row(*state.values())
                        table.update(rows, refresh=True)
                    else:
                        say("  ".join(f"{name} {value}" for name, value in state.items() if value))
                    due = time.monotonic() + (SHOW if console.is_terminal else PLAIN)
                time.sleep(POLL)
            if stop:
                end_runs(launcher)
    return not stop


@contextlib.contextmanager
def told_to_stop() -> Iterator[list[int]]:
    """Heed the signals that end a program: they are collected, for the loop that looks whether there are any."""
    stop: list[int] = []
    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup wants it
        ends.append(signal.SIGHUP)  # of a terminal that is gone
    before = {n: signal.signal(n, lambda number, frame: stop.append(number)) for n in ends}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_runs(launcher: launchers.Launcher) -> None:
    """Let the runs save and end; a second Ctrl-C does not wait for it."""
    say("ending the runs at their next checkpoint; the same command goes on")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    launcher.stop()


def ending(code: int) -> str:
    """Return in words how a process ended that was not done."""
    if code >= 0:
        return f"exit code {code}"
    names = {known.value: known.name for known in signal.Signals}
    return f"killed by {names.get(-code, f'signal {-code}')}" + ", out of memory?" * (-code == signal.SIGKILL)


def report(tally: Tally) -> int:
    """Say what came of it, with the end of the logs of runs that crashed; return the exit code."""
    state = tally.state()
    words = ", ".join(f"{state[word]} {word}" for word in ("done", "diverged", "failed"))
    say(f"{words}; {tally.found} were finished before; {duration(time.monotonic() - tally.began)}")
    failed = [run for run, code in tally.codes.items() if code not in (DONE, DIVERGED)]
    for number, run in enumerate(failed):
        path = log_path(tally.folder, run.name)
        complain("\n" * (number <= TAILS) + f"{run.name}: {ending(tally.codes[run])}, {path}")
        if (lines := log_end(tally.folder, run.name)) and number < TAILS:
            complain(*lines)
    if not failed:
        say(f"next  hesscale-rl plot sensitivity {tally.folder}")
    return FAILED if failed else DONE


def sweep(args: argparse.Namespace) -> int:
    """Carry out the sweep and return the exit code."""
    check_launcher(args)
    args.spec = locate(args.spec)
    from hesscale_rl.scripts.sweeping import spec as grid

    runs = grid.read(args.spec, here=args.launcher == "local", fetch=not args.dry_run)
    if args.dry_run:
        say(*(run.name for run in runs))
        return DONE
    from hesscale_rl.runs.directory import write_json
    from hesscale_rl.system.locks import lock

    launcher = make_launcher(args)
    folder = Path(args.dir or Path("sweeps", args.spec.stem)).resolve()
    steps = {run.name: run.steps for run in runs}
    asked = {"spec": str(args.spec), "runs": [*steps], "steps": steps}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = lock(folder, f"--dir {folder}: another sweep is at work there")
        write_json(folder / "sweep.json", asked)
    except OSError as error:
        raise InputError(f"--dir {folder}: cannot be written ({error.strerror})") from None
    try:
        compile_loops()
        tally = Tally(runs, folder)
        launcher.begin(tally.open(), folder)
        return report(tally) if work(tally, launcher) else INTERRUPTED
    finally:
        own.release()


def compile_loops() -> None:
    """Compile the loops before many processes want them."""
    from hesscale_rl.compiled.cache import ready

    ready()


def check_launcher(args: argparse.Namespace) -> None:
    """Raise InputError for options that are not the launcher's own, or cannot be."""
    ray, slurm = args.launcher == "ray", args.launcher not in ("local", "ray")
    own = {"--ray-address": ray, "--time-limit": slurm, "--slurm": slurm, "-j": not ray}
    given = (args.ray_address, args.time_limit, args.slurm and " ".join(args.slurm), args.jobs)
    for (flag, fits), value in zip(own.items(), given, strict=True):
        if value is not None and not fits:
            raise InputError(f"{flag} {value}: is not for --launcher {args.launcher}; leave it out")
        if isinstance(value, int) and value < 1:
            raise InputError(f"{flag} {value}: must be at least 1")
    for pair in args.slurm or []:
        if not all(pair.partition("=")[:2]):
            raise InputError(f"--slurm {pair}: must be NAME=VALUE, one of sbatch's options")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_launcher(args: argparse.Namespace) -> launchers.Launcher:
    """Return the launcher that is asked for."""
    from hesscale_rl.scripts.sweeping import launchers

    if args.launcher == "local":
        return launchers.Local(args.jobs or cores())
    if args.launcher == "ray":
        return launchers.OnRay(args.ray_address)
    options: dict[str, Any] = {"timeout_min": args.time_limit or 240}
    for pair in args.slurm or []:
        name, _, value = pair.partition("=")
        options[f"slurm_{name.replace('-', '_')}"] = int(value) if value.isdigit() else value
    return launchers.OnSlurm(args.jobs, args.launcher.removeprefix("submitit-"), options)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """Obey Ctrl-C at once: what is being imported might swallow a KeyboardInterrupt."""
    os._exit(INTERRUPTED)


def add_launcher(parser: Parser) -> None:
    """Add the flags that say where runs are carried out."""
    parser.add_argument("-j", "--jobs", type=int, help="runs at once; default one a core, of Slurm any number")
    parser.add_argument(
        "--launcher",
        default="local",
        choices=("local", "ray", "slurm", "submitit-local", "submitit-debug"),
        help="processes here, Ray, or Slurm by submitit (whose local and debug executors are for trying out)",
    )
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="of a Ray cluster; default one on this machine")
    parser.add_argument("--time-limit", type=int, metavar="MINUTES", help="of a Slurm job; default 240")
    parser.add_argument("--slurm", nargs="+", metavar="NAME=VALUE", help="options of sbatch: partition=cpu")


def obey_launching(parser: Parser, act: Callable[[argparse.Namespace], int]) -> int:
    """Parse the command line and act; Ctrl-C is obeyed at once until there are runs to be ended."""
    before = signal.signal(signal.SIGINT, leave)
    try:
        # A second Ctrl-C does not wait for the runs.
        return obey(parser, act, "interrupted; the same command goes on from the runs' last checkpoints")
    finally:
        signal.signal(signal.SIGINT, before)


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl sweep", __doc__)
    parser.add_argument("spec", type=Path, help="a TOML or Python file, or the name of one that comes along")
    parser.add_argument("--dir", type=Path, help="where the runs are; default sweeps/NAME OF SPEC")
    add_launcher(parser)
    parser.add_argument("--dry-run", action="store_true", help="list the runs and do nothing")
    return obey_launching(parser, sweep)


if __name__ == "__main__":
    sys.exit(main())
