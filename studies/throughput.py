"""Environment steps per second with learning, one core: hesscale-rl, the usual way, and the physics alone.

    hesscale-rl benchmark [--rounds 7] [--out docs/results/benchmark] [--threads 1 2]

In every round all methods have their turn, one after the other, so that a busy machine slows them alike; printed are
medians, minima and maxima, and ratios within a round to the baseline (baseline_agents.py). Ours are the agents
themselves with all their logging, timed by their metrics.jsonl. stable-baselines3 and sbx take part where they are
installed, with their defaults and as their documentation says for speed on a CPU. With `--threads` it is PPO with 16
environments instead, in so many threads, and ratios are to the first of them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hesscale_rl.errors import DONE, InputError
from hesscale_rl.runs.command_line import Parser, obey
from hesscale_rl.system.console import say

ENVS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
PARTS = ("act", "physics", "environment", "normaliser", "advantages", "update", "logging", "rest")
BASELINE, PHYSICS, OURS = "CleanRL's way, adam", "mj_step alone", "hesscale-rl, adahesscale"
COPIES = 16  # environments of a run on several cores
CHUNK = {"ppo": 8192, "a2c": 4000}  # steps that are timed in a turn, after WARM
WARM = {"ppo": 2048, "a2c": 1000}

PALETTE = ("#0072B2", "#009E73", "#F0E442", "#CC79A7", "#56B4E9", "#D55E00", "#E69F00", "#999999")

Turn = Callable[[], float]  # takes one method's turn; returns steps per second


def trained(algorithm: str, folder: Path, **how: Any) -> Path:
    """Train from the beginning; return the run directory."""
    agent = importlib.import_module(f"hesscale_rl.agents.{algorithm}")
    more = {"log_interval": 1000} if algorithm == "a2c" else {}
    if agent.train(agent.Args(**more, **how, run_dir=str(folder / "run"))) != 0:
        raise RuntimeError(f"{algorithm} with {how} did not end well; see {folder}")
    return folder / "run"


def ours(algorithm: str, env_id: str, optimizer: str, copies: int = 1, threads: int = 1) -> Turn:
    """Train from the beginning; the time between two lines of metrics.jsonl counts."""
    first = WARM[algorithm] * copies
    how: dict[str, Any] = dict(env_id=env_id, optimizer=optimizer, num_envs=copies, env_threads=threads, quiet=True)
    how |= {"update_threads": threads, "total_timesteps": first + CHUNK[algorithm] * copies}

    def turn() -> float:
        folder = Path(tempfile.mkdtemp())
        run = trained(algorithm, folder, **how)
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        times = [(row["global_step"], row["time"]) for row in lines if "charts/SPS" in row]
        times = [row for row in times if row[0] >= first]
        shutil.rmtree(folder)
        return (times[-1][0] - times[0][0]) / (times[-1][1] - times[0][1])

    return turn


def usual(algorithm: str, env_id: str) -> Turn:
    """Go on with one training of studies/baseline_agents.py."""
    from hesscale_rl.studies import baseline_agents as baseline

    training = baseline.train(env_id, algorithm)
    while next(training) < WARM[algorithm]:
        pass

    def turn() -> float:
        first = next(training)
        began = time.perf_counter()
        while (step := next(training)) < first + CHUNK[algorithm] // 2:
            pass
        return (step - first) / (time.perf_counter() - began)

    return turn


def physics(env_id: str) -> Turn:
    """Step MuJoCo alone, with the same number of frames a step, random controls and resets after a fall."""
    import mujoco
    import numpy as np

    from hesscale_rl.envs import make

    env: Any = make(env_id).unwrapped
    random = np.random.default_rng(0)

    def turn() -> float:
        env.reset(seed=0)
        controls = random.uniform(-1, 1, (4000, env.model.nu))
        began = time.perf_counter()
        for control in controls:
            env.data.ctrl[:] = control
            mujoco.mj_step(env.model, env.data, env.frame_skip)
            if env.data.time > 1 and not getattr(env, "is_healthy", True):
                mujoco.mj_resetData(env.model, env.data)
        return len(controls) / (time.perf_counter() - began)

    return turn


def stable_baselines(package: str, algorithm: str, env_id: str, copies: int) -> Turn | None:
    """Go on with one training of stable_baselines3, or of its twin sbx, with VecNormalize; None without the package.

    sbx has no A2C.
    """
    import gymnasium as gym

    try:
        found: Any = importlib.import_module(package)
        from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
    except ImportError:
        return None
    kind = getattr(found, algorithm.upper(), None)
    if kind is None:
        return None
    vector = VecNormalize(DummyVecEnv([lambda: gym.make(env_id)] * copies))
    model = kind("MlpPolicy", vector, device="cpu")
    model.learn(WARM[algorithm] * copies)

    def turn() -> float:
        began, before = time.perf_counter(), model.num_timesteps
        model.learn(CHUNK[algorithm] // 2, reset_num_timesteps=False)
        return (model.num_timesteps - before) / (time.perf_counter() - began)

    return turn


def contenders(algorithm: str, env_id: str) -> dict[str, Turn]:
    """Return every method's turn; the baseline first."""
    turns = {BASELINE: usual(algorithm, env_id)}
    for package in ("stable_baselines3", "sbx"):
        for copies, name in ((1, "its defaults"), (4, "4 environments")):
            turn = stable_baselines(package, algorithm, env_id, copies)
            if turn is not None:
                turns[f"{package}, {name}"] = turn
    for name in ("adam", "adahesscale", "scaled-adahesscale"):
        turns[f"hesscale-rl, {name}"] = ours(algorithm, env_id, name)
    turns[PHYSICS] = physics(env_id)
    return turns


def on_cores(env_id: str, threads: list[int]) -> dict[str, Turn]:
    """Return the turns of PPO with several environments, in so many threads."""
    names = {t: f"{COPIES} environments, {t} thread{'s' * (t > 1)}" for t in threads}
    return {name: ours("ppo", env_id, "adahesscale", COPIES, t) for t, name in names.items()}


@contextlib.contextmanager
def watched(spent: dict[str, float], places: dict[str, tuple[Any, str]]) -> Iterator[None]:
    """While it lasts, the seconds spent in each part's function are added up."""
    kept = []

    def timed(part: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - began

        return call

    for part, (owner, name) in places.items():
        function = getattr(owner, name)
        kept.append((owner, name, function))
        setattr(owner, name, timed(part, function))
    try:
        yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


def where(algorithm: str, env_id: str) -> dict[str, dict[str, float]]:
    """Return microseconds per step by part, of the baseline and of ours with AdaHesScale."""
    from hesscale_rl.studies import baseline_agents as baseline

    parts = {"act": "act", "environment": "step", "advantages": "advantages", "update": "update"}
    spent: dict[str, float] = defaultdict(float)
    turn = usual(algorithm, env_id)
    with watched(spent, {part: (baseline, name) for part, name in parts.items()}):
        rate = turn()
    steps = CHUNK[algorithm] // 2 + (2048 if algorithm == "ppo" else 5)
    each = {part: seconds / steps * 1e6 for part, seconds in spent.items()}
    folder = Path(tempfile.mkdtemp())
    with contextlib.redirect_stdout(io.StringIO()):
        how = dict(env_id=env_id, optimizer="adahesscale", total_timesteps=CHUNK[algorithm], profile=True)
        run = trained(algorithm, folder, **how)
    told = json.loads((run / "profile.json").read_text())["us"]
    shutil.rmtree(folder)
    return {BASELINE: each | {"rest": max(0.0, 1e6 / rate - sum(each.values()))}, OURS: told}


def measure(algorithm: str, env_id: str, turns: dict[str, Turn], rounds: int, split: bool) -> list[dict[str, Any]]:
    """Return one row for each method; ratios are to the first. `split`: say where the time goes, too."""
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            rates[name].append(turn())
    parts, rows, first = where(algorithm, env_id) if split else {}, [], next(iter(rates.values()))
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, first, strict=True)]
        row = {"agent": algorithm, "env": env_id, "method": name, "rounds": rounds}
        for what, numbers in (("sps", values), ("ratio", ratios)):
            row |= {f"{what}_{f.__name__}": f(numbers) for f in (statistics.median, min, max)}
        rows.append(row | {f"us_{part}": parts[name][part] for part in PARTS if part in parts.get(name, {})})
    return rows


def show(row: dict[str, Any]) -> str:
    """Return a row as one of a Markdown table."""
    rate = "{sps_median:,.0f} ({sps_min:,.0f} to {sps_max:,.0f})".format(**row)
    ratio = "{ratio_median:.2f} ({ratio_min:.2f} to {ratio_max:.2f})".format(**row)
    parts = " | ".join(f"{row[f'us_{part}']:.0f}" if f"us_{part}" in row else "" for part in PARTS)
    return f"| {row['agent']} | {row['env']} | {row['method']} | {rate} | {ratio} | {parts} |"


def draw(rows: list[dict[str, Any]], path: Path, caption: str) -> None:
    """Write the figure: rates by environment, and where the time of a step goes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    tasks = list(dict.fromkeys((row["agent"], row["env"]) for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    colours = dict(zip(methods, PALETTE[::-1], strict=False))
    width = 0.8 / len(methods)
    for k, method in enumerate(methods):
        own = {(row["agent"], row["env"]): row for row in rows if row["method"] == method}
        at = [i + (k - (len(methods) - 1) / 2) * width for i, task in enumerate(tasks) if task in own]
        values = [own[task]["sps_median"] for task in tasks if task in own]
        spread = [
            [abs(own[t]["sps_median"] - own[t][f"sps_{end}"]) for t in tasks if t in own] for end in ("min", "max")
        ]
        left.bar(at, values, width, yerr=spread, label=method, color=colours[method], error_kw={"lw": 0.8})
    left.set_xticks(range(len(tasks)), [f"{agent.upper()}\n{env}" for agent, env in tasks], fontsize=8)
    left.set(ylabel="environment steps per second, one core", yscale="log", title="median, minimum and maximum")
    left.legend(fontsize=7)
    split = [row for row in rows if "us_act" in row]
    bottom = np.zeros(len(split))
    for part, colour in zip(PARTS, PALETTE, strict=True):
        spent = np.array([row.get(f"us_{part}", 0.0) for row in split])
        right.barh(range(len(split)), spent, left=bottom, label=part, color=colour)
        bottom += spent
    names = [f"{r['agent'].upper()} {r['env'].partition('-')[0]}, {r['method'].partition(',')[0]}" for r in split]
    right.set_yticks(range(len(split)), names, fontsize=8)
    right.invert_yaxis()
    right.set(xlabel="microseconds per step", title="where the time goes")
    right.legend(fontsize=7)
    figure.suptitle(caption, fontsize=8)
    figure.savefig(path, dpi=150)


def measure_all(args: argparse.Namespace) -> int:
    """Measure, print, and write the figure and its numbers; return the exit code."""
    if args.rounds < 1:
        raise InputError(f"--rounds {args.rounds}: must be at least 1")
    cores = os.cpu_count() or 1
    for threads in args.threads or []:
        if not 1 <= threads <= min(cores, COPIES):
            raise InputError(f"--threads {threads}: must be between 1 and {min(cores, COPIES)}, the cores here")
    from hesscale_rl import envs

    for env_id in args.envs:
        envs.check_id(env_id)
    if args.out is not None:
        from hesscale_rl.scripts.analysis.panels import check_output

        check_output(str(args.out))
    import gymnasium as gym
    import mujoco
    import torch

    from hesscale_rl.envs.mujoco import quiet
    from hesscale_rl.runs.machine import cpu

    quiet()
    torch.set_num_threads(1)
    caption = f"{time.strftime('%Y-%m-%d')}, {cpu()}, {args.rounds} rounds, torch {torch.__version__}, "
    caption += f"gymnasium {gym.__version__}, mujoco {mujoco.__version__}"
    columns = ["agent", "env", "method", "steps per second", "ratio", *(f"us {part}" for part in PARTS)]
    say(f"{caption}\n\n| {' | '.join(columns)} |")
    say("|---" * len(columns) + "|")
    rows: list[dict[str, Any]] = []
    tasks = [("ppo", env_id) for env_id in args.envs] + [("a2c", args.envs[0])] * (args.threads is None)
    for algorithm, env_id in tasks:
        turns = contenders(algorithm, env_id) if args.threads is None else on_cores(env_id, args.threads)
        for row in measure(algorithm, env_id, turns, args.rounds, args.threads is None):
            say(show(row))
            rows.append(row)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with open(args.out.with_suffix(".csv"), "w", newline="") as file:
            writer = csv.DictWriter(file, [*max(rows, key=len)])
            writer.writeheader()
            writer.writerows(rows)
        draw(rows, args.out.with_suffix(".png"), caption)
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl benchmark", __doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often every method has its turn (7)")
    parser.add_argument("--envs", nargs="+", default=list(ENVS), metavar="ID", help="for PPO; A2C runs on the first")
    parser.add_argument("--threads", nargs="+", type=int, metavar="T", help="PPO with 16 environments in T threads")
    parser.add_argument("--out", type=Path, help="write OUT.csv and OUT.png")
    return obey(parser, measure_all, "interrupted; no figure is written")


if __name__ == "__main__":
    sys.exit(main())
