"""The command line of an agent: presets, resumed runs, and mistakes said in one line. It imports no torch."""

import contextlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BAD_INPUT, FAILED, INTERRUPTED, InputError, Unwritable
from ..names import BACKENDS, CURVATURES_OF, NEWTON, OPTIMIZER_NAMES, SCALED
from ..system.console import complain, guard
from .checkpoint import changes, read_config
from .command_line import Parser, one_of, path_text, read_kwargs
from .flags import read

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
        known = first.parse_known_args(argv)[0]
        default = presets.get(known.preset, presets["default"])  # an unknown one is left to `check`
        if known.resume is not None:
            default = _resumed(known.resume, kind)
        args = read(kind, default, argv, prog)
        check(args)
    except InputError as error:
        complain(error)
        sys.exit(BAD_INPUT)
    return args


def _resumed(directory: str, kind: type[A]) -> A:
    try:
        return replace(read_config(directory, kind), resume=directory, run_dir=directory)  # type: ignore[type-var]
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


def check_optimizer(args: Any) -> None:
    """Raise InputError for the first flag of the optimizer, of those that the command has, that cannot be.

    None is allowed where it stands for a default.
    """
    need, name = needs(args), args.optimizer.removeprefix(SCALED)
    need_one_of(args, "optimizer", OPTIMIZER_NAMES)
    for flag in ("learning_rate", "delta"):
        need(0 < getattr(args, flag) < math.inf, flag, "a positive number")
    need(0 <= args.eps < math.inf, "eps", "zero or a positive number")
    need(all(0 <= b < 1 for b in args.betas), "betas", "two numbers in [0, 1)")
    if (damping := args.damping) is not None:
        if name == "newton-cg":
            need(0 <= damping <= 1, "damping", "from 0 to 1")
        elif name == "hessian-free":
            need(0 <= damping < math.inf, "damping", "zero or a positive number")
        else:
            need(0 < damping < math.inf, "damping", "a positive number")
    for flag in ("iterations", "splits", "blocks", "curvature_rows"):
        need(getattr(args, flag, None) is None or getattr(args, flag) >= 1, flag, "at least 1")
    if hasattr(args, "curvature_of"):
        need_one_of(args, "curvature_of", CURVATURES_OF)
        of = args.curvature_of
        need(of == "loss" or name in NEWTON, "curvature_of", f"loss; {of} is for --optimizer {', '.join(NEWTON)}")


def check_shared(args: Any) -> None:
    """Raise InputError for the first flag, of those that every agent has, that cannot be."""
    need = needs(args)
    check_optimizer(args)
    read_kwargs(args.env_kwargs)
    for flag in ("num_envs", "num_steps", "checkpoint_interval"):
        need(getattr(args, flag) >= 1, flag, "at least 1")
    for flag in ("max_grad_norm", "vf_coef", "ent_coef"):  # those that the agent has
        need(0 <= getattr(args, flag, 0) < math.inf, flag, "zero or a positive number")
    for flag in ("gamma", "gae_lambda"):
        need(0 <= getattr(args, flag) <= 1, flag, "between 0 and 1")
    need(0 <= args.seed < 2**63, "seed", "zero or a positive integer below 2^63")
    cores = os.cpu_count() or 1
    need(1 <= args.torch_threads <= cores, "torch_threads", f"between 1 and {cores}, the cores here")
    steps = args.num_steps * args.num_envs
    need(args.total_timesteps >= steps, "total_timesteps", f"at least one rollout, {steps} steps")
    need_one_of(args, "backend", BACKENDS)
    need(not (args.compile and args.backend == "compiled"), "compile", "left out, or --backend torch")
    check_resume(args)


def planned_steps(args: Any) -> int:
    """Return how many steps an agent's run is to have; the last rollout may go further if their number is open."""
    return args.total_timesteps if args.rollouts is None else args.rollouts * args.num_steps * args.num_envs


def check_memory(args: Any, observations: int) -> None:
    """Raise InputError if a rollout, with `observations` numbers a step, is larger than this machine's memory."""
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
    flags = ("betas", "eps", "delta", "momentum", "damping", "iterations", "splits", "curvature_rows", "curvature_of")
    values = {flag: getattr(args, flag, None) for flag in flags}
    return {"lr": args.learning_rate} | {flag: value for flag, value in values.items() if value is not None}


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
