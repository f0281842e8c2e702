"""A directory held by one process, for as long as it lives: the one place that locks.

flock does it where there is one: nothing is left behind by a process that was killed. Some file systems of clusters
have none, nor has Windows; there a file in the directory, .lock, says which process holds it, and a line tells of it.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from ..errors import InputError
from .console import complain

NAME = ".lock"
FORGOTTEN = 3600.0  # seconds without a change after which a .lock of another machine counts as left behind
_told: set[str] = set()  # the reasons for which there is no flock, each told once


class Lock:
    """What `lock` gave: `release` lets go, once; so does the end of the process."""

    def __init__(self, handle: int | None, file: Path | None = None):
        self._handle, self._file = handle, file

    def release(self) -> None:
        """Let go."""
        if self._handle is not None:
            os.close(self._handle)
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()
        self._handle = self._file = None


def lock(directory: Path, problem: str) -> Lock:
    """Hold a directory; InputError with `problem` if another process has it."""
    for last in (False, False, True):
        if (taken := _take(directory)) is not None:
            return taken
        if not last:
            time.sleep(0.1)  # it may be a sweep that looks, for a moment, whether the directory is held
    raise InputError(problem)


@contextlib.contextmanager
def alone(directory: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a directory; while another process has it, wait, after calling `waiting` once."""
    taken = _take(directory)
    if taken is None:
        waiting()
        while (taken := _take(directory)) is None:
            time.sleep(0.1)
    try:
        yield
    finally:
        taken.release()


def held(directory: Path) -> bool:
    """Return whether a process holds a directory; two that look do not see each other."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return _living(directory / NAME)
    try:
        if (free := _flock(handle, shared=True)) is not None:
            return not free
    finally:
        os.close(handle)
    return _living(directory / NAME)


def _take(directory: Path) -> Lock | None:
    """Hold a directory by whichever way there is; None if another process has it."""
    handle = None
    if fcntl is not None:
        handle = os.open(directory, os.O_RDONLY)
        free = _flock(handle)
        if free:
            return Lock(handle)
        os.close(handle)
        if free is False:
            return None
    return _take_file(directory / NAME)


def _flock(handle: int, shared: bool = False) -> bool | None:
    """Lock an open directory; return whether that could be done, None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:  # ENOLCK, ENOSYS, EBADF, EOPNOTSUPP ...: whatever a file system has for "I have none"
        reason = error.strerror or str(error)
        if reason not in _told:
            complain(f"no locks on this file system ({reason}): a file {NAME} says which process writes where")
            _told.add(reason)
        return None


def _take_file(path: Path) -> Lock | None:
    """Write our name into the file; None if another process has it. A file that cannot be written is no reason."""
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())})
    for _ in range(2):
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if _living(path):
                return None
            with contextlib.suppress(FileNotFoundError):
                path.unlink()  # of a process that was killed
            continue
        except OSError:
            return Lock(None)
        with contextlib.suppress(OSError), os.fdopen(handle, "w") as file:
            file.write(content)
        return Lock(None, path)
    return None


def _living(path: Path) -> bool:
    """Whether the process that a .lock names may still be at work; of another machine, by what changes there."""
    try:
        owner = json.loads(path.read_text())
        host, pid, started = owner["host"], int(owner["pid"]), owner["started"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):  # it is being written just now, or nobody knows whose it is
        return _changed(path.parent) < FORGOTTEN
    if host != socket.gethostname():
        return _changed(path.parent) < FORGOTTEN
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return _started(pid) == started


def _started(pid: int) -> str:
    """When a process was started, as /proc has it; "" where there is none. Numbers of processes are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _changed(directory: Path) -> float:
    """The seconds since anything in a directory was written."""
    times = [0.0]
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return time.time() - max(times)
