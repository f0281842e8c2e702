"""The data of supervised learning: how it is split, read from its archives, and what is refused."""

import gzip
import hashlib
import io
import tarfile
from urllib.error import URLError

import pytest
import torch

from hesscale_rl.errors import InputError
from hesscale_rl.scripts.supervised_tasks import data
from hesscale_rl.scripts.supervised_tasks.tasks import TASKS


def test_digits_are_split_the_same_way_every_time():
    parts, again = data.split("digits"), data.split("digits")
    assert [len(part.labels) for part in parts] == [1297, 200, 300]
    every = torch.cat([part.inputs for part in parts]).flatten(1)
    assert torch.equal(torch.cat([part.inputs for part in again]).flatten(1), every)
    whole = data.load("digits").inputs.flatten(1).float()
    assert sorted(map(tuple, every.tolist())) == sorted(map(tuple, whole.tolist()))
    assert every.dtype == torch.float32 and every.max() == 1


def test_mnist_keeps_its_own_images_for_tests(tmp_path):
    from safetensors.torch import save_file

    pixels = torch.arange(70_000)[:, None].expand(-1, 784).remainder(251).to(torch.uint8).contiguous()
    labels = torch.arange(70_000).remainder(10).to(torch.uint8)
    save_file({"pixels": pixels, "labels": labels}, tmp_path / "mnist.safetensors")
    parts = data.split("mnist", tmp_path)
    assert [tuple(part.inputs.shape) for part in parts] == [(n, 1, 28, 28) for n in (50_000, 10_000, 10_000)]
    assert torch.equal(parts.test.labels, labels[60_000:].long())
    torch.testing.assert_close(parts.test.inputs[:, 0, 3, 4], pixels[60_000:, 0] / 255)
    counts = sum(part.labels.bincount() for part in parts[:2])
    assert counts.tolist() == [6000] * 10


def write_idx(folder, suffix="", change=None):
    """Write the four files of MNIST's form; return pixels [70000, 784] and labels, which tell every image apart."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (70_000, 784), generator=random, dtype=torch.uint8)
    labels = torch.randint(0, 10, (70_000,), generator=random, dtype=torch.uint8)
    files = {}
    for part, rows in {"train": slice(0, 60_000), "t10k": slice(60_000, None)}.items():
        count = len(labels[rows]).to_bytes(4, "big")
        head = b"\0\0\x08\x03" + count + (28).to_bytes(4, "big") * 2
        files[f"{part}-images-idx3-ubyte"] = head + pixels[rows].numpy().tobytes()
        files[f"{part}-labels-idx1-ubyte"] = b"\0\0\x08\x01" + count + labels[rows].numpy().tobytes()
    if change:
        change(files)
    folder.mkdir(parents=True)
    for name, content in files.items():
        packed = gzip.compress(content, compresslevel=0) if suffix else content
        (folder / (name + suffix)).write_bytes(packed)
    return pixels, labels


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_is_found_where_the_system_keeps_data_sets(suffix, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_DIRS", f"{tmp_path}/none:{tmp_path}/share")
    with pytest.raises(InputError, match="--data fashion-mnist: not installed; apt install dataset-fashion-mnist"):
        data.split("fashion-mnist")
    pixels, labels = write_idx(tmp_path / "share/datasets/fashion-mnist", suffix)
    parts = data.split("fashion-mnist")
    assert [tuple(part.inputs.shape) for part in parts] == [(n, 1, 28, 28) for n in (50_000, 10_000, 10_000)]
    assert torch.equal(parts.test.labels, labels[60_000:].long())
    torch.testing.assert_close(parts.test.inputs.flatten(1), pixels[60_000:] / 255)
    assert torch.equal(data.load("mnist", tmp_path / "share/datasets/fashion-mnist").labels, labels[:60_000].long())


def without_tests(files):
    del files["t10k-labels-idx1-ubyte"]


def of_words(files):
    files["train-images-idx3-ubyte"] = files["train-images-idx3-ubyte"].replace(b"\x08\x03", b"\x0b\x03", 1)


def cut(files):
    files["t10k-images-idx3-ubyte"] = files["t10k-images-idx3-ubyte"][:-7]


def eleventh(files):
    files["train-labels-idx1-ubyte"] = files["train-labels-idx1-ubyte"][:-1] + b"\x0a"


@pytest.mark.parametrize(
    "change, words",
    [
        (without_tests, "there is no t10k-labels-idx1-ubyte, nor t10k-labels-idx1-ubyte.gz, in"),
        (
            of_words,
            r"train-images-idx3-ubyte does not begin as an IDX file of bytes with the shape \[60000, 28, 28\]",
        ),
        (cut, "t10k-images-idx3-ubyte holds 7,839,993 bytes, not 7,840,000"),
        (eleventh, "train-labels-idx1-ubyte has a label 10, at most 9 is right"),
    ],
)
def test_idx_files_of_something_else_are_told(change, words, tmp_path):
    write_idx(tmp_path / "kept", change=change)
    with pytest.raises(InputError, match=f"--data-dir {tmp_path}/kept: .*{words}"):
        data.split("fashion-mnist", tmp_path / "kept")


def test_a_torn_gzip_is_told(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"some bytes")[:-3])
    with pytest.raises(InputError, match="train-images-idx3-ubyte.gz cannot be read"):
        data.split("fashion-mnist", tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_network_for_grey_images(name):
    task = TASKS[name]
    examples = data.noise("fashion-mnist", 2)
    outputs = task.network("fashion-mnist")(examples.inputs)
    assert outputs.shape == (2, 784 if task.reconstruct else 10)


def archive(name, monkeypatch, folder, change=None, small=20):
    """Write an archive of the published format with `small` records a file; return records by member."""
    own = data.ARCHIVES[name]
    random = torch.Generator().manual_seed(0)
    files = {}
    for member in (*own.train, *own.test):
        rows = torch.randint(0, 256, (small, own.label_bytes + 3072), generator=random, dtype=torch.uint8)
        rows[:, : own.label_bytes] %= 10
        files[member] = rows
    if change:
        change(files)
    with tarfile.open(folder / own.file, "w:gz") as tar:
        for member, rows in files.items():
            content = rows.numpy().tobytes()
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    digest = hashlib.md5((folder / own.file).read_bytes()).hexdigest()
    monkeypatch.setitem(data.ARCHIVES, name, own._replace(md5=digest, records=small))
    monkeypatch.setattr(data, "TESTS", small)
    monkeypatch.setitem(data.HELD_OUT, name, (5, 0))
    return files


@pytest.mark.parametrize("name, records", [("cifar10", 100), ("cifar100", 20)])
def test_cifar_is_read_from_its_bytes(name, records, tmp_path, monkeypatch):
    files, own = archive(name, monkeypatch, tmp_path), data.ARCHIVES[name]
    parts = data.split(name, tmp_path)
    assert [len(part.labels) for part in parts] == [records - 5, 5, 20]
    [test] = own.test
    rows = files[test].long()
    assert torch.equal(parts.test.labels, rows[:, own.label_bytes - 1])  # of CIFAR-100 the fine ones
    k, colour, i, j = 7, 2, 3, 5
    byte = rows[k, own.label_bytes + colour * 1024 + i * 32 + j]
    assert float(parts.test.inputs[k, colour, i, j]) == pytest.approx(float(byte) / 255)
    pixels = torch.cat([part.inputs for part in parts[:2]]).flatten(1)
    expected = torch.cat([files[member] for member in own.train])[:, own.label_bytes :] / 255
    assert sorted(map(tuple, pixels.tolist())) == sorted(map(tuple, expected.tolist()))


def missing(files):
    del files["cifar-10-batches-bin/test_batch.bin"]


def short(files):
    files["cifar-10-batches-bin/test_batch.bin"] = files["cifar-10-batches-bin/test_batch.bin"][:3]


def wrong(files):
    files["cifar-10-batches-bin/test_batch.bin"][0, 0] = 10


@pytest.mark.parametrize(
    "change, words",
    [
        (missing, "holds no file cifar-10-batches-bin/test_batch.bin"),
        (short, "test_batch.bin has 9,219 bytes, not 61,460"),
        (wrong, "test_batch.bin has a label 10"),
    ],
)
def test_archives_of_something_else_are_told(change, words, tmp_path, monkeypatch):
    archive("cifar10", monkeypatch, tmp_path, change)
    with pytest.raises(InputError) as told:
        data.split("cifar10", tmp_path)
    assert words in str(told.value) and f"--data-dir {tmp_path}" in str(told.value)


def test_a_checksum_that_differs_is_told_and_nothing_is_read(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    found = hashlib.md5(b"something else").hexdigest()
    with pytest.raises(InputError) as told:
        data.split("cifar10", tmp_path)
    line = str(told.value)
    assert found in line and "c32a1d4ab5d03f1284b67883e8d87530" in line and "\n" not in line
    assert f"--data-dir {tmp_path}/cifar-10-binary.tar.gz" in line


def test_no_archive_is_torn_open_that_is_none(tmp_path, monkeypatch):
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"none")
    own = data.ARCHIVES["cifar100"]
    monkeypatch.setitem(data.ARCHIVES, "cifar100", own._replace(md5=hashlib.md5(b"none").hexdigest()))
    with pytest.raises(InputError, match="cannot be read as an archive"):
        data.split("cifar100", tmp_path)


def test_downloads_are_kept_once_they_are_checked(tmp_path, monkeypatch):
    published, kept = tmp_path / "published", tmp_path / "new" / "kept"
    published.mkdir()
    archive("cifar100", monkeypatch, published)
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return (published / "cifar-100-binary.tar.gz").open("rb")

    monkeypatch.setattr("urllib.request.urlopen", serve)
    first, again = data.split("cifar100", kept), data.split("cifar100", kept)
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"]
    assert torch.equal(first.train.inputs, again.train.inputs)
    monkeypatch.setitem(data.ARCHIVES, "cifar100", data.ARCHIVES["cifar100"]._replace(md5="0" * 32))
    with pytest.raises(InputError, match=f"its md5 sum is [0-9a-f]+, not {'0' * 32}; nothing was kept in --data-dir"):
        data.split("cifar100", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("error", [URLError("no network\nhere"), TimeoutError()])
def test_a_failed_download_says_where_to_put_the_file(error, tmp_path, monkeypatch):
    def fail(url, timeout):
        raise error

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(InputError) as told:
        data.split("cifar10", tmp_path / "new" / "data")
    assert list(tmp_path.iterdir()) == []
    line = str(told.value)
    way = f"put it (md5 sum {data.ARCHIVES['cifar10'].md5}) into --data-dir {tmp_path}/new/data yourself"
    assert "cifar-10-binary.tar.gz failed" in line and way in line and "\n" not in line


def test_data_without_a_split_or_a_place_is_told(tmp_path):
    with pytest.raises(InputError, match="--data random: there is digits, fashion-mnist, mnist, cifar10, cifar100"):
        data.split("random")
    with pytest.raises(InputError, match="--data cifar10: say with --data-dir DIR"):
        data.split("cifar10")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--data-dir .*file: cannot be made"):
        data.split("cifar10", tmp_path / "file")
