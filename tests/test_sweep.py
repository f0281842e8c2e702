"""A sweep accounts for every run, whatever is killed, and refuses what cannot be before anything starts.

RUNS=200 KILLS=3 JOBS=4 pytest tests/test_sweep.py -k killed     at full size; by default a small one.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hesscale_rl.errors import BAD_INPUT, INTERRUPTED
from scripts import grid, launchers, sweep

ROOT = Path(__file__).parents[1]
RUNS, KILLS, JOBS = (int(os.environ.get(name, default)) for name, default in (("RUNS", 4), ("KILLS", 1), ("JOBS", 2)))
SPEC = """
[[settings]]
agent = "ppo"
env_id = "CartPole-v1"
optimizer = ["adam", "scaled-adahesscale"]
num_steps = 256
num_minibatches = 4
total_timesteps = 4096
checkpoint_interval = 512
seed = {seeds}
"""


def write(tmp_path, text, name="spec.toml"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def command(*arguments):
    return [sys.executable, "-m", "scripts.sweep", *map(str, arguments)]


def run_sweep(monkeypatch, capsys, *arguments):
    """In this process: exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["sweep", *map(str, arguments)])
    code = sweep.main()
    return code, *capsys.readouterr()


def results(folder):
    """What every run's metrics say, without the clock."""
    found = {}
    for path in sorted(folder.glob("*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [{k: v for k, v in row.items() if k not in ("time", "charts/SPS")} for row in lines]
    return found


def test_a_spec_is_a_grid_with_names_that_stay():
    text = (ROOT / "scripts" / "sweeps" / "ppo_sensitivity_small.toml").read_text()
    runs = grid.read(ROOT / "scripts" / "sweeps" / "ppo_sensitivity_small.toml")
    assert len(runs) == len({run.name for run in runs}) == 5 * 4 * 8 * 3 and 'agent = "ppo"' in text
    first = runs[0]
    assert first.name == "ppo-paper__HalfCheetah-v5__adam__lr1e-05__total_timesteps=300000__s0"
    assert first.steps == 299_008 and first.flags[:2] == ("--preset", "paper")


def test_python_and_toml_say_the_same_and_pairs_and_flags_are_understood(tmp_path):
    toml = write(tmp_path, SPEC.format(seeds=[1, 2]) + "betas = [0.9, 0.99]\nanneal_lr = false\n")
    text = (
        "SETTINGS = (dict(agent='ppo', env_id='CartPole-v1', optimizer=['adam', 'scaled-adahesscale'], seed=(1, 2),"
    )
    text += "num_steps=256, num_minibatches=4, total_timesteps=4096, checkpoint_interval=512, betas=(0.9, 0.99),"
    python = write(tmp_path, text + "anneal_lr=False),)", "spec.py")
    assert grid.read(toml) == grid.read(python) and len(grid.read(toml)) == 4
    flags = grid.read(toml)[0].flags
    assert "--no-anneal-lr" in flags and flags[flags.index("--betas") + 1 :][:2] == ("0.9", "0.99")


@pytest.mark.parametrize(
    "text, words",
    [
        ("agent = 'pop'", "did you mean 'ppo'?"),
        ("agent = 'ppo'\nlerning_rate = 0.1", "no flag 'lerning_rate': did you mean 'learning_rate'?"),
        ("agent = 'ppo'\nrun_dir = 'x'", "no flag 'run_dir'"),
        ("agent = 'ppo'\nenv_id = 'Hoper-v5'", "did you mean Hopper-v5"),
        ("agent = 'ppo'\noptimizer = ['adam', 'scaled-adm']", "did you mean 'scaled-adam'?"),
        ("agent = 'ppo'\npreset = 'papr'", "did you mean 'paper'?"),
        ("agent = 'ppo'\nseed = []", "a grid with no runs"),
        ("agent = 'ppo'\nseed = 'one'", "seed = 'one': must be int"),
        ("agent = 'ppo'\nlearning_rate = -1.0", "--learning-rate -1.0: must be a positive number"),
        ("agent = ", "TOMLDecodeError"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys, text, words):
    spec = write(tmp_path, f"[[settings]]\n{text}\n")
    code, out, error = run_sweep(monkeypatch, capsys, spec, "--dir", tmp_path / "runs")
    assert code == BAD_INPUT and words in error and error.count("\n") == 1 and out == ""
    assert not (tmp_path / "runs").exists()


def test_two_sweeps_in_one_directory(tmp_path, monkeypatch, capsys):
    spec, folder = write(tmp_path, SPEC.format(seeds=[1])), tmp_path / "runs"
    folder.mkdir()
    handle = sweep.lock(folder, "")
    code, _, error = run_sweep(monkeypatch, capsys, spec, "--dir", folder)
    assert code == BAD_INPUT and "another sweep is at work there" in error
    os.close(handle)


def test_a_sweep_whose_launcher_and_runs_are_killed_ends_with_the_same_results(tmp_path):
    spec = write(tmp_path, SPEC.format(seeds=list(range(RUNS // 2))))
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    subprocess.run(command(spec, "--dir", calm, "-j", JOBS), cwd=ROOT, check=True, capture_output=True)
    chance = random.Random(0)
    for _ in range(KILLS):
        process = subprocess.Popen(command(spec, "--dir", wild, "-j", JOBS), cwd=ROOT, stdout=subprocess.DEVNULL)
        finished = len([path for path in wild.glob("*/status.json") if launchers.exit_code(path.parent) is not None])
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


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    spec = write(tmp_path, SPEC.format(seeds=[0]).replace("4096", "409600"))
    process = subprocess.Popen(command(spec, "--dir", tmp_path / "runs"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while len(list(tmp_path.glob("runs/*/checkpoints/*.pt"))) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED and "the same command goes on" in out
    states = [launchers.status(path.parent) for path in tmp_path.glob("runs/*/status.json")]
    assert [state["status"] for state in states] == ["interrupted"] * 2


def test_a_run_that_crashes_is_tried_again_and_then_told_with_its_log(tmp_path, monkeypatch, capsys):
    spec, folder = write(tmp_path, SPEC.format(seeds=[1])), tmp_path / "runs"
    begun = []

    def crash(run, folder, core=None):
        begun.append(run)
        log = launchers.log_path(folder, run)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("first line\n" * 50 + "the reason\n")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])

    monkeypatch.setattr(launchers, "start", crash)
    code, out, error = run_sweep(monkeypatch, capsys, spec, "--dir", folder, "-j", 1)
    assert code == 1 and "2 failed" in out and len(begun) == 4
    assert error.count("exit code 7") == 2 and error.count("the reason") == 2 and error.count("first line") < 20


def test_submitits_executors_do_the_same(tmp_path):
    pytest.importorskip("submitit")
    spec = write(tmp_path, SPEC.format(seeds=[3]).replace("4096", "512"))
    for launcher in ("submitit-debug", "submitit-local"):
        line = command(spec, "--dir", tmp_path / launcher, "--launcher", launcher)
        end = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert end.returncode == 0 and "2/2 done" in end.stdout, end.stderr
    assert results(tmp_path / "submitit-debug") == results(tmp_path / "submitit-local")


@pytest.mark.skipif(not os.environ.get("RAY"), reason="RAY=1 starts two Ray nodes on this machine and kills one")
def test_a_ray_node_that_dies_costs_nothing(tmp_path):
    from ray.cluster_utils import Cluster

    spec = write(tmp_path, SPEC.format(seeds=list(range(RUNS // 2))))
    subprocess.run(command(spec, "--dir", tmp_path / "calm", "-j", JOBS), cwd=ROOT, check=True, capture_output=True)
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
