"""What this installation can do: hesscale-rl doctor

Versions, threads, GL, one MuJoCo step, one check of the curvature; exit code 1 if anything that training needs fails.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hesscale_rl.runs.command_line import Parser, obey
from hesscale_rl.system.console import say

PACKAGES = ("torch", "numpy", "numba", "gymnasium", "mujoco", "tensorboard", "safetensors")
OPTIONAL = {"plot": "matplotlib", "video": "imageio-ffmpeg", "robot": "ur_rtde", "data": "scikit-learn"}
OPTIONAL |= {"sb3": "stable-baselines3", "mcap": "mcap"}
OPTIONAL |= {"ray": "ray", "slurm": "submitit", "export": "onnxscript", "envpool": "envpool", "track": "wandb"}


def versions() -> str:
    """The packages' versions; an ImportError names what is missing."""
    return "  ".join(f"{name} {version(name)}" for name in PACKAGES)


def extras() -> str:
    """Which extras are there."""
    found = []
    for extra, package in OPTIONAL.items():
        try:
            found.append(f"[{extra}] {version(package)}")
        except PackageNotFoundError:
            found.append(f"[{extra}] no")
    return "  ".join(found)


def threads() -> str:
    """Cores and threads."""
    import torch

    torch.set_num_threads(1)
    return f"{os.cpu_count()} cores; agents run on 1 thread of torch, the fastest for their networks"


def physics() -> str:
    """One step of HalfCheetah-v5."""
    from hesscale_rl import envs

    env = envs.make("HalfCheetah-v5")
    env.reset(seed=0)
    obs, reward, *_ = env.step(env.action_space.sample())
    env.close()
    return f"HalfCheetah-v5 stepped, {len(obs)} observations"


def drawing() -> str:
    """One picture without a screen."""
    gl = os.environ.setdefault("MUJOCO_GL", "egl")
    from hesscale_rl import envs

    env = envs.make("HalfCheetah-v5", render_mode="rgb_array")
    env.reset(seed=0)
    picture: Any = env.render()
    env.close()
    return f"MUJOCO_GL={gl} draws {picture.shape[1]} x {picture.shape[0]} pixels"


def curvature() -> str:
    """HesScale's last layer against autodiff, and the compiled loops against the tape."""
    import torch
    from torch import nn

    import hesscale_rl as hs

    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, loss = torch.randn(5, 3), hs.losses.CrossEntropy(torch.arange(5) % 2)
    results = {}
    for name, how in (
        ("compiled", (hs.HesScale(), "auto")),
        ("tape", (hs.HesScale(), "torch")),
        ("exact", (hs.ExactDiagonal(), "auto")),
    ):
        for p in net.parameters():
            p.grad = p.hess_diag = None  # type: ignore[attr-defined]
        began = time.perf_counter()
        results[name] = hs.backward(net, x, loss, *how).curvature["2.weight"], time.perf_counter() - began
    worst = max(float((results[name][0] - results["exact"][0]).abs().max()) for name in ("compiled", "tape"))
    if not worst < 1e-6:
        raise AssertionError(f"the last layer's diagonal is off by {worst}")
    ready = f"loops ready in {results['compiled'][1]:.1f} s"
    return f"HesScale's last layer equals autodiff's (difference {worst:.0e}); {ready}"


CHECKS: dict[str, tuple[Callable[[], str], bool]] = {  # what it says, and whether training needs it
    "versions": (versions, True),
    "extras": (extras, False),
    "threads": (threads, True),
    "GL": (drawing, False),
    "MuJoCo": (physics, True),
    "curvature": (curvature, True),
}


def examine(args: argparse.Namespace) -> int:
    """Run every check and report."""
    failed = False
    for name, (check, needed) in CHECKS.items():
        try:
            say(f"{name:10} {check()}")
        except Exception as error:  # a doctor goes on
            failed |= needed
            words = str(error).strip().partition("\n")[0]
            say(f"{name:10} {'FAILED' if needed else 'no'}: {type(error).__name__}: {words}")
    return 1 if failed else 0


def main() -> int:
    """Read the command line and return the exit code."""
    return obey(Parser("hesscale-rl doctor", __doc__), examine)


if __name__ == "__main__":
    sys.exit(main())
