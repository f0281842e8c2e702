"""A dataclass as a command line, by tyro: words are checked as they are read, and a mistake is one line.

The words are those of command_line.py: 1e6 is a whole number, no text is empty, ~ is the home directory.
"""

import argparse
import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ..errors import InputError
from ..optim import declaration
from .command_line import number, path_text, text, whole

A = TypeVar("A")
READERS: dict[Any, Callable[[str], Any]] = {str: text, int: whole, float: number}
WIDE = 10_000  # columns, so that a message stands on one line


def read(kind: type[A], default: A, argv: list[str], prog: str) -> A:
    """Return the arguments `kind`, a dataclass, that argv gives, with the values of `default` for the others.

    InputError with one line for what cannot be read; --help prints it and ends the program.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _wide(not {"-h", "--help"} & {*argv}):
            return tyro.cli(kind, args=argv, default=default, prog=prog, registry=FLAGS)
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError(f"{_mistake(said.getvalue())} ({prog} --help)") from None


@contextlib.contextmanager
def _wide(wanted: bool) -> Iterator[None]:
    """Let tyro think that the terminal is wide: it asks COLUMNS."""
    before = os.environ.get("COLUMNS")
    if wanted:
        os.environ["COLUMNS"] = str(WIDE)
    try:
        yield
    finally:
        if wanted:
            os.environ.pop("COLUMNS")
            if before is not None:
                os.environ["COLUMNS"] = before


def _mistake(box: str) -> str:
    """Return what tyro's box says, as a line. A title stands above; frames are of ASCII where nothing else can be."""
    lines = [words for line in box.splitlines() if (words := line.strip("│ ")).strip("╰╯─- ")]
    said, more = lines[1], lines[2:]
    if found := re.fullmatch(r"Error parsing (?:\S+/)?(--[\w-]+)(?:/\S+)?: (.*)", said):
        return f"{found[1]} {found[2]}"
    if found := re.fullmatch(r"Missing value for argument '(?:\S+/)?(--[\w-]+)(?:/\S+)?'\. Expected (\d+) .*", said):
        return f"{found[1]}: expected {'one argument' if found[2] == '1' else f'{found[2]} arguments'}"
    if found := re.fullmatch(r"Unrecognized options: ([^,=]*)(?:[,=].*)?", said):
        near = [line.split()[0] for line in more if line.startswith("--")]
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{found[1]}: {'no such flag' if found[1].startswith('-') else 'one word too many'}{hint}"
    return said


def _spec(reads: list[Callable[[str], Any]], kinds: tuple[Any, ...], optional: bool) -> PrimitiveConstructorSpec[Any]:
    """How a flag with a word for each of `reads` is read and shown; `optional`: the word None is None."""

    def value(words: list[str]) -> Any:
        if optional and words == ["None"]:
            return None
        try:
            values = tuple(read(word) for read, word in zip(reads, words, strict=True))
        except argparse.ArgumentTypeError as error:
            raise ValueError(str(error)) from None
        return values if len(reads) > 1 else values[0]

    return PrimitiveConstructorSpec(
        nargs=len(reads),
        metavar=" ".join(kind.__name__.upper() for kind in kinds),
        instance_from_str=value,
        is_instance=lambda instance: True,
        str_from_instance=lambda instance: [str(one) for one in (instance if len(reads) > 1 else (instance,))],
    )


FLAGS = ConstructorRegistry()


@FLAGS.primitive_rule
def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """int, float, str, a tuple of them, each or None; anything else is left to tyro's own rules."""
    options = get_args(info.type) if isinstance(info.type, UnionType) else (info.type,)
    kinds = [option for option in options if option is not NoneType]
    if len(kinds) != 1:
        return None
    parts = get_args(kinds[0]) if get_origin(kinds[0]) is tuple else (kinds[0],)
    if not all(part in READERS for part in parts):
        return None
    return _spec([READERS[part] for part in parts], parts, NoneType in options)


PathText = Annotated[str | None, _spec([path_text], (str,), optional=True)]  # a path, ~ expanded, or None
_plain = ", ".join(name for name, found in declaration.names().items() if not found.scaled)
OptimizerName = Annotated[
    str, tyro.conf.arg(aliases=["--optim"], help=f"{_plain}, each also as {declaration.SCALED}...; or module:Class")
]
