"""What the directory of a run, or of a sweep, says of how far it is. It imports no torch: who looks need not wait."""

import json
import os
from pathlib import Path
from typing import Any

from hesscale_rl.errors import DIVERGED, DONE, InputError
from hesscale_rl.runs.command_line import near

SPECS = Path(__file__).resolve().parents[1] / "sweeps"  # those that come with this package
TAIL = 8  # lines of a log that are shown


def built_in() -> dict[str, Path]:
    """Return the specs that come with this package, by name."""
    return {path.stem: path for path in sorted(SPECS.iterdir()) if path.suffix in (".toml", ".py")}


def locate(spec: Path) -> Path:
    """Return the file of a spec: the one there, or of a bare name the one of this package."""
    if spec.exists():
        return spec
    if len(spec.parts) > 1 or spec.suffix:
        raise InputError(f"{spec}: cannot be read (No such file or directory)")
    if spec.name not in built_in():
        raise InputError(
            f"{spec}: no such file, nor a sweep that comes with this package: {near(spec.name, built_in())}"
        )
    return built_in()[spec.name]


def status(directory: Path) -> dict[str, Any]:
    """Return what status.json says; {} if there is none."""
    try:
        content = json.loads((directory / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def saved(directory: Path) -> int:
    """Return the step of a run's last checkpoint."""
    step = status(directory).get("checkpoint")
    return step if isinstance(step, int) else 0


def exit_code(directory: Path) -> int | None:
    """Return the exit code of a run that is finished, else None."""
    return {"done": DONE, "diverged": DIVERGED}.get(str(status(directory).get("status")))


def reached(directory: Path) -> int:
    """Return the step that a run has reached by status.json and the last whole line of metrics.jsonl."""
    told = status(directory).get("global_step")
    step = told if isinstance(told, int) else 0
    try:
        lines = _end(directory / "metrics.jsonl").split(b"\n")
        return max(step, int(json.loads(lines[-2])["global_step"])) if len(lines) > 1 else step
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return step


def log_path(folder: Path, name: str) -> Path:
    """Where the output of a run goes, by the folder of its sweep and its name."""
    return folder / "logs" / f"{name}.log"


def log_end(folder: Path, name: str) -> list[str]:
    """Return the last lines of a run's log, none if it has no log."""
    try:
        content = _end(log_path(folder, name))
    except OSError:
        return []
    return content.decode(errors="replace").splitlines()[-TAIL:]


def _end(path: Path, size: int = 4096) -> bytes:
    """The last bytes of a file."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read()
