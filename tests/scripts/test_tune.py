"""Tuning: what a space may be, and how trials are asked for, given up, interrupted and gone on with."""

import json
import signal
import sys

import pytest

from hesscale_rl.errors import BAD_INPUT, DONE, FAILED, INTERRUPTED, InputError
from hesscale_rl.scripts import sweep, tune
from hesscale_rl.scripts.sweeping import space

pytest.importorskip("optuna")
STEPS = 1280  # ten rollouts


class Instant:
    """A launcher whose runs learn nothing: run by run, `tells` says from the step size what episodes return.

    Each look at the runs brings one of them a tenth further; `ended` has those that came to their end.
    """

    def __init__(self, tells, codes=lambda rate: DONE):
        self.tells, self.codes = tells, codes
        self.under_way, self.begun, self.dropped, self.most, self.stopped = {}, [], [], 0, False

    def begin(self, runs, folder):
        self.folder = folder
        self.under_way |= dict.fromkeys(runs, 0)
        self.begun += runs
        self.most = max(self.most, len(self.under_way))

    def poll(self):
        ended = []
        for run, at in [*self.under_way.items()][:1]:
            rate = float(run.flags[run.flags.index("--learning-rate") + 1])
            self.under_way[run] = at + STEPS // 10
            if write(self.folder / run.name, run, rate, at + STEPS // 10, self.tells(rate), self.codes(rate)):
                del self.under_way[run]
                ended.append((run, self.codes(rate)))
        return ended

    def drop(self, run):
        self.dropped.append(run)
        del self.under_way[run]

    def stop(self):
        self.stopped = True


def write(path, run, rate, at, value, code):
    """Bring a run's directory to a step; return whether it is at its end."""
    path.mkdir(exist_ok=True)
    seed = int(run.name.rpartition("__s")[2])
    config = {"exp_name": "ppo", "env_id": "CartPole-v1", "optimizer": "adam", "learning_rate": rate, "seed": seed}
    (path / "config.json").write_text(json.dumps(config))
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"global_step": at, "charts/episodic_return": value + seed}) + "\n")
    status = "running" if at < STEPS else {DONE: "done"}.get(code, "failed")
    (path / "status.json").write_text(json.dumps({"status": status, "global_step": at, "total_steps": STEPS}))
    return at >= STEPS


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs `tune CartPole-v1` with more words, and a launcher in place of processes; gives code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "POLL", 0.0)
    monkeypatch.setattr(sweep, "compile_loops", lambda: None)

    def command(launcher, *words):
        monkeypatch.setattr(sweep, "make_launcher", lambda args: launcher)
        line = ["tune", "CartPole-v1", "-n", STEPS, "--set", "num_steps=128", "optimizer=adam", *words]
        monkeypatch.setattr(sys, "argv", [*map(str, line)])
        return tune.main(), *capsys.readouterr()

    return command


VARY = ("--vary", "learning_rate=1e-5:1")


def test_the_best_trial_is_found_and_told(command, tmp_path):
    launcher = Instant(lambda rate: 100.0 if 1e-4 < rate < 1e-2 else 10.0)
    code, out, err = command(launcher, "--trials", 6, "--seeds", 3, "-j", 2, *VARY, "--no-pruning")
    assert (code, err) == (DONE, "") and out.count("trial ") == 7 and launcher.most <= 4 and not launcher.dropped
    # Over the seeds 0, 1 and 2 the mean is 1 above.
    assert "return 101  --learning-rate " in out.splitlines()[6] and out.splitlines()[6].startswith("best  trial ")
    assert out.splitlines()[7].startswith("next  hesscale-rl train ppo --env-id CartPole-v1 --total-timesteps 1280 ")
    assert out.splitlines()[7].endswith(" --seed 3")
    folder = tmp_path / "tunes" / "ppo-CartPole-v1"
    asked = json.loads((folder / "sweep.json").read_text())
    assert len(asked["runs"]) == 18 and set(asked["steps"].values()) == {STEPS}
    code, out, _ = command(Instant(lambda rate: 0.0), "--trials", 6, "--seeds", 3, *VARY)
    assert code == DONE and out.startswith("best  trial ")  # there was nothing left to do


def test_what_lies_below_the_median_is_given_up(command):
    launcher = Instant(lambda rate: -abs(rate - 1e-3))
    code, out, _ = command(launcher, "--trials", 14, "--seeds", 1, "-j", 1, *VARY)
    assert code == DONE and "given up at 1/10 of its steps" in out and launcher.dropped
    assert len(launcher.begun) == 14


def test_ctrl_c_saves_and_the_same_command_goes_on(command, tmp_path):
    launcher, polled = Instant(lambda rate: 1.0), []
    poll = launcher.poll

    def interrupt():
        polled.append(1)
        if len(polled) == 25:  # in the middle of the third run
            signal.raise_signal(signal.SIGINT)
        return poll()

    launcher.poll = interrupt
    line = ("--trials", 4, "--seeds", 1, "-j", 1, *VARY)
    code, out, _ = command(launcher, *line)
    assert code == INTERRUPTED and launcher.stopped and "the same command goes on" in out
    again = Instant(lambda rate: 1.0)
    assert command(again, *line)[0] == DONE
    assert again.begun[0] == launcher.begun[2] and len(again.begun) == 2
    code, _, err = command(again, *line[:-1], "learning_rate=1e-4:1")
    assert code == BAD_INPUT and "holds trials of another vary; name another --dir" in err


def test_a_trial_that_crashes_is_told_and_counts(command):
    code, out, err = command(
        Instant(lambda rate: 1.0, lambda rate: FAILED), "--trials", 2, "--seeds", 1, "-j", 1, *VARY
    )
    assert code == FAILED and err.count("failed") == 2 and "best" not in out


def test_settings_that_cannot_be_are_left_out_and_not_for_ever(command):
    # 128 steps in 7 minibatches: cannot be; each value by itself is seen before anything starts.
    code, _, err = command(Instant(lambda rate: 1.0), *VARY, "num_minibatches=4,7")
    assert code == BAD_INPUT and err.count("\n") == 1 and "num_minibatches" in err.replace("-", "_")


@pytest.mark.parametrize(
    "words, space_",
    [
        (["learning_rate=1e-5:1"], {"learning_rate": space.Span(1e-5, 1)}),
        (["--num-steps=16,64"], {"num_steps": space.Choice((16, 64))}),
        (["std=head,parameter", "norm_adv=true,false"], None),
    ],
)
def test_a_space_is_read(words, space_):
    found = space.read_space(words)
    assert space_ is None or found == space_
    if space_ is None:
        assert found["norm_adv"].values == (True, False) and found["std"].values == ("head", "parameter")
    assert space.Span(1, 9).logarithmic is False and space.Span(1e-3, 1e-2).logarithmic


@pytest.mark.parametrize(
    "word, told",
    [
        ("gamma", "--vary gamma: must be NAME=LOW:HIGH or NAME=A,B,C"),
        ("gamma=", "--vary gamma=: must be NAME=LOW:HIGH"),
        ("gamma=1:0", "--vary gamma=1:0: 1 must be below 0"),
        ("gamma=0:x", "--vary gamma=0:x: must be two numbers"),
        ("gamma=0:inf", "inf: must be finite"),
        ("gamma=0.9", "--vary gamma=0.9: needs two values or more"),
        ("gamma=0.9,0.9", "--vary gamma=0.9,0.9: needs two values or more, each once"),
    ],
)
def test_a_space_that_cannot_be_is_told(word, told):
    with pytest.raises(InputError) as error:
        space.read_space([word])
    assert told in str(error.value)


BAD = {
    "--trials 0": "--trials 0: must be at least 1",
    "--vary gama=0.9,0.99": "no flag 'gama': did you mean 'gamma'?",
    "--vary gamma=0.9,1.5": "--gamma 1.5: must be between 0 and 1",
    "--vary seed=1,2": "--vary seed: has a flag of its own",
    "--set gamma=0.9 --vary gamma=0.9,0.8": "--set gamma: is in --vary, too",
    "--agent pppo": "agent 'pppo': did you mean 'ppo'?",
    "--preset papr": "preset 'papr': did you mean 'paper'?",
    "--launcher ray -j 2": "-j 2: is not for --launcher ray",
    "--dir file": "--dir ",
}


@pytest.mark.parametrize("line", BAD)
def test_what_cannot_be_is_told_in_one_line_and_nothing_is_created(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["tune", "CartPole-v1", *line.split()])
    assert tune.main() == BAD_INPUT
    err = capsys.readouterr().err
    assert BAD[line] in err and err.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(sys, "argv", ["tune", "CartPol-v1"])
    assert tune.main() == BAD_INPUT and "CartPol-v1" in capsys.readouterr().err
