"""What is tuned: which values flags may take, and what a trial's runs are worth. It imports no torch, nor Optuna."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hesscale_rl.errors import InputError
from hesscale_rl.scripts.analysis.curves import on_grid
from hesscale_rl.scripts.analysis.read_runs import read
from hesscale_rl.system.console import complaints

RUNGS = 10  # places of a run at which its trial is compared to others
DIGITS = 3  # of a value that is tried: more decide nothing, and names have them


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`, whole ones if both are; by their logarithms if they span a factor of ten."""

    low: float
    high: float

    @property
    def logarithmic(self) -> bool:
        """Whether the logarithm is what is drawn evenly."""
        return self.low > 0 and self.high >= 10 * self.low

    def suggest(self, trial: Any, name: str) -> Any:
        """Return the value that an Optuna trial takes."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.logarithmic)
        value = trial.suggest_float(name, self.low, self.high, log=self.logarithmic)
        return float(f"{value:.{DIGITS}g}")

    def ends(self) -> tuple[Any, ...]:
        """Return what is checked before anything starts."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def suggest(self, trial: Any, name: str) -> Any:
        """Return the value that an Optuna trial takes."""
        return trial.suggest_categorical(name, self.values)

    def ends(self) -> tuple[Any, ...]:
        """Return what is checked before anything starts."""
        return self.values


def read_value(word: str) -> Any:
    """Return a word of the command line as a number or a switch if it is one, else as text."""
    for kind in (int, float):
        try:
            value = kind(word)
        except ValueError:
            continue
        if not math.isfinite(value):
            raise InputError(f"{word}: must be finite")
        return value
    return {"true": True, "false": False}.get(word.lower(), word)


def read_space(words: list[str]) -> dict[str, Span | Choice]:
    """Return the space that `--vary NAME=LOW:HIGH` and `NAME=A,B,C` mean, by the names of flags."""
    space: dict[str, Span | Choice] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name or not text:
            raise InputError(f"--vary {word}: must be NAME=LOW:HIGH or NAME=A,B,C")
        key = name.lstrip("-").replace("-", "_")
        if key in space:
            raise InputError(f"--vary {word}: {name} is there twice")
        space[key] = _one(word, text)
    return space


def _one(word: str, text: str) -> Span | Choice:
    if ":" not in text:
        values = tuple(read_value(part) for part in text.split(","))
        if len(set(values)) < len(values) or len(values) < 2:
            raise InputError(f"--vary {word}: needs two values or more, each once; --set is for a single one")
        return Choice(values)
    ends = [read_value(part) for part in text.split(":")]
    if len(ends) != 2 or not all(type(end) in (int, float) for end in ends):
        raise InputError(f"--vary {word}: must be two numbers, LOW:HIGH")
    if not ends[0] < ends[1]:
        raise InputError(f"--vary {word}: {ends[0]} must be below {ends[1]}")
    return Span(*ends)


def read_settings(words: list[str]) -> dict[str, Any]:
    """Return what `--set NAME=VALUE` means, by the names of flags."""
    settings = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name or not text:
            raise InputError(f"--set {word}: must be NAME=VALUE")
        settings[name.lstrip("-").replace("-", "_")] = read_value(text)
    return settings


def score(paths: list[Path], planned: int, rung: int) -> float:
    """Return the mean over runs of the average return up to a rung, of RUNGS; NaN if one has no episode yet.

    A run that diverged counts, from its end on, with the worst of its curve, as everywhere.
    """
    with complaints():
        runs = read([str(path) for path in paths], unfinished=True)
    found = [on_grid(run, max(1, planned * rung // RUNGS), 10 * rung) for run in runs]
    values = [np.nan if curve is None else float(curve.mean()) for curve in found]
    return float(np.mean(values)) if len(values) == len(paths) else np.nan


def rung_of(steps: list[int], planned: int) -> int:
    """Return the last rung that all runs of a trial have come to, by the steps that they are at."""
    return min(min(steps) * RUNGS // planned, RUNGS)
