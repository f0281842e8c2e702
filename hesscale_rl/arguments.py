"""The command line of an agent: presets, resumed runs, and mistakes said in one line. It imports no torch."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import tyro

from .checkpoint import changes, read_config
from .errors import BAD_INPUT, InputError

A = TypeVar("A")


def parse(kind: type[A], presets: dict[str, A], argv: list[str]) -> A:
    """Return the arguments: those of the run that --resume names, or the preset's values; then what argv says.

    A run that cannot be resumed ends the program with one line and the exit code 2.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="default")
    first.add_argument("--resume")
    known = first.parse_known_args(argv)[0]
    default = presets.get(known.preset, presets["default"])  # an unknown one is left to the agent's own checks
    if known.resume is not None:
        try:
            default = replace(read_config(known.resume, kind), resume=known.resume, run_dir=known.resume)  # type: ignore[type-var]
        except InputError as error:
            print(f"--resume {error}", file=sys.stderr)
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
