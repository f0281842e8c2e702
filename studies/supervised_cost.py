"""The time and memory of an update of the papers' supervised tasks at full size, on noise of their images' shapes.

    hesscale-rl supervised-cost                             8 tasks, 12 optimizers; hours
    hesscale-rl supervised-cost --tasks mnist-mlp --optimizers adam kfac
    hesscale-rl supervised-cost --small                     the small twins, on 8 by 8 images; minutes

Every optimizer takes 20 updates of every task with the task's batch size and its own default settings, on one thread,
in a process of its own. The numbers are kept in the file -o, a row at a time: the same command goes on where it
stopped, several share a file, and at the end each prints its numbers as tables.

Time is that of the processor, so that what else runs counts less: the median and the mean of the updates after the
first; the mean because K-FAC inverts in one update of ten. Memory is measured in two more updates in another process,
which gives back what it frees: the rise of the peak resident size from where the network and the images are there, by
gradients, activations, curvature, the optimizer's averages and what is only held on the way.
Where the loss is not finite, or the curvature allows no step, the network and the optimizer begin anew, and the row
says at which update that was first; such updates are not in the times. An optimizer that cannot, or that needs more
than --memory, has a row that says why.
"""

import argparse
import contextlib
import copy
import csv
import io
import math
import operator
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from hesscale_rl.errors import DONE, Diverged, InputError
from hesscale_rl.runs.command_line import Parser, obey, path_text
from hesscale_rl.scripts.supervised import (
    Args,
    check_curvature,
    fill,
    make_optimizer,
    update,
)
from hesscale_rl.scripts.supervised_tasks.tasks import SMALL, TASKS, is_taped
from hesscale_rl.studies.memory import fresh_processes, keep_nothing, limit, memory_errors, peak
from hesscale_rl.system.console import say

Row = dict[str, str]
KEYS = ("task", "data", "optimizer")
COLUMNS: tuple[str, ...] = (*KEYS, "parameters", "batch", "updates", "seconds", "mean_seconds", "mib")
COLUMNS += ("first_loss", "largest_loss", "diverged", "reason")
MORE = ("scaled-adam", "scaled-adahesscale")  # measured unless told otherwise, with those whose steps are not scaled
BASELINE = "adam"
OUTPUT = "supervised_cost.csv"


def trial(
    task_name: str, small: bool, optimizer_name: str, updates: int, gib: float, for_memory: bool = False
) -> dict[str, Any]:
    """Measure one optimizer on one task, in this process; return the numbers of its row.

    `gib`: what it may take above the network and the images. `for_memory`: so that "mib" is exact, at the price of
    the times.
    """
    import torch

    from hesscale_rl.scripts.supervised_tasks.data import noise

    if for_memory:
        keep_nothing()
    torch.manual_seed(1)
    args = fill(Args(task=task_name, data=SMALL if small else None, optimizer=optimizer_name))
    task, data, size = TASKS[task_name], args.data or SMALL, args.batch_size or 1
    images, net = noise(data, size * updates), task.network(data)
    start = copy.deepcopy(net.state_dict())
    optimizer, curvature = make_optimizer(args, net)
    taped = is_taped(net)
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in net.parameters()), "batch": size, "updates": updates}
    try:
        check_curvature(args, net, curvature, taped, images.inputs)
    except InputError as error:
        return row | {"reason": str(error)}
    before, times, losses, diverged = limit(1024 * gib), [], [], 0
    for k, (x, labels) in enumerate(zip(images.inputs.split(size), images.labels.split(size), strict=True), 1):
        began = time.process_time()
        try:
            with memory_errors():
                loss, _ = update(net, optimizer, curvature, taped, x, task.loss(x, labels))
        except MemoryError:
            return row | {"reason": f"out of memory: more than {gib:g} GiB"}
        except Diverged:
            loss = math.nan
        if math.isfinite(loss):
            times.append(time.process_time() - began)
            losses.append(loss)
            continue
        diverged = diverged or k
        net.load_state_dict(start)
        optimizer, curvature = make_optimizer(args, net)
    row |= {"mib": peak() - before}
    if len(times) < 2:
        return row | {"diverged": diverged, "reason": "no update but the first could be timed"}
    row |= {"seconds": statistics.median(times[1:]), "mean_seconds": statistics.mean(times[1:])}
    row |= {"first_loss": losses[0], "largest_loss": max(losses)}
    return row | ({"diverged": diverged} if diverged else {})


def key_of(row: Row) -> tuple[str, ...]:
    """Return what tells a row from the others."""
    return tuple(row[key] for key in KEYS)


def read(path: Path, updates: int) -> list[Row]:
    """Return the rows that the file has; InputError if it is another table, or of another number of updates."""
    if not path.exists():
        return []
    try:
        with open(path, newline="") as file:
            table = csv.DictReader(file)
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"-o {path}: cannot be read ({error}); name another file") from None
    if tuple(table.fieldnames or ()) != COLUMNS:
        raise InputError(f"-o {path}: holds another table; name another file")
    if others := {row["updates"] for row in rows} - {str(updates)}:
        raise InputError(f"-o {path}: its rows are of {others.pop()} updates; give --updates, or name another file")
    return rows


def save(path: Path, rows: list[Row]) -> None:
    """Write all rows; the file is replaced as a whole."""
    from hesscale_rl.runs.directory import atomic_write

    table = csv.DictWriter(text := io.StringIO(), COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    try:
        atomic_write(path, text.getvalue().encode())
    except OSError as error:
        raise InputError(f"-o {path}: cannot be written ({error.strerror})") from None


def tables(rows: list[Row]) -> str:
    """Return a table of times and one of memory, with ratios to BASELINE, and what was left out or diverged."""
    tasks = {row["task"]: f"{row['task']} ({row['batch']})" for row in rows}
    cells = {(row["optimizer"], row["task"]): row for row in rows}
    parts = []
    for title, column, form in (("s", "seconds", ".3g"), ("mean s", "mean_seconds", ".3g"), ("MiB", "mib", ",.0f")):
        lines = [f"| {title} | " + " | ".join(tasks.values()) + " |", "|---" * (len(tasks) + 1) + "|"]
        for optimizer in dict.fromkeys(row["optimizer"] for row in rows):
            line = [optimizer]
            for task in tasks:
                own, base = (cells.get((name, task), {}).get(column, "") for name in (optimizer, BASELINE))
                ratio = f" ({float(own) / float(base):.2f})" if own and base and optimizer != BASELINE else ""
                line.append(f"{float(own):{form}}{ratio}" if own else "")
            lines.append(f"| {' | '.join(line)} |")
        parts.append("\n".join(lines))
    notes = []
    for row in rows:
        if row["diverged"]:
            loss = f", the largest loss before was {float(row['largest_loss']):.3g}" if row["largest_loss"] else ""
            notes.append(f"{row['task']}, {row['optimizer']}: diverged at update {row['diverged']}{loss}")
        if row["reason"]:
            notes.append(f"{row['task']}, {row['optimizer']}: {row['reason']}")
    return "\n\n".join([*parts, *(["\n".join(f"* {note}" for note in notes)] if notes else [])])


def tell(row: Row) -> str:
    """Return a row as one line."""
    if row["reason"]:
        return f"{row['task']}  {row['optimizer']}  {row['reason']}"
    line = f"{row['task']}  {row['optimizer']}  {float(row['seconds']):.3g} s  {float(row['mib']):,.0f} MiB"
    return line + (f"  diverged at update {row['diverged']}" if row["diverged"] else "")


def measure_all(args: argparse.Namespace) -> int:
    """Measure what the file lacks, and print its tables; return the exit code."""
    import torch

    from hesscale_rl.optim import names
    from hesscale_rl.runs.machine import cpu

    tasks = args.tasks or [*TASKS]
    optimizers = args.optimizers or [*(name for name, found in names().items() if not found.scaled), *MORE]
    for flag, given, allowed in (
        ("tasks", tasks, [*TASKS]),
        ("optimizers", optimizers, [*names()]),
    ):
        for name in given:
            if name not in allowed:
                raise InputError(f"--{flag} {name}: there is {', '.join(allowed)}")
    if args.updates < 2:
        raise InputError(f"--updates {args.updates}: must be at least 2, the first of which is not in the times")
    if not 0 < args.memory < math.inf:
        raise InputError(f"--memory {args.memory:g}: must be a positive number of GiB")
    path = Path(args.output)
    rows = read(path, args.updates)
    save(path, rows)  # where that fails nothing needs to be measured
    say(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, one thread, {cpu()}")
    wanted = [(task, SMALL if args.small else TASKS[task].data, name) for name in optimizers for task in tasks]
    done = {key_of(row) for row in rows}
    missing = [key for key in dict.fromkeys(wanted) if key not in done]
    # Whatever is loaded or compiled once is there before the first process begins.
    warm = [partial(trial, "mnist-mlp", True, name, 2, args.memory) for name in {name for *_, name in missing}]
    warm += [partial(trial, task, True, BASELINE, 2, args.memory) for task in ("cifar10-3c3d", "cifar10-resnet")]
    with fresh_processes(warm, operator.call) if missing else contextlib.nullcontext(operator.call) as measure:
        for task, data, name in missing:
            if (task, data, name) in map(key_of, read(path, args.updates)):
                continue  # by now: another command adds to the same file
            found = measure(partial(trial, task, args.small, name, args.updates, args.memory))
            if "mib" in found:
                held = measure(partial(trial, task, args.small, name, 2, args.memory, True))
                found |= {"mib": held["mib"]} if "mib" in held else {"reason": held["reason"]}
            shown = {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in found.items()}
            row = dict.fromkeys(COLUMNS, "") | {"task": task, "data": data, "optimizer": name} | shown
            save(path, [*read(path, args.updates), row])
            say(tell(row))
    found = {key_of(row): row for row in read(path, args.updates)}
    say(f"\n{tables([found[key] for key in wanted])}")
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl supervised-cost", __doc__)
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these")
    parser.add_argument("--optimizers", nargs="+", metavar="NAME", help="these, in place of the 12 usual ones")
    parser.add_argument("--updates", type=int, default=20, help="of every optimizer and task (%(default)s)")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB that a process may take (%(default)g)")
    parser.add_argument("--small", action="store_true", help="the small twins of the tasks, on 8 by 8 images")
    parser.add_argument(
        "-o", "--output", type=path_text, default=OUTPUT, metavar="FILE", help="the rows, as CSV (%(default)s)"
    )
    return obey(parser, measure_all, "interrupted; the rows so far are kept, and the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
