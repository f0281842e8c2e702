"""The command line of an agent: presets, resumed runs, and mistakes said in one line. It imports no torch."""

import contextlib
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BAD_INPUT, FAILED, INTERRUPTED, InputError, Unwritable
from ..names import BACKENDS, DEVICES, POOL
from ..optim import declaration
from ..system.console import complain, guard
from .checkpoint import changes, read_config, trusted_module
from .command_line import Parser, one_of, path_text, read_kwargs
from .flags import read

MODULE_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # an optimizer of another package
# Packages whose optimizers a run that goes on may name; others are imported where that is allowed.
PEERS = {"torch", "hesscale_rl", "schedulefree", "prodigyopt", "muon"}

A = TypeVar("A")


def parse(
    kind: type[A], presets: dict[str, A], argv: list[str], prog: str, check: Callable[[A], None] = lambda args: None
) -> A:
    """Return the arguments: those of the run that --resume names, or the preset's values; then what argv says.

    `kind`: a dataclass whose fields are flags, with a docstring below each. What cannot be, by its type or by
    `check`, ends the program with one line and the exit code 2; --help ends it, too.
    """
    guard()
    try:
        first = Parser(prog, add_help=False)
        first.add_argument("--preset", default="default")
        first.add_argument("--resume", type=path_text)
        first.add_argument("--env-module")
        first.add_argument("--trust-env-module", action="store_true")
        known = first.parse_known_args(argv)[0]
        default = presets.get(known.preset, presets["default"])  # an unknown one is left to `check`
        if known.resume is not None:
            default = resumed(kind, known.resume, known.env_module, known.trust_env_module)
        args = read(kind, default, argv, prog)
        check(args)
    except InputError as error:
        complain(error)
        sys.exit(BAD_INPUT)
    return args


def resumed(kind: type[A], run: str, env_module: str | None = None, trust_env_module: bool = False) -> A:
    """Return the arguments, a `kind`, of the run directory that goes on; the rest as of `trusted_module`."""
    try:
        config: Any = read_config(run, kind)
        if hasattr(config, "env_module"):  # a supervised run has none
            trusted_module(run, config, env_module, trust_env_module)
            module = config.optimizer.partition(":")[0]
            if ":" in config.optimizer and module.partition(".")[0] not in PEERS and not trust_env_module:
                way = "if it is yours, add --trust-env-module"
                raise InputError(f"{run}: its config.json has the module {module} imported; {way}")
            config = replace(config, trust_env_module=False)  # for this time alone
        return replace(config, resume=run, run_dir=run)
    except InputError as error:
        raise InputError(f"--resume {error}") from None


def needs(args: Any) -> Callable[[bool, str, str], None]:
    """Return need(ok, flag, allowed), which raises InputError with flag, value and what is allowed unless ok."""

    def need(ok: bool, flag: str, allowed: str) -> None:
        if not ok:
            value = getattr(args, flag)
            given = "" if value is True else f" {value}"  # a switch has no value
            raise InputError(f"--{flag.replace('_', '-')}{given}: must be {allowed}")

    return need


def need_one_of(args: Any, flag: str, known: Any) -> None:
    """Raise InputError, with the closest of those known, unless the flag's value is one of them."""
    value = getattr(args, flag)
    if value not in known:
        raise InputError(f"--{flag.replace('_', '-')} {value}: {one_of(value, known)}")


def check_optimizer(args: Any, imported: bool = False) -> None:
    """Raise InputError for the first flag of the optimizer, of those that the command has, that cannot be.

    None is allowed where it stands for a default. What the optimizer does not have must suit one that does.
    """
    need, known, every = needs(args), declaration.names(), declaration.every_flag()
    if not imported and args.optimizer not in known and getattr(args, "env_module", None) is not None:
        return  # that module may declare it: a session asks again when it has been imported
    foreign = ":" in args.optimizer and hasattr(args, "env_id")  # the supervised tasks have none
    if foreign:
        need(bool(MODULE_CLASS.fullmatch(args.optimizer)), "optimizer", "a name, or module:Class")
    else:
        need_one_of(args, "optimizer", known)
    for flag in ("learning_rate", "delta", "desired_kl"):
        value = getattr(args, flag, None)
        need(value is None or 0 < value < math.inf, flag, "a positive number")
    given = read_kwargs(args.optimizer_kwargs, "optimizer-kwargs")
    if foreign:
        return
    declared = known[args.optimizer].declaration
    own = declared.flag_ranges()
    for flag, ranges in every.items():
        if (value := getattr(args, flag, None)) is None:
            continue
        allowed = own.get(flag) or next((r for r in ranges.values() if r.allows(value)), [*ranges.values()][0])
        if allowed.choices:
            need_one_of(args, flag, allowed.choices)
        need(allowed.allows(value), flag, allowed.words)
        default = type(args).__dataclass_fields__[flag].default
        others = f"{default}; {value} is for --optimizer {', '.join(ranges)}"
        need(flag in own or value == default or not _of_curvature(flag), flag, others)
    for name, value in given.items():
        if name not in own:
            raise InputError(f"--optimizer-kwargs {name}={value}: {args.optimizer} has {', '.join(own)}")
        if not own[name].allows(value):
            raise InputError(f"--optimizer-kwargs {name}={value}: must be {own[name].words}")


def _of_curvature(flag: str) -> bool:
    return any(flag in found.declaration.curvature_ranges for found in declaration.names().values())


def check_shared(args: Any) -> None:
    """Raise InputError for the first flag, of those that every agent has, that cannot be."""
    need = needs(args)
    check_optimizer(args)
    read_kwargs(args.env_kwargs)
    for flag in ("num_envs", "num_steps", "checkpoint_interval", "eval_episodes"):
        need(getattr(args, flag) >= 1, flag, "at least 1")
    for flag in ("eval_interval", "capture_video_interval"):
        need(getattr(args, flag) >= 0, flag, "zero or a number of steps")
    for flag in ("max_grad_norm", "vf_coef", "ent_coef"):  # those that the agent has
        need(0 <= getattr(args, flag, 0) < math.inf, flag, "zero or a positive number")
    for flag in ("gamma", "gae_lambda"):
        need(0 <= getattr(args, flag) <= 1, flag, "between 0 and 1")
    need(0 <= args.seed < 2**63, "seed", "zero or a positive integer below 2^63")
    cores = os.cpu_count() or 1
    copies = f"between 1 and --num-envs {args.num_envs}"
    need(1 <= args.env_threads <= args.num_envs, "env_threads", copies)
    own = "left out: EnvPool has threads of its own, --env-kwargs num_threads=N"
    need(args.env_threads == 1 or not args.env_id.startswith(POOL), "env_threads", own)
    for flag in ("torch_threads", "update_threads"):
        need(1 <= getattr(args, flag, 1) <= cores, flag, f"between 1 and {cores}, the cores here")
    need(not (args.profile and args.quiet), "profile", "left out, or without --quiet")
    steps = args.num_steps * args.num_envs
    need(args.total_timesteps >= steps, "total_timesteps", f"at least one rollout, {steps} steps")
    check_memory(args)
    need_one_of(args, "backend", BACKENDS)
    need(not (args.compile and args.backend == "compiled"), "compile", "left out, or --backend torch")
    need(args.device.partition(":")[0] in DEVICES, "device", "cpu, cuda or cuda:N")
    check_resume(args)
    if args.run_dir is not None and args.resume is None:
        check_new(Path(args.run_dir))


def check_new(directory: Path) -> None:
    """Raise InputError for the directory of a new run if it is a file, or has something in it."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"--run-dir {directory}: this is a file; name a new directory")
    with contextlib.suppress(OSError):  # not there yet, or it says so when it is made
        # A .part is of a run that was killed while it wrote its first file.
        if not all(path.match(".*.part") for path in directory.iterdir()):
            raise InputError(f"--run-dir {directory}: not empty; name a new directory, or remove this one first")


def planned_steps(args: Any) -> int:
    """Return how many steps an agent's run is to have; the last rollout may go further if their number is open."""
    return args.total_timesteps if args.rollouts is None else args.rollouts * args.num_steps * args.num_envs


def check_memory(args: Any, observations: int = 1) -> None:
    """Raise InputError if a rollout, with `observations` numbers a step, is larger than this machine's memory.

    Asked first of the flags alone, before as many environments are made; then of these.
    """
    # Of a step: two observations and their copies in a minibatch, actions, rewards, values and advantages.
    need, there = args.num_steps * args.num_envs * (16 * observations + 64), memory()
    if need > there:
        what = f"--num-steps {args.num_steps}" + f" times --num-envs {args.num_envs}" * (args.num_envs > 1)
        sizes = f"{need / 2**30:,.1f} GiB, and this machine has {there / 2**30:,.1f}"
        raise InputError(f"{what}: a rollout would take {sizes}; take fewer steps")


def memory() -> float:
    """Return how many bytes this machine, or the container that this is, has; infinity if that is not known."""
    sizes = [math.inf]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes)


def optimizer_settings(args: Any) -> dict[str, Any]:
    """Return the optimizer's flags as make_optimizer takes them; those that are None are left to it."""
    own = read_kwargs(args.optimizer_kwargs, "optimizer-kwargs")
    if ":" in args.optimizer:
        return {"lr": args.learning_rate, "flags": {"betas": args.betas, "eps": args.eps}} | own
    flags = ("delta", *declaration.find(args.optimizer).declaration.flag_ranges())
    values = {flag: getattr(args, flag, None) for flag in flags}
    given = {"lr": args.learning_rate} | {flag: value for flag, value in values.items() if value is not None}
    return given | own


def check_resume(args: Any) -> None:
    """Raise InputError if a resumed run was given other arguments than it began with, unless that was allowed."""
    if args.resume is not None and args.run_dir != args.resume:
        raise InputError(f"--run-dir {args.run_dir}: a resumed run stays where it is, --resume {args.resume}")
    if args.resume is not None and not args.accept_changes:
        changed = changes(read_config(args.resume, type(args)), args)
        if changed:
            raise InputError(
                f"--resume {args.resume}: changed {', '.join(changed)}; to go on so, add --accept-changes"
            )


def answer(train: Callable[[A], int], args: A) -> int:
    """Return the exit code of `train(args)`; say in one line what is wrong with the arguments or with the disk."""
    guard()
    if sys.platform not in ("linux", "darwin"):
        complain(f"hesscale_rl is made for Linux and macOS; on {sys.platform} nobody has tried it")
    try:
        return train(args)
    except KeyboardInterrupt:  # before the first update, or told twice
        return INTERRUPTED
    except InputError as error:
        complain(error)
        return BAD_INPUT
    except Unwritable as error:
        complain(error)
        return FAILED
