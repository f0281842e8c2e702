"""What a run directory holds for going on: the arguments, and checkpoints that say what wrote them."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .. import __version__
from ..errors import InputError
from ..names import POOL
from ..system.console import complain

FORMAT = 1  # of the checkpoints and of config.json; raised when an older program cannot read the newer files
KEYS = {"logs", "global_step", "policy", "optimizer", "rollout"}  # what every agent's checkpoint has
STEP, BEST = "step", "best"  # what the names of checkpoints begin with
KEPT = 2  # checkpoints of a run: should the last be torn, there is the one before

# Arguments that may change from one session of a run to the next: they decide nothing about its numbers.
EVALUATING = {"eval_interval", "eval_episodes", "capture_video_interval"}
FREE = {"resume", "accept_changes", "trust_env_module", "quiet", "run_dir", "checkpoint_interval", "track"}
HOW = {"env_threads", "update_threads", "profile"}
FREE |= EVALUATING | HOW

# Flags that came later: a run of an earlier version has them as they are where nobody gives them.
LATER = {"env_kwargs", "rescale_actions", "trust_env_module", "desired_kl"} | EVALUATING | HOW

A = TypeVar("A")


def read_config(directory: str | Path, kind: type[A]) -> A:
    """Return the arguments of the run in `directory`, as `kind`, an agent's dataclass; InputError if it holds none.

    It reads JSON only: torch is not needed. Every value is of its field's type; whether it is sensible is not asked.
    """
    path = Path(directory) / "config.json"
    later = {f.name: f.default for f in dataclasses.fields(kind) if f.name in LATER}  # type: ignore[arg-type]
    saved = later | read_object(path)
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown, absent = sorted(saved.keys() - names), sorted(names - saved.keys())
    if unknown or absent:
        what = "; ".join(
            f"{word} {', '.join(keys)}" for word, keys in (("it has", unknown), ("it lacks", absent)) if keys
        )
        wrote = _writer(Path(directory))
        raise InputError(f"{path}: of another agent or version ({what}); written by {wrote}, this is {__version__}")
    values = {}
    for name, annotation in get_type_hints(kind).items():
        try:
            values[name] = fitted(saved[name], annotation, from_json=True)
        except (TypeError, OverflowError):
            what = annotation.__name__ if isinstance(annotation, type) else annotation
            raise InputError(f"{path}: {name} is {str(saved[name])[:100]!r}, and must be {what}") from None
    return kind(**values)


def trusted_module(run: str | Path, config: Any, named: str | None, trust: bool) -> str | None:
    """Return the module that registers the run's environment: the one `named`, or the run's own if that is trusted.

    InputError where config.json names a module, as Python code of anybody's, that the command line does not.
    """
    own = {config.env_module, config.env_id.removeprefix(POOL).rpartition(":")[0] or None} - {None}
    if not trust and (asked := sorted(own - {named}) if named is None or len(own) > 1 else []):
        way = f"--trust-env-module, or --env-module {asked[0]}"
        raise InputError(f"{run}: its config.json has the module {asked[0]} imported; if it is yours, add {way}")
    return named or config.env_module


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run directory; InputError, of the directory if there is none."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        missing = "there is no such directory" if not path.parent.exists() else f"it has no {path.name}"
        raise InputError(f"{path.parent}: not a run directory ({missing})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: cannot be read (no JSON object)")
    return content


def fitted(value: Any, annotation: Any, from_json: bool = False) -> Any:
    """Return a value as one of an annotation of an agent's arguments; TypeError if it is none.

    `from_json`: text may stand for the infinities, which JSON does not know.
    """
    for option in get_args(annotation) if isinstance(annotation, UnionType) else (annotation,):
        if option is float and (type(value) is int or from_json and value in ("inf", "-inf", "nan")):
            return float(value)
        if option is NoneType and value is None or type(value) is option:
            return value
        parts = get_args(option)
        if get_origin(option) is tuple and isinstance(value, list) and len(value) == len(parts):
            return tuple(fitted(one, part, from_json) for one, part in zip(value, parts, strict=True))
    raise TypeError


def _writer(directory: Path) -> str:
    try:
        meta = json.loads((directory / "meta.json").read_text())
        return f"{meta.get('agent', 'an agent')}, hesscale_rl {meta['versions']['hesscale_rl']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown version"


def changes(before: Any, now: Any) -> list[str]:
    """Return what differs between two sets of arguments of one kind: "--learning-rate 0.001 (was 0.0003)"."""
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    return [
        f"--{name.replace('_', '-')} {new[name]} (was {old[name]})"
        for name in new
        if name not in FREE and new[name] != old[name]
    ]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `Run.save_checkpoint` wrote; InputError for any other file. Nothing in the file is ever run."""
    import torch

    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a torn, foreign or hostile file fails in many ways, and all mean the same here
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__})") from None
    if not isinstance(saved, dict) or "format" not in saved:
        raise InputError(f"{path}: no checkpoint of hesscale_rl (it has no format)")
    if saved["format"] != FORMAT:
        wrote = f"format {saved['format']}, written by hesscale_rl {saved.get('version', '?')}"
        raise InputError(
            f"{path}: {wrote}; this is {__version__} and reads format {FORMAT}: use the version that wrote it"
        )
    if missing := KEYS - saved.keys():
        raise InputError(f"{path}: no checkpoint of an agent (it lacks {', '.join(sorted(missing))})")
    kinds = {"policy": dict, "optimizer": dict, "rollout": dict, "logs": dict, "global_step": int}
    wrong = [name for name, kind in kinds.items() if not isinstance(saved[name], kind)]
    if not wrong and not all(isinstance(value, torch.Tensor) for value in saved["policy"].values()):
        wrong = ["policy"]
    if wrong:
        raise InputError(f"{path}: damaged, its {wrong[0]} is {type(saved[wrong[0]]).__name__} of another kind")
    return saved


@contextmanager
def fitting() -> Iterator[None]:
    """Loading a checkpoint: what is raised where a state does not fit becomes an InputError."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"--resume: the checkpoint does not fit these arguments ({cause})") from None


def restore(policy: Any, optimizer: Any, saved: dict[str, Any], num_envs: int) -> None:
    """Load a checkpoint into a policy and its optimizer; InputError if it does not fit."""
    with fitting():
        policy.load_state_dict(saved["policy"])
        optimizer.load_state_dict(saved["optimizer"])
        shape = saved["rollout"]["obs"].shape
    if shape != (num_envs, policy.observations):
        raise InputError("--resume: the checkpoint is of another environment or --num-envs")


def newest_checkpoint(directory: str | Path) -> dict[str, Any]:
    """Return the last good checkpoint of a run directory; if there is none yet, one of step 0 with nothing learned.

    A line on stderr tells of any that is not good; InputError if none is.
    """
    paths = checkpoints(Path(directory) / "checkpoints")
    for path in reversed(paths):
        try:
            return read_checkpoint(path)
        except InputError as error:
            if path == paths[0]:
                raise
            complain(f"{error}; taking the one before")
    status = _status(Path(directory))
    if status.get("checkpoint") is not None:
        raise InputError(f"{directory}: {status.get('status')}, but its checkpoints are gone; it cannot go on")
    complain(f"{directory}: no checkpoint yet, so it begins anew")
    return {"logs": {}, "global_step": 0}


def chosen_checkpoint(directory: str | Path, which: str) -> dict[str, Any]:
    """Return the checkpoint of a run directory that --checkpoint names: last, best, or the number of a step."""
    if which == "last":
        return newest_checkpoint(directory)
    folder = Path(directory) / "checkpoints"
    if which == "best":
        if not (paths := checkpoints(folder, BEST)):
            raise InputError(f"--checkpoint best: {directory} has none; train with --eval-interval")
        return read_checkpoint(paths[-1])
    there = {path.stem.partition("_")[2]: path for name in (STEP, BEST) for path in checkpoints(folder, name)}
    if which not in there:
        known = ", ".join(["last", "best", *sorted(there, key=int)])
        raise InputError(f"--checkpoint {which}: {directory} has {known}")
    return read_checkpoint(there[which])


def _status(directory: Path) -> dict[str, Any]:
    try:
        status = json.loads((directory / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def checkpoints(folder: Path, kind: str = STEP) -> list[Path]:
    """Return step_N.pt, or `kind`_N.pt, of a folder, by N."""
    found = [(path.stem.removeprefix(f"{kind}_"), path) for path in folder.glob(f"{kind}_*.pt")]
    return [path for number, path in sorted((int(n), path) for n, path in found if n.isdigit())]


def crossed(before: int, after: int, interval: int) -> bool:
    """Whether a multiple of `interval` lies in (before, after]."""
    return after // interval > before // interval
