"""The time and memory of one update (gradient, curvature, step, zero_grad) against torch.optim.Adam with autograd.

    hesscale-rl cost                                       the usual networks, and the agents' minibatches
    hesscale-rl cost --experiment outputs -o OUT           Fig. 8(a) of Elsayed et al. 2024: 16 to 512 outputs
    hesscale-rl cost --experiment layers -o OUT            Fig. 8(b): 1 to 128 hidden layers

All methods take turns in one run on one thread, so that a busy machine slows them alike; printed are medians and the
median and quartiles of the ratio within a round. Networks are named by their layers' sizes, 8x512 being eight of 512.
The last rows of `usual` are whole minibatches of the agents, actor and critic with their losses and the cut of the
gradient, in one compiled call, against the same by studies/baseline_agents.py.

For Fig. 8 every optimizer of the library but the Newton methods takes part, and two exact methods whose diagonal
AdaHesScale's step uses.
Memory is the rise of the peak resident size (ru_maxrss) in the first update: gradient, curvature, activations, the
optimizer's averages and all that is only held on the way; the median of three fresh processes. Of an experiment and
batch size a method is left out from the first network on where that update takes over 3 s or more than 4 GiB.
"""

import argparse
import contextlib
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import hesscale_rl as hs
from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.command_line import Parser, obey, path_text
from hesscale_rl.studies import cost_figure
from hesscale_rl.studies.cost_figure import BASELINE, Row
from hesscale_rl.studies.memory import Measure, fresh_processes
from hesscale_rl.system.console import say

Update = Callable[[], object]
Network = tuple[list[int], int, int | None]  # sizes, batch, updates timed together (None: as many as a turn needs)
NETWORKS: dict[str, Network] = {
    "17-64-64-6 (1)": ([17, 64, 64, 6], 1, 50),
    "17-64-64-6 (5)": ([17, 64, 64, 6], 5, 50),
    "17-64-64-6 (64)": ([17, 64, 64, 6], 64, 50),
    "64-512-16 (128)": ([64, 512, 16], 128, 20),
    "64-512-512 (128)": ([64, 512, 512], 128, 5),
    "64-8x512-100 (128)": ([64, *[512] * 8, 100], 128, 2),
    "64-32x512-100 (1)": ([64, *[512] * 32, 100], 1, 2),
}
# name: agent, batch
AGENTS = {"PPO's 17-64-64-6 and 17-64-64-1 (64)": ("ppo", 64), "A2C's 17-64-64-6 and 17-64-64-1 (5)": ("a2c", 5)}
BATCHES = [1, 128]  # of Fig. 8: the paper gives none; its published code has 1, and 128 is the one of its other tasks
LR = 1e-7  # next to nothing is learned: training to zero loss would time denormal numbers
SCALED = "scaled-adahesscale"
OPTIMIZERS = ("sgd", "adam", "adahesscale", "adahesscale-gn", "adabl89", "adaggn-mc", "adahessian", "kfac")
USUAL = {BASELINE: BASELINE, "explicit pass + Adam": "adam"}  # name in the table: optimizer
USUAL |= {"AdaHesScale-GN": "adahesscale-gn", "AdaHesScale": "adahesscale", "scaled AdaHesScale": SCALED}
EXACT = {"exact GGN diagonal": "GGN", "exact Hessian (HBP)": "HBP"}
CHILDREN = 3  # processes that a memory figure is the median of
TURN, SHARE, FEWEST = 0.02, 3.0, 3  # of Fig. 8: seconds of a turn, of all turns on a network; rounds in any case
PERIOD = {"kfac": 10}  # updates after which a method's cost repeats: only every tenth of K-FAC's inverts
TOGETHER = 8192  # MiB: where all networks together take more, each is built after the last is gone


def network(sizes: list[int]) -> Any:
    """Return tanh layers of these sizes, an nn.Sequential, with weights that keep the scale of what passes them.

    With torch's own weights a gradient shrinks by 0.58 and a curvature by 0.33 in every layer: after 128 layers they,
    or their squares, would be denormal numbers, whose arithmetic is slow on many processors.
    """
    from torch import nn

    layers: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        linear = nn.Linear(a, b)
        nn.init.normal_(linear.weight, std=a**-0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def parameters(sizes: list[int]) -> int:
    """Return how many numbers such a network learns."""
    return sum((a + 1) * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))


def prepare(method: str, sizes: list[int], batch: int) -> Update:
    """Return one update of a method, on a network and data of its own that are the same for every method."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    net = network(sizes)
    x, target = torch.randn(batch, sizes[0]), torch.randint(0, sizes[-1], (batch,))
    if method == BASELINE:
        adam = torch.optim.Adam(net.parameters(), LR)

        def plain() -> None:
            F.cross_entropy(net(x), target).backward()
            adam.step()
            adam.zero_grad()

        return plain
    optimizer, curvature = hs.make_optimizer("adahesscale" if method in EXACT else method, net.parameters(), lr=LR)
    if method in EXACT:
        curvature = getattr(hs, EXACT[method])()

    def update() -> None:
        hs.backward(net, x, hs.losses.CrossEntropy(target), curvature)
        if isinstance(curvature, hs.HBP):
            for p in net.parameters():
                p.hess_diag = p.hess_block.diagonal()
        optimizer.step()
        optimizer.zero_grad()

    return update


def minibatches(name: str, batch: int) -> dict[str, Update]:
    """Return a minibatch of an agent in both ways, for HalfCheetah's sizes; the baseline first."""
    from importlib import import_module

    import gymnasium as gym
    import numpy as np
    import torch

    from hesscale_rl.rl.fast.learner import Objective, make_learner
    from hesscale_rl.studies import baseline_agents as baseline

    torch.manual_seed(0)
    agent, clip = import_module(f"hesscale_rl.agents.{name}"), name == "ppo"
    usual = baseline.Agent(17, 6)
    adam = torch.optim.Adam(usual.parameters(), LR)
    names = ("logprob", "advantages", "returns", "values")
    rows = dict(obs=torch.randn(batch, 17), actions=torch.randn(batch, 6)) | {k: torch.randn(batch) for k in names}
    theirs = {name: x[:, None] for name, x in rows.items()} | {"logprobs": rows["logprob"][:, None]}
    methods: dict[str, Update] = {BASELINE: partial(baseline.update, usual, adam, theirs, clip, parts=1, epochs=1)}
    objective = Objective(clip, 0.0, 0.5, 0.5, 0.2, 0.2) if clip else Objective(False, 0.0, 0.5, 0.5)
    for optimizer_name in ("adam", "adahesscale", SCALED, "adahessian"):
        observations, actions = gym.spaces.Box(-np.inf, np.inf, (17,)), gym.spaces.Box(-1, 1, (6,))
        policy = agent.make_policy(observations, actions, agent.Args())
        optimizer, curvature = hs.make_optimizer(optimizer_name, policy.groups(), lr=LR)
        fast: Any = make_learner(policy, optimizer, curvature)
        methods[f"compiled, {optimizer_name}"] = partial(fast.learn, rows, torch.arange(batch), 1, objective)
    return methods


def warmed(method: str, sizes: list[int], batch: int) -> Update:
    """As `prepare`, after two updates of small networks: what a library loads once is no update's memory."""
    for small in ([4, 4, 4], [250, 250, 2]):  # in the compiled loops, and on the tape
        update = prepare(method, small, batch)
        update()
        update()
    return prepare(method, sizes, batch)


def turns(updates: dict[str, Update], rounds: int, together: int | None) -> dict[str, list[float]]:
    """Let the methods take turns; return microseconds per update, one number for each round. The baseline is first.

    `together` updates make a turn; None: as many as take 20 ms, and a slow method sits out the later rounds.
    """
    counts, quotas = {}, {}
    for method, update in updates.items():  # the first round warms up
        update()
        began = time.perf_counter()
        update()
        once, period = time.perf_counter() - began, PERIOD.get(method, 1)
        counts[method] = together or period * math.ceil(TURN / once / period)
        quotas[method] = rounds if together else min(rounds, max(FEWEST, int(SHARE / once / counts[method])))
    quotas[BASELINE] = max(quotas.values())
    times: dict[str, list[float]] = {method: [] for method in updates}
    for k in range(quotas[BASELINE]):
        for method, update in updates.items():
            if k < quotas[method]:
                began = time.perf_counter()
                for _ in range(counts[method]):
                    update()
                times[method].append((time.perf_counter() - began) / counts[method] * 1e6)
    return times


def usual(name: str, rounds: int) -> list[Row]:
    """Return a row for each method on one of the usual networks or minibatches."""
    if name in AGENTS:
        times = turns(minibatches(*AGENTS[name]), rounds, 20)
    else:
        sizes, batch, together = NETWORKS[name]
        times = turns({shown: prepare(method, sizes, batch) for shown, method in USUAL.items()}, rounds, together)
    return [cost_figure.row_of(method, own, times[BASELINE]) for method, own in times.items()]


def scaling(sizes: list[int], batch: int, rounds: int, gone: dict[str, str], measure: Measure) -> list[Row]:
    """Return a row for each method on a network of Fig. 8, with its memory.

    `gone`: why a method was left out on a smaller network; what is left out on this one is added to it.
    """
    needs: dict[str, float] = {}
    for method in (BASELINE, *OPTIMIZERS, SCALED, *EXACT):
        answers: list[Any] = []
        while method not in gone and len(answers) < CHILDREN:
            answers.append(measure(partial(warmed, method, sizes, batch)))
            if isinstance(answers[-1], str):
                gone[method] = answers[-1]
        if method not in gone:
            needs[method] = statistics.median(answers)
    if BASELINE in gone:  # there is nothing to compare with
        gone |= {method: f"{BASELINE} is {gone[BASELINE]}" for method in needs}
        return [{"method": method, "left_out": why} for method, why in gone.items()]
    make, own = partial(prepare, sizes=sizes, batch=batch), parameters(sizes) * 4 / 2**20
    if sum(needs.values()) + own * len(needs) <= TOGETHER:
        times = turns({method: make(method) for method in needs}, rounds, None)
        rows = [cost_figure.row_of(method, values, times[BASELINE]) for method, values in times.items()]
    else:
        base, every, rows = make(BASELINE), [], []
        for method in list(needs)[1:]:
            times = turns({BASELINE: base, method: make(method)}, rounds, None)
            every += times[BASELINE]
            rows.append(cost_figure.row_of(method, times[method], times[BASELINE]))
        rows.insert(0, cost_figure.row_of(BASELINE, every, every))
    found = [row | {"mib": needs[row["method"]]} for row in rows]
    return found + [{"method": method, "left_out": why} for method, why in gone.items()]


def series(experiment: str, batches: list[int]) -> dict[str, Network]:
    """Return the networks of an experiment of Fig. 8 by name, smallest first, for each batch size."""
    sizes = {f"64-512-{2**k}": [64, 512, 2**k] for k in range(4, 10)}
    if experiment == "layers":
        sizes = {f"64-{2**k}x512-100": [64, *[512] * 2**k, 100] for k in range(8)}
    return {f"{name} ({batch})": (own, batch, None) for batch in batches for name, own in sizes.items()}


def chosen(args: argparse.Namespace) -> dict[str, dict[str, Network]]:
    """Return the networks to measure by experiment and name; InputError for a name that none has."""
    named: dict[str, dict[str, Any]] = {
        experiment: {**NETWORKS, **AGENTS} if experiment == "usual" else series(experiment, args.batch)
        for experiment in dict.fromkeys(args.experiment)
    }
    known = [name for networks in named.values() for name in networks]
    for name in args.networks or known:
        if name not in known:
            raise InputError(f"--networks {name}: not in --experiment {' '.join(named)}: {', '.join(known)}")
    wanted = args.networks or known
    return {e: {name: n for name, n in networks.items() if name in wanted} for e, networks in named.items()}


def measure_all(args: argparse.Namespace) -> int:
    """Print the tables and, with -o, write the figure and its numbers; return the exit code."""
    if args.rounds < 2 or min(args.batch) < 1:
        raise InputError("--rounds must be at least 2, to have quartiles, and --batch at least 1")
    if args.batch != BATCHES and not set(args.experiment) - {"usual"}:
        raise InputError("--batch: is of --experiment outputs and layers")
    experiments = chosen(args)
    if args.output is not None:
        cost_figure.check(args.output, experiments)
    import torch

    torch.set_num_threads(1)
    say(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, one thread, {platform.machine()}")
    rows: list[Row] = []
    gone: dict[tuple[str, int], dict[str, str]] = {}
    small = [partial(warmed, method, [4, 4, 4], 2) for method in (BASELINE, *OPTIMIZERS, SCALED)]
    with fresh_processes(small) if set(experiments) - {"usual"} else contextlib.nullcontext(None) as measure:
        for experiment, networks in experiments.items():
            memory = experiment != "usual"
            say(f"\n| network (batch) | method | median us | ratio to {BASELINE} (quartiles) |" + " MiB |" * memory)
            say("|---|---|---|---|" + "---|" * memory)
            for name, (sizes, batch, *_) in networks.items():
                about: Row = {"experiment": experiment, "network": name, "batch": batch}
                if memory and measure is not None:
                    found = scaling(sizes, batch, args.rounds, gone.setdefault((experiment, batch), {}), measure)
                    about["parameters"] = parameters(sizes)
                else:
                    found = usual(name, args.rounds)
                rows += [about | row for row in found]
                say("\n".join(cost_figure.show(name, row, memory) for row in found))
    for line in cost_figure.findings(rows):
        say(f"\n{line}")
    if args.output is not None:
        cost_figure.save(rows, args.output)
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl cost", __doc__)
    parser.add_argument("--experiment", nargs="+", default=["usual"], choices=("usual", "outputs", "layers"))
    parser.add_argument("--rounds", type=int, default=40, help="how often every method has its turn")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="only these, as they are named in the table")
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES, help="of outputs and layers (1 and 128)")
    parser.add_argument(
        "-o", "--output", type=path_text, metavar="OUT", help="outputs, layers: write OUT.png and OUT.csv"
    )
    return obey(parser, measure_all, "interrupted; no figure is written")


if __name__ == "__main__":
    sys.exit(main())
