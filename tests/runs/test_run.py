import dataclasses
import json
import math
import subprocess

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hesscale_rl.errors import InputError
from hesscale_rl.runs.directory import Run, atomic_write


@dataclasses.dataclass
class Args:
    env_id: str = "Hopper-v5"
    exp_name: str = "ppo"
    seed: int = 7
    target_kl: float = math.inf
    betas: tuple[float, float] = (0.9, 0.999)
    delta: float | None = None


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts runs in an empty working directory, and ends those that the test leaves open."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "agent.py"
    source.write_text("print('agent')\n")

    runs = []

    def start(directory=None, quiet=True):
        runs.append(Run(Args(), directory, quiet, source, total_steps=1000))
        return runs[-1]

    yield start
    for run in runs:
        run.finish("done")


def read(run, name):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run.directory / name).read_text().splitlines()]


def status(run):
    return json.loads((run.directory / "status.json").read_text())


def test_atomic_write_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, b"old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, b"half")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_default_directories_never_collide(start, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1795000000.5)
    names = []
    for _ in range(3):
        with start() as run:
            names.append(str(run.directory))
    first = "runs/Hopper-v5__ppo__7__1795000000"
    assert names == [first, first + "_2", first + "_3"]


def test_a_run_directory_that_holds_something_is_refused_untouched(start, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "note").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="--run-dir there: not empty"):
        start("there")
    with pytest.raises(InputError, match="--run-dir file: this is a file"):
        start("file")
    with pytest.raises(InputError, match="--run-dir file: cannot be made|--run-dir file/sub: cannot be made"):
        start("file/sub")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_or_new_directory_is_taken(start, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/deep"):
        with start(name) as run:
            assert str(run.directory) == name
        assert not (tmp_path / "runs").exists()


def test_what_a_run_leaves(start):
    with start("out") as run:
        assert status(run)["status"] == "running"
        run.log(5, {"a": 1.0})
    names = sorted(p.name for p in run.directory.iterdir())
    assert [n for n in names if not n.startswith("events.")] == [
        "agent.py",
        "config.json",
        "meta.json",
        "metrics.jsonl",
        "status.json",
    ]
    assert len(names) == 6
    assert (run.directory / "agent.py").read_text() == "print('agent')\n"
    config = json.loads((run.directory / "config.json").read_text())
    assert config["target_kl"] == "inf" and config["betas"] == [0.9, 0.999] and config["delta"] is None
    meta = json.loads((run.directory / "meta.json").read_text())
    assert meta["versions"].keys() == {"hesscale_rl", "python", "torch", "numpy", "gymnasium", "mujoco"}
    assert meta["cpu"] and meta["torch_threads"] == torch.get_num_threads() and meta["started"] and meta["argv"]
    assert status(run)["status"] == "done" and status(run)["global_step"] == 5 and status(run)["total_steps"] == 1000


def test_meta_tells_the_commit_of_the_source(start, tmp_path):
    assert json.loads((start("bare").directory / "meta.json").read_text())["git"] is None

    def git(*command):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *who, *command], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / ".gitignore").write_text("bare/\nclean/\nedited/\nignored/\n")
    git("add", ".")
    git("commit", "-qm", "x")
    sha = git("rev-parse", "HEAD")

    def recorded(name):
        return json.loads((start(name).directory / "meta.json").read_text())["git"]

    assert recorded("clean") == {"sha": sha, "dirty": False}
    (tmp_path / "agent.py").write_text("print('changed')\n")
    assert recorded("edited") == {"sha": sha, "dirty": True}
    git("rm", "-q", "--cached", "agent.py")
    (tmp_path / ".gitignore").write_text("agent.py\n")
    assert recorded("ignored") is None


def test_scalars_are_the_same_in_both_logs_and_valid_json(start):
    odd = {"x/nan": math.nan, "x/inf": math.inf, "x/-inf": -math.inf}
    rows = [
        (1, {"charts/episodic_return": 0.1, "losses/value_loss": np.float32(2.5)}),
        (2, {"charts/episodic_return": torch.tensor(3.0), "n": 4}),
        (3, odd),
    ]
    with start() as run:
        for step, scalars in rows:
            run.log(step, scalars)
    lines = read(run, "metrics.jsonl")
    assert [line["global_step"] for line in lines] == [1, 2, 3]
    assert lines[2]["x/nan"] == "nan" and lines[2]["x/inf"] == "inf" and lines[2]["x/-inf"] == "-inf"
    events = EventAccumulator(str(run.directory))
    events.Reload()
    tags = set()
    for line in lines:
        step, now = line.pop("global_step"), line.pop("time")
        for tag, value in line.items():
            (event,) = [e for e in events.Scalars(tag) if e.step == step]
            np.testing.assert_equal(event.value, float(np.float32(float(value))))
            assert event.wall_time == now
            tags.add(tag)
    assert tags == set(events.Tags()["scalars"]) and len(tags) == 6


def test_lines_reach_the_disk_at_a_flush(start):
    with start() as run:
        run.log(1, {"a": 1.0})
        assert read(run, "metrics.jsonl") == []
        run.flush()
        assert len(read(run, "metrics.jsonl")) == 1
        run.log(2, {"a": 1.0})
        run.flush()
        assert [line["global_step"] for line in read(run, "metrics.jsonl")] == [1, 2]


def test_a_checkpoint_is_plain_data_and_not_ahead_of_its_curve(start):
    with start() as run:
        run.log(9, {"a": 1.0})
        payload = {"net": torch.nn.Linear(2, 3).state_dict(), "step": 9, "name": "x", "rng": torch.get_rng_state()}
        path = run.save_checkpoint(9, payload)
        assert path == run.directory / "checkpoints" / "step_9.pt"
        assert len(read(run, "metrics.jsonl")) == 1
    loaded = torch.load(path, weights_only=True)
    assert loaded.keys() == payload.keys() | {"format", "version", "logs"} and torch.equal(
        loaded["net"]["weight"], payload["net"]["weight"]
    )
    assert [p.name for p in path.parent.iterdir()] == ["step_9.pt"]


@pytest.mark.parametrize(
    ("error", "expected", "reason"),
    [
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (KeyboardInterrupt(), "interrupted", None),
    ],
)
def test_an_exception_passes_on_and_loses_no_line(start, error, expected, reason):
    with pytest.raises(type(error)), start() as run:
        run.log(3, {"a": 1.0})
        raise error
    assert status(run)["status"] == expected and status(run).get("reason") == reason
    assert status(run)["global_step"] == 3 and len(read(run, "metrics.jsonl")) == 1


def test_the_first_verdict_stands(start):
    with pytest.raises(SystemExit), start() as run:
        run.log(3, {"a": math.nan})
        run.finish("diverged", reason="the loss is nan", update=4)
        raise SystemExit(3)
    assert status(run)["status"] == "diverged" and status(run)["update"] == 4
    assert len(read(run, "metrics.jsonl")) == 1


def test_one_line_tells_where_unless_quiet(start, capsys):
    with start("a", quiet=True) as run:
        run.tell()
        assert capsys.readouterr().out == ""
    with start("b", quiet=False) as run:
        assert capsys.readouterr().out == ""
        run.tell()
        out = capsys.readouterr().out
    assert out.startswith("run  b  ") and out.count("\n") == 1 and torch.__version__.partition("+")[0] in out


def test_a_machine_without_git_is_no_failure(start, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert json.loads((start("out").directory / "meta.json").read_text())["git"] is None
