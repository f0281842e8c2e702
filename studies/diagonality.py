"""How diagonal the Hessians are that HesScale takes as diagonal: table 1 and figure 3 of Elsayed et al. 2024.

    hesscale-rl diagonality --data digits [-o OUT]

rho(A) = |diag(A)| / |A| in the Frobenius norm, 1 for a diagonal matrix, of the Hessian of the loss over the
pre-activations of each layer of a tanh network with four hidden layers, before and after training by Adam. It is
measured on one batch of training examples in two ways, because the paper does not say which it means: of each
example's Hessian, averaged over the examples, and of the mean of these Hessians. Writes OUT.png, OUT.csv and a table
on stdout.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.command_line import obey
from hesscale_rl.scripts.analysis.curves import Array
from hesscale_rl.scripts.supervised_tasks import data
from hesscale_rl.scripts.sweep import duration
from hesscale_rl.studies.approximation_quality import caption, check_common, common_flags, interval, network, save
from hesscale_rl.system.console import complain, say

if TYPE_CHECKING:  # torch takes its time to import, and --help is to answer at once
    from torch import Tensor, nn

HIDDEN = [128] * 4
PHASES = ("before", "after")  # training
EACH, MEAN = "each example", "mean of the batch"  # whose Hessian


def rho(a: Tensor) -> Tensor:
    """Return |diag(A)| / |A| in the Frobenius norm of matrices A [..., d, d], [...]."""
    return a.diagonal(dim1=-2, dim2=-1).norm(dim=-1) / a.flatten(-2).norm(dim=-1)


def hessians(net: nn.Sequential, x: Tensor, labels: Tensor) -> list[Tensor]:
    """Return each example's Hessian of the loss over the outputs of every linear layer, each [N, d, d].

    `x` [N, inputs], `labels` [N]. Over pre-activations it is the Hessian over the layer's bias.
    """
    import torch

    import hesscale_rl as hs

    params = {name: p.detach() for name, p in net.named_parameters()}

    def blocks(x: Tensor, label: Tensor) -> list[Tensor]:
        found = hs.value_grad_curvature(net, params, x[None], hs.losses.CrossEntropy(label[None]), hs.HBP()).curvature
        return [found[name].dense() for name in params if name.endswith("bias")]

    return torch.func.vmap(blocks)(x, labels)


def measure(net: nn.Sequential, x: Tensor, labels: Tensor) -> dict[str, Array]:
    """Return rho of every layer in both ways, each [layers]."""
    every = hessians(net, x, labels)
    return {
        EACH: np.array([float(rho(h).mean()) for h in every]),
        MEAN: np.array([float(rho(h.mean(0))) for h in every]),
    }


def train(
    net: nn.Sequential, x: Tensor, labels: Tensor, iterations: int, batch: int, step_size: float, seed: int
) -> nn.Sequential:
    """Train `net` by Adam on random batches and return it, in float64 again: there are fast loops for float32."""
    import torch

    import hesscale_rl as hs

    net, x = net.float(), x.float()
    optimizer, _ = hs.make_optimizer("adam", net.parameters(), lr=step_size)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(iterations):
        now = torch.randint(len(x), (batch,), generator=generator)
        hs.backward(net, x[now], hs.losses.CrossEntropy(labels[now]))
        optimizer.step()
        optimizer.zero_grad()
    return net.double()


def run(args: argparse.Namespace) -> tuple[dict[str, dict[str, Array]], dict[str, list[Tensor]]]:
    """Carry out all runs. Return the numbers, by phase and by what was measured, and the first run's Hessians.

    The numbers are [runs, layers] for rho and [runs] for the loss and accuracy over all examples.
    """
    import torch

    torch.set_num_threads(1)
    given = data.load(args.data, args.data_dir, args.seed)
    x, labels = given.inputs.flatten(1), given.labels
    if args.batch > len(x):
        raise InputError(f"--batch {args.batch}: {args.data} has {len(x)}")
    found: dict[str, list[dict[str, Any]]] = {phase: [] for phase in PHASES}
    shown: dict[str, list[Tensor]] = {}
    began = time.monotonic()
    for k in range(args.runs):
        net = network([x.shape[1], *HIDDEN, data.CLASSES], args.init, args.seed + k)
        batch = torch.randperm(len(x), generator=torch.Generator().manual_seed(args.seed + k))[: args.batch]
        for phase in PHASES:
            if phase == "after":
                net = train(net, x, labels, args.iterations, args.batch, args.step_size, args.seed + k)
            with torch.no_grad():
                y = net(x)
            loss, hits = -y.log_softmax(1)[range(len(x)), labels].mean(), (y.argmax(1) == labels).double().mean()
            numbers = {"training loss": loss.numpy(), "training accuracy": hits.numpy()}
            found[phase].append(measure(net, x[batch], labels[batch]) | numbers)
            if not all(np.isfinite(values).all() for values in found[phase][-1].values()):
                raise InputError(f"--step-size {args.step_size:g}: training diverged; take a smaller one")
            if k == 0:
                shown[phase] = hessians(net, x[batch], labels[batch])
        left = duration((time.monotonic() - began) / (k + 1) * (args.runs - k - 1))
        complain(f"run {k + 1} of {args.runs}: training loss {loss:.3g}, accuracy {hits:.3f}; {left} left")
    every = {phase: {name: np.array([one[name] for one in own]) for name in own[0]} for phase, own in found.items()}
    return every, shown


def gaussian(d: int, runs: int, seed: int) -> Array:
    """Return rho of `runs` matrices [d, d] of independent normal numbers; about 1/sqrt(d)."""
    import torch

    numbers = torch.randn(runs, d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rho(numbers).numpy()


def rows(found: dict[str, dict[str, Array]], reference: Array) -> list[tuple[str, str, str, Array]]:
    """Return phase, what, layer and the values of all runs [runs] of everything that was measured."""
    out = []
    for phase, own in found.items():
        for what, values in own.items():
            if values.ndim == 1:
                out.append((phase, what, "", values))
            else:
                layers = [*map(str, range(1, values.shape[1])), "outputs"]
                out += [(phase, what, layer, values[:, i]) for i, layer in enumerate(layers)]
    return [*out, ("", "random Gaussian matrix", "", reference)]


def numbers(every: list[tuple[str, str, str, Array]]) -> bytes:
    """Return all numbers as CSV."""
    lines: list[tuple[Any, ...]] = [("phase", "what", "layer", "mean", "low", "high", *range(len(every[0][3])))]
    for *head, values in every:
        ends = ("" if np.isnan(end) else f"{end:.6g}" for end in interval(values))
        lines.append((*head, *ends, *(f"{value:.6g}" for value in values)))
    csv.writer(file := io.StringIO(), lineterminator="\n").writerows(lines)
    return file.getvalue().encode()


def table(every: list[tuple[str, str, str, Array]]) -> list[str]:
    """Return rho by layer as a Markdown table."""
    cells: dict[str, list[str]] = {}
    for phase, what, layer, values in every:
        mean, low, high = interval(values)
        text = f"{mean:.2f}" + f" ({low:.2f}, {high:.2f})" * (not np.isnan(low))
        if layer:
            cells.setdefault(layer, []).append(text)
        elif not phase:
            cells[what] = [text] * 4
    order = [f"{what}, {phase}" for phase in PHASES for what in (EACH, MEAN)]
    lines = [f"| layer | {' | '.join(order)} |", "|---" * 5 + "|"]
    return lines + [f"| {layer} | {' | '.join(texts)} |" for layer, texts in cells.items()]


def draw(shown: dict[str, list[Tensor]], words: str) -> Any:
    """Return the figure: |Hessian| of one run by layer, of one example and of the mean, before and after training."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    kinds = [(phase, what) for what in (EACH, MEAN) for phase in PHASES]
    layers = len(HIDDEN)
    figure = Figure(figsize=(10, 10.6), layout="constrained")
    grid = figure.subplots(len(kinds), layers)
    # Few shades and no smoothing: the file would be four times larger otherwise.
    norm, shades = LogNorm(1e-3, 1, clip=True), colormaps["viridis"].resampled(24)
    for (phase, what), line in zip(kinds, grid, strict=True):
        for i, axes in enumerate(line):
            h = shown[phase][i]
            size = (h[0] if what == EACH else h.mean(0)).abs().numpy()
            # Relative to the largest entry, so that layers and phases of very different size compare.
            picture = axes.imshow(size / size.max(), norm=norm, cmap=shades, interpolation="nearest")
            share = float(rho(h[0] if what == EACH else h.mean(0)))
            axes.set_title(f"layer {i + 1}: ρ = {share:.2f}")
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
        line[0].set_ylabel(f"{'one example' if what == EACH else what}\n{phase} training")
    figure.colorbar(picture, ax=grid, shrink=0.4, aspect=40, label="|entry| / the largest of its matrix")
    figure.supxlabel(textwrap.fill(words, 175), x=0.01, ha="left", fontsize=6.5)
    return figure


def carry_out(args: argparse.Namespace) -> int:
    """Carry out the study; return the exit code."""
    from hesscale_rl.runs.arguments import needs

    need = needs(args)
    for flag, least in (("runs", 1), ("batch", 1), ("iterations", 0)):
        need(getattr(args, flag) >= least, flag, f"at least {least}")
    need(0 < args.step_size < np.inf, "step_size", "positive")
    output = check_common(args, f"diagonality_{args.data}")
    found, shown = run(args)
    every = rows(found, gaussian(HIDDEN[0], args.runs, args.seed))
    loss, accuracy = ([float(found[p][f"training {name}"].mean()) for p in PHASES] for name in ("loss", "accuracy"))
    parts = [f"{args.data}, four hidden layers of {HIDDEN[0]}, tanh", "the first of " * (args.runs > 1)]
    parts[1] += f"{args.runs} run{'s' * (args.runs > 1)}"
    parts += [f"a batch of {args.batch}, Adam, step size {args.step_size:g}, {args.iterations:,} iterations"]
    parts += [f"training loss {loss[0]:.2g} to {loss[1]:.2g}, accuracy {accuracy[0]:.2f} to {accuracy[1]:.3f}"]
    save(output, lambda: draw(shown, caption(parts, "diagonality")), numbers(every))
    say(*table(every))
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    flags = common_flags("hesscale-rl diagonality", __doc__)
    flags.add_argument("--runs", type=int, default=30, metavar="N", help="networks (30; the paper: 300)")
    flags.add_argument("--iterations", type=int, default=10_000, metavar="N", help="of training (10000)")
    flags.add_argument("--batch", type=int, default=32, metavar="N", help="examples to train and measure with (32)")
    flags.add_argument("--step-size", type=float, default=1e-3, help="of Adam (0.001)")
    return obey(flags, carry_out, "interrupted; nothing is written")


if __name__ == "__main__":
    sys.exit(main())
