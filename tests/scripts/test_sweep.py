"""A sweep accounts for every run, whatever is killed, and refuses what cannot be before anything starts.

RUNS=200 KILLS=3 JOBS=4 pytest tests/scripts/test_sweep.py -k killed     at full size; by default a small one.
"""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_sweep import SPEC, run_sweep, write

from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE, INTERRUPTED, InputError
from hesscale_rl.scripts import sweep
from hesscale_rl.scripts.sweeping import launchers, state
from hesscale_rl.scripts.sweeping import spec as grid
from hesscale_rl.scripts.sweeping.spec import Planned
from hesscale_rl.system.locks import held, lock

ROOT = Path(__file__).parents[2]
RUNS, KILLS, JOBS = (int(os.environ.get(name, default)) for name, default in (("RUNS", 4), ("KILLS", 1), ("JOBS", 2)))


def command(*arguments):
    return [sys.executable, "-m", "hesscale_rl.scripts.sweep", *map(str, arguments)]


def results(folder):
    """What every run's metrics say, without the clock."""
    found = {}
    for path in sorted(folder.glob("*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [{k: v for k, v in row.items() if k not in ("time", "charts/SPS")} for row in lines]
    return found


TRAIN = """
import json, sys
from hesscale_rl.agents import ppo
for flags in json.load(sys.stdin):
    assert ppo.main(ppo.parse(ppo.Args, ppo.PRESETS, flags, "agent")) == 0
"""


def train(spec, folder):
    """Do the runs of a spec one after the other in one process, without a sweep."""
    runs = grid.read(spec)
    assert {run.agent for run in runs} == {"ppo"}
    lines = [[*run.flags, "--run-dir", str(folder / run.name), "--quiet"] for run in runs]
    subprocess.run([sys.executable, "-c", TRAIN], cwd=ROOT, input=json.dumps(lines), text=True, check=True)


@pytest.mark.parametrize(
    "line, words",
    [
        ("-j 0", "-j 0: must be at least 1"),
        ("--ray-address 127.0.0.1:6379", "--ray-address 127.0.0.1:6379: is not for --launcher local"),
        ("--slurm partition=cpu", "--slurm partition=cpu: is not for --launcher local"),
        ("--time-limit 10", "--time-limit 10: is not for --launcher local"),
        ("--launcher ray -j 3", "-j 3: is not for --launcher ray"),
        ("--launcher ray --ray-address here", "must be HOST:PORT"),
        ("--launcher ray --ray-address 127.0.0.1:1", "127.0.0.1:1: nothing answers there (Connection refused)"),
        ("--launcher submitit-local --slurm cpu", "--slurm cpu: must be NAME=VALUE"),
        ("--launcher submitit-local --time-limit 0", "--time-limit 0: must be at least 1"),
        ("--launcher slurm", "--launcher slurm: "),  # which is not here
    ],
)
def test_launchers_that_cannot_be_are_refused_soon_and_nothing_is_made(tmp_path, monkeypatch, capsys, line, words):
    for package in {"ray": ["ray"], "local": []}.get((line + " --launcher local").split()[1], ["submitit"]):
        pytest.importorskip(package)
    spec, began = write(tmp_path, SPEC.format(seeds=[1])), time.monotonic()
    code, out, error = run_sweep(monkeypatch, capsys, spec, "--dir", tmp_path / "runs", *line.split())
    assert code == BAD_INPUT and words in error and error.count("\n") == 1 and out == ""
    assert time.monotonic() - began < 30 and not (tmp_path / "runs").exists()


def test_two_sweeps_in_one_directory(tmp_path, monkeypatch, capsys):
    spec, folder = write(tmp_path, SPEC.format(seeds=[1])), tmp_path / "runs"
    folder.mkdir()
    handle = lock(folder, "")
    code, _, error = run_sweep(monkeypatch, capsys, spec, "--dir", folder)
    assert code == BAD_INPUT and "another sweep is at work there" in error
    handle.release()


def test_who_looks_is_not_in_the_way_of_a_run_that_starts(tmp_path):
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not held(tmp_path)  # two that look do not take each other for a run
    threading.Timer(0.05, os.close, [looking]).start()
    handle = lock(tmp_path, "held")
    assert held(tmp_path)
    with pytest.raises(InputError, match="held"):
        lock(tmp_path, "held")
    handle.release()


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """An agent `probe` that is this Python text, and what a launcher makes of it: [(run, exit code)]."""

    def carry_out(text, launcher=None):
        (tmp_path / "agents").mkdir(exist_ok=True)
        head = (
            "import json, os, pathlib, sys\n"
            "begun = '--resume' if '--resume' in sys.argv else '--run-dir'\n"
            "run = pathlib.Path(sys.argv[sys.argv.index(begun) + 1])\nrun.mkdir(exist_ok=True)\n"
        )
        (tmp_path / "agents" / "probe.py").write_text(head + text)
        monkeypatch.setattr(launchers, "ROOT", tmp_path)
        run, ended = Planned("run", "probe", (), 100), []
        if launcher is None:
            return [(run, launchers.perform(run, tmp_path))]
        launcher.begin([run], tmp_path)
        while not ended:
            ended = launcher.poll()
            time.sleep(0.02)
        return ended

    return carry_out


def test_a_run_may_take_any_core_since_another_sweep_may_be_on_one(probe, tmp_path):
    for _ in range(2):
        [(run, code)] = probe("print(*os.sched_getaffinity(0))", launchers.Local(1))
        assert code == DONE
    cores = " ".join(map(str, os.sched_getaffinity(0)))
    assert state.log_path(tmp_path, run.name).read_text().splitlines() == [cores, cores]


CRASH = """
(run / "config.json").touch()
count = int((run / "count").read_text()) if (run / "count").exists() else 0
(run / "count").write_text(str(count + 1))
(run / "status.json").write_text(json.dumps({"status": "running", "checkpoint": min(count, 3) * 10 or None}))
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("launcher", [None, launchers.Local(1)])
def test_a_run_is_tried_again_from_each_new_checkpoint(probe, tmp_path, launcher):
    [(_, code)] = probe(CRASH, launcher)  # checkpoints at 10, 20 and 30 with the second to the fourth start
    assert code == -signal.SIGKILL and (tmp_path / "run" / "count").read_text() == "6"
    assert sweep.ending(code) == "killed by SIGKILL, out of memory?" and sweep.ending(1) == "exit code 1"
    assert sweep.ending(-signal.SIGSEGV) == "killed by SIGSEGV"


def test_speed_counts_the_steps_of_this_start_and_time_left_the_steps_that_are_to_come(tmp_path, monkeypatch):
    def state(name, status, step, checkpoint=None, logged=None):
        (tmp_path / name).mkdir(exist_ok=True)
        told = {"status": status, "global_step": step, "checkpoint": checkpoint}
        (tmp_path / name / "status.json").write_text(json.dumps(told))
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"global_step": logged or step}) + "\n")

    clock = [0.0]
    monkeypatch.setattr(sweep.time, "monotonic", lambda: clock[0])
    runs = [Planned(name, "ppo", (), 1_000_000) for name in "abcde"]
    state("a", "done", 1_000_000)
    state("b", "interrupted", 600_000, 500_000, 700_000)  # 200,000 steps will be taken again
    tally = sweep.Tally(runs, tmp_path)
    clock[0] = 0.5
    assert tally.state()["steps/s"] == tally.state()["time left"] == ""
    clock[0] = 100.0
    state("b", "running", 500_000, 500_000, 550_000)
    handle = lock(tmp_path / "b", "")
    state("c", "diverged", 20_000)
    tally.end(runs[2], DIVERGED)
    state("d", "failed", 30_000)
    tally.end(runs[3], 1)
    now = tally.state()  # 50,000 + 20,000 + 30,000 steps in 100 s, and 450,000 + 1,000,000 are left
    assert now == {
        "done": "1/5",
        "running": "1",
        "diverged": "1",
        "failed": "1",
        "steps/s": "1,000",
        "time left": "24 min",
    }
    handle.release()
    times = (0.4, 59.4, 59.6, 719, 3599, 5 * 3600 + 39 * 60)
    assert [sweep.duration(t) for t in times] == ["0 s", "59 s", "1 min", "12 min", "1 h 0 min", "5 h 39 min"]


def test_ctrl_c_while_it_prepares_ends_it_at_once(tmp_path):
    text = "import time\nfrom pathlib import Path\nPath('there').touch()\ntry:\n    time.sleep(60)\n"
    spec = write(tmp_path, text + "except KeyboardInterrupt:\n    time.sleep(60)\n", "spec.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command(spec), cwd=tmp_path, env=env, stderr=subprocess.PIPE)
    while not (tmp_path / "there").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=300)[1] == b"" and process.returncode == INTERRUPTED


def test_nothing_heavy_is_imported_before_ctrl_c_is_heeded():
    code = "import sys, hesscale_rl.scripts.sweep; sys.exit(bool({'torch', 'numpy', 'rich'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    spec = write(tmp_path, SPEC.format(seeds=[1]))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(spec, "--dry-run"), cwd=ROOT, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == DONE


@pytest.mark.slow
def test_a_sweep_whose_launcher_and_runs_are_killed_ends_with_the_same_results(tmp_path):
    spec = write(tmp_path, SPEC.format(seeds=list(range(RUNS // 2))))
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    train(spec, calm)
    chance = random.Random(0)
    for _ in range(KILLS):
        process = subprocess.Popen(command(spec, "--dir", wild, "-j", JOBS), cwd=ROOT, stdout=subprocess.DEVNULL)
        finished = len([path for path in wild.glob("*/status.json") if state.exit_code(path.parent) is not None])
        # Not before it works on runs of its own, and not after the last one.
        while len(results(wild)) <= finished and process.poll() is None:
            time.sleep(0.05)
        for _ in range(2):
            time.sleep(chance.uniform(0, 1))
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if workers:
                os.kill(int(chance.choice(workers)), signal.SIGKILL)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    end = subprocess.run(command(spec, "--dir", wild, "-j", JOBS), cwd=ROOT, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    assert f"{RUNS}/{RUNS} done" in end.stdout
    assert results(wild) == results(calm) and len(results(calm)) == RUNS


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    spec = write(tmp_path, SPEC.format(seeds=[0]).replace("4096", "409600"))
    line = command(spec, "--dir", tmp_path / "runs", "-j", 2)
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while len({path.parent for path in tmp_path.glob("runs/*/checkpoints/*.pt")}) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == INTERRUPTED and "the same command goes on" in out
    states = [state.status(path.parent) for path in tmp_path.glob("runs/*/status.json")]
    assert [state["status"] for state in states] == ["interrupted"] * 2


def test_a_run_that_crashes_is_tried_again_and_then_told_with_its_log(tmp_path, monkeypatch, capsys):
    spec, folder = write(tmp_path, SPEC.format(seeds=[1, 2, 3, 4])), tmp_path / "runs"
    begun = []

    def crash(run, folder):
        begun.append(run)
        log = state.log_path(folder, run.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("first line\n" * 50 + "the reason\n")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])

    monkeypatch.setattr(launchers, "start", crash)
    monkeypatch.setattr(sweep, "POLL", 0.05)
    code, out, error = run_sweep(monkeypatch, capsys, spec, "--dir", folder, "-j", 4)
    assert code == 1 and "8 failed" in out and "steps/s" not in out and len(begun) == 16
    assert error.count("exit code 7") == 8 and error.count("the reason") == sweep.TAILS
    assert error.count("first line") < 10 * sweep.TAILS


def test_a_launcher_that_is_made_touches_no_file(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    launchers.OnSlurm(None, "local", {"timeout_min": 1})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_submitits_executors_do_the_same(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    spec = write(tmp_path, SPEC.format(seeds=[3]).replace("4096", "512"))
    train(spec, tmp_path / "calm")
    expected = results(tmp_path / "calm")
    code, out, error = run_sweep(monkeypatch, capsys, spec, "--dir", tmp_path / "two", "--launcher", "submitit-local")
    assert code == DONE and "2/2 done" in out, error
    assert results(tmp_path / "two") == expected and len(expected) == 2
    # submitit's debug executor leaves files open, so not in this process.
    one = write(tmp_path, spec.read_text().replace('["adam", "scaled-adahesscale"]', '["adam"]'), "one.toml")
    line = command(one, "--dir", tmp_path / "one", "--launcher", "submitit-debug")
    end = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert end.returncode == DONE and "1/1 done" in end.stdout, end.stderr
    assert len(found := results(tmp_path / "one")) == 1 and found.items() <= expected.items()


@pytest.mark.skipif(not os.environ.get("RAY"), reason="RAY=1 starts two Ray nodes on this machine and kills one")
def test_a_ray_node_that_dies_costs_nothing(tmp_path):
    from ray.cluster_utils import Cluster

    spec = write(tmp_path, SPEC.format(seeds=list(range(RUNS // 2))))
    train(spec, tmp_path / "calm")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=2)
    try:
        line = command(spec, "--dir", tmp_path / "ray", "--launcher", "ray", "--ray-address", cluster.address)
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while len(results(tmp_path / "ray")) < min(4, RUNS // 2):
            time.sleep(0.1)
        cluster.remove_node(second, allow_graceful=False)
        out, error = process.communicate()
    finally:
        cluster.shutdown()
    assert process.returncode == 0 and f"{RUNS}/{RUNS} done" in out, error
    assert results(tmp_path / "ray") == results(tmp_path / "calm")
