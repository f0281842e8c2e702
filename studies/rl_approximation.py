"""How well each method approximates the Hessian's diagonal on PPO's own losses, while PPO learns.

    hesscale-rl rl-approximation [-o rl_approximation]

An actor with a normal policy and a critic are trained as agents/ppo.py does. At some moments, minibatches of the
rollout are looked at before the update, where the probability ratio is one, and after it, where it is not: the L1
distance between the exact diagonal (HBP) and each estimate, summed over a layer, relative to the L1 norm of the exact
one. Zero would have a relative error of one. Everything is measured in float64.
"""

import argparse
import copy
import sys
from typing import TYPE_CHECKING, Any

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.command_line import Parser, obey, path_text
from hesscale_rl.system.console import say

if TYPE_CHECKING:
    import torch
    from torch import nn

    import hesscale_rl as hs

MINIBATCHES, ROWS = 8, 64  # looked at each time
COLUMNS = ("env_id", "seed", "step", "update", "network", "layer", "method", "error", "size")
COLOURS = ("#D55E00", "#E69F00", "#000000", "#009E73", "#CC79A7", "#56B4E9", "#0072B2", "#999999")
MARKERS = "os*^Dv<x"


def methods() -> dict[str, "hs.Curvature"]:
    """Return what is compared, by name."""
    import hesscale_rl as hs

    class DiagonalOutputs(hs.HBP):
        """The exact way back of the loss's diagonal: what is lost by dropping the rest at the outputs alone."""

        wants_diagonal = True

        def seed(self, loss: Any, y: Any, diagonal: Any) -> Any:
            return diagonal.diag_embed()

    return {
        "HesScale": hs.HesScale(),
        "HesScaleGN": hs.HesScaleGN(),
        "exact behind a diagonal loss": DiagonalOutputs(),
        "GGN": hs.GGN(),
        "GGN-MC, 1 sample": hs.GGNMC(1),
        "Hutchinson, 50 samples": hs.Hutchinson(50),
        "Hutchinson, 1 sample": hs.Hutchinson(1),
        "squared gradient": hs.SquaredGradient(),
    }


def errors(net: "nn.Module", x: "torch.Tensor", loss: Any) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the L1 error and the exact diagonal's L1 norm by layer and method."""
    import hesscale_rl as hs
    from hesscale_rl.curvature.blocks import Block

    params: dict[str, torch.Tensor] = dict(net.named_parameters())
    blocks = hs.value_grad_curvature(net, params, x, loss, hs.HBP()).curvature
    exact = {name: block.diagonal().detach() for name, block in blocks.items()}
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for method, curvature in methods().items():
        for name, d in hs.value_grad_curvature(net, params, x, loss, curvature).curvature.items():
            estimate = (d.diagonal() if isinstance(d, Block) else d).detach()
            key = (name.rpartition(".")[0], method)
            error, size = found.get(key, (0.0, 0.0))
            error += float((estimate - exact[name]).abs().sum())
            found[key] = (error, size + float(exact[name].abs().sum()))
    return found


def look(policy: Any, batch: dict[str, "torch.Tensor"], args: Any) -> list[tuple[str, str, str, float, float]]:
    """Return network, layer, method, error and size, summed over some minibatches of the rollout."""
    import torch

    from hesscale_rl.agents import ppo

    rows = torch.randperm(len(batch["obs"]), generator=torch.Generator().manual_seed(0))
    actor, critic = (copy.deepcopy(net).double() for net in (policy.actor, policy.critic))
    total: dict[tuple[str, str, str], tuple[float, float]] = {}
    for part in rows[: MINIBATCHES * ROWS].split(ROWS):
        mb = {name: value[part].double() for name, value in batch.items()}
        value = ppo.hs.losses.ValueLoss(mb["returns"], mb["values"], args.value_clip or None)
        for name, net, loss in (("actor", actor, ppo.actor_loss(policy, mb, args)), ("critic", critic, value)):
            for (layer, method), (error, size) in errors(net, mb["obs"], loss).items():
                old = total.get((name, layer, method), (0.0, 0.0))
                total[name, layer, method] = (old[0] + error, old[1] + size)
    return [(*key, *sums) for key, sums in total.items()]


def study(env_id: str, seed: int, steps: int, points: int) -> list[tuple[Any, ...]]:
    """Train one policy; return a row of the table for each moment, network, layer and method."""
    import numpy as np
    import torch

    import hesscale_rl as hs
    from hesscale_rl import envs
    from hesscale_rl.agents import ppo
    from hesscale_rl.rl.fast.learner import make_learner
    from hesscale_rl.rl.policy import check_spaces
    from hesscale_rl.rl.rollout import Rollout

    args = ppo.Args(env_id=env_id, seed=seed, total_timesteps=steps, optimizer="adam")
    ppo.check(args)
    env = envs.make_vector(env_id, 1, None, seed)
    check_spaces(env_id, env.observation_space, env.action_space)
    torch.manual_seed(seed)
    rollout_seed, shuffle_seed = np.random.SeedSequence(seed).spawn(2)
    shuffle = torch.Generator().manual_seed(int(shuffle_seed.generate_state(1)[0]))
    policy = ppo.make_policy(env.observation_space, env.action_space, args)
    if policy.discrete:
        raise InputError(f"--env-id {env_id}: has discrete actions; this study is about normal policies")
    optimizer, curvature = hs.make_optimizer("adam", policy.groups(), lr=args.learning_rate, eps=args.eps)
    fast, rollout = make_learner(policy, optimizer, curvature), Rollout(env, policy, rollout_seed)
    iterations = steps // args.num_steps
    marks = {round(i * (iterations - 1) / max(1, points - 1)) for i in range(points)}
    rows: list[tuple[Any, ...]] = []
    for i in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * (1 - i / iterations)
        batch = ppo.prepare(policy, rollout.collect(args.num_steps, lambda *_: None), args)
        before = look(policy, batch, args) if i in marks else []
        ppo.update(policy, optimizer, curvature, fast, batch, args, shuffle)
        after = look(policy, batch, args) if i in marks else []
        rows += [(env_id, seed, rollout.step, "before", *row) for row in before]
        rows += [(env_id, seed, rollout.step, "after", *row) for row in after]
        if i in marks:
            say(f"seed {seed}  step {rollout.step:,}")
    env.close()
    return rows


def relative(rows: list[tuple[Any, ...]], **where: Any) -> dict[str, list[list[float]]]:
    """Return error over size of each method, a list of moments for each seed, over all rows that fit `where`."""
    sums: dict[tuple[str, int, int], tuple[float, float]] = {}
    for row in rows:
        line = dict(zip(COLUMNS, row, strict=True))
        if all(line[key] == value for key, value in where.items()):
            key = (line["method"], line["seed"], line["step"])
            old = sums.get(key, (0.0, 0.0))
            sums[key] = (old[0] + line["error"], old[1] + line["size"])
    found: dict[str, dict[int, list[float]]] = {}
    for (method, seed, _), (error, size) in sorted(sums.items(), key=lambda item: item[0][1:]):
        found.setdefault(method, {}).setdefault(seed, []).append(error / size if size else float("nan"))
    return {method: list(seeds.values()) for method, seeds in found.items()}


def draw(rows: list[tuple[Any, ...]], caption: str) -> Any:
    """Return the figure: relative error against steps, a panel for each network, before and after the update."""
    import textwrap

    import numpy as np
    from matplotlib.figure import Figure

    from hesscale_rl.scripts.analysis.curves import interval

    steps = sorted({row[2] for row in rows})
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    places = [(network, update) for network in ("actor", "critic") for update in ("before", "after")]
    for i, (network, update) in enumerate(places):
        axes = figure.add_subplot(2, 2, i + 1)
        found = relative(rows, network=network, update=update)
        for k, method in enumerate(methods()):
            value, low, high = interval([np.array(found[method])], "mean", "bootstrap")
            shown: dict[str, Any] = {"color": COLOURS[k], "marker": MARKERS[k], "markersize": 4, "linewidth": 1.2}
            axes.plot(steps, value, label=method, **shown)
            axes.fill_between(steps, low, high, color=COLOURS[k], alpha=0.15, linewidth=0)
            for single in found[method] if np.isnan(low).all() else ():  # too few seeds for an interval
                axes.plot(steps, single, color=COLOURS[k], linewidth=0.6, alpha=0.4)
        axes.axhline(1, color="#555555", linewidth=0.8, linestyle=":", label="an estimate of zero")
        axes.set(title=f"{network}, {update} the update", yscale="log", xlabel="environment steps")
        axes.set_ylabel("relative L1 error")
        axes.xaxis.set_major_formatter("{x:,.9g}")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    figure.supxlabel(textwrap.fill(caption, 170), x=0.01, ha="left", fontsize=6.5)
    return figure


def tell(rows: list[tuple[Any, ...]]) -> None:
    """Print the mean relative error over all moments, for all layers and layer by layer, as a table."""
    import numpy as np

    for network in ("actor", "critic"):
        layers = list(dict.fromkeys(row[5] for row in rows if row[4] == network))
        say(f"\n| {network} | all, before | all, after | " + " | ".join(f"layer {layer}" for layer in layers) + " |")
        say("|---" * (len(layers) + 3) + "|")
        for method in methods():
            wheres: list[dict[str, str]] = [{"update": "before"}, {"update": "after"}]
            wheres += [{"layer": layer} for layer in layers]
            cells = [np.nanmean(relative(rows, network=network, **where)[method]) for where in wheres]
            say(f"| {method} | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |")


def numbers(rows: list[tuple[Any, ...]]) -> bytes:
    """Return the table behind the figure as CSV."""
    import csv
    import io

    short = [(*row[:-2], *(f"{value:.6g}" for value in row[-2:])) for row in rows]
    csv.writer(table := io.StringIO(), lineterminator="\n").writerows([COLUMNS, *short])
    return table.getvalue().encode()


def carry_out(args: argparse.Namespace) -> int:
    """Train, measure, draw and print; return the exit code."""
    if args.points < 2:
        raise InputError(f"--points {args.points}: must be at least 2")
    if len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds {' '.join(map(str, args.seeds))}: one of them is there twice")
    from hesscale_rl.scripts.analysis.panels import check_output

    check_output(args.output)
    import torch

    from hesscale_rl.scripts.analysis.curves import FEWEST
    from hesscale_rl.studies.approximation_quality import caption, save

    torch.set_num_threads(1)
    rows = [row for seed in args.seeds for row in study(args.env_id, seed, args.total_timesteps, args.points)]
    parts = [f"PPO (default settings, Adam) on {args.env_id}", f"{MINIBATCHES} minibatches of {ROWS} at each point"]
    spread = "95 % bootstrap interval" if len(args.seeds) >= FEWEST else "single runs"
    parts += [f"mean and {spread} over seeds {', '.join(map(str, args.seeds))}"]
    save(args.output, lambda: draw(rows, caption(parts, "rl-approximation")), numbers(rows))
    tell(rows)
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl rl-approximation", __doc__)
    parser.add_argument("--env-id", default="HalfCheetah-v5", help="with continuous actions (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="a policy for each (1 2 3)")
    parser.add_argument("--total-timesteps", type=int, default=300_000, help="of each (%(default)s)")
    parser.add_argument("--points", type=int, default=8, help="moments that are looked at (%(default)s)")
    parser.add_argument(
        "-o", "--output", type=path_text, default="rl_approximation", help="OUTPUT.png, OUTPUT.csv (%(default)s)"
    )
    return obey(parser, carry_out, "interrupted; nothing is written")


if __name__ == "__main__":
    sys.exit(main())
