"""The data sets of the studies: made here, part of scikit-learn, or downloaded once.

random   6 normal numbers each, in 10 classes drawn at random: nothing but memory can learn them
digits   1,797 handwritten digits of 8 by 8 pixels, part of scikit-learn: no network is needed
mnist    the 60,000 training images of 28 by 28 pixels, from openml.org, kept in a directory of your choice
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hesscale_rl.errors import InputError

if TYPE_CHECKING:  # so that a command can offer the names before torch is loaded
    from torch import Tensor

CLASSES = 10  # of each data set
RANDOM = 10_000  # examples
MNIST_ALL, MNIST_TRAIN, PIXELS = 70_000, 60_000, 784  # the last 10,000 images are for tests
MISSING = "needs scikit-learn, pip install -e '.[data]'"


class Data(NamedTuple):
    """Examples for training: `inputs` [N, ...] float64, pixels in [0, 1]; `labels` [N] int64, 0 to 9."""

    name: str
    inputs: Tensor
    labels: Tensor


def load(name: str, directory: str | Path | None = None, seed: int = 0) -> Data:
    """Return the data set of that name; InputError, which says what to do, if it cannot be had.

    Images are [N, 1, height, width]. `directory`: where MNIST is kept. `seed`: of the random data.
    """
    if name not in NAMES:
        raise InputError(f"--data {name}: there is {', '.join(NAMES)}")
    inputs, labels = SOURCES[name](directory, seed)
    return Data(name, inputs, labels)


def _random(directory: str | Path | None, seed: int) -> tuple[Tensor, Tensor]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(RANDOM, 6, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(0, CLASSES, (RANDOM,), generator=generator)


def _digits(directory: str | Path | None, seed: int) -> tuple[Tensor, Tensor]:
    import torch

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(f"--data digits: {MISSING}; --data random does without") from None
    digits = load_digits()
    return torch.tensor(digits.images / 16.0)[:, None], torch.tensor(digits.target, dtype=torch.int64)


def _mnist(directory: str | Path | None, seed: int) -> tuple[Tensor, Tensor]:
    """From the file that the first call writes: to read openml's text takes a minute, every time."""
    if directory is None:
        raise InputError("--data mnist: say with --data-dir DIR where it is kept (it is downloaded there once)")
    folder = Path(directory)
    path = folder / "mnist.safetensors"
    pixels, labels = _kept(path) if path.exists() else _download(folder, path)
    return pixels[:MNIST_TRAIN].double().view(-1, 1, 28, 28) / 255, labels[:MNIST_TRAIN].long()


def _kept(path: Path) -> tuple[Tensor, Tensor]:
    """Pixels [70000, 784] and labels [70000], both bytes; a safetensors file can hold nothing that runs."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content = load_file(path)
        pixels, labels = content["pixels"], content["labels"]
    except (OSError, KeyError, SafetensorError):
        raise InputError(f"--data-dir {path}: cannot be read as MNIST; remove it, and it is made again") from None
    _check(pixels, labels, f"--data-dir {path}")
    return pixels, labels


def _download(folder: Path, path: Path) -> tuple[Tensor, Tensor]:
    import torch
    from safetensors.torch import save

    from hesscale_rl.run import atomic_write

    try:
        from sklearn.datasets import fetch_openml
    except ImportError:
        raise InputError(f"--data mnist: {MISSING}") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--data-dir {folder}: cannot be made ({error.strerror})") from None
    try:
        # This parser needs no pandas. The fewest retries it allows: whoever is offline shall hear of it at once.
        how: dict[str, Any] = {"as_frame": False, "parser": "liac-arff", "n_retries": 1, "delay": 0.1}
        with warnings.catch_warnings(action="ignore"):  # of the retry
            content = fetch_openml("mnist_784", version=1, data_home=str(folder), **how)
        pixels = torch.tensor(content.data).to(torch.uint8)
        labels = torch.tensor([int(label) for label in content.target], dtype=torch.uint8)
    except (OSError, ValueError) as error:  # no network, a server that fails, or an answer that is no MNIST
        what = (str(error) or type(error).__name__).splitlines()[0]
        way = "try again with a network, or copy mnist.safetensors from another --data-dir"
        raise InputError(f"--data mnist: the download to {folder} failed ({what}); {way}") from None
    _check(pixels, labels, "--data mnist: what openml.org sent")
    try:
        atomic_write(path, save({"pixels": pixels, "labels": labels}))
    except OSError as error:
        raise InputError(f"--data-dir {folder}: cannot be written ({error.strerror})") from None
    return pixels, labels


def _check(pixels: Tensor, labels: Tensor, what: str) -> None:
    """Raise InputError unless the shapes and labels are MNIST's."""
    shapes = [list(pixels.shape), list(labels.shape)]
    if shapes != [[MNIST_ALL, PIXELS], [MNIST_ALL]] or int(labels.max()) >= CLASSES:
        raise InputError(f"{what} is not MNIST: its shapes are {shapes[0]} and {shapes[1]}; remove it and try again")


SOURCES: dict[str, Callable[[str | Path | None, int], tuple[Tensor, Tensor]]] = {
    "random": _random,
    "digits": _digits,
    "mnist": _mnist,
}
NAMES = tuple(SOURCES)
