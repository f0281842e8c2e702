"""The time of one update (gradient, curvature, step, zero_grad) against torch.optim.Adam with autograd.

    python scripts/cost.py [--rounds 40]

All methods take turns in one run on one thread, so that a busy machine slows them alike; printed are medians and the
median and quartiles of the ratio within a round. Networks are named by their layers' sizes, 8x512 being eight of 512.
The last rows are whole minibatches of the agents, actor and critic with their losses and the cut of the gradient, in
one compiled call, against the same by scripts/baseline.py.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import agents.a2c
import agents.ppo
import hesscale_rl as hs
from hesscale_rl.compiled.learner import Objective, make_learner
from scripts import baseline

NETWORKS = {  # name: sizes, batch, updates timed together
    "17-64-64-6 (1)": ([17, 64, 64, 6], 1, 50),
    "17-64-64-6 (5)": ([17, 64, 64, 6], 5, 50),
    "17-64-64-6 (64)": ([17, 64, 64, 6], 64, 50),
    "64-512-16 (128)": ([64, 512, 16], 128, 20),
    "64-512-512 (128)": ([64, 512, 512], 128, 5),
    "64-8x512-100 (128)": ([64, *[512] * 8, 100], 128, 2),
    "64-32x512-100 (1)": ([64, *[512] * 32, 100], 1, 2),
}
AGENTS = {  # name: agent, batch
    "PPO's 17-64-64-6 and 17-64-64-1 (64)": (agents.ppo, 64),
    "A2C's 17-64-64-6 and 17-64-64-1 (5)": (agents.a2c, 5),
}
LR = 1e-7  # next to nothing is learned: training to zero loss would time denormal numbers
METHODS: dict[str, tuple[Callable[..., hs.optim.CurvatureOptimizer], hs.Curvature | None]] = {
    "explicit pass + Adam": (lambda p: hs.ScaledAdam(p, LR), None),
    "AdaHesScale-GN": (lambda p: hs.AdaHesScale(p, LR), hs.HesScaleGN()),
    "AdaHesScale": (lambda p: hs.AdaHesScale(p, LR), hs.HesScale()),
    "scaled AdaHesScale": (lambda p: hs.AdaHesScale(p, LR, delta=1e-8), hs.HesScale()),
}


def network(sizes: list[int]) -> nn.Sequential:
    """Return tanh layers of these sizes."""
    layers: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def updates(sizes: list[int], batch: int) -> dict[str, Callable[[], object]]:
    """Return one update of every method, each on a network of its own; the baseline first."""
    x, target = torch.randn(batch, sizes[0]), torch.randint(0, sizes[-1], (batch,))
    net = network(sizes)
    adam = torch.optim.Adam(net.parameters(), LR)

    def baseline() -> None:
        F.cross_entropy(net(x), target).backward()
        adam.step()
        adam.zero_grad()

    def ours(
        make: Callable[..., hs.optim.CurvatureOptimizer], curvature: hs.Curvature | None
    ) -> Callable[[], object]:
        own = network(sizes)
        optimizer = make(own.parameters())

        def update() -> None:
            hs.backward(own, x, hs.losses.CrossEntropy(target), curvature)
            optimizer.step()
            optimizer.zero_grad()

        return update

    return {"Adam + autograd": baseline} | {name: ours(*method) for name, method in METHODS.items()}


def minibatches(agent: Any, batch: int) -> dict[str, Callable[[], object]]:
    """Return a minibatch of an agent in both ways, for HalfCheetah's sizes; the baseline first."""
    usual = baseline.Agent(17, 6)
    adam = torch.optim.Adam(usual.parameters(), LR)
    names = ("logprob", "advantages", "returns", "values")
    rows = dict(obs=torch.randn(batch, 17), actions=torch.randn(batch, 6)) | {k: torch.randn(batch) for k in names}
    theirs = {name: x[:, None] for name, x in rows.items()} | {"logprobs": rows["logprob"][:, None]}
    clip, order = agent is agents.ppo, torch.arange(batch)
    methods: dict[str, Callable[[], object]] = {
        "Adam + autograd": lambda: baseline.update(usual, adam, theirs, clip, parts=1, epochs=1)
    }
    objective = Objective(clip, 0.0, 0.5, 0.5, 0.2, 0.2) if clip else Objective(False, 0.0, 0.5, 0.5)
    for name in ("adam", "adahesscale", "scaled-adahesscale", "adahessian"):
        observations, actions = gym.spaces.Box(-np.inf, np.inf, (17,)), gym.spaces.Box(-1, 1, (6,))
        policy = agent.make_policy(observations, actions, agent.Args())
        optimizer, curvature = hs.make_optimizer(name, policy.groups(), lr=LR)
        fast = make_learner(policy, optimizer, curvature, "compiled")
        methods[f"compiled, {name}"] = partial(fast.learn, rows, order, 1, objective)
    return methods


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="how often every method has its turn")
    every = [*NETWORKS, *AGENTS]
    parser.add_argument("--networks", nargs="+", default=every, choices=every, metavar="NAME")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds {args.rounds}: must be at least 2, to have quartiles")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, one thread, {platform.machine()}\n")
    print("| network (batch) | method | median us | ratio to Adam + autograd (quartiles) |\n|---|---|---|---|")
    for name in args.networks:
        if name in AGENTS:
            methods, together = minibatches(*AGENTS[name]), 20
        else:
            sizes, batch, together = NETWORKS[name]
            methods = updates(sizes, batch)
        times: dict[str, list[float]] = {method: [] for method in methods}
        for _ in range(args.rounds + 1):
            for method, update in methods.items():
                began = time.perf_counter()
                for _ in range(together):
                    update()
                times[method].append((time.perf_counter() - began) / together * 1e6)
        base = times["Adam + autograd"][1:]  # the first round warms up
        for method, values in times.items():
            ratios = [a / b for a, b in zip(values[1:], base, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"| {name} | {method} | {statistics.median(values[1:]):.0f} | {middle:.2f} ({low:.2f}, {high:.2f}) |"
            )


if __name__ == "__main__":
    main()
