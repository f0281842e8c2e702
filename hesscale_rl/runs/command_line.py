"""What every command line has in common: words that are checked as they are read, and mistakes told in one line.

It imports neither torch nor numpy, so that help and mistakes are answered at once.
"""

import argparse
import contextlib
import difflib
import json
import sys
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NoReturn

from ..errors import BAD_INPUT, INTERRUPTED, InputError
from ..system.console import complain, guard

LARGEST = 18  # powers of ten of a whole number: more counts nothing here, and 1e999999999 would fill the memory


def near(word: str, known: Iterable[str]) -> str:
    """Return what to say of a word that is not among those known: the closest one, or all of them."""
    return _closest(word, known := [*known]) or f"there is {', '.join(known)}"


def one_of(word: str, known: Iterable[str]) -> str:
    """Return what a word must be that is none of those known, with the closest of them first."""
    return f"{_closest(word, known := [*known])} must be one of {', '.join(known)}".lstrip()


def _closest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def text(word: str) -> str:
    """Return a word that may be anything but empty."""
    if not word.strip():
        raise argparse.ArgumentTypeError("'': must not be empty")
    return word


def whole(word: str) -> int:
    """Return a whole number: 6000, 6_000 or 6e3."""
    try:
        number = Decimal(word)
        if number.is_finite() and number.adjusted() > LARGEST:
            raise argparse.ArgumentTypeError(f"{word}: must be a whole number of at most {LARGEST + 1} digits")
        if not number.is_finite() or number != int(number):
            raise InvalidOperation
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"{word}: must be a whole number") from None
    return int(number)


def number(word: str) -> float:
    """Return a number."""
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word}: must be a number") from None


def path(word: str) -> Path:
    """Return a path, with ~ as the home directory."""
    try:
        return Path(text(word)).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{word}: there is no such home directory") from None


def path_text(word: str) -> str:
    """Return a path as text, with ~ as the home directory; a / at its end stays."""
    return str(path(word)) + "/" * (word.endswith("/") and len(word) > 1)


def _choice(choices: Iterable[Any]) -> Callable[[str], str]:
    known = [*map(str, choices)]

    def choice(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word}: {one_of(word, known)}")
        return word

    return choice


def _as_argparse_knows_it(word: str) -> str:
    """Write --a_flag as --a-flag, and in digits a negative number such as -1e-3, which would look like a flag."""
    if word.startswith("--"):
        flag, equals, value = word.partition("=")
        return flag.replace("_", "-") + equals + value
    if word.startswith("-") and "e" in word.lower():
        with contextlib.suppress(InvalidOperation):
            number = Decimal(word)
            return format(number, "f") if abs(number.adjusted()) <= LARGEST else word
    return word


class Parser(argparse.ArgumentParser):
    """Shows a module's docstring as it stands, and raises what is wrong as InputError, without the usage.

    `type=int` takes 1e6 as well, `type=Path` expands ~, text is never empty, and no flag may be shortened.
    """

    def __init__(self, prog: str | None = None, description: str | None = None, **how: Any):
        whole_text = argparse.RawDescriptionHelpFormatter
        super().__init__(
            prog, description=description, formatter_class=whole_text, allow_abbrev=False, exit_on_error=False, **how
        )
        for kind, checked in {str: text, int: whole, float: number, Path: path}.items():
            self.register("type", kind, checked)

    def add_argument(self, *names: Any, **how: Any) -> argparse.Action:
        """Add an argument, as argparse does; of `choices` the closest is named when it is none of them."""
        if "action" not in how and "type" not in how:
            how["type"] = _choice(how["choices"]) if "choices" in how else str
        return super().add_argument(*names, **how)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return what is known and what is left, as argparse does; InputError for a value that cannot be."""
        words = [*map(_as_argparse_knows_it, sys.argv[1:] if args is None else args)]
        try:
            return super().parse_known_args(words, namespace)
        except argparse.ArgumentError as error:
            names = (error.argument_name or "").split("/")
            # "--seed x: must be a whole number", but "--seed: expected one argument"
            joint = " " if ": " in error.message else ": "
            named = next((name for name in names if name.startswith("--")), names[0])
            self.error(f"{named}{joint}{error.message}" if named else error.message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the arguments; InputError for a flag that there is not, with the closest that there is."""
        found, left = self.parse_known_args(args, namespace)
        if left:
            self.refuse(left)
        return found

    def refuse(self, left: list[str]) -> NoReturn:
        """Raise InputError for words that no argument takes."""
        word = next((word for word in left if word.startswith("-")), left[0]).partition("=")[0]
        flags = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        close = difflib.get_close_matches(word, flags, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        self.error(f"{word}: {'no such flag' if word.startswith('-') else 'one word too many'}{hint}")

    def error(self, message: str) -> NoReturn:
        """Raise it, with the way to the help."""
        raise InputError(f"{message} ({self.prog} --help)")


PYTHON = {"True": True, "False": False, "None": None}  # what people write in place of JSON's words


def read_kwargs(text: str | None, flag: str = "env-kwargs") -> dict[str, Any]:
    """Return what such a flag says: a JSON object, or key=value,key=value with JSON values or bare words.

    >>> read_kwargs("ctrl_cost_weight=0.5,arm=UR10e")
    {'ctrl_cost_weight': 0.5, 'arm': 'UR10e'}
    """
    if text is None or not text.strip():
        return {}
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise InputError(f"--{flag} {text}: not JSON ({error}); or write key=value,key=value") from None
    given: dict[str, Any] = {}
    for pair in text.split(","):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key.isidentifier():
            raise InputError(f"--{flag} {text}: {pair.strip()!r} is not key=value; or write a JSON object")
        try:
            given[key] = PYTHON[value] if value in PYTHON else json.loads(value)
        except ValueError:
            given[key] = value
    return given


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
