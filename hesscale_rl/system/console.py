"""The one way to print. What cannot be written is dropped: a run outlives its terminal, a closed pipe, a full disk.

`say` and `complain` print on stdout and stderr. `guard` does the same for whoever else writes there: argparse, an
environment of the user's own, a library; every command calls it first.
"""

import contextlib
import functools
import io
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)
lost: dict[str, str] = {}  # "stdout", "stderr": why nothing is written there any more


class Guarded:
    """A text stream, called `name`, that never raises. All but writing is the stream's own.

    What its encoding does not have is spelled out (ä as \\xe4). Once it fails it is given up: what comes after goes
    nowhere, and `lost` has the reason.
    """

    def __init__(self, stream: Any, name: str):
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        """Write text if that can be done; return its length."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except BlockingIOError:
            pass  # a terminal that is slow and not waited for is not gone
        except (OSError, ValueError) as error:  # ValueError: of a closed file
            self._give_up(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write lines, as they are."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Bring what was written on its way."""
        try:
            self._stream.flush()
        except BlockingIOError:
            pass
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        lost.setdefault(self._name, getattr(error, "strerror", None) or str(error))
        try:  # what is still in its buffer must not fail again when the program ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # it has no file behind it
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard() -> None:
    """Guard stdout and stderr for all that this process writes there; again does nothing.

    Where one was closed before the program began, its number is given to no place: libraries write there blindly, and
    a file that is opened later would get it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            lost.setdefault(name, "closed")
            stream = _nowhere()
        if not isinstance(stream, Guarded):
            setattr(sys, name, Guarded(stream, name))


@functools.cache
def _nowhere() -> Any:
    """A stream to no place, open as long as the process lives."""
    return open(os.devnull, "w")


def say(*lines: object) -> None:
    """Print lines on stdout, at once."""
    _print("stdout", lines)


def complain(*lines: object) -> None:
    """Print lines on stderr, at once: what is wrong, and what nobody wants in a file."""
    if (heard := _heard.get()) is None:
        _print("stderr", lines)
    else:
        heard += map(str, lines)


@contextlib.contextmanager
def complaints() -> Iterator[list[str]]:
    """Collect in a list what is complained of meanwhile, in place of printing it; in this thread alone."""
    found: list[str] = []
    token = _heard.set(found)
    try:
        yield found
    finally:
        _heard.reset(token)


def guarded(name: str) -> Any:
    """Return "stdout" or "stderr" as it is now, guarded, for what wants a file to print to."""
    stream = getattr(sys, name)
    if isinstance(stream, Guarded):
        return stream
    return Guarded(io.StringIO() if stream is None else stream, name)


def _print(name: str, lines: tuple[object, ...]) -> None:
    stream = guarded(name)
    stream.write("\n".join(map(str, lines)) + "\n")
    stream.flush()
