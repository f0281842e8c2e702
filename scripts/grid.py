"""A sweep as data: what a spec says, as a list of runs, each with a name that never changes.

A spec is a TOML file with tables [[settings]], or a Python file with a tuple SETTINGS of dictionaries. Their keys are
`agent`, `preset` and the agent's flags with underscores; a list is varied, every combination is a run:

    [[settings]]
    agent = "ppo"
    env_id = ["HalfCheetah-v5", "Hopper-v5"]
    optimizer = ["adam", "scaled-adam"]
    learning_rate = [1e-4, 1e-3, 1e-2]
    seed = [0, 1, 2]
    total_timesteps = 300_000
"""

import difflib
import importlib
import itertools
import pkgutil
import runpy
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import agents
from envs import POOL, check_id
from hesscale_rl.errors import InputError
from hesscale_rl.optim import OPTIMIZER_NAMES

OWN = {"run_dir", "resume", "accept_changes", "quiet", "torch_threads", "track"}  # the sweep's to decide
NAMED = ("env_id", "optimizer", "learning_rate", "seed")  # in every name, in this order
# In no name: they change no number of a run's results, or its last digits only.
SILENT = OWN | {*NAMED, "preset", "checkpoint_interval", "backend", "compile", "device", "exp_name"}


@dataclass(frozen=True)
class Planned:
    """A run to be: its name, the agent's module name, and its command line without the run directory."""

    name: str
    agent: str
    flags: tuple[str, ...]
    steps: int


def read(spec: Path) -> list[Planned]:
    """Return the runs of a spec, in its order; InputError with one line for the first thing that cannot be."""
    runs: dict[str, Planned] = {}
    for number, setting in enumerate(_settings(spec)):
        for run in _runs(f"{spec}, settings {number + 1}", dict(setting)):
            runs.setdefault(run.name, run)
    if not runs:
        raise InputError(f"{spec}: a grid with no runs")
    return list(runs.values())


def _settings(spec: Path) -> Any:
    """The dictionaries that the file holds."""
    try:
        if spec.suffix == ".py":
            found = runpy.run_path(str(spec)).get("SETTINGS")
        else:
            found = tomllib.loads(spec.read_text()).get("settings")
    except OSError as error:
        raise InputError(f"{spec}: cannot be read ({error.strerror})") from None
    except Exception as error:  # whatever a file of somebody's own may do
        raise InputError(f"{spec}: {type(error).__name__}: {error}") from None
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, dict) for one in found):
        raise InputError(f"{spec}: needs [[settings]] tables (TOML) or a tuple SETTINGS of dictionaries (Python)")
    return found


def _runs(where: str, setting: dict[str, Any]) -> list[Planned]:
    """Every combination of one setting's lists, checked as the agent itself would."""
    agent = setting.pop("agent", None)
    known = sorted(module.name for module in pkgutil.iter_modules(agents.__path__))
    if agent not in known:
        raise InputError(f"{where}: agent {agent!r}: {_near(str(agent), known)}")
    module = importlib.import_module(f"agents.{agent}")
    preset = setting.pop("preset", "default")
    if preset not in module.PRESETS:
        raise InputError(f"{where}: preset {preset!r}: {_near(str(preset), list(module.PRESETS))}")
    default = module.PRESETS[preset]
    flags = [field.name for field in fields(default) if field.name not in OWN]
    for name in setting:
        if name not in flags:
            raise InputError(f"{where}: no flag {name!r}: {_near(name, flags)}")
    varied = [[(name, value) for value in _values(where, name, setting[name], default)] for name in setting]
    runs = []
    for combination in itertools.product(*varied):
        args = replace(default, **dict(combination))
        if args.optimizer not in OPTIMIZER_NAMES:
            raise InputError(f"{where}: no optimizer {args.optimizer!r}: {_near(args.optimizer, [*OPTIMIZER_NAMES])}")
        try:
            module.check(args)
            if not args.env_id.startswith(POOL) and args.env_module is None:
                check_id(args.env_id)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        runs.append(
            Planned(_name(agent, preset, args, default), agent, _flags(preset, args, default), _steps(agent, args))
        )
    return runs


def _values(where: str, name: str, given: Any, default: Any) -> list[Any]:
    """The values of a flag: a list is varied, unless the flag is a pair itself."""
    kind = type(getattr(default, name))
    pair = kind is tuple
    several = isinstance(given, (list, tuple)) and (not pair or any(isinstance(v, (list, tuple)) for v in given))
    values = [tuple(v) if pair and isinstance(v, list) else v for v in (given if several else [given])]
    for i, value in enumerate(values):
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            values[i] = float(value)
        elif kind is not type(None) and type(value) is not kind and not (value is None and name == "target_kl"):
            raise InputError(f"{where}: {name} = {value!r}: must be {kind.__name__}")
    return values


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known)}"


def _name(agent: str, preset: str, args: Any, default: Any) -> str:
    """A name that says all that decides the run's results, so that it is the same whatever else the spec holds."""
    parts = [agent if preset == "default" else f"{agent}-{preset}"]
    parts += [args.env_id.replace("/", "-").replace(":", "-"), args.optimizer, f"lr{args.learning_rate:g}"]
    for name, value in asdict(args).items():
        if name not in SILENT and value != getattr(default, name):
            parts.append(f"{name}={value}".replace(" ", "").replace("/", "-"))
    return "__".join([*parts, f"s{args.seed}"])


def _flags(preset: str, args: Any, default: Any) -> tuple[str, ...]:
    """The command line that gives these arguments."""
    line = ["--preset", preset]
    for name, value in asdict(args).items():
        if name in OWN or name == "preset" or value == getattr(default, name):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            line.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            line += [f"--{flag}", *map(str, value)]
        else:
            line += [f"--{flag}", str(value)]
    return tuple(line)


def _steps(agent: str, args: Any) -> int:
    """The steps that the run will have taken at its end."""
    size = args.num_steps * args.num_envs
    return args.total_timesteps if agent == "a2c" else args.total_timesteps // size * size
