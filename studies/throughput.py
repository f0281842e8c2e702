"""Environment steps per second with learning, one core: hesscale-rl, the usual way, and the physics alone.

    hesscale-rl benchmark [--rounds 7] [--out docs/results/benchmark]

In every round all methods have their turn, one after the other, so that a busy machine slows them alike; printed are
medians, minima and maxima, and ratios within a round to the baseline (baseline_agents.py). Ours are the agents
themselves with all their logging, timed by their metrics.jsonl. stable-baselines3 takes part where it is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import json
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
PARTS = ("act", "env", "advantages", "update", "rest")
BASELINE, PHYSICS = "CleanRL's way, adam", "mj_step alone"
CHUNK = {"ppo": 8192, "a2c": 4000}  # steps that are timed in a turn, after WARM
WARM = {"ppo": 2048, "a2c": 1000}

Turn = Callable[[], float]  # takes one method's turn; returns steps per second


def ours(algorithm: str, env_id: str, optimizer: str) -> Turn:
    """Train from the beginning; the time between two lines of metrics.jsonl counts."""
    agent = importlib.import_module(f"hesscale_rl.agents.{algorithm}")
    first, last = WARM[algorithm], WARM[algorithm] + CHUNK[algorithm]
    more = {"log_interval": 1000} if algorithm == "a2c" else {}

    def turn() -> float:
        folder = Path(tempfile.mkdtemp())
        how = dict(env_id=env_id, optimizer=optimizer, total_timesteps=last, quiet=True, run_dir=str(folder / "run"))
        if agent.train(agent.Args(**how, **more)) != 0:
            raise RuntimeError(f"{algorithm} on {env_id} with {optimizer} did not end well; see {folder}")
        lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
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


def stable_baselines(algorithm: str, env_id: str) -> Turn | None:
    """Go on with one training of stable-baselines3 with VecNormalize, or None without it."""
    import gymnasium as gym

    try:
        import stable_baselines3 as sb3
        from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
    except ImportError:
        return None
    vector = VecNormalize(DummyVecEnv([lambda: gym.make(env_id)]))
    model = (sb3.PPO if algorithm == "ppo" else sb3.A2C)("MlpPolicy", vector, device="cpu")
    model.learn(WARM[algorithm])

    def turn() -> float:
        began, steps = time.perf_counter(), CHUNK[algorithm] // 2
        model.learn(steps, reset_num_timesteps=False)
        return steps / (time.perf_counter() - began)

    return turn


def contenders(algorithm: str, env_id: str) -> dict[str, Turn]:
    """Return every method's turn; the baseline first."""
    turns = {BASELINE: usual(algorithm, env_id)}
    sb3 = stable_baselines(algorithm, env_id)
    if sb3 is not None:
        turns["stable-baselines3, its default"] = sb3
    for name in ("adam", "adahesscale", "scaled-adahesscale"):
        turns[f"hesscale-rl, {name}"] = ours(algorithm, env_id, name)
    turns[PHYSICS] = physics(env_id)
    return turns


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
    """Return microseconds per step by part, of the baseline and of AdaHesScale, whose "env" acts as well."""
    from hesscale_rl.rl.rollout import Rollout
    from hesscale_rl.studies import baseline_agents as baseline

    agent, result = importlib.import_module(f"hesscale_rl.agents.{algorithm}"), {}
    usual_parts = {"act": "act", "env": "step", "advantages": "advantages", "update": "update"}
    our_parts = {"env": (Rollout, "collect"), "advantages": (agent, "prepare"), "update": (agent, "update")}
    for method, turn, places in (
        (BASELINE, usual(algorithm, env_id), {part: (baseline, name) for part, name in usual_parts.items()}),
        (
            "hesscale-rl, adahesscale",
            ours(algorithm, env_id, "adahesscale"),
            our_parts,
        ),
    ):
        spent: dict[str, float] = defaultdict(float)
        steps = (WARM[algorithm] if method != BASELINE else 0) + CHUNK[algorithm]
        with watched(spent, places):
            rate = turn()
        if method == BASELINE:
            steps = CHUNK[algorithm] // 2 + (2048 if algorithm == "ppo" else 5)
        parts = {part: seconds / steps * 1e6 for part, seconds in spent.items()}
        result[method] = parts | {"rest": max(0.0, 1e6 / rate - sum(parts.values()))}
    return result


def measure(algorithm: str, env_id: str, rounds: int) -> list[dict[str, Any]]:
    """Return one row for each method."""
    turns = contenders(algorithm, env_id)
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            rates[name].append(turn())
    parts, rows = where(algorithm, env_id), []
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates[BASELINE], strict=True)]
        row = {"agent": algorithm, "env": env_id, "method": name, "rounds": rounds}
        for what, numbers in (("sps", values), ("ratio", ratios)):
            row |= {f"{what}_{f.__name__}": f(numbers) for f in (statistics.median, min, max)}
        rows.append(row | {f"us_{part}": parts[name][part] for part in PARTS if part in parts.get(name, {})})
    return rows


def show(row: dict[str, Any]) -> str:
    """Return a row as one of a Markdown table."""
    rate = "{sps_median:,.0f} ({sps_min:,.0f} to {sps_max:,.0f})".format(**row)
    ratio = "{ratio_median:.1f} ({ratio_min:.1f} to {ratio_max:.1f})".format(**row)
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
    colours = dict(zip(methods, ["#999999", "#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#009E73"], strict=False))
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
    for part, colour in zip(PARTS, ["#0072B2", "#009E73", "#F0E442", "#D55E00", "#999999"], strict=True):
        spent = np.array([row[f"us_{part}"] for row in split])
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
    caption = f"{time.strftime('%Y-%m-%d')}, {cpu()}, one core, {args.rounds} rounds, torch {torch.__version__}, "
    caption += f"gymnasium {gym.__version__}, mujoco {mujoco.__version__}"
    columns = ["agent", "env", "method", "steps per second", "ratio", *(f"us {part}" for part in PARTS)]
    say(f"{caption}\n\n| {' | '.join(columns)} |")
    say("|---" * len(columns) + "|")
    rows: list[dict[str, Any]] = []
    for algorithm, env_id in [("ppo", env_id) for env_id in args.envs] + [("a2c", args.envs[0])]:
        for row in measure(algorithm, env_id, args.rounds):
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
    parser.add_argument("--out", type=Path, help="write OUT.csv and OUT.png")
    return obey(parser, measure_all, "interrupted; no figure is written")


if __name__ == "__main__":
    sys.exit(main())
