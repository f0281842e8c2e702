"""The cost benchmark on tiny networks: its tables and files, what it refuses, and its measure of memory."""

import contextlib
import csv
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.studies import cost, cost_figure
from hesscale_rl.studies import memory as cost_memory

METHODS = [cost.BASELINE, *cost.OPTIMIZERS, "scaled-adahesscale", "exact GGN diagonal", "exact Hessian (HBP)"]


@pytest.fixture(scope="module")
def measure():
    with cost_memory.fresh_processes([partial(cost.warmed, "adahesscale", [4, 4, 4], 2)]) as function:
        yield function


# What follows is run in processes of its own, so it must be found by name.


def allocate(mib, before=0):
    torch.ones(before * 2**18)  # touched and given back before the update
    return partial(torch.ones, mib * 2**18)


def untouched(mib):
    return partial(torch.empty, mib * 2**18)


def buffer(mib):
    return partial(bytearray, mib * 2**20)


def sleep(seconds):
    cost_memory.SECONDS = 0.1
    return partial(time.sleep, seconds)


def broken():
    return partial(int, "no number")


def command(monkeypatch, capsys, *arguments):  # exit code, output, errors
    monkeypatch.setattr(sys, "argv", ["cost", *map(str, arguments)])
    return cost.main(), *capsys.readouterr()


def tiny(monkeypatch, measure):
    """One network for each experiment and batch size, measured by the processes of `measure`."""

    def series(experiment, batches):
        sizes = {"outputs": [[4, 8, 6]], "layers": [[4, 8, 8, 3]]}
        found = {}
        for batch in batches:
            found |= {f"{experiment} {len(s)} {s[-1]} ({batch})": (s, batch, None) for s in sizes[experiment]}
        return found

    monkeypatch.setattr(cost, "series", series)
    monkeypatch.setattr(cost, "fresh_processes", lambda first: contextlib.nullcontext(measure))
    monkeypatch.setattr(cost, "TURN", 1e-4)
    monkeypatch.setattr(cost, "CHILDREN", 1)


@pytest.mark.parametrize("before", [0, 200])
def test_memory_is_what_an_update_allocates_and_nothing_from_before(measure, before):
    assert 63.5 <= measure(partial(allocate, 64, before)) < 70  # ru_maxrss goes in steps


def test_memory_of_nothing_is_nothing(measure):
    assert 0 <= measure(partial(allocate, 0)) < 2


@pytest.mark.parametrize("make", [untouched, buffer])
def test_what_needs_more_than_the_limit_is_told(measure, make):
    assert measure(partial(make, 5 * 1024)) == "over 4 GiB"


def test_what_takes_too_long_is_told_and_ended(measure):
    assert measure(partial(sleep, 0.15)) == "over 0.1 s"
    began = time.perf_counter()
    assert measure(partial(sleep, 3600)) == f"over {cost_memory.SECONDS} s"
    assert time.perf_counter() - began < 600


def test_an_error_is_told_and_the_next_job_runs(measure):
    with pytest.raises(RuntimeError, match="no number"):
        measure(broken)
    assert measure(partial(allocate, 16)) < 20


@pytest.mark.slow
def test_every_method_is_in_the_tables_and_the_files(monkeypatch, capsys, tmp_path, measure):
    tiny(monkeypatch, measure)
    out = tmp_path / "new" / "cost"
    how = ("--experiment", "outputs", "layers", "--batch", 2, "--rounds", 2, "-o", out)
    code, output, errors = command(monkeypatch, capsys, *how)
    assert (code, errors) == (DONE, "")
    with open(f"{out}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(METHODS)
    for network in {row["network"] for row in rows}:
        own = [row for row in rows if row["network"] == network]
        assert [row["method"] for row in own] == METHODS
        assert all(f"| {network} | {method} |" in output for method in METHODS)
        assert float(own[0]["ratio"]) == 1
        for row in own:
            assert 0 < float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
            assert float(row["us"]) > 0 and 0 <= float(row["mib"]) < 50 and row["rounds"] == "2"
    assert {row["parameters"] for row in rows if row["network"].startswith("outputs 3 6")} == {"94"}
    assert (tmp_path / "new" / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert "layers, batch 2: adahesscale takes" in output
    assert sorted(path.name for path in out.parent.iterdir()) == ["cost.csv", "cost.png"]


def test_the_usual_networks_have_no_memory_column(monkeypatch, capsys):
    name = "17-64-64-6 (1)"
    code, output, _ = command(monkeypatch, capsys, "--rounds", 2, "--networks", name)
    lines = [line for line in output.splitlines() if line.startswith(f"| {name}")]
    assert code == DONE and [line.split("|")[2].strip() for line in lines] == list(cost.USUAL)
    assert all(line.count("|") == 5 for line in lines) and "MiB" not in output


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--networks", "17-64"], "17-64-64-6 (1)"),
        (["--networks", "17-64-64-6 (1)", "--experiment", "layers"], "64-128x512-100 (128)"),
        (["--experiment", "outputs", "--networks", "64-512-16 (1)", "--batch", "2"], "64-512-16 (2)"),
        (["--experiment", "inputs"], "inputs"),
        (["--rounds", "1"], "at least 2"),
        (["--batch", "0"], "at least 1"),
        (["-o", "x"], "--experiment outputs or layers"),
        (["--experiment", "layers", "-o", f"{__file__}/x"], "cannot be written"),
    ],
)
def test_bad_input_is_refused_in_one_line(monkeypatch, capsys, arguments, words):
    code, output, errors = command(monkeypatch, capsys, *arguments)
    assert (code, output) == (BAD_INPUT, "") and errors.count("\n") == 1 and words in errors


def test_help_answers_before_anything_heavy_is_imported():
    program = "import sys; sys.argv = ['cost', '--help']; from hesscale_rl.studies import cost\n"
    program += "try: cost.main()\nexcept SystemExit: print({'torch', 'matplotlib', 'gymnasium'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--experiment" in done.stdout and done.stdout.endswith("set()\n")


def test_what_is_left_out_stays_out_on_larger_networks(monkeypatch):
    asked = []

    def fake(job):
        method, sizes, _ = job.args
        asked.append((method, len(sizes)))
        return "over 4 GiB" if method == "exact Hessian (HBP)" and len(sizes) > 3 else 1.0

    monkeypatch.setattr(cost, "TURN", 1e-4)
    gone = {}
    rows = [cost.scaling([4, *[8] * n, 3], 2, 2, gone, fake) for n in (1, 2, 3)]
    assert "left_out" not in rows[0][-1] and len(rows[0]) == len(METHODS)
    for found in rows[1:]:
        assert found[-1] == {"method": "exact Hessian (HBP)", "left_out": "over 4 GiB"}
        assert len(found) == len(METHODS) and all("us" in row for row in found[:-1])
    assert asked.count((METHODS[-1], 3)) == 3 and asked.count((METHODS[-1], 4)) == 1 and (METHODS[-1], 5) not in asked
    assert cost_figure.show("net", rows[2][-1], True) == "| net | exact Hessian (HBP) | left out: over 4 GiB | | |"


def test_without_a_baseline_there_is_nothing_to_compare_with():
    gone = {}
    rows = cost.scaling([4, 8, 3], 2, 2, gone, lambda job: "over 3 s" if job.args[0] == cost.BASELINE else 1.0)
    assert sorted(row["method"] for row in rows) == sorted(METHODS) and all("left_out" in row for row in rows)
    assert gone[cost.BASELINE] == "over 3 s" and gone["adam"] == "Adam + autograd is over 3 s"


def test_networks_that_do_not_fit_together_are_built_one_after_the_other(monkeypatch):
    alive, most, original = set(), [0], cost.prepare

    class Counted:
        def __init__(self, method, sizes, batch):
            self.update = original(method, sizes, batch)
            alive.add(id(self))
            most[0] = max(most[0], len(alive))

        def __call__(self):
            self.update()

        def __del__(self):
            alive.discard(id(self))

    monkeypatch.setattr(cost, "prepare", Counted)
    monkeypatch.setattr(cost, "TURN", 1e-4)
    for limit, expected in ((cost.TOGETHER, len(METHODS)), (5, 3)):  # the next is built before the last is let go
        most[0] = 0
        monkeypatch.setattr(cost, "TOGETHER", limit)
        rows = cost.scaling([4, 8, 3], 2, 2, {}, lambda job: 1.0)
        assert [row["method"] for row in rows] == METHODS and rows[0]["ratio"] == 1
        assert most[0] <= expected and not alive


def test_a_slow_method_sits_out_and_is_compared_within_its_rounds(monkeypatch):
    monkeypatch.setattr(cost, "SHARE", 0.06)
    calls = {"kfac": 0}

    def quick():
        calls["kfac"] += 1

    updates = {cost.BASELINE: partial(time.sleep, 0.001), "slow": partial(time.sleep, 0.02), "kfac": quick}
    times = cost.turns(updates, 7, None)
    assert len(times["slow"]) == cost.FEWEST and len(times[cost.BASELINE]) == max(map(len, times.values()))
    assert (calls["kfac"] - 2) % 10 == 0 and calls["kfac"] > 2
    row = cost_figure.row_of("slow", [4.0, 6.0, 8.0], [1.0, 2.0, 8.0, 100.0])
    assert (row["ratio"], row["us"], row["rounds"]) == (3, 6, 3)


def test_deep_networks_have_no_denormal_numbers():
    import hesscale_rl as hs

    torch.manual_seed(0)
    net = cost.network([64, *[64] * 128, 100])
    assert cost.parameters([64, *[64] * 128, 100]) == sum(p.numel() for p in net.parameters())
    hs.backward(net, torch.randn(1, 64), hs.losses.CrossEntropy(torch.tensor([3])), hs.HesScale())
    squares = torch.cat([t.square().flatten() for p in net.parameters() for t in (p.grad, p.hess_diag)])
    assert (squares.abs() < torch.finfo(torch.float32).tiny).float().mean() < 1e-4


def test_findings():
    def row(n, ratio, us, method="adahesscale"):
        shared = {"experiment": "layers", "batch": 1, "network": f"n{n}", "parameters": n, "method": method}
        return shared | {"ratio": ratio, "us": us}

    rows = [row(n, 0.5 + n / 1000, 3.0 * n**1.25) for n in (10, 20, 40, 80, 160, 320)]
    claim, means = cost_figure.findings([*rows, row(10, 8.0, 1.0, "kfac"), row(20, 2.0, 1.0, "kfac")])
    assert "0.51 to 0.82 times" in claim and "(n320): below 2 on every network" in claim
    assert "power 1.25, at most 1.00 times off" in claim and "adahesscale 0.60 (paper: 2)" in means
    assert "kfac 4.00 on 2 of 6 networks" in means
    assert "NOT below 2 on every network" in cost_figure.findings([*rows, row(640, 2.01, 1.0)])[0]
    steep, off = cost_figure.slope([1, 10, 100], [1, 20, 100])
    assert steep == pytest.approx(1) and off == pytest.approx(2 ** (2 / 3))
