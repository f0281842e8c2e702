"""How far each diagonal is from the Hessian's own where ways part and meet: an LSTM, a transformer block, a ResNet.

    hesscale-rl approximation-structures [-o OUT]

Small networks in float64 that read digits of 8 by 8 pixels: row by row, as eight tokens, as images. For each layer,
before and after training by Adam, on one minibatch's mean loss: the L1 distance between an estimate and the exact
diagonal (autodiff), divided by the exact one's L1 norm, and the correlation of both over the layer's entries. Writes
OUT.png, OUT.csv and tables on stdout.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hesscale_rl.errors import DONE
from hesscale_rl.runs.command_line import Parser, obey, path_text
from hesscale_rl.scripts.analysis.curves import Array
from hesscale_rl.scripts.analysis.panels import check_output, target
from hesscale_rl.scripts.supervised_tasks import data
from hesscale_rl.scripts.sweep import duration
from hesscale_rl.studies.approximation_quality import caption, save
from hesscale_rl.system.console import complain, say

if TYPE_CHECKING:  # torch takes its time to import, and --help is to answer at once
    from torch import Tensor, nn

    import hesscale_rl as hs

BATCH = 32  # examples, of training and of what is measured
STEP_SIZE = 3e-3  # of Adam
PHASES = ("before", "after")  # training
COLOURS = {"HesScale": "#D55E00", "HesScaleGN": "#E69F00", "BL89": "#56B4E9", "GGN": "#000000", "GGN-MC 1": "#999999"}
COLOURS |= {"Hutchinson 1": "#009E73", "Hutchinson 50": "#0072B2"}


def methods() -> dict[str, hs.Curvature]:
    """Return the estimates by name."""
    import hesscale_rl as hs

    found: dict[str, hs.Curvature] = {"HesScale": hs.HesScale(), "HesScaleGN": hs.HesScaleGN(), "BL89": hs.BL89()}
    found |= {"GGN": hs.GGN(), "GGN-MC 1": hs.GGNMC(1)}
    return found | {f"Hutchinson {samples}": hs.Hutchinson(samples) for samples in (1, 50)}


def lstm() -> nn.Module:
    """Return an LSTM over the eight rows, 16 units, and a linear layer on its last output."""
    from torch import nn

    class ByRows(nn.Module):
        """The classes of images that are read row by row."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, data.CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            """Return logits of x [N, 1, 8, 8]."""
            outputs, _ = self.lstm(x[:, 0])
            return self.head(outputs[:, -1])

    return ByRows()


def transformer() -> nn.Module:
    """Return torch's encoder layer over the eight rows as tokens, width 16, two heads, and logits of their mean."""
    import torch
    from torch import nn

    class Tokens(nn.Module):
        """The classes of images whose rows are tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.positions = nn.Linear(8, 16), nn.Parameter(0.1 * torch.randn(8, 16))
            self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
            self.head = nn.Linear(16, data.CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            """Return logits of x [N, 1, 8, 8]."""
            return self.head(self.block(self.embed(x[:, 0]) + self.positions).mean(1))

    return Tokens()


def resnet() -> nn.Module:
    """Return a convolution, two blocks x + conv(relu(conv(x))) of 4 channels, pooling between, and logits."""
    from torch import nn

    from hesscale_rl.networks import Skip

    def block() -> nn.Module:
        return Skip(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), block(), nn.ReLU(), nn.MaxPool2d(2), block(), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, data.CLASSES))


NETWORKS: dict[str, Callable[[], Any]] = {"LSTM": lstm, "transformer block": transformer, "ResNet": resnet}
# What belongs together, by how the names of its parameters begin.
LAYERS: dict[str, dict[str, tuple[str, ...]]] = {
    "LSTM": {
        "inputs": ("lstm.weight_ih", "lstm.bias_ih"),
        "state": ("lstm.weight_hh", "lstm.bias_hh"),
        "last": ("head",),
    },
    "transformer block": {
        "embedding": ("embed", "positions"),
        "q, k, v": ("block.self_attn.in_proj",),
        "attention's out": ("block.self_attn.out_proj",),
        "norms": ("block.norm",),
        "feed-forward in": ("block.linear1",),
        "feed-forward out": ("block.linear2",),
        "last": ("head",),
    },
    "ResNet": {
        "first": ("0.",),
        "block 1, in": ("2.body.0.",),
        "block 1, out": ("2.body.2.",),
        "block 2, in": ("5.body.0.",),
        "block 2, out": ("5.body.2.",),
        "last": ("9.",),
    },
}


def train(net: nn.Module, x: Tensor, labels: Tensor, updates: int, seed: int) -> None:
    """Train `net` by Adam and autograd on minibatches drawn with `seed`."""
    import torch

    optimizer, generator = torch.optim.Adam(net.parameters(), lr=STEP_SIZE), torch.Generator().manual_seed(seed)
    for _ in range(updates):
        now = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[now]), labels[now]).backward()
        optimizer.step()


def joined(diagonal: dict[str, Tensor], starts: tuple[str, ...]) -> Tensor:
    """Return the entries of the parameters whose names begin so, [n]."""
    import torch

    return torch.cat([d.detach().flatten() for name, d in diagonal.items() if name.startswith(starts)])


def distance(estimate: Tensor, exact: Tensor) -> tuple[float, float]:
    """Return the L1 distance relative to the exact one's norm, and the correlation of both [n]; 0 of a constant."""
    import torch

    error = float((estimate - exact).abs().sum() / exact.abs().sum())
    pair = torch.stack([estimate, exact])
    spread = pair.std(1)
    return error, float(torch.corrcoef(pair)[0, 1]) if bool((spread > 0).all()) else 0.0


@dataclass(frozen=True)
class Row:
    """One number of each kind: of a network, phase, seed, layer and method."""

    network: str
    phase: str
    seed: int
    layer: str
    method: str
    error: float
    correlation: float


def measure(args: argparse.Namespace) -> list[Row]:
    """Train and measure; say on stderr how far it is."""
    import torch

    import hesscale_rl as hs

    torch.set_num_threads(1)
    given = data.load("digits")
    x, labels = given.inputs, given.labels
    found, began = [], time.monotonic()
    for name, make in NETWORKS.items():
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            net = make().double()
            batch = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:BATCH]
            for phase in PHASES:
                if phase == "after":
                    train(net, x, labels, args.updates, seed)
                params = {key: p.detach() for key, p in net.named_parameters()}
                loss = hs.losses.CrossEntropy(labels[batch])
                exact = hs.value_grad_curvature(net, params, x[batch], loss, hs.ExactDiagonal()).curvature
                for method, curvature in methods().items():
                    own = hs.value_grad_curvature(net, params, x[batch], loss, curvature).curvature
                    for layer, starts in LAYERS[name].items():
                        numbers = distance(joined(own, starts), joined(exact, starts))
                        found.append(Row(name, phase, seed, layer, method, *numbers))
                complain(f"{name}, seed {seed}, {phase} training; {duration(time.monotonic() - began)}")
    return found


def mean_of(rows: list[Row], what: str, **wanted: Any) -> Array:
    """Return `what` of the rows whose fields are as `wanted`, [seeds]."""
    return np.array([getattr(row, what) for row in rows if all(getattr(row, k) == v for k, v in wanted.items())])


def table(rows: list[Row]) -> list[str]:
    """Return a Markdown table for each network: relative error and correlation by layer, means over the seeds."""
    lines = []
    for name, layers in LAYERS.items():
        for phase in PHASES:
            lines += ["", f"{name}, {phase} training", "", f"| layer | {' | '.join(methods())} |"]
            lines.append("|---" * (len(methods()) + 1) + "|")
            for layer in layers:
                cells = []
                for method in methods():
                    own = {"network": name, "phase": phase, "layer": layer, "method": method}
                    error, close = (mean_of(rows, what, **own).mean() for what in ("error", "correlation"))
                    cells.append(f"{error:.2g}, {close:.2f}")
                lines.append(f"| {layer} | {' | '.join(cells)} |")
    return lines[1:]


def numbers(rows: list[Row]) -> bytes:
    """Return every number as CSV."""
    writer = csv.writer(file := io.StringIO(), lineterminator="\n")
    writer.writerow(("network", "phase", "seed", "layer", "method", "relative_error", "correlation"))
    for row in rows:
        own = (row.network, row.phase, row.seed, row.layer, row.method)
        writer.writerow((*own, f"{row.error:.6g}", f"{row.correlation:.6g}"))
    return file.getvalue().encode()


def draw(rows: list[Row], words: str) -> Any:
    """Return the figure: a line of panels for each network, the relative error before and after training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.1 * len(NETWORKS) + 0.6), layout="constrained")
    panels = figure.subplots(len(NETWORKS), len(PHASES), squeeze=False, sharey="row")
    for (name, layers), line in zip(LAYERS.items(), panels, strict=True):
        for phase, axes in zip(PHASES, line, strict=True):
            for k, (method, colour) in enumerate(COLOURS.items()):
                at = np.arange(len(layers)) + (k - len(COLOURS) / 2 + 0.5) * 0.11
                own = [
                    mean_of(rows, "error", network=name, phase=phase, layer=layer, method=method) for layer in layers
                ]
                means = np.maximum([values.mean() for values in own], 1e-3)  # an exact one stands at the lower edge
                axes.plot(at, means, "o", ms=4, color=colour, label=method)
                for place, values in zip(at, own, strict=True):
                    axes.plot([place] * 2, np.maximum([values.min(), values.max()], 1e-3), color=colour, lw=1)
            axes.axhline(1, color="#333333", ls="--", lw=1)
            axes.set(yscale="log", title=f"{name}, {phase} training", ylim=(7e-4, None))
            axes.set_xticks(range(len(layers)), layers, rotation=20, ha="right")
            axes.grid(axis="x", visible=False)
        line[0].set_ylabel("L1 error / L1 norm of the exact diagonal")
    panels[0][1].legend(ncols=2, loc="best")
    figure.supxlabel(textwrap.fill(words, 175), x=0.01, ha="left", fontsize=6.5)
    return figure


def carry_out(args: argparse.Namespace) -> int:
    """Carry out the study; return the exit code."""
    from hesscale_rl.runs.arguments import needs

    needs(args)(args.seeds >= 1, "seeds", "at least 1")
    needs(args)(args.updates >= 0, "updates", "at least 0")
    output = target(args.output, "approximation_structures")
    check_output(output)
    rows = measure(args)
    parts = [f"digits, the mean loss of {BATCH} examples; mean and range of {args.seeds} initialisations"]
    parts += [
        f"trained by Adam, step size {STEP_SIZE:g}, {args.updates} updates",
        "at 1: the error of estimating zero",
    ]
    parts += ["at the lower edge: exact"]
    save(output, lambda: draw(rows, caption(parts, "approximation-structures")), numbers(rows))
    say(*table(rows))
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    flags = Parser("hesscale-rl approximation-structures", __doc__)
    flags.add_argument("--seeds", type=int, default=3, metavar="N", help="initialisations of each network (3)")
    flags.add_argument("--updates", type=int, default=300, metavar="N", help="of training (300)")
    flags.add_argument("-o", "--output", type=path_text, metavar="OUT", help="write OUT.png and OUT.csv")
    return obey(flags, carry_out, "interrupted; nothing is written")


if __name__ == "__main__":
    sys.exit(main())
