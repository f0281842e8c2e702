"""Files with one record of every control cycle."""

import os
from pathlib import Path

import numpy as np


class Record:
    """A file of records of one dtype. Each is written at once: not even `kill -9` takes back what was seen."""

    def __init__(self, path: str | os.PathLike[str], kind: np.dtype):
        self._path, self._file = path, open(path, "ab", buffering=0)  # noqa: SIM115 - as long as the robot
        self._row = np.zeros((), kind)

    def add(self, *values: object) -> None:
        """Write one cycle: the fields in their order; OSError, with the file's name, if it cannot be."""
        self._row[()] = values
        rest = self._row.tobytes()
        try:
            while rest:  # a disk that is almost full takes a part, and says why at the next one
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(self._path)) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_records(path: str | os.PathLike[str], kind: np.dtype) -> np.ndarray:
    """Return the records [T] of a file; one that was cut short by a crash is left out."""
    data = Path(path).read_bytes()
    count = len(data) // kind.itemsize
    return np.frombuffer(data, kind, count) if count else np.empty(0, kind)  # numpy refuses an empty buffer
