"""MNIST and Fashion-MNIST from the four IDX files that both are published as, compressed or not.

An IDX file is two zero bytes, a byte for the kind of its numbers (8: bytes), a byte for how many axes, every axis's
length as four bytes, the most significant one first, and then the numbers in row-major order.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from hesscale_rl.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

PARTS = {"train": 60_000, "t10k": 10_000}  # the files' first word, and their examples
SIDE, CLASSES = 28, 10
BYTES = 8  # the kind of numbers
MOST = 2**26  # bytes of a file, unpacked: more than the largest one's 47 million


def installed(name: str) -> Path | None:
    """Return the folder datasets/NAME of the first of the system's data directories that has its files, or None.

    They are XDG_DATA_DIRS; Debian's package dataset-fashion-mnist installs into /usr/share.
    """
    places = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    folders = (Path(place, "datasets", name) for place in places.split(":") if place)
    return next((folder for folder in folders if stands_in(folder)), None)


def stands_in(folder: Path) -> bool:
    """Return whether the folder has the training images as an IDX file."""
    return _file(folder, "train-images-idx3-ubyte") is not None


def read(folder: Path, what: str) -> tuple[Tensor, Tensor]:
    """Return pixels [70000, 784] and labels [70000], bytes, the 10,000 tests last.

    InputError, which begins with `what`, names the file and says what is wrong with it.
    """
    import torch

    pixels, labels = [], []
    for part, count in PARTS.items():
        pixels.append(_array(folder, f"{part}-images-idx3-ubyte", (count, SIDE, SIDE), what).view(count, -1))
        labels.append(_array(folder, f"{part}-labels-idx1-ubyte", (count,), what))
        if (largest := int(labels[-1].max())) >= CLASSES:
            raise InputError(f"{what}: {folder}/{part}-labels-idx1-ubyte has a label {largest}, at most 9 is right")
    return torch.cat(pixels), torch.cat(labels)


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _array(folder: Path, name: str, shape: tuple[int, ...], what: str) -> Tensor:
    """The bytes of one file in this shape; whatever else it holds is an InputError."""
    import torch

    path = _file(folder, name)
    if path is None:
        raise InputError(f"{what}: there is no {name}, nor {name}.gz, in {folder}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = bytearray(file.read(MOST))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{what}: {path} cannot be read ({error})") from None
    head = bytes((0, 0, BYTES, len(shape))) + b"".join(length.to_bytes(4, "big") for length in shape)
    if content[: len(head)] != head:
        raise InputError(f"{what}: {path} does not begin as an IDX file of bytes with the shape {list(shape)}")
    if len(content) != len(head) + math.prod(shape):
        raise InputError(f"{what}: {path} holds {len(content) - len(head):,} bytes, not {math.prod(shape):,}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=len(head)).view(shape)
