"""How far each method's diagonal is from the Hessian's own: figures 1 and 2 of the papers on HesScale.

    hesscale-rl approximation --data digits [-o OUT]

For each of many initialisations of one tanh network and each of many examples, one at a time: the L1 distance between
an estimate and the exact diagonal (hesscale_rl.HBP), summed over the parameters of a layer and averaged over the
examples, before training and after SGD with batches of one. Writes OUT.png, OUT.csv and a table on stdout. KFRA and
K-FAC without sampling are left out: for one example they are GGN. K-FAC with drawn labels is GGN-MC with other draws.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.command_line import Parser, obey, path_text
from hesscale_rl.scripts.analysis import curves
from hesscale_rl.scripts.analysis.curves import Array
from hesscale_rl.scripts.analysis.panels import FONTS, check_output, target, write
from hesscale_rl.scripts.supervised_tasks import data
from hesscale_rl.scripts.sweep import duration
from hesscale_rl.system.console import complain, say

if TYPE_CHECKING:  # torch takes its time to import, and --help is to answer at once
    from torch import Tensor, nn

    import hesscale_rl as hs

HIDDEN = {"random": 16, "digits": 32, "mnist": 32}  # units of each of the three hidden layers
REFERENCE, BASE = "|diag H|", "HesScale"  # the error of estimating zero; what the others are divided by
PHASES = {"before": "#0072B2", "after": "#D55E00"}  # of training, with their colours (Okabe and Ito's palette)
CHUNK = 250  # examples at once: more is no faster, and takes more memory
EXACT = 1e-10  # an error below this share of |diag H| is rounding
ALL = "all"  # layers together


def methods() -> dict[str, hs.Curvature]:
    """Return the estimates by name, in the order of the figure."""
    import hesscale_rl as hs

    names: dict[str, hs.Curvature] = {BASE: hs.HesScale(), "HesScaleGN": hs.HesScaleGN(), "GGN": hs.GGN()}
    for samples in (50, 1):
        names |= {f"GGN-MC {samples}": hs.GGNMC(samples), f"K-FAC {samples}": hs.KFAC(samples)}
    names |= {"BL89": hs.BL89(), "squared gradient": hs.SquaredGradient()}
    return names | {f"AdaHessian {samples}": hs.Hutchinson(samples) for samples in (50, 1)}


def network(sizes: list[int], init: str, seed: int) -> nn.Sequential:
    """Return tanh layers of these sizes in float64. `init`: "torch", Kaiming-uniform as nn.Linear has it, or "he"."""
    import torch
    from torch import nn

    from hesscale_rl.networks import mlp

    torch.manual_seed(seed)
    net = mlp(sizes, orthogonal=False)
    if init == "he":
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
    return net.double()


def stack(nets: list[nn.Sequential]) -> dict[str, Tensor]:
    """Return the parameters of K networks by name, each [K, ...]."""
    import torch

    each = [dict(net.named_parameters()) for net in nets]
    return {name: torch.stack([params[name].detach() for params in each]) for name in each[0]}


def sgd(
    net: nn.Module, params: dict[str, Tensor], x: Tensor, labels: Tensor, step_size: float, epochs: int, seed: int
) -> dict[str, Tensor]:
    """Return the parameters [K, ...] after SGD with batches of one, each network with an order of its own."""
    import torch

    import hesscale_rl as hs

    def slope(p: dict[str, Tensor], x: Tensor, label: Tensor) -> dict[str, Tensor]:
        return hs.value_grad_curvature(net, p, x[None], hs.losses.CrossEntropy(label[None])).grad

    slopes = torch.func.vmap(slope)
    generator, count = torch.Generator().manual_seed(seed), len(next(iter(params.values())))
    for _ in range(epochs):
        for now in torch.rand(len(x), count, generator=generator).argsort(0):  # [K]: each network's example
            g = slopes(params, x[now], labels[now])
            params = {name: p - step_size * g[name] for name, p in params.items()}
    return params


def outputs(net: nn.Module, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the outputs of K networks, [K, N, C]."""
    from torch.func import functional_call, vmap

    return vmap(lambda p: functional_call(net, p, (x,)))(params)


def errors(net: nn.Module, params: dict[str, Tensor], x: Tensor, labels: Tensor) -> dict[str, Array]:
    """Return the mean over the examples of each method's L1 distance by layer, [layers]; |diag H| among them.

    `params`: of one network by name. `x` [N, inputs], `labels` [N]: each example is a loss by itself.
    """
    import torch

    import hesscale_rl as hs

    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in params))

    def diagonal(p: dict[str, Tensor], x: Tensor, label: Tensor, curvature: hs.Curvature) -> dict[str, Tensor]:
        result = hs.value_grad_curvature(net, p, x[None], hs.losses.CrossEntropy(label[None]), curvature)
        return {k: c if isinstance(c, torch.Tensor) else c.diagonal() for k, c in result.curvature.items()}

    def distances(p: dict[str, Tensor], x: Tensor, label: Tensor) -> dict[str, Tensor]:
        exact = diagonal(p, x, label, hs.HBP())

        def distance(d: dict[str, Tensor]) -> Tensor:
            each = {name: (d[name] - exact[name]).abs().sum() for name in p}
            own = [[v for name, v in each.items() if name.rpartition(".")[0] == layer] for layer in layers]
            return torch.stack([torch.stack(values).sum() for values in own])

        found = {name: distance(diagonal(p, x, label, method)) for name, method in methods().items()}
        return found | {REFERENCE: distance({name: torch.zeros_like(d) for name, d in exact.items()})}

    every = torch.func.vmap(distances, in_dims=(None, 0, 0), randomness="different", chunk_size=CHUNK)
    found = every(params, x, labels)
    return {name: d.mean(0).numpy() for name, d in found.items()}


@dataclass
class Study:
    """What was measured. `errors`: by phase and method, [initialisations, layers]; `loss`, `accuracy`: by phase."""

    errors: dict[str, dict[str, Array]]
    loss: dict[str, Array]
    accuracy: dict[str, Array]

    @property
    def layers(self) -> int:
        """The number of layers."""
        return self.errors["before"][BASE].shape[1]

    def total(self, phase: str, method: str) -> Array:
        """The error of all layers divided by HesScale's, [initialisations]."""
        return self.errors[phase][method].sum(1) / self.errors[phase][BASE].sum(1)

    def of(self, phase: str, method: str, layer: int | str) -> Array:
        """The same for ALL, else the error of a layer, counted from 1; [initialisations]."""
        return self.total(phase, method) if layer == ALL else self.errors[phase][method][:, int(layer) - 1]


def measure(args: argparse.Namespace) -> Study:
    """Train and measure; say on stderr how far it is."""
    import torch

    torch.set_num_threads(1)
    given = data.load(args.data, args.data_dir, args.seed)
    if args.examples > len(given.inputs):
        raise InputError(f"--examples {args.examples}: {args.data} has {len(given.inputs)}")
    chosen = torch.randperm(len(given.inputs), generator=torch.Generator().manual_seed(args.seed))[: args.examples]
    x, labels = given.inputs[chosen].flatten(1), given.labels[chosen]
    sizes = [x.shape[1], *[HIDDEN[args.data]] * 3, data.CLASSES]
    nets = [network(sizes, args.init, args.seed + k) for k in range(args.initialisations)]
    began, before = time.monotonic(), stack(nets)
    params = {"before": before}
    params["after"] = sgd(nets[0], before, x, labels, args.step_size, args.epochs, args.seed)
    if not all(bool(p.isfinite().all()) for p in params["after"].values()):
        raise InputError(f"--step-size {args.step_size:g}: training diverged; take a smaller one")
    loss, accuracy = {}, {}
    for phase, p in params.items():
        y = outputs(nets[0], p, x)
        loss[phase] = -y.log_softmax(2)[:, range(len(x)), labels].mean(1).numpy()
        accuracy[phase] = (y.argmax(2) == labels).double().mean(1).numpy()
    complain(f"trained {len(nets)} networks in {duration(time.monotonic() - began)}: {learned(loss, accuracy)}")
    found: dict[str, list[dict[str, Array]]] = {phase: [] for phase in params}
    began = time.monotonic()
    for k in range(len(nets)):
        for phase, p in params.items():
            torch.manual_seed(args.seed + k)
            found[phase].append(errors(nets[0], {name: t[k] for name, t in p.items()}, x, labels))
            now = found[phase][-1]
            if not all(np.isfinite(values).all() for values in now.values()) or not now[BASE].any():
                raise InputError(f"--step-size {args.step_size:g}: training diverged; take a smaller one")
        left = (time.monotonic() - began) / (k + 1) * (len(nets) - k - 1)
        complain(f"measured {k + 1} of {len(nets)} initialisations; {duration(left)} left")
    every = {phase: {m: np.array([one[m] for one in own]) for m in own[0]} for phase, own in found.items()}
    return Study(every, loss, accuracy)


def learned(loss: dict[str, Array], accuracy: dict[str, Array]) -> str:
    """Return what training did, in words."""
    parts = [(name, [v.mean() for v in values.values()]) for name, values in (("loss", loss), ("accuracy", accuracy))]
    return ", ".join(f"training {name} {a:.2f} to {b:.2f}" for name, (a, b) in parts)


def interval(values: Array) -> Array:
    """Return mean, low and high end of the 95 % bootstrap interval over the initialisations, [3]."""
    return curves.interval([values], "mean", "bootstrap")


def numbers(study: Study) -> bytes:
    """Return all numbers as CSV: the layers' errors, of all layers divided by HesScale's, loss and accuracy."""
    count = len(study.loss["before"])
    rows: list[tuple[Any, ...]] = [("phase", "layer", "method", "mean", "low", "high", *range(count))]

    def add(phase: str, layer: int | str, name: str, values: Array) -> None:
        ends = ("" if np.isnan(end) else f"{end:.6g}" for end in interval(values))
        rows.append((phase, layer, name, *ends, *(f"{value:.6g}" for value in values)))

    for phase, found in study.errors.items():
        add(phase, "", "training loss", study.loss[phase])
        add(phase, "", "training accuracy", study.accuracy[phase])
        for layer in (ALL, *range(1, study.layers + 1)):
            for method in found:
                add(phase, f"{layer} / {BASE}" if layer == ALL else layer, method, study.of(phase, method, layer))
    csv.writer(file := io.StringIO(), lineterminator="\n").writerows(rows)
    return file.getvalue().encode()


def table(study: Study) -> list[str]:
    """Return the errors of all layers, divided by HesScale's, as a Markdown table."""
    lines = ["| method | before training | after training |", "|---|---|---|"]
    for method in study.errors["before"]:
        ends = [interval(study.total(phase, method)) for phase in PHASES]
        cells = (f"{m:.3g}" + f" ({low:.3g}, {high:.3g})" * (not np.isnan(low)) for m, low, high in ends)
        lines.append(f"| {method.replace('|', chr(92) + '|')} | {' | '.join(cells)} |")
    return lines


def draw(study: Study, words: str) -> Any:
    """Return the figure: a panel for all layers and one for each."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = [name for name in study.errors["before"] if name != REFERENCE]
    panels = [ALL, *range(1, study.layers + 1)]
    rows = -(-(len(panels) + 1) // 2)  # a place for the legend
    figure = Figure(figsize=(10, 3.2 * rows + 0.6), layout="constrained")
    for i, layer in enumerate(panels):
        axes = figure.add_subplot(rows, 2, i + 1)
        fill(axes, study, names, layer)
        what = (
            f"all layers, error / {BASE}'s"
            if layer == ALL
            else f"layer {layer}" + ", the last" * (layer == study.layers)
        )
        axes.set(title=what, xlabel="" if layer == ALL else "mean L1 error")
    marks: list[Any] = [
        Patch(color=colour, alpha=0.45, label=f"{phase} training") for phase, colour in PHASES.items()
    ]
    marks += [Line2D([], [], color="#333333", marker="o", ms=2.5, lw=0, label="one initialisation")]
    marks += [Line2D([], [], color="#000000", lw=1.5, label="95 % bootstrap interval of the mean")]
    marks += [Line2D([], [], color="#333333", ls="--", lw=1, label="|diag H|: the error of estimating zero")]
    legend = figure.add_subplot(rows, 2, len(panels) + 1)
    legend.axis("off")
    legend.legend(handles=marks, loc="center", fontsize=9)
    figure.supxlabel(textwrap.fill(words, 175), x=0.01, ha="left", fontsize=6.5)
    return figure


def fill(axes: Any, study: Study, names: list[str], layer: int | str) -> None:
    """Draw a panel: for each method a bar, its interval and its points, before and after training."""
    random = np.random.default_rng(0)
    drawn = []  # what decides the axis
    for phase, colour in PHASES.items():
        reference = study.of(phase, REFERENCE, layer)
        axes.axvline(reference.mean(), color=colour, ls="--", lw=1, zorder=1)
        drawn.append(reference)
        for k, name in enumerate(names):
            values, at = study.of(phase, name, layer), k + (0.2 if phase == "after" else -0.2)
            if values.max() <= EXACT * reference.mean():
                axes.text(0.01, at, "exact", transform=axes.get_yaxis_transform(), color=colour, va="center", size=6)
                continue
            mean, low, high = interval(values)
            axes.barh(at, mean, 0.36, color=colour, alpha=0.45, zorder=2)
            axes.plot(values, at + random.uniform(-0.13, 0.13, len(values)), "o", color=colour, ms=1.6, zorder=3)
            axes.plot([low, high], [at, at], color="#000000", lw=1.5, zorder=4)
            drawn.append(values)
    axes.set(xscale="log", yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axes.set_xlim(np.min([v.min() for v in drawn]) / 1.6, np.max([v.max() for v in drawn]) * 1.3)
    axes.grid(axis="y", visible=False)


def caption(parts: list[str], command: str) -> str:
    """Return what a figure says of itself: its set-up, with what, when, and by which command, of hesscale-rl's."""
    import torch

    from hesscale_rl.runs.machine import cpu

    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    line = " ".join(["hesscale-rl", command, *words])
    return "; ".join([*parts, f"torch {torch.__version__}", cpu(), time.strftime("%Y-%m-%d"), line])


def save(output: str, figure: Callable[[], Any], table: bytes) -> None:
    """Write OUTPUT.png and OUTPUT.csv, both or none, and say so."""
    contents = {Path(f"{output}.png"): figure_bytes(figure), Path(f"{output}.csv"): table}
    write(contents)
    complain("wrote " + " and ".join(map(str, contents)))


def figure_bytes(figure: Callable[[], Any]) -> bytes:
    """Return as PNG the figure that a call makes, with the letters of all figures here."""
    import matplotlib

    with matplotlib.rc_context(FONTS):
        figure().savefig(file := io.BytesIO(), format="png", dpi=150)
    return file.getvalue()


def carry_out(args: argparse.Namespace) -> int:
    """Carry out the study; return the exit code."""
    from hesscale_rl.runs.arguments import needs

    need = needs(args)
    for flag in ("initialisations", "examples"):
        need(getattr(args, flag) >= 1, flag, "at least 1")
    need(args.epochs >= 0, "epochs", "at least 0")
    need(0 < args.step_size < np.inf, "step_size", "positive")
    output = check_common(args, f"approximation_{args.data}")
    found = measure(args)
    start = {"torch": "torch's Kaiming-uniform weights and biases", "he": "He's normal weights, no biases"}[args.init]
    parts = [f"{args.data}, {args.examples:,} examples, each by itself", f"{args.initialisations} initialisations"]
    parts += [start, f"trained by SGD with batches of one, step size {args.step_size:g}, {args.epochs} epochs"]
    save(
        output,
        lambda: draw(found, caption([*parts, learned(found.loss, found.accuracy)], "approximation")),
        numbers(found),
    )
    say(*table(found))
    return DONE


def check_common(args: argparse.Namespace, name: str) -> str:
    """Check the flags that the studies share, before any work is done; return OUT, which is `name` by default."""
    from hesscale_rl.runs.arguments import needs

    needs(args)(0 <= args.seed < 2**31, "seed", "from 0 to 2147483647")
    output = target(args.output, name)
    check_output(output)
    return output


def common_flags(prog: str, text: str | None) -> Parser:
    """Return a parser with the flags that the studies share."""
    made = Parser(prog, text)
    made.add_argument("--data", choices=data.NAMES, default="digits", help="what the networks see (digits)")
    made.add_argument("--data-dir", type=path_text, metavar="DIR", help="where MNIST is kept, after one download")
    made.add_argument("--init", choices=("torch", "he"), default="torch", help="torch's own (default), or He's")
    made.add_argument("--seed", type=int, default=0, help="of everything (0); network K has the seed SEED + K")
    made.add_argument("-o", "--output", type=path_text, metavar="OUT", help="write OUT.png and OUT.csv (STUDY_DATA)")
    return made


def main() -> int:
    """Read the command line and return the exit code."""
    flags = common_flags("hesscale-rl approximation", __doc__)
    flags.add_argument("--initialisations", type=int, default=40, metavar="N", help="networks (40)")
    flags.add_argument("--examples", type=int, default=1000, metavar="N", help="to measure on and train with (1000)")
    flags.add_argument("--step-size", type=float, default=0.01, help="of SGD (0.01)")
    flags.add_argument("--epochs", type=int, default=10, help="over the examples (10)")
    return obey(flags, carry_out, "interrupted; nothing is written")


if __name__ == "__main__":
    sys.exit(main())
