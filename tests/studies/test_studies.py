"""The studies of approximation quality and their data: numbers against slow loops, files, and what is refused."""

import csv
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

import hesscale_rl as hs
from hesscale_rl.errors import BAD_INPUT, DONE, INTERRUPTED, InputError
from hesscale_rl.scripts.supervised_tasks import data
from hesscale_rl.studies import approximation_quality as quality
from hesscale_rl.studies import diagonality

STUDIES = {"approximation_quality": quality, "diagonality": diagonality}
FIXED = {"HesScale": hs.HesScale(), "HesScaleGN": hs.HesScaleGN(), "GGN": hs.GGN(), "BL89": hs.BL89()}
FIXED |= {"squared gradient": hs.SquaredGradient()}


def call(monkeypatch, name, *flags):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
    return STUDIES[name].main()


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def case():
    """A small network that is not at its start, its parameters and three examples."""
    net = quality.network([4, 5, 5, 3], "he", 1)
    for p in net.parameters():
        p.data += 0.3 * torch.randn_like(p)
    params = {name: p.detach() for name, p in net.named_parameters()}
    return net, params, torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 2, 2])


def test_errors_are_those_of_a_slow_loop(case, monkeypatch):
    net, params, x, labels = case
    names = quality.methods()
    for method, curvature in FIXED.items():
        assert type(names[method]) is type(curvature)
    monkeypatch.setattr(quality, "methods", lambda: FIXED)
    found = quality.errors(net, params, x[:2], labels[:2])
    for method in (*FIXED, quality.REFERENCE):
        expected = np.zeros(3)
        for i in range(2):
            loss, layers = hs.losses.CrossEntropy(labels[i : i + 1]), ["0", "2", "4"]
            exact = hs.value_grad_curvature(net, params, x[i : i + 1], loss, hs.ExactDiagonal()).curvature
            guess = {name: torch.zeros_like(p) for name, p in params.items()}
            if method in FIXED:
                guess = hs.value_grad_curvature(net, params, x[i : i + 1], loss, FIXED[method]).curvature
            for name in params:
                expected[layers.index(name[0])] += float((guess[name] - exact[name]).abs().sum()) / 2
        np.testing.assert_allclose(found[method], expected, rtol=1e-9, atol=1e-14, err_msg=method)
        assert (expected[:2] > 1e-3).all()
    for method in ("HesScale", "HesScaleGN", "GGN"):
        assert found[method][-1] < 1e-14 < 1e-3 < found["BL89"][-1]


def test_samples_differ_between_examples_and_more_of_them_are_better(case, monkeypatch):
    net, params, x, labels = case
    random = {name: method for name, method in quality.methods().items() if name not in FIXED}
    assert [*random] == [f"{n} {k}" for k in (50, 1) for n in ("GGN-MC", "K-FAC")] + ["AdaHessian 50", "AdaHessian 1"]
    monkeypatch.setattr(quality, "methods", lambda: random)
    torch.manual_seed(0)
    found = quality.errors(net, params, x[:1].expand(200, -1), labels[:1].expand(200))
    for name in ("GGN-MC", "K-FAC", "AdaHessian"):
        assert (found[f"{name} 50"] > 0).all() and found[f"{name} 50"].sum() < found[f"{name} 1"].sum()
    # Were all 200 draws the same, their mean would be as far off as a single draw's.
    loss = hs.losses.CrossEntropy(labels[:1])
    exact = hs.value_grad_curvature(net, params, x[:1], loss, hs.GGN()).curvature
    draws = [hs.value_grad_curvature(net, params, x[:1], loss, hs.GGNMC(1)).curvature for _ in range(400)]
    each = [sum(float((d[n] - exact[n]).abs().sum()) for n in ("4.weight", "4.bias")) for d in draws]
    assert abs(found["GGN-MC 1"][-1] - np.mean(each)) < 5 * np.std(each) * (1 / 200 + 1 / 400) ** 0.5
    assert np.std(each) > 0.01 * np.mean(each)


def test_for_one_example_kfra_and_kfac_are_ggn(case):
    net, params, x, labels = case

    def diagonal(curvature):
        torch.manual_seed(3)
        loss = hs.losses.CrossEntropy(labels[:1])
        found = hs.value_grad_curvature(net, params, x[:1], loss, curvature).curvature
        return {n: c if isinstance(c, torch.Tensor) else c.diagonal() for n, c in found.items()}

    pairs = ((hs.KFRA(), hs.GGN()), (hs.KFAC(None), hs.GGN()), (hs.KFAC(3), hs.GGNMC(3)))
    for one, other in pairs:
        torch.testing.assert_close(diagonal(one), diagonal(other), rtol=1e-10, atol=1e-13)


def test_sgd_is_torchs_with_batches_of_one(case):
    net, params, x, labels = case
    stacked = {name: torch.stack([p, 0.5 * p]) for name, p in params.items()}
    found = quality.sgd(net, stacked, x, labels, 0.1, 2, seed=7)
    generator = torch.Generator().manual_seed(7)
    orders = [torch.rand(3, 2, generator=generator).argsort(0)[:, 1] for _ in range(2)]
    assert torch.equal(orders[0].sort().values, torch.arange(3))
    net.load_state_dict({name: 0.5 * p for name, p in params.items()})
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for i in torch.cat(orders).tolist():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[i : i + 1]), labels[i : i + 1]).backward()
        optimizer.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name][1], p.detach(), rtol=1e-10, atol=1e-12)


def test_initialisations():
    own, he = (quality.network([64, 32, 10], init, 0) for init in ("torch", "he"))
    assert own[0].weight.abs().max() <= 1 / 8 and own[0].bias.abs().max() > 0.1
    assert not he[0].bias.any() and abs(float(he[0].weight.detach().std()) / (2 / 64) ** 0.5 - 1) < 0.05
    assert not torch.equal(own[0].weight, quality.network([64, 32, 10], "torch", 1)[0].weight)
    assert own[0].weight.dtype == torch.float64


def test_rho_is_its_definition():
    a = np.random.default_rng(0).normal(size=(2, 3, 3))
    expected = [np.sqrt(sum(m[i, i] ** 2 for i in range(3)) / sum(v**2 for v in m.flat)) for m in a]
    np.testing.assert_allclose(diagonality.rho(torch.tensor(a)).numpy(), expected, rtol=1e-12)
    assert diagonality.rho(torch.eye(4) * 3) == 1 and diagonality.rho(1 - torch.eye(4)) == 0
    assert abs(diagonality.gaussian(128, 20, 0).mean() * 128**0.5 - 1) < 0.05


def test_hessians_over_preactivations_are_autodiffs(case):
    net, _, x, labels = case
    found = diagonality.hessians(net, x, labels)
    assert [list(h.shape) for h in found] == [[3, 5, 5], [3, 5, 5], [3, 3, 3]]
    with torch.no_grad():
        ways = [(net[: i + 1](x), net[i + 1 :]) for i in (0, 2, 4)]
    expected = []
    for a, rest in ways:

        def value(row, label, rest=rest):
            return -rest(row[None]).log_softmax(1)[0].gather(0, label[None])[0]

        expected.append(
            torch.stack([torch.func.jacrev(torch.func.grad(value))(a[n], labels[n]) for n in range(3)]).detach()
        )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    rhos = diagonality.measure(net, x, labels)
    for i, h in enumerate(expected):
        np.testing.assert_allclose(rhos[diagonality.EACH][i], np.mean([float(diagonality.rho(m)) for m in h]))
        np.testing.assert_allclose(rhos[diagonality.MEAN][i], float(diagonality.rho(h.mean(0))))


def test_approximation_quality_writes_figure_numbers_and_table(tmp_path, monkeypatch, capsys):
    flags = (
        "--data",
        "random",
        "--initialisations",
        2,
        "--examples",
        20,
        "--epochs",
        3,
        "-o",
        tmp_path / "new" / "a.png",
    )
    chosen = {name: method for name, method in quality.methods().items() if "50" not in name}
    monkeypatch.setattr(quality, "methods", lambda: chosen)
    assert call(monkeypatch, "approximation_quality", *flags) == DONE
    out, err = capsys.readouterr()
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"a.png", "a.csv"} and "measured 2 of 2" in err
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    rows = {(r["phase"], r["layer"], r["method"]): r for r in table(tmp_path / "new" / "a.csv")}
    methods = [*quality.methods(), quality.REFERENCE]
    layers = ["all / HesScale", "1", "2", "3", "4"]
    assert len(rows) == 2 * (2 + len(layers) * len(methods)) and out.count("\n") == 2 + len(methods)
    for phase in ("before", "after"):
        for k in "01":
            total = {m: sum(float(rows[phase, layer, m][k]) for layer in layers[1:]) for m in methods}
            for m in methods:
                assert float(rows[phase, layers[0], m][k]) == pytest.approx(total[m] / total["HesScale"], rel=1e-4)
        row = rows[phase, "1", "GGN"]
        assert float(row["mean"]) == pytest.approx((float(row["0"]) + float(row["1"])) / 2, rel=1e-4)
        assert row["low"] == row["high"] == ""  # two networks are too few for an interval
    assert rows["before", "1", "GGN"]["0"] != rows["after", "1", "GGN"]["0"]
    losses = [float(rows[phase, "", "training loss"]["mean"]) for phase in ("before", "after")]
    assert losses[1] < losses[0] < 3


def test_diagonality_writes_figure_numbers_and_table(tmp_path, monkeypatch, capsys):
    flags = ("--runs", 2, "--iterations", 60, "--batch", 4, "--step-size", 0.01, "-o", tmp_path / "d")
    monkeypatch.setattr(diagonality, "HIDDEN", [16] * 4)
    assert call(monkeypatch, "diagonality", *flags) == DONE
    assert {p.name for p in tmp_path.iterdir()} == {"d.png", "d.csv"}
    printed = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert printed == ["| layer", "| 1", "| 2", "| 3", "| 4", "| outputs", "| random Gaussian matrix"]
    rows = {(r["phase"], r["what"], r["layer"]): r for r in table(tmp_path / "d.csv")}
    assert len(rows) == 2 * (2 * 5 + 2) + 1
    for what in (diagonality.EACH, diagonality.MEAN):
        for layer in ("1", "2", "3", "4", "outputs"):
            values = [float(rows[phase, what, layer]["mean"]) for phase in ("before", "after")]
            assert all(0 < v < 1 for v in values) and values[0] != values[1]
    losses = [float(rows[phase, "training loss", ""]["mean"]) for phase in ("before", "after")]
    assert losses[1] < losses[0] - 0.1 and rows["", "random Gaussian matrix", ""]["mean"]


REFUSED = {
    ("--data", "cifar"): "--data cifar: must be one of",
    ("--seed", "-1"): "--seed -1: must be",
    ("--seed", "x"): "--seed x: must be a whole number",
    ("--step-size", "0"): "--step-size 0.0: must be positive",
    ("--step-size", "nan"): "--step-size nan: must be positive",
    ("--data", "mnist"): "say with --data-dir DIR",
    ("--speed", "1"): "--speed: no such flag",
    ("-o", "FILE/x"): "Not a directory",
}
OWN = {
    "approximation_quality": {
        ("--initialisations", "0"): "--initialisations 0: must be at least 1",
        ("--examples", "0"): "--examples 0: must be at least 1",
        ("--examples", "1798"): "--examples 1798: digits has 1797",
        ("--epochs", "-1"): "--epochs -1: must be at least 0",
    },
    "diagonality": {
        ("--runs", "0"): "--runs 0: must be at least 1",
        ("--batch", "0"): "--batch 0: must be at least 1",
        ("--batch", "1798"): "--batch 1798: digits has 1797",
        ("--iterations", "-1"): "--iterations -1: must be at least 0",
    },
}


@pytest.mark.parametrize("name, flags", [(name, flags) for name in STUDIES for flags in {**REFUSED, **OWN[name]}])
def test_bad_flags_are_one_line_and_nothing_is_made(name, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    assert call(monkeypatch, name, *flags) == BAD_INPUT
    out, err = capsys.readouterr()
    assert {**REFUSED, **OWN[name]}[flags] in err and err.count("\n") == 1 and not out
    assert [p.name for p in tmp_path.iterdir()] == ["FILE"]


@pytest.mark.parametrize("name", STUDIES)
def test_a_step_size_that_diverges_is_told(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "methods", lambda: FIXED)
    monkeypatch.setattr(diagonality, "HIDDEN", [8] * 4)
    own = ("--initialisations", 1, "--examples", 5) if name == "approximation_quality" else ("--iterations", 9)
    assert call(monkeypatch, name, "--data", "random", *own, "--step-size", 1e300, "-o", tmp_path / "a") == BAD_INPUT
    assert "training diverged; take a smaller one" in capsys.readouterr().err and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", STUDIES)
def test_help_needs_no_torch(name):
    code = f"import sys, hesscale_rl.studies.{name} as m\nsys.argv = ['x', '--help']\n"
    code += "try: m.main()\nexcept SystemExit: pass\n"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.endswith("False\n") and "--data-dir" in done.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2


def test_ctrl_c_ends_without_a_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "hesscale_rl.studies.approximation_quality",
        "--data",
        "random",
        "--examples",
        "100",
    ]
    command += ["--epochs", "1", "--initialisations", "9"]
    # A job in the background is born deaf to SIGINT; this gives it its ears back.
    how = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler), "text": True}
    with subprocess.Popen([*command, "-o", str(tmp_path / "a")], stderr=subprocess.PIPE, **how) as process:
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == INTERRUPTED and first.startswith("trained 9") and "Traceback" not in rest
    assert rest.endswith("interrupted; nothing is written\n") and not [*tmp_path.iterdir()]


def test_random_data_and_digits():
    one, other = data.load("random"), data.load("random", seed=1)
    assert torch.equal(one.inputs, data.load("random").inputs) and not torch.equal(one.inputs, other.inputs)
    assert list(one.inputs.shape) == [10_000, 6] and abs(float(one.inputs.std()) - 1) < 0.02
    assert one.labels.unique().tolist() == list(range(10))
    digits = data.load("digits")
    assert list(digits.inputs.shape) == [1797, 1, 8, 8] and digits.labels.bincount().min() > 170
    assert digits.inputs.min() == 0 and digits.inputs.max() == 1 and digits.labels.dtype == torch.int64


def test_mnist_is_downloaded_once_and_kept(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (70_000, 784), dtype=np.uint8)
    calls = []

    def fetch(name, **how):
        (Path(how["data_home"]) / "openml").mkdir()
        calls.append((name, how["version"], Path(how["data_home"]).parent))
        return SimpleNamespace(data=pixels, target=np.array([str(i % 10) for i in range(70_000)], dtype=object))

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    first = data.load("mnist", tmp_path / "kept")
    assert list(first.inputs.shape) == [60_000, 1, 28, 28] and first.inputs.dtype == torch.float64
    assert float(first.inputs[5, 0, 1, 2]) == pixels[5, 30] / 255 and first.labels[:12].tolist() == [*range(10), 0, 1]
    again = data.load("mnist", str(tmp_path / "kept"))
    assert torch.equal(again.inputs, first.inputs) and torch.equal(again.labels, first.labels)
    assert calls == [("mnist_784", 1, tmp_path / "kept")]
    (path,) = (tmp_path / "kept").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as MNIST; remove it"):
        data.load("mnist", tmp_path / "kept")
    pixels = pixels[:100]
    with pytest.raises(InputError, match=r"openml.org sent is not MNIST: its shapes are \[100, 784\]"):
        data.load("mnist", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("error", [URLError("no network\nhere"), TimeoutError(), ValueError("no data set")])
def test_a_failed_download_says_what_to_do(error, tmp_path, monkeypatch):
    def fetch(*args, **how):
        (Path(how["data_home"]) / "openml").mkdir()
        raise error

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    with pytest.raises(
        InputError, match="--data mnist: the download to .* failed .*; try again with a network"
    ) as told:
        data.load("mnist", tmp_path)
    assert "\n" not in str(told.value) and not [*tmp_path.iterdir()]


def test_what_is_missing_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--data-dir .*file: cannot be made"):
        data.load("mnist", tmp_path / "file")
    with pytest.raises(InputError, match="--data emnist: there is random, digits, fashion-mnist, mnist"):
        data.load("emnist")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    for name in ("digits", "mnist"):
        with pytest.raises(InputError, match=r"needs scikit-learn, pip install 'hesscale-rl\[data\]'"):
            data.load(name, tmp_path / "new")
    assert data.load("random").name == "random"
