"""What the command lines of this folder have in common: help as it is written, mistakes in one line, exit codes."""

import argparse
import difflib
from collections.abc import Callable
from typing import NoReturn

from hesscale_rl.console import complain, guard
from hesscale_rl.errors import BAD_INPUT, INTERRUPTED, InputError


class Parser(argparse.ArgumentParser):
    """Shows a module's docstring as it stands, and raises what is wrong as InputError, without the usage."""

    def __init__(self, prog: str, description: str | None):
        super().__init__(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raise it, with the way to the help."""
        raise InputError(f"{message} ({self.prog} --help)")


def near(word: str, known: list[str]) -> str:
    """Return what to say of a word that is not among those known: the closest one, or all of them."""
    closest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {closest[0]!r}?" if closest else f"there is {', '.join(known)}"


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
