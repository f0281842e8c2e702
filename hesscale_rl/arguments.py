"""The command line of an agent: presets, resumed runs, and mistakes said in one line. It imports no torch."""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import tyro

from .checkpoint import changes, read_config
from .console import complain, guard
from .errors import BAD_INPUT, InputError

A = TypeVar("A")


def parse(kind: type[A], presets: dict[str, A], argv: list[str]) -> A:
    """Return the arguments: those of the run that --resume names, or the preset's values; then what argv says.

    A run that cannot be resumed ends the program with one line and the exit code 2.
    """
    guard()
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="default")
    first.add_argument("--resume")
    known = first.parse_known_args(argv)[0]
    default = presets.get(known.preset, presets["default"])  # an unknown one is left to the agent's own checks
    if known.resume is not None:
        try:
            default = replace(read_config(known.resume, kind), resume=known.resume, run_dir=known.resume)  # type: ignore[type-var]
        except InputError as error:
            complain(f"--resume {error}")
            sys.exit(BAD_INPUT)
    return tyro.cli(kind, args=argv, default=default)


def needs(args: Any) -> Callable[[bool, str, str], None]:
    """Return need(ok, flag, allowed), which raises InputError with flag, value and what is allowed unless ok."""

    def need(ok: bool, flag: str, allowed: str) -> None:
        if not ok:
            value = getattr(args, flag)
            given = "" if value is True else f" {value}"  # a switch has no value
            raise InputError(f"--{flag.replace('_', '-')}{given}: must be {allowed}")

    return need


def check_optimizer(args: Any) -> None:
    """Raise InputError for the first flag of the optimizer, of those that the command has, that cannot be.

    None is allowed where it stands for a default.
    """
    from .optim import CURVATURES_OF, NEWTON, OPTIMIZER_NAMES, SCALED

    need, name = needs(args), args.optimizer.removeprefix(SCALED)
    need(args.optimizer in OPTIMIZER_NAMES, "optimizer", f"one of {', '.join(OPTIMIZER_NAMES)}")
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
    of = getattr(args, "curvature_of", "loss")
    need(of in CURVATURES_OF, "curvature_of", f"one of {', '.join(CURVATURES_OF)}")
    need(of == "loss" or name in NEWTON, "curvature_of", f"loss; {of} is for --optimizer {', '.join(NEWTON)}")


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
