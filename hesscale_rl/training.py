"""Training from Python: `hesscale_rl.train("ppo", env_id="HalfCheetah-v5", total_timesteps=300_000)`."""

import functools
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from . import agents
from .errors import FAILED, InputError
from .playing import Player, load
from .runs.arguments import resumed
from .runs.checkpoint import fitted, read_object
from .runs.command_line import near, one_of
from .system.console import guard

if TYPE_CHECKING:
    import numpy as np

    from .runs.directory import Run

Callback = Callable[[int, Mapping[str, float]], Any]
PATHS = ("run_dir", "resume")


@dataclass(frozen=True)
class Trained:
    """What training came to: its run directory, how it ended and after how many steps.

    `status`: "done", "diverged" (the curve is kept) or "interrupted" (`train(..., resume=directory)` goes on).
    """

    directory: Path
    status: str
    step: int

    @functools.cached_property
    def policy(self) -> Player:
        """The policy of the last checkpoint, ready to act; InputError if the run ended before it had one."""
        return load(self.directory, trust_env_module=True)

    @functools.cached_property
    def best(self) -> Player:
        """The policy with the best evaluation, of a run with `eval_interval`."""
        return load(self.directory, "best", trust_env_module=True)

    @functools.cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """All that was logged, as dicts with "global_step", "time" and the figures by their tags."""
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]

    def curve(self, tag: str = "charts/episodic_return") -> "tuple[np.ndarray, np.ndarray]":
        """Return steps [N] and values [N] of a figure; KeyError, with those there are, if it was never logged."""
        import numpy as np

        rows = [row for row in self.metrics if tag in row]
        if not rows:
            tags = sorted({name for row in self.metrics for name in row} - {"global_step", "time"})
            raise KeyError(f"{tag}: never logged; {near(tag, tags)}")
        return np.array([row["global_step"] for row in rows]), np.array([float(row[tag]) for row in rows])


def train(agent: str = "ppo", *, env: Any = None, callback: Callback | None = None, **flags: Any) -> Trained:
    """Train an agent and return its run directory, its metrics and its policy.

    `flags` are those of `hesscale-rl train AGENT`, with underscores: env_id, total_timesteps, seed, optimizer,
    eval_interval, run_dir, preset, resume ...; env_kwargs and optimizer_kwargs may be dicts. `env`, in place of a
    name that Gymnasium knows: a function that makes an environment, or an environment, which then is the only copy
    and is not closed. `callback(step, figures)` is called with all that is logged, as it is logged; where it returns
    False training ends after the current update, as by Ctrl-C.

    InputError, with one line, for what cannot be, before anything is created; RuntimeError if the environment fails
    in the midst of training (what was learnt until then is kept).
    """
    guard()
    if agent not in agents.names():
        raise InputError(f"agent {agent!r}: {one_of(agent, agents.names())}")
    module = importlib.import_module(f"hesscale_rl.agents.{agent}")
    args = _arguments(module, flags, env)
    runs: list[Run] = []

    def watch(run: "Run", step: int, figures: Mapping[str, float]) -> Any:
        runs[:] = [run]
        return None if callback is None else callback(step, figures)

    code = module.train(args, watch)
    directory = runs[0].directory if runs else Path(args.resume)
    status = read_object(directory / "status.json")
    if code == FAILED:
        raise RuntimeError(f"{status.get('reason', 'failed')}; what was learnt is kept, resume={str(directory)!r}")
    return Trained(directory, status["status"], status["global_step"])


def _arguments(module: Any, flags: dict[str, Any], env: Any) -> Any:
    """The agent's arguments from ours; InputError for a name or a kind that they do not have."""
    kinds = get_type_hints(module.Args)
    for name in flags:
        if name not in kinds:
            raise InputError(
                f"{name}: {module.__name__.rpartition('.')[2]} has no such argument; {near(name, kinds)}"
            )
    given = {name: _value(name, value, kinds[name]) for name, value in flags.items()}
    if given.get("resume") is not None:
        trust = (given.get("env_module"), given.get("trust_env_module", False))
        base = resumed(module.Args, given["resume"], *trust)
    else:
        base = module.PRESETS.get(given.get("preset", "default"), module.PRESETS["default"])
    args = replace(base, **given)
    if env is None:
        return args
    from . import envs

    if given.get("env_id") is None and given.get("resume") is None:
        args = replace(args, env_id=envs.name_of(env))
    envs.offer(args.env_id, env, args.num_envs + bool(args.eval_interval or args.capture_video_interval))
    return args


def _value(name: str, value: Any, kind: Any) -> Any:
    if name in PATHS and value is not None:
        return str(Path(value).expanduser())
    if isinstance(value, Mapping):  # env_kwargs, optimizer_kwargs
        try:
            return json.dumps(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{name} {value!r}: {error}; needed are numbers, text, lists and dicts of them"
            ) from None
    if isinstance(value, tuple):
        value = list(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # NumPy's numbers
        value = value.item()
    if kind is int and isinstance(value, float) and value.is_integer():  # 1e6
        value = int(value)
    try:
        return fitted(value, kind)
    except (TypeError, OverflowError):
        words = kind.__name__ if isinstance(kind, type) else str(kind)
        raise InputError(f"{name} {value!r}: must be {words}") from None
