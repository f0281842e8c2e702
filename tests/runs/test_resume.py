"""A run that was killed, stopped or torn goes on as if nothing had happened, or says why it cannot.

KILLS=20 pytest tests/runs/test_resume.py -k killed  kills every run at 20 random moments, in every case; 1 otherwise.
"""

import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparing import assert_equal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hesscale_rl.agents import a2c, ppo
from hesscale_rl.errors import BAD_INPUT, DONE, INTERRUPTED, InputError
from hesscale_rl.runs import directory
from hesscale_rl.runs.checkpoint import FORMAT, chosen_checkpoint, newest_checkpoint, read_checkpoint
from hesscale_rl.runs.directory import Run

KILLS = int(os.environ.get("KILLS", "1"))
ROOT = Path(__file__).parents[2]
SMALL = ppo.Args(
    env_id="Hopper-v5",
    total_timesteps=512,
    num_steps=64,
    num_minibatches=4,
    update_epochs=2,
    checkpoint_interval=64,
    quiet=True,
)


def command(agent, *flags):
    """A process of its own: in one that has run test_optim.py before, the last digit of an eta is another."""
    return [sys.executable, str(ROOT / "agents" / f"{agent}.py"), *map(str, flags)]


def lines(run):
    """What metrics.jsonl holds of whole lines, if it is there."""
    path = run / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def numbers(run):
    """All that a run decided: its last checkpoint, its metrics and its TensorBoard scalars, without the clock."""
    rows = [{k: v for k, v in line.items() if k not in ("time", "charts/SPS")} for line in lines(run)]
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    scalars = {
        tag: [[event.step, event.value] for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag != "charts/SPS"
    }
    kept = {"last": newest_checkpoint(run)}
    if list(run.glob("checkpoints/best_*.pt")):
        kept["best"] = chosen_checkpoint(run, "best")
    kept = {name: checkpoint | {"logs": None} for name, checkpoint in kept.items()}
    return {"metrics": rows, "scalars": json.loads(json.dumps(scalars))} | kept


OWN, DRAWS = "scaled-adahesscale", "adahessian"  # the agents' own optimizer, and the one that draws random signs
CASES = [("ppo", "Hopper-v5", 1, OWN), ("a2c", "CartPole-v1", 4, DRAWS), ("trpo", "Hopper-v5", 2, DRAWS)]
if KILLS > 1:
    ENV_IDS = ("Hopper-v5", "Ant-v5", "CartPole-v1")
    CASES = [(a, e, n, o) for a in ("ppo", "a2c", "trpo") for e in ENV_IDS for n in (1, 4) for o in (OWN, DRAWS)]

# Some seconds after the start of the program: not over before the last kill.
STEPS = {"CartPole-v1": 204_800, "Hopper-v5": 61_440, "Ant-v5": 61_440}
if KILLS == 1:
    STEPS = {"CartPole-v1": 20_480, "Hopper-v5": 5_120}


@pytest.mark.slow
@pytest.mark.parametrize("agent, env_id, num_envs, optimizer", CASES)
def test_a_run_that_is_killed_goes_on_to_the_same_numbers(tmp_path, agent, env_id, num_envs, optimizer):
    flags = ["--env-id", env_id, "--num-envs", num_envs, "--checkpoint-interval", 500, "--optimizer", optimizer]
    flags += ["--eval-interval", 700, "--eval-episodes", 2]
    flags += ["--num-steps", 512 // num_envs] if agent != "a2c" else []
    flags += ["--env-threads", 2] if num_envs > 1 else []
    whole = ["-n", STEPS[env_id], "--run-dir", tmp_path / "whole"]
    subprocess.run(command(agent, *flags, "--quiet", *whole), check=True)
    little = 0.0  # s of a start and two updates
    if KILLS > 1:
        began = time.monotonic()
        subprocess.run(command(agent, *flags, "--quiet", "-n", 1024, "--run-dir", tmp_path / "short"), check=True)
        little = time.monotonic() - began
    chance, run, kills = random.Random(f"{agent}{env_id}{num_envs}{optimizer}"), tmp_path / "killed", 0
    while True:
        begun = (run / "config.json").exists()
        resume = ["--resume", run] if begun else [*flags, "-n", STEPS[env_id], "--run-dir", run]
        process = subprocess.Popen(command(agent, *resume, "--quiet"))
        if kills == 0:  # the first time certainly in the midst of it, with something to go on from
            while not list(run.glob("checkpoints/*.pt")):
                assert process.poll() is None
                time.sleep(0.01)
        try:
            # Around the first updates: before, there is nothing to lose; much later, the run would be over.
            wait = chance.uniform(0.6, 1.2) * little if kills else 0.05
            process.wait(wait if kills < KILLS else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            assert process.returncode == DONE
            break
    print(f"killed {kills} times")
    assert kills >= max(1, KILLS // 2)
    assert_equal(numbers(run), numbers(tmp_path / "whole"))


def test_the_number_of_threads_is_no_part_of_a_run(tmp_path):
    """The same with 1, 2 and 8 threads, and from a checkpoint of one of them with another."""
    args, threads = replace(SMALL, num_envs=8, num_steps=32, total_timesteps=1024, checkpoint_interval=256), (1, 2, 8)
    for number in threads:
        assert ppo.train(replace(args, env_threads=number, run_dir=str(tmp_path / str(number)))) == DONE
    later = replace(args, total_timesteps=512, env_threads=8, anneal_lr=False, run_dir=str(tmp_path / "later"))
    assert ppo.train(later) == DONE
    more = replace(later, total_timesteps=1024, resume=later.run_dir, env_threads=1, accept_changes=True)
    assert ppo.train(more) == DONE
    assert ppo.train(replace(args, anneal_lr=False, run_dir=str(tmp_path / "steady"))) == DONE
    for one, other in ((threads[0], threads[1]), (threads[0], threads[2]), ("later", "steady")):
        assert_equal(numbers(tmp_path / str(one)), numbers(tmp_path / str(other)))


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_ends_its_update_and_saves(tmp_path):
    """By SIGINT; then what goes on, by SIGTERM; then it goes on to its end."""
    flags, run = ["--env-id", "CartPole-v1", "-n", 12_288, "--num-steps", 256], tmp_path / "stopped"
    subprocess.run(command("ppo", *flags, "--quiet", "--run-dir", tmp_path / "whole"), check=True)
    start, steps = [*flags, "--run-dir", run], 0
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(command("ppo", *start, "--quiet"))
        while len(lines(run)) == steps:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait() == INTERRUPTED
        assert json.loads((run / "status.json").read_text())["status"] == "interrupted"
        start, steps = ["--resume", run], len(lines(run))
    assert 0 < newest_checkpoint(run)["global_step"] < 12_288
    subprocess.run(command("ppo", *start, "--quiet"), check=True)
    assert_equal(numbers(run), numbers(tmp_path / "whole"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory with two checkpoints; nobody writes to it."""
    path = tmp_path_factory.mktemp("trained") / "half"
    assert ppo.train(replace(SMALL, run_dir=str(path), total_timesteps=256, anneal_lr=False)) == DONE
    return path


@pytest.fixture
def halfway(trained, tmp_path):
    """A copy of it for one test; a run directory may be moved."""
    return Path(shutil.copytree(trained, tmp_path / "half"))


def resumed(run, **changes):
    args = ppo.parse(ppo.Args, ppo.PRESETS, ["--resume", str(run)], "agent")
    return replace(args, **changes)


@pytest.mark.parametrize("optimizer", ["hessian-free", "scaled-newton-cg"])
def test_newton_steps_go_on_from_their_last_solution(tmp_path, optimizer):
    args = replace(SMALL, optimizer=optimizer, curvature_of="kl", iterations=3, anneal_lr=False, num_minibatches=1)
    assert ppo.train(replace(args, run_dir=str(tmp_path / "whole"))) == DONE
    assert ppo.train(replace(args, run_dir=str(tmp_path / "half"), total_timesteps=256)) == DONE
    assert ppo.train(resumed(tmp_path / "half", total_timesteps=512, accept_changes=True)) == DONE
    assert_equal(numbers(tmp_path / "half"), numbers(tmp_path / "whole"))


def test_a_torn_checkpoint_yields_to_the_one_before(halfway, capsys):
    paths = sorted((halfway / "checkpoints").iterdir())
    assert [path.name for path in paths] == ["step_192.pt", "step_256.pt"]
    before = numbers(halfway)
    paths[1].write_bytes(paths[1].read_bytes()[:5000])
    assert ppo.train(resumed(halfway)) == DONE
    assert "step_256.pt: not a readable checkpoint" in capsys.readouterr().err
    assert_equal(numbers(halfway), before)
    for path in paths:
        path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="step_192.pt: not a readable checkpoint"):
        ppo.train(resumed(halfway))


def test_event_files_of_one_second_are_read_in_the_order_they_were_made(halfway, monkeypatch):
    monkeypatch.setattr(directory, "_files", itertools.count(9))
    monkeypatch.setattr(directory.time, "time", itertools.count(2e9, 1e-5).__next__)
    made = []
    for _ in range(2):
        seen = {*halfway.glob("events.*")}
        assert ppo.train(replace(resumed(halfway), total_timesteps=320 + 64 * len(made), accept_changes=True)) == DONE
        made += {*halfway.glob("events.*")} - seen
    assert len(made) == 2 and sorted(made) == made


def test_a_file_with_code_in_it_is_refused_and_never_run(halfway, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    path = halfway / "checkpoints" / "step_256.pt"
    for write in (torch.save, lambda value, where: where.write_bytes(pickle.dumps(value))):
        write({"format": FORMAT, "policy": Evil()}, path)
        with pytest.raises(InputError, match="not a readable checkpoint"):
            read_checkpoint(path)
    assert not (tmp_path / "owned").exists()


def test_files_of_others_are_named(halfway, tmp_path):
    path = halfway / "checkpoints" / "step_300.pt"
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="no checkpoint of hesscale_rl"):
        read_checkpoint(path)
    torch.save({"format": FORMAT + 1, "version": "9.9"}, path)
    with pytest.raises(InputError, match=f"format {FORMAT + 1}, written by hesscale_rl 9.9.*reads format {FORMAT}"):
        read_checkpoint(path)
    config = json.loads((halfway / "config.json").read_text())
    del config["gamma"]
    (halfway / "config.json").write_text(json.dumps(config | {"gama": 1}))
    with pytest.raises(SystemExit) as stop:
        resumed(halfway)
    assert stop.value.code == BAD_INPUT
    for content in ("[]", "{"):
        (halfway / "config.json").write_text(content)
        with pytest.raises(SystemExit):
            resumed(halfway)


def test_a_run_of_another_agent_is_refused(halfway, capsys):
    with pytest.raises(SystemExit):
        a2c.parse(a2c.Args, a2c.PRESETS, ["--resume", str(halfway)], "agent")
    assert "of another agent or version" in (line := capsys.readouterr().err) and "written by ppo" in line


def test_changed_arguments_are_told_and_refused_unless_allowed(halfway, capsys):
    changed = {"total_timesteps": 384, "learning_rate": 1e-3}
    assert ppo.main(resumed(halfway, **changed)) == BAD_INPUT
    line = capsys.readouterr().err
    assert "--total-timesteps 384 (was 256), --learning-rate 0.001 (was 0.0003)" in line and line.count("\n") == 1
    assert ppo.main(resumed(halfway, **changed, accept_changes=True)) == DONE
    assert newest_checkpoint(halfway)["global_step"] == 384
    steps = [json.loads(line)["global_step"] for line in (halfway / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 384
    assert json.loads((halfway / "config.json").read_text())["learning_rate"] == 1e-3


def contents(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_resume_that_cannot_be_writes_nothing(halfway, tmp_path, capsys):
    before = contents(halfway)
    for changed, words in (
        ({"num_envs": 2}, "does not fit"),
        ({"env_id": "Pendulum-v1"}, "does not fit"),
        ({"run_dir": str(tmp_path / "whole")}, "a resumed run stays where it is"),
    ):
        assert ppo.main(resumed(halfway, **changed, accept_changes=True)) == BAD_INPUT
        assert words in (line := capsys.readouterr().err) and line.count("\n") == 1
        assert contents(halfway) == before
    assert ppo.main(resumed(halfway)) == DONE


def test_a_run_whose_checkpoints_are_gone_keeps_its_curve(halfway, capsys):
    for path in (halfway / "checkpoints").iterdir():
        path.unlink()
    before = contents(halfway)
    assert ppo.main(resumed(halfway)) == BAD_INPUT
    assert "its checkpoints are gone" in capsys.readouterr().err and contents(halfway) == before


def test_a_checkpoint_of_something_else_yields_to_the_one_before(halfway, capsys):
    torch.save({"format": FORMAT}, halfway / "checkpoints" / "step_999.pt")
    assert newest_checkpoint(halfway)["global_step"] == 256
    assert "it lacks global_step, logs, optimizer, policy, rollout" in capsys.readouterr().err


def test_two_processes_never_write_to_one_run(halfway):
    saved = newest_checkpoint(halfway)
    with Run(resumed(halfway), str(halfway), True, ppo.__file__, 256, saved):
        before = contents(halfway)
        with pytest.raises(InputError, match="another process is writing"):
            ppo.train(resumed(halfway))
        assert contents(halfway) == before


def test_a_full_disk_leaves_the_last_good_checkpoint(halfway):
    before = newest_checkpoint(halfway)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # a checkpoint is larger
    try:
        with pytest.raises(OSError, match="File too large"):
            ppo.train(resumed(halfway, total_timesteps=384, accept_changes=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert_equal(newest_checkpoint(halfway), before)
    assert ppo.train(resumed(halfway, total_timesteps=384, accept_changes=True)) == DONE


def test_an_environment_that_cannot_be_saved_resumes_at_a_reset(halfway, capsys, monkeypatch):
    from hesscale_rl import envs

    monkeypatch.setattr(envs.state, "save", lambda env: None)
    run = halfway.parent / "blind"
    args = replace(SMALL, run_dir=str(run), total_timesteps=256, anneal_lr=False)
    assert ppo.train(args) == DONE
    assert ppo.train(resumed(run, total_timesteps=384, accept_changes=True)) == DONE
    assert "cannot be saved, so it begins new episodes" in capsys.readouterr().err
