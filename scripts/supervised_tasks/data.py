"""The data sets of the studies and of supervised learning: made here, part of scikit-learn, or downloaded once.

random         6 normal numbers each, in 10 classes drawn at random: nothing but memory can learn them
digits         1,797 handwritten digits of 8 by 8 pixels, part of scikit-learn: no network is needed
fashion-mnist  60,000 training images of clothes, 28 by 28 pixels, and 10,000 for tests; Debian's package
               dataset-fashion-mnist, or the four files as published, in a directory of your choice
mnist          as many handwritten digits, from openml.org or the four files as published
cifar10        50,000 training images of 32 by 32 pixels in 3 colours and 10,000 for tests, from cs.toronto.edu
cifar100       the same in 100 classes

`load` gives the examples that the studies train with: random, digits, fashion-mnist and mnist. `split` gives examples
for training, validation and tests, of all but random; `noise`, noise of their shapes. What is downloaded is kept in a
directory of your choice.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hesscale_rl.errors import InputError
from hesscale_rl.scripts.supervised_tasks import idx

if TYPE_CHECKING:  # so that a command can offer the names before torch is loaded
    from torch import Tensor

CLASSES = 10  # of each data set
RANDOM = 10_000  # examples
MNIST_ALL, MNIST_TRAIN, PIXELS = 70_000, 60_000, 784  # the last 10,000 images are for tests
MISSING = "needs scikit-learn, pip install 'hesscale-rl[data]'"

SPLIT_SEED = 0  # of the examples that are held out: the same in every run, whatever its own seed
FASHION, MNIST = "fashion-mnist", "mnist"
HELD_OUT = {"digits": (200, 300)} | dict.fromkeys((FASHION, MNIST, "cifar10", "cifar100"), (10_000, 0))
"""How many of the training images are kept for validation and, where no others are published for it, for tests."""
TRAINING = {"digits": 1_297, FASHION: 50_000, MNIST: 50_000, "cifar10": 40_000, "cifar100": 40_000}
"""What is left for training."""

SITE = "https://www.cs.toronto.edu/~kriz/"
COLOURS, SIDE = 3, 32  # of CIFAR's images


class Archive(NamedTuple):
    """A published archive of records, each some bytes of labels, the last of which counts, and then the pixels."""

    file: str
    md5: str
    train: tuple[str, ...]  # its members
    test: tuple[str, ...]
    records: int  # of each member for training
    label_bytes: int
    classes: int


ARCHIVES = {
    "cifar10": Archive(
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        ("cifar-10-batches-bin/test_batch.bin",),
        10_000,
        1,
        10,
    ),
    "cifar100": Archive(
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        ("cifar-100-binary/train.bin",),
        ("cifar-100-binary/test.bin",),
        50_000,
        2,
        100,
    ),
}
TESTS = 10_000  # images for tests of either
SHAPES = {"digits": (1, 8, 8), FASHION: (1, 28, 28), MNIST: (1, 28, 28)} | dict.fromkeys(
    ARCHIVES, (COLOURS, SIDE, SIDE)
)
"""Of an image, by the name of the data."""


class Data(NamedTuple):
    """Examples for training: `inputs` [N, ...] float64, pixels in [0, 1]; `labels` [N] int64, 0 to 9."""

    name: str
    inputs: Tensor
    labels: Tensor


def load(name: str, directory: str | Path | None = None, seed: int = 0) -> Data:
    """Return the data set of that name; InputError, which says what to do, if it cannot be had.

    Images are [N, 1, height, width]. `directory`: where MNIST is kept, or Fashion-MNIST, if it is not where the
    system's packages put it. `seed`: of the random data.
    """
    if name not in NAMES:
        raise InputError(f"--data {name}: there is {', '.join(NAMES)}")
    inputs, labels = SOURCES[name](name, directory, seed)
    return Data(name, inputs, labels)


def _random(name: str, directory: str | Path | None, seed: int) -> tuple[Tensor, Tensor]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(RANDOM, 6, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(0, CLASSES, (RANDOM,), generator=generator)


def _digits(name: str, directory: str | Path | None, seed: int) -> tuple[Tensor, Tensor]:
    import torch

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(f"--data digits: {MISSING}") from None
    digits = load_digits()
    return torch.tensor(digits.images / 16.0)[:, None], torch.tensor(digits.target, dtype=torch.int64)


def _greys(name: str, directory: str | Path | None, seed: int) -> tuple[Tensor, Tensor]:
    pixels, labels = _WHOLE[name](directory)
    return pixels[:MNIST_TRAIN].double().view(-1, 1, 28, 28) / 255, labels[:MNIST_TRAIN].long()


def _whole_mnist(directory: str | Path | None) -> tuple[Tensor, Tensor]:
    """From the file that the first call writes, since openml's text takes a minute; or from MNIST's own files."""
    folder = _folder(MNIST, directory)
    path = folder / "mnist.safetensors"
    if path.exists():
        return _kept(path)
    if idx.stands_in(folder):
        return idx.read(folder, f"--data-dir {folder}")
    with _made(folder):
        return _download(folder, path)


def _whole_fashion(directory: str | Path | None) -> tuple[Tensor, Tensor]:
    folder = idx.installed(FASHION) if directory is None else Path(directory)
    if folder is None:
        raise InputError(
            f"--data {FASHION}: not installed; apt install dataset-fashion-mnist, or say with --data-dir DIR where "
            "its four idx-ubyte files are"
        )
    return idx.read(folder, f"--data {FASHION}" if directory is None else f"--data-dir {folder}")


_WHOLE: dict[str, Callable[[str | Path | None], tuple[Tensor, Tensor]]] = {
    FASHION: _whole_fashion,
    MNIST: _whole_mnist,
}


def _folder(name: str, directory: str | Path | None) -> Path:
    if directory is None:
        raise InputError(f"--data {name}: say with --data-dir DIR where it is kept (it is downloaded there once)")
    return Path(directory)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Have the folder made; if what it is made for fails, it and its parents that were made are gone again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--data-dir {folder}: cannot be made ({error.strerror})") from None
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


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

    from hesscale_rl.runs.directory import atomic_write

    try:
        from sklearn.datasets import fetch_openml
    except ImportError:
        raise InputError(f"--data mnist: {MISSING}") from None
    try:
        # This parser needs no pandas. The fewest retries it allows: whoever is offline shall hear of it at once.
        how: dict[str, Any] = {"as_frame": False, "parser": "liac-arff", "n_retries": 1, "delay": 0.1}
        # What it keeps is of no use once the images are kept here, or once it has failed.
        home = tempfile.TemporaryDirectory(dir=folder)
        with home, warnings.catch_warnings(action="ignore"):  # of the retry
            content = fetch_openml("mnist_784", version=1, data_home=home.name, **how)
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


SOURCES: dict[str, Callable[[str, str | Path | None, int], tuple[Tensor, Tensor]]] = {
    "random": _random,
    "digits": _digits,
    FASHION: _greys,
    MNIST: _greys,
}
NAMES = tuple(SOURCES)


class Splits(NamedTuple):
    """Examples for training, for validation and for tests; `inputs` are float32 here, pixels in [0, 1]."""

    train: Data
    validation: Data
    test: Data


def split(name: str, directory: str | Path | None = None) -> Splits:
    """Return the data of one of HELD_OUT's names in three parts; InputError, which says what to do, if it cannot.

    Validation takes images at random from those for training, by SPLIT_SEED; `HELD_OUT` says how many. Images are
    [N, channels, height, width]. `directory`: as in `load`.
    """
    import torch

    if name not in HELD_OUT:
        raise InputError(f"--data {name}: there is {', '.join(HELD_OUT)}")
    tests = None
    if name == "digits":
        x, labels = _digits(name, directory, 0)
    else:
        (x, labels), tests = (_grey_parts if name in _WHOLE else _cifar_parts)(name, directory)
    validation, held = HELD_OUT[name]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SPLIT_SEED))
    first, second, rest = order[:validation], order[validation : validation + held], order[validation + held :]
    parts = [(x[rest], labels[rest]), (x[first], labels[first]), tests or (x[second], labels[second])]
    return Splits(*(Data(name, _unit(pixels), own) for pixels, own in parts))


def _unit(pixels: Tensor) -> Tensor:
    """As float32 in [0, 1], of bytes or of what is in [0, 1] already."""
    return pixels.float() if pixels.is_floating_point() else pixels.float() / 255


def noise(name: str, examples: int) -> Data:
    """Return float32 images of the shape of `name`, one of SHAPES, pixels uniform in [0, 1), with random labels.

    Drawn from torch's global generator. For what depends on sizes alone: nothing can be learned from them.
    """
    import torch

    classes = ARCHIVES[name].classes if name in ARCHIVES else CLASSES
    inputs = torch.rand(examples, *SHAPES[name])
    return Data(name, inputs, torch.randint(0, classes, (examples,)))


Part = tuple["Tensor", "Tensor"]  # pixels, labels


def _grey_parts(name: str, directory: str | Path | None) -> tuple[Part, Part]:
    pixels, labels = _WHOLE[name](directory)
    images, labels = pixels.view(-1, 1, 28, 28), labels.long()
    return (images[:MNIST_TRAIN], labels[:MNIST_TRAIN]), (images[MNIST_TRAIN:], labels[MNIST_TRAIN:])


def _cifar_parts(name: str, directory: str | Path | None) -> tuple[Part, Part]:
    """From the archive of bytes: the published archives of pickled objects could run anything."""
    archive = ARCHIVES[name]
    path = _folder(name, directory) / archive.file
    if path.exists():
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"--data-dir {path}: cannot be read ({error.strerror})") from None
        _verify(content, archive, f"--data-dir {path}", "remove it, and it is downloaded again")
    else:
        with _made(path.parent):
            content = _fetch(name, archive, path)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as members:
            train = [_records(members, member, archive.records, archive, path) for member in archive.train]
            test = [_records(members, member, TESTS, archive, path) for member in archive.test]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"--data-dir {path}: cannot be read as an archive ({error}); remove it") from None
    return _joined(train), _joined(test)


def _fetch(name: str, archive: Archive, path: Path) -> bytes:
    """Download the archive, check it and keep it as `path`."""
    from http.client import HTTPException
    from urllib.request import urlopen

    from hesscale_rl.runs.directory import atomic_write

    try:
        with urlopen(SITE + archive.file, timeout=30) as answer:
            content = answer.read()
    except (OSError, HTTPException) as error:
        what = (str(error) or type(error).__name__).splitlines()[0]
        way = f"try again with a network, or put it (md5 sum {archive.md5}) into --data-dir {path.parent} yourself"
        raise InputError(f"--data {name}: the download of {SITE}{archive.file} failed ({what}); {way}") from None
    _verify(content, archive, f"--data {name}: {SITE}{archive.file}", f"nothing was kept in --data-dir {path.parent}")
    try:
        atomic_write(path, content)
    except OSError as error:
        raise InputError(f"--data-dir {path.parent}: cannot be written ({error.strerror})") from None
    return content


def _verify(content: bytes, archive: Archive, what: str, way: str) -> None:
    """Raise InputError unless the archive is the published one."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != archive.md5:
        raise InputError(f"{what}: its md5 sum is {found}, not {archive.md5}; {way}")


def _records(members: tarfile.TarFile, member: str, count: int, archive: Archive, path: Path) -> Part:
    """Return the images [count, 3, 32, 32] of a member, as bytes, and their labels [count]."""
    import torch

    try:
        file = members.extractfile(member)
    except KeyError:
        file = None
    if file is None:
        raise InputError(f"--data-dir {path}: it holds no file {member}; remove it, and it is downloaded again")
    content, size = bytearray(file.read()), archive.label_bytes + COLOURS * SIDE * SIDE
    if len(content) != count * size:
        raise InputError(f"--data-dir {path}: {member} has {len(content):,} bytes, not {count * size:,}; remove it")
    rows = torch.frombuffer(content, dtype=torch.uint8).view(count, size)
    labels = rows[:, archive.label_bytes - 1].long()
    if int(labels.max()) >= archive.classes:
        raise InputError(f"--data-dir {path}: {member} has a label {int(labels.max())}; remove it")
    return rows[:, archive.label_bytes :].reshape(-1, COLOURS, SIDE, SIDE), labels


def _joined(parts: list[Part]) -> Part:
    import torch

    pixels, labels = zip(*parts, strict=True)
    return torch.cat(pixels), torch.cat(labels)
