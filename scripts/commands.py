"""What the command lines of this folder have in common: mistakes in one line, and the exit codes."""

import argparse
from collections.abc import Callable

from hesscale_rl.errors import BAD_INPUT, INTERRUPTED, InputError
from hesscale_rl.runs.command_line import Parser, near
from hesscale_rl.system.console import complain, guard

__all__ = ["Parser", "near", "obey"]


def obey(
    parser: Parser, act: Callable[[argparse.Namespace], int], interrupted: str = "interrupted", *told: type[Exception]
) -> int:
    """Parse the command line, act, and return the exit code.

    InputError and the exceptions `told` become a line; Ctrl-C the line `interrupted`.
    """
    guard()
    mistakes: tuple[type[Exception], ...] = (InputError, *told)
    try:
        return act(parser.parse_args())
    except mistakes as error:
        complain(error)
        return BAD_INPUT
    except KeyboardInterrupt:
        complain(interrupted)
        return INTERRUPTED
