"""A sweep as data: what a spec says, as a list of runs, each with a name that never changes.

A spec is a TOML file with tables [[settings]], or a Python file with a tuple SETTINGS of dictionaries. Their keys are
`agent`, which may be "supervised", `preset` and the agent's flags with underscores; a list (in Python a range or an
array, too) is varied, every combination is a run:

    [[settings]]
    agent = "ppo"
    env_id = ["HalfCheetah-v5", "Hopper-v5"]
    optimizer = ["adam", "scaled-adam"]
    learning_rate = [1e-4, 1e-3, 1e-2]
    seed = [0, 1, 2]
    total_timesteps = 300_000

Names leave out what changes no number of a run's results, or its last digits only: that may not vary.
"""

import difflib
import hashlib
import importlib
import itertools
import re
import runpy
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from hesscale_rl import agents
from hesscale_rl.errors import InputError
from hesscale_rl.names import POOL
from hesscale_rl.optim import declaration
from hesscale_rl.runs.arguments import planned_steps
from hesscale_rl.runs.checkpoint import EVALUATING, HOW, fitted
from hesscale_rl.runs.command_line import near
from hesscale_rl.scripts.analysis.read_runs import SUPERVISED

# The sweep's to decide.
OWN = {"run_dir", "resume", "accept_changes", "trust_env_module", "quiet", "profile", "torch_threads", "track"}
UNNAMED = {"checkpoint_interval", "backend", "compile", "device", "exp_name", "data_dir"} | EVALUATING | HOW
NAMED = {"env_id", "task", "optimizer", "learning_rate", "seed"}  # in every name, at a place of their own
LONGEST = 251  # bytes of a name: file systems take 255, and the log's has four more


@dataclass(frozen=True)
class Planned:
    """A run to be: its name, the agent's module name, and its command line without the run directory."""

    name: str
    agent: str
    flags: tuple[str, ...]
    steps: int


def read(spec: Path, here: bool = True, fetch: bool = False) -> list[Planned]:
    """Return the runs of a spec, in its order; InputError with one line for the first thing that cannot be.

    `here`: they are to run on this machine, which so must have the device that they name. `fetch`: download what data
    supervised runs need, before several want it.
    """
    runs: dict[str, tuple[Planned, Any, str]] = {}
    for number, setting in enumerate(_settings(spec)):
        where = f"{spec}, settings {number + 1}"
        for run, args in combinations(where, setting):
            _, other, there = runs.setdefault(run.name, (run, args, where))
            if other != args:
                differing = [name for name, value in asdict(other).items() if value != getattr(args, name)]
                what = ", ".join(f"{name} {getattr(other, name)!r} and {getattr(args, name)!r}" for name in differing)
                raise InputError(
                    f"{there} and {where}: two runs {run.name} that differ in {what}, which names do not tell; "
                    f"sweep one of them in another --dir"
                )
    if not runs:
        raise InputError(f"{spec}: a grid with no runs")
    construct([(where, run.agent, args) for run, args, where in runs.values()], here)
    if fetch:
        _fetch([args for run, args, _ in runs.values() if run.agent == SUPERVISED])
    return [run for run, _, _ in runs.values()]


def _fetch(supervised_runs: list[Any]) -> None:
    """Get the data of these arguments; InputError if it cannot be had."""
    from hesscale_rl.scripts import supervised
    from hesscale_rl.scripts.supervised_tasks import data

    filled: list[Any] = [supervised.fill(args) for args in supervised_runs]
    for name, directory in {(args.data, args.data_dir) for args in filled}:
        data.split(name, directory)


def module_name(agent: str) -> str:
    """Return the name of an agent's module."""
    return f"hesscale_rl.scripts.{agent}" if agent == SUPERVISED else f"hesscale_rl.agents.{agent}"


def one_line(error: BaseException) -> str:
    """Return what an error says in one line, for the terminal."""
    return " ".join(str(error).split())


def _settings(spec: Path) -> Any:
    """The dictionaries that the file holds."""
    name = "SETTINGS" if spec.suffix == ".py" else "settings"
    try:
        content = runpy.run_path(str(spec)) if spec.suffix == ".py" else tomllib.loads(spec.read_text())
    except OSError as error:
        raise InputError(f"{spec}: cannot be read ({error.strerror or error})") from None
    except (Exception, SystemExit) as error:  # whatever a file of somebody's own may do
        raise InputError(f"{spec}: {type(error).__name__}: {one_line(error)}") from None
    outside = [key for key in content if key != name]
    if spec.suffix != ".py" and outside:
        close = difflib.get_close_matches(outside[0], [name], cutoff=0.5)
        hint = f"did you mean [[{name}]]?" if close else "move it into one"
        raise InputError(f"{spec}: {outside[0]!r} is outside of the tables [[{name}]]: {hint}")
    found = content.get(name)
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, dict) for one in found):
        raise InputError(f"{spec}: needs [[settings]] tables (TOML) or a tuple SETTINGS of dictionaries (Python)")
    return found


def combinations(where: str, given: dict[Any, Any]) -> list[tuple[Planned, Any]]:
    """Return every combination of one setting's lists with its arguments, checked as the agent's command line is.

    InputError, which begins with `where`, for one that cannot be. It imports no torch.
    """
    runs = []
    flags = {name: value for name, value in given.items() if name not in ("agent", "preset")}
    for agent in _chosen(where, "agent", given.get("agent"), [*agents.names(), SUPERVISED]):
        module = importlib.import_module(module_name(agent)) if agent == SUPERVISED else agents.arguments(agent)
        presets = {"default": module.Args()} if agent == SUPERVISED else module.PRESETS
        for preset in _chosen(where, "preset", given.get("preset", "default"), [*presets]):
            default = presets[preset]
            for combination in itertools.product(*_varied(where, flags, default)):
                args = replace(default, **dict(combination))
                try:
                    rate, steps = _check_supervised(args) if agent == SUPERVISED else _check_agent(agent, args)
                except InputError as error:
                    raise InputError(f"{where}: {error}") from None
                name = _name(agent if preset == "default" else f"{agent}-{preset}", args, default, rate)
                runs.append((Planned(name, agent, _flags(args, default), steps), args))
    return runs


def construct(runs: list[tuple[str, str, Any]], here: bool) -> None:
    """See whether what these runs begin with can be made: of each where it is asked for, its agent and arguments.

    InputError, which begins with where, for one that cannot. `here`: on this machine, whose device it so must be.
    """
    for where, agent, args in runs:
        try:
            if agent == SUPERVISED:
                filled: Any = importlib.import_module(module_name(agent)).fill(args)
                _check_network(filled.task, filled.data, filled.optimizer, filled.batch_size, filled.blocks)
                continue
            elsewhere = not here and re.fullmatch(r"cuda(:\d+)?", args.device)  # which may have what this one lacks
            device = "cpu" if elsewhere else args.device
            _construct(agent, args.optimizer, args.std, args.compile, args.backend, device)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def _listed(where: str, name: Any, given: Any, pair: bool) -> list[Any]:
    """What a key is given, as a list of plain values, each once; a list that is a `pair` is one."""
    given = _plain(given)
    several = isinstance(given, list) and (not pair or not given or any(isinstance(value, list) for value in given))
    values = given if several else [given]
    if not values:
        raise InputError(f"{where}: {name} = []: a grid with no runs; give at least one value")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise InputError(f"{where}: {name} = {value!r} is in its list twice; once is enough")
    if len(values) > 1 and name in UNNAMED:
        raise InputError(f"{where}: {name} = {values!r}: may not vary, names do not tell it; give one value")
    return values


def _plain(value: Any) -> Any:
    """A value without numpy's arrays and numbers, ranges and tuples."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(one) for one in value] if isinstance(value, (list, tuple, range)) else value


def _chosen(where: str, name: str, given: Any, known: list[str]) -> list[str]:
    values = _listed(where, name, given, pair=False)
    for value in values:
        if value not in known:
            raise InputError(f"{where}: {name} {value!r}: {near(str(value), known)}")
    return values


def _varied(where: str, given: dict[Any, Any], default: Any) -> list[list[tuple[str, Any]]]:
    """Of each flag its name with each of its values, which are of the type that the agent's arguments have."""
    kinds = get_type_hints(type(default))
    flags = [field.name for field in fields(default) if field.name not in {*OWN, "preset"}]
    varied = []
    for name, value in given.items():
        if name not in flags:
            raise InputError(f"{where}: no flag {name!r}: {near(str(name), flags)}")
        kind = kinds[name]
        values = _listed(where, name, value, get_origin(kind) is tuple)
        try:
            varied.append([(name, fitted(value, kind)) for value in values])
        except (TypeError, OverflowError):
            what = kind.__name__ if isinstance(kind, type) else kind
            raise InputError(f"{where}: {name} = {_plain(value)!r}: must be {what}") from None
    return varied


def _check_optimizer(name: str) -> None:
    if name not in (known := declaration.names()):
        raise InputError(f"no optimizer {name!r}: {near(name, [*known])}")


def _check_agent(agent: str, args: Any) -> tuple[float, int]:
    """Return learning rate and steps; InputError for what the agent would refuse when it starts."""
    _check_optimizer(args.optimizer)
    agents.arguments(agent).check(args)
    _check_env(args.env_id, args.env_module)
    return args.learning_rate, planned_steps(args)


def _check_supervised(given: Any) -> tuple[float, int]:
    """Return learning rate and updates; InputError for what the command would refuse, missing data aside."""
    from hesscale_rl.scripts import supervised
    from hesscale_rl.scripts.supervised_tasks import data, tasks

    if given.task not in tasks.TASKS:
        raise InputError(f"no task {given.task!r}: {near(given.task, [*tasks.TASKS])}")
    _check_optimizer(given.optimizer)
    args: Any = supervised.fill(given)  # so that nothing that is used here is None
    supervised.check(args)
    return args.learning_rate, data.TRAINING[args.data] // args.batch_size * args.epochs


@cache
def _check_network(task: str, data: str, optimizer: str, batch_size: int, blocks: int | None) -> None:
    """See whether the optimizer can work on the task's network."""
    import torch

    from hesscale_rl.scripts import supervised
    from hesscale_rl.scripts.supervised_tasks import tasks
    from hesscale_rl.scripts.supervised_tasks.data import SHAPES

    args = supervised.fill(supervised.Args(task, data, optimizer=optimizer, batch_size=batch_size, blocks=blocks))
    net, x = tasks.TASKS[task].network(data), torch.zeros(1, *SHAPES[data])
    _, curvature = supervised.make_optimizer(args, net)
    supervised.check_curvature(args, net, curvature, tasks.is_taped(net), x)


@cache
def _check_env(env_id: str, module: str | None) -> None:
    """Import what registers it, and see whether there is such an environment; none is made but EnvPool's."""
    from hesscale_rl import envs

    if env_id.startswith(POOL):
        from hesscale_rl.rl.policy import check_spaces

        pool = envs.make_vector(env_id)
        check_spaces(env_id, pool.observation_space, pool.action_space)
        pool.close()
        return
    if module is not None:
        envs.import_users(f"--env-module {module}", module)
    envs.check_id(env_id)


@cache
def _construct(agent: str, optimizer: str, std: str, compiles: bool, backend: str, device: str) -> None:
    """Make what the agent makes before it trains, for an environment of no matter which size."""
    from gymnasium.spaces import Box

    from hesscale_rl.backend import use
    from hesscale_rl.optim import make_optimizer
    from hesscale_rl.rl.fast.learner import make_learner

    module, spaces = importlib.import_module(f"hesscale_rl.agents.{agent}"), (Box(-1, 1, (3,)), Box(-1, 1, (2,)))
    policy = module.make_policy(*spaces, module.Args(std=std))
    policy.place(device)
    if backend == "compiled" and not compiles:
        with use(backend):
            make_learner(policy, *make_optimizer(optimizer, policy.groups()), quiet=True)


def _name(agent: str, args: Any, default: Any, rate: float) -> str:
    """A name that says all that decides the run's results, so that it is the same whatever else the spec holds."""
    short = f"{rate:g}"
    where = args.env_id.replace("/", "-").replace(":", "-")
    parts = [agent, where, args.optimizer, f"lr{short if float(short) == rate else repr(rate)}"]
    for name, value in asdict(args).items():
        if name not in {*OWN, *UNNAMED, *NAMED, "preset"} and value != getattr(default, name):
            parts.append(f"{name}={value}".replace(" ", "").replace("/", "-"))
    whole, seed = "__".join([*parts, f"s{args.seed}"]), f"__s{args.seed}"
    if len(whole.encode()) <= LONGEST:
        return whole
    end = f"__{hashlib.sha256(whole.encode()).hexdigest()[:16]}{seed}"
    return whole.encode()[: LONGEST - len(end)].decode(errors="ignore") + end


def _flags(args: Any, default: Any) -> tuple[str, ...]:
    """The command line that gives these arguments."""
    line = []
    for name, value in asdict(args).items():
        if name != "preset" and (name in OWN or value == getattr(default, name)):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            line.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            line += [f"--{flag}", *map(str, value)]
        else:
            line += [f"--{flag}", str(value)]
    return tuple(line)
