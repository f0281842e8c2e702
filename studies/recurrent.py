"""Whether AdaHesScale trains an LSTM, whose diagonal goes back through time, beside Adam.

    hesscale-rl recurrent [-o OUT]

Tasks that need memory. "short-recall" and "recall": sequences of 10 and of 20 symbols, of which the first is asked
for after the last. "rows": images of Fashion-MNIST, read row by row, and their class asked for after the last. Every
optimizer learns with each step size on a seed of its own; the one with the smallest mean loss over all updates is
taken, and learns again on other seeds: these are the result. Writes OUT.csv, a run at a time, so that the same
command goes on where it stopped, and OUT.png and a table on stdout at the end.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hesscale_rl.errors import DONE
from hesscale_rl.runs.command_line import Parser, obey, path_text
from hesscale_rl.scripts.analysis.panels import LOOKS, check_output, target, write
from hesscale_rl.scripts.sweep import duration
from hesscale_rl.studies.approximation_quality import caption, figure_bytes
from hesscale_rl.system.console import complain, say

if TYPE_CHECKING:  # torch takes its time to import, and --help is to answer at once
    from torch import Tensor, nn

OPTIMIZERS = ("adam", "adahesscale")
STEP_SIZES = (1e-3, 3e-3, 1e-2, 3e-2)
TUNING, SEEDS = (100,), (0, 1, 2)  # on which the step size is chosen, and which are the result
POINTS = 20  # of a curve: means of the loss over as many equal parts of the updates
COLUMNS = ("task", "optimizer", "step_size", "seed", "accuracy", *(f"loss_{k}" for k in range(1, POINTS + 1)))
SYMBOLS = 8  # that may be asked for, and as many others
TESTS = 1000  # sequences
IMAGES = 10_000  # to learn from
DIVERGED = math.log(10)  # what a run counts from where its loss is not finite: the loss of a guess

Batches = Callable[[int, "Any"], tuple["Tensor", "Tensor"]]  # of a size, by a generator


@dataclass(frozen=True)
class SequenceTask:
    """What is learned: steps, numbers in a step, units, classes, the size of a batch and how many there are."""

    steps: int
    inputs: int
    units: int
    classes: int
    batch: int
    updates: int


TASKS = {
    "short-recall": SequenceTask(steps=10, inputs=2 * SYMBOLS, units=32, classes=SYMBOLS, batch=32, updates=800),
    "recall": SequenceTask(steps=20, inputs=2 * SYMBOLS, units=32, classes=SYMBOLS, batch=32, updates=800),
    "rows": SequenceTask(steps=28, inputs=28, units=64, classes=10, batch=64, updates=600),
}


def recall(steps: int, count: int, generator: Any) -> tuple[Tensor, Tensor]:
    """Return sequences [count, steps, 2 SYMBOLS], one-hot, and which of the first SYMBOLS each begins with."""
    import torch

    first = torch.randint(SYMBOLS, (count, 1), generator=generator)
    others = torch.randint(SYMBOLS, 2 * SYMBOLS, (count, steps - 1), generator=generator)
    return torch.nn.functional.one_hot(torch.cat([first, others], 1), 2 * SYMBOLS).float(), first[:, 0]


def rows(data_dir: str | None) -> tuple[Batches, tuple[Tensor, Tensor]]:
    """Return batches of images [count, 28, 28] with their labels, and those for tests."""
    import torch

    from hesscale_rl.scripts.supervised_tasks import data

    parts = data.split(data.FASHION, data_dir)
    x, labels = parts.train.inputs[:IMAGES, 0].clone(), parts.train.labels[:IMAGES].clone()
    tests = parts.test.inputs[:, 0].clone(), parts.test.labels.clone()

    def batch(count: int, generator: Any) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (count,), generator=generator)
        return x[chosen], labels[chosen]

    return batch, tests


def sequences(name: str, data_dir: str | None) -> tuple[Batches, tuple[Tensor, Tensor]]:
    """Return what a task is learned from, and what it is tested on."""
    import torch

    if name == "rows":
        return rows(data_dir)
    made = partial(recall, TASKS[name].steps)
    return made, made(TESTS, torch.Generator().manual_seed(10_000))


def network(task: SequenceTask) -> nn.Module:
    """Return an LSTM and a linear layer on its last output; the forget gates begin open (a bias of 1)."""
    import torch
    from torch import nn

    class LastStep(nn.Module):
        """The classes of a sequence."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(task.inputs, task.units, batch_first=True)
            self.head = nn.Linear(task.units, task.classes)
            with torch.no_grad():
                dict(self.lstm.named_parameters())["bias_ih_l0"][task.units : 2 * task.units] += 1.0

        def forward(self, x: Tensor) -> Tensor:
            """Return logits [N, classes] of x [N, T, inputs]."""
            outputs, _ = self.lstm(x)
            return self.head(outputs[:, -1])

    return LastStep()


def learn(
    task: SequenceTask, given: tuple[Batches, tuple[Tensor, Tensor]], optimizer: str, step_size: float, seed: int
) -> Any:
    """Return the training loss of every update [updates], and the share of the tests that is right at the end."""
    import torch

    import hesscale_rl as hs

    torch.manual_seed(seed)
    net, (batches, (x_test, y_test)) = network(task), given
    step, curvature = hs.make_optimizer(optimizer, net.parameters(), lr=step_size)
    generator, losses = torch.Generator().manual_seed(seed), np.full(task.updates, DIVERGED)
    for k in range(task.updates):
        x, labels = batches(task.batch, generator)
        step.zero_grad()
        if curvature is None:  # the same numbers up to rounding, and faster
            value = torch.nn.functional.cross_entropy(net(x), labels)
            value.backward()
        else:
            value = hs.backward(net, x, hs.losses.CrossEntropy(labels), curvature).value
        losses[k] = float(value.detach())
        if not math.isfinite(losses[k]):
            losses[k:] = DIVERGED
            return losses, 1 / task.classes
        step.step()
    with torch.no_grad():
        accuracy = float((net(x_test).argmax(1) == y_test).double().mean())
    return losses, accuracy


Runs = dict[tuple[str, str, float, int], "Curve"]


@dataclass(frozen=True)
class Curve:
    """What one run gave: the means of its loss over POINTS parts of the updates, and its accuracy at the end."""

    losses: tuple[float, ...]
    accuracy: float

    @property
    def mean(self) -> float:
        """The mean loss over all updates, by which a step size is chosen."""
        return float(np.mean(self.losses))


def read(path: Path) -> Runs:
    """Return the runs of a file that an earlier call has written."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            (row["task"], row["optimizer"], float(row["step_size"]), int(row["seed"])): Curve(
                tuple(float(row[name]) for name in COLUMNS[5:]), float(row["accuracy"])
            )
            for row in csv.DictReader(file)
        }


def content(runs: Runs) -> bytes:
    """Return the runs as CSV."""
    writer = csv.writer(file := io.StringIO(), lineterminator="\n")
    writer.writerow(COLUMNS)
    for key, run in sorted(runs.items()):
        writer.writerow((*key, f"{run.accuracy:.4f}", *(f"{loss:.6g}" for loss in run.losses)))
    return file.getvalue().encode()


def best(runs: Runs, task: str, optimizer: str) -> float:
    """Return the step size with the smallest mean loss on the seeds for tuning."""
    return min(STEP_SIZES, key=lambda rate: np.mean([runs[task, optimizer, rate, seed].mean for seed in TUNING]))


def wanted(runs: Runs, tasks: list[str]) -> Iterator[tuple[str, str, float, int]]:
    """Give the runs one after the other; those for the result follow from what tuning has given by then."""
    for task in tasks:
        for optimizer in OPTIMIZERS:
            yield from ((task, optimizer, rate, seed) for rate in STEP_SIZES for seed in TUNING)
            yield from ((task, optimizer, best(runs, task, optimizer), seed) for seed in SEEDS)


def table(runs: Runs, tasks: list[str]) -> list[str]:
    """Return what the best step sizes gave, as a Markdown table: means of the seeds, the least and the largest."""
    lines = ["| task | optimizer | step size | mean loss | last loss | right at the end |", "|---" * 6 + "|"]
    for task in tasks:
        for optimizer in OPTIMIZERS:
            rate = best(runs, task, optimizer)
            own = [runs[task, optimizer, rate, seed] for seed in SEEDS]
            parts = [[run.mean for run in own], [run.losses[-1] for run in own], [100 * run.accuracy for run in own]]
            cells = [f"{np.mean(v):.3g} ({min(v):.3g}, {max(v):.3g})" for v in parts]
            lines.append(f"| {task} | {optimizer} | {rate:g} | {cells[0]} | {cells[1]} | {cells[2]} % |")
    return lines


def draw(runs: Runs, tasks: list[str], words: str) -> Any:
    """Return the figure: for each task the loss while learning, and the mean loss against the step size."""
    import textwrap

    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4 * len(tasks) + 0.5), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False)
    for task, (curve, sizes) in zip(tasks, panels, strict=True):
        updates = TASKS[task].updates / POINTS * (np.arange(POINTS) + 0.5)
        for optimizer in OPTIMIZERS:
            colour, marker = LOOKS[optimizer]
            rate = best(runs, task, optimizer)
            own = np.array([runs[task, optimizer, rate, seed].losses for seed in SEEDS])
            curve.plot(updates, own.mean(0), color=colour, marker=marker, ms=3, label=f"{optimizer}, {rate:g}")
            curve.fill_between(updates, own.min(0), own.max(0), color=colour, alpha=0.15, lw=0)
            tuned = np.array([[runs[task, optimizer, r, seed].mean for seed in TUNING] for r in STEP_SIZES])
            sizes.plot(STEP_SIZES, tuned.mean(1), color=colour, marker=marker, ms=3, label=optimizer)
            sizes.plot(STEP_SIZES, tuned, color=colour, marker=marker, ms=2, lw=0, alpha=0.5)
        curve.set(title=f"{task}: each at its best step size", xlabel="updates", ylabel="training loss", yscale="log")
        sizes.set(title=f"{task}: step sizes, on the seeds for tuning", xlabel="step size", xscale="log")
        sizes.set(ylabel="mean training loss of all updates", yscale="log")
        curve.legend()
        sizes.legend()
    figure.supxlabel(textwrap.fill(words, 175), x=0.01, ha="left", fontsize=6.5)
    return figure


def carry_out(args: argparse.Namespace) -> int:
    """Carry out what is not yet in the file; return the exit code."""
    import torch

    output = target(args.output, "recurrent")
    check_output(output)
    torch.set_num_threads(1)
    path = Path(f"{output}.csv")
    runs, given = read(path), {task: sequences(task, args.data_dir) for task in args.tasks}
    began, done = time.monotonic(), 0
    for key in wanted(runs, args.tasks):
        if key in runs:
            continue
        task, optimizer, rate, seed = key
        losses, accuracy = learn(TASKS[task], given[task], optimizer, rate, seed)
        runs[key] = Curve(tuple(losses.reshape(POINTS, -1).mean(1).tolist()), accuracy)
        write({path: content(runs)})
        done += 1
        each = duration((time.monotonic() - began) / done)
        complain(f"{task} {optimizer} {rate:g} seed {seed}: loss {runs[key].mean:.3g}, {accuracy:.3f}; {each} a run")
    parts = [f"LSTM; mean and range of {len(SEEDS)} seeds; step sizes chosen on {len(TUNING)} other"]
    write({Path(f"{output}.png"): figure_bytes(lambda: draw(runs, args.tasks, caption(parts, "recurrent")))})
    complain(f"wrote {output}.png and {path}")
    say(*table(runs, args.tasks))
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    flags = Parser("hesscale-rl recurrent", __doc__)
    flags.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="only these (all)")
    flags.add_argument("--data-dir", type=path_text, metavar="DIR", help="where Fashion-MNIST's four files are")
    flags.add_argument("-o", "--output", type=path_text, metavar="OUT", help="write OUT.png and OUT.csv (recurrent)")
    return obey(flags, carry_out, "interrupted; the runs so far are kept, and the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
