"""What a run ran on: commit, versions, processor."""

import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import hesscale_rl


def account(source: Path) -> dict[str, Any]:
    """Return what meta.json says of a run that begins now, by the agent's file `source`."""
    versions = {name: version(name) for name in ("torch", "numpy", "gymnasium", "mujoco")}
    return {
        "agent": source.stem,
        "git": commit(source),
        "versions": {"hesscale_rl": hesscale_rl.__version__, "python": platform.python_version(), **versions},
        "cpu": cpu(),
        "torch_threads": torch.get_num_threads(),
        "argv": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def commit(source: Path) -> dict[str, Any] | None:
    """Commit of the repository that holds `source`, and whether the working tree differs; None without either."""

    def git(*command: str) -> subprocess.CompletedProcess[str]:
        # Without optional locks, a hundred runs of a sweep that start together do not get in each other's way.
        line = ["git", "--no-optional-locks", "-C", str(source.resolve().parent), *command]
        return subprocess.run(line, capture_output=True, text=True, timeout=10)

    try:
        head = git("rev-parse", "HEAD")
        # A package installed in an ignored .venv says nothing about the repository around it.
        if head.returncode != 0 or git("check-ignore", "-q", source.name).returncode == 0:
            return None
        return {"sha": head.stdout.strip(), "dirty": bool(git("status", "--porcelain").stdout.strip())}
    except (OSError, subprocess.TimeoutExpired):
        return None


def cpu() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
