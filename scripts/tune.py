"""Find settings for a task, by Optuna on the launchers of sweeps; the same command again goes on.

    hesscale-rl tune Hopper-v5 --trials 40 -n 3e5 -j 4
    hesscale-rl tune Mine-v0 --agent a2c --vary learning_rate=1e-5:1e-1 num_steps=16,64,256 --set env_module=my_tasks

A trial is a setting with a run for each seed; its value is the mean of their average returns over the whole run. One
that lies below the median of the others at a tenth of its steps, two tenths and so on is given up (--no-pruning). A
diverged run counts, from its end on, with the worst of its curve. LOW:HIGH is drawn by its logarithm where it spans a
factor of ten. DIR holds the runs as a sweep's folder does, for report, plot and compare, and Optuna's journal.
The best of many trials by their own seeds flatters itself: the last line says how to run it with others.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesscale_rl.errors import DIVERGED, DONE, FAILED, INTERRUPTED, InputError
from hesscale_rl.runs.command_line import Parser
from hesscale_rl.scripts import sweep
from hesscale_rl.scripts.sweeping.space import RUNGS, read_settings, read_space, rung_of, score
from hesscale_rl.scripts.sweeping.state import exit_code, log_end, reached
from hesscale_rl.system.console import complain, say

if TYPE_CHECKING:  # what takes its time to import waits until the command line is read
    from hesscale_rl.scripts.sweeping import launchers
    from hesscale_rl.scripts.sweeping.space import Choice, Span
    from hesscale_rl.scripts.sweeping.spec import Planned

VARIED = ("learning_rate=1e-5:1e-1", "gamma=0.95,0.98,0.99,0.995", "gae_lambda=0.8,0.9,0.95,0.98")
MOST_REFUSED = 20  # trials in a row whose settings cannot be
BEFORE_PRUNING = 5  # trials that are finished before one is given up
OWN = {"agent", "env_id", "seed", "total_timesteps"}  # what flags of this command decide


@dataclass
class Candidate:
    """A trial whose runs are under way: `codes` has those that have ended."""

    trial: Any
    settings: dict[str, Any]
    runs: list[Planned]
    codes: dict[Planned, int] = field(default_factory=dict)
    rung: int = 0


class Tuning:
    """The trials of a task: asks for settings, looks how their runs do, and tells what came of them."""

    def __init__(
        self, args: argparse.Namespace, space: dict[str, Span | Choice], fixed: dict[str, Any], folder: Path
    ):
        self.args, self.space, self.fixed, self.folder = args, space, fixed, folder
        self.study = make_study(folder, args.seed)
        self.open: list[Candidate] = []
        self.steps: dict[str, int] = {}
        self.refused, self.full = 0, False  # trials in a row that could not be; whether all there is is under way
        for old in self.study.get_trials(deepcopy=False):
            self.steps |= old.user_attrs.get("runs", {})
            if not old.state.is_finished():  # its runs go on from their checkpoints, in a trial of its own
                self.study.enqueue_trial(old.params, skip_if_exists=False)
                self.study.tell(old.number, state=trial_state().FAIL)

    def counted(self) -> int:
        """Return how many trials count towards those asked for: not those that could not be or go on in others."""
        states = trial_state()
        done = [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state in (states.COMPLETE, states.PRUNED) or trial.user_attrs.get("crashed")
        ]
        return len(done) + len(self.open)

    def ask(self) -> Candidate | None:
        """Return a new trial; None if its settings cannot be, or are those of another under way."""
        from hesscale_rl.runs.directory import write_json

        trial = self.study.ask()
        settings = {name: some.suggest(trial, name) for name, some in self.space.items()}
        try:
            runs = [run for run, _ in planned(self.args, self.fixed | settings)]
        except InputError as error:
            complain(f"trial {trial.number}: {error}; it is left out")
            self.study.tell(trial, state=trial_state().FAIL)
            self.refused += 1
            if self.refused >= MOST_REFUSED:
                raise InputError(f"{self.refused} trials in a row could not be, the last: {error}") from None
            return None
        if any(run in other.runs for other in self.open for run in runs):
            self.study.tell(trial, state=trial_state().FAIL)
            self.full = True
            return None
        self.refused = 0
        self.steps |= {run.name: run.steps for run in runs}
        trial.set_user_attr("runs", {run.name: run.steps for run in runs})
        write_json(self.folder / "sweep.json", {"spec": "tune", "runs": [*self.steps], "steps": self.steps})
        self.open.append(candidate := Candidate(trial, settings, runs))
        candidate.codes = {run: code for run in runs if (code := exit_code(self.folder / run.name)) is not None}
        return candidate

    def look(self, candidate: Candidate) -> bool:
        """Take in how far a trial is; return whether it is to be given up."""
        paths, length = [self.folder / run.name for run in candidate.runs], candidate.runs[0].steps
        at = [length if run in candidate.codes else reached(self.folder / run.name) for run in candidate.runs]
        if (rung := min(rung_of(at, length), RUNGS - 1)) <= candidate.rung:
            return False
        candidate.rung = rung
        value = score(paths, length, rung)
        if not math.isfinite(value):
            return False
        candidate.trial.report(value, rung)
        return not self.args.no_pruning and candidate.trial.should_prune()

    def end(self, candidate: Candidate, given_up: bool = False) -> None:
        """Tell what came of a trial."""
        self.open.remove(candidate)
        self.full = False
        number, states = candidate.trial.number, trial_state()
        failed = [run for run, code in candidate.codes.items() if code not in (DONE, DIVERGED)]
        if failed and not given_up:
            candidate.trial.set_user_attr("crashed", True)
            self.study.tell(candidate.trial, state=states.FAIL)
            complain(f"trial {number}: {failed[0].name} failed", *log_end(self.folder, failed[0].name))
            return
        value = math.nan
        if not given_up:
            value = score([self.folder / run.name for run in candidate.runs], candidate.runs[0].steps, RUNGS)
        lost = sum(code == DIVERGED for code in candidate.codes.values())
        told = f"{lost} of {len(candidate.runs)} diverged" if lost else ""
        if math.isfinite(value):
            self.study.tell(candidate.trial, value)
            said = f"return {value:,.5g}"
        else:  # given up, or diverged before the first episode: worse than what has a value
            self.study.tell(candidate.trial, state=states.PRUNED)
            said = f"given up at {candidate.rung}/{RUNGS} of its steps" if given_up else "no episode"
        words = ", ".join(filter(None, [said, told]))
        say(f"trial {number}: {words}  {in_words(candidate.settings)}")

    def best(self) -> tuple[float, dict[str, Any], int] | None:
        """Return the value, settings and number of the best trial, None if none has a value."""
        done = self.study.get_trials(deepcopy=False, states=(trial_state().COMPLETE,))
        if not done:
            return None
        top = max(done, key=lambda trial: trial.value)
        rounded = {name: float(f"{v:.3g}") if isinstance(v, float) else v for name, v in top.params.items()}
        return top.value, rounded, top.number


def trial_state() -> Any:
    """Return Optuna's states of a trial."""
    from optuna.trial import TrialState

    return TrialState


def in_words(settings: dict[str, Any]) -> str:
    """Return settings as flags of the command line."""
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)


def make_study(folder: Path, seed: int) -> Any:
    """Return Optuna's study, kept in a journal that a program which is killed does not break."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=BEFORE_PRUNING),
    )
    # One who goes on does not begin anew with the settings that were drawn first.
    drawn = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed + drawn, constant_liar=True)
    return study


def planned(args: argparse.Namespace, settings: dict[str, Any]) -> list[tuple[Planned, Any]]:
    """Return the runs of a setting, one a seed, with their arguments; InputError if it cannot be."""
    from hesscale_rl.scripts.sweeping.spec import combinations

    given = {"agent": args.agent, "env_id": args.env_id, "seed": list(range(args.seeds)), **settings}
    given |= {"preset": args.preset} | ({"total_timesteps": args.total_timesteps} if args.total_timesteps else {})
    return combinations(f"tune {args.env_id}", given)


def check(args: argparse.Namespace, space: dict[str, Span | Choice], fixed: dict[str, Any]) -> None:
    """Raise InputError for what cannot be, among it each end of a range, before anything starts."""
    for flag, least in (("trials", 1), ("seeds", 1)):
        if getattr(args, flag) < least:
            raise InputError(f"--{flag} {getattr(args, flag)}: must be at least {least}")
    for flag, names in (("--vary", space), ("--set", fixed)):
        if own := OWN & names.keys():
            raise InputError(f"{flag} {min(own)}: has a flag of its own (hesscale-rl tune --help)")
    if both := space.keys() & fixed.keys():
        raise InputError(f"--set {min(both)}: is in --vary, too")
    sweep.check_launcher(args)
    first = {name: some.ends()[0] for name, some in space.items()}
    settings = [fixed | first | {name: value} for name, some in space.items() for value in some.ends()]
    runs = [run for setting in settings for run in planned(args, setting)]
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError("tuning needs Optuna, pip install 'hesscale-rl[tune]'") from None
    from hesscale_rl.scripts.sweeping.spec import construct

    construct([(f"tune {args.env_id}", run.agent, given) for run, given in runs], args.launcher == "local")


def claim(args: argparse.Namespace, space: dict[str, Any], fixed: dict[str, Any], folder: Path) -> Any:
    """Return the lock of the folder; InputError if it cannot be had, or holds trials of something else."""
    from hesscale_rl.runs.directory import write_json
    from hesscale_rl.system.locks import lock

    what = {name: getattr(args, name) for name in ("env_id", "agent", "preset", "total_timesteps", "seeds")}
    what |= {"vary": {name: repr(some) for name, some in space.items()}, "set": fixed}
    path = folder / "tune.json"
    try:
        known = json.loads(path.read_text()) if path.exists() else None
        if known is not None and known != what:
            differing = ", ".join(name for name in what if known.get(name) != what[name])
            raise InputError(f"--dir {folder}: holds trials of another {differing}; name another --dir")
        folder.mkdir(parents=True, exist_ok=True)
        own = lock(folder, f"--dir {folder}: another program is at work there")
        write_json(path, what)
    except ValueError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except OSError as error:
        raise InputError(f"--dir {folder}: cannot be written ({error.strerror})") from None
    return own


def work(tuning: Tuning, launcher: launchers.Launcher, width: int) -> bool:
    """Carry out the trials; return False if a signal ended it before."""
    with sweep.told_to_stop() as stop:
        while not stop:
            under_way = sum(len(one.runs) - len(one.codes) for one in tuning.open)
            while under_way < width and not tuning.full and tuning.counted() < tuning.args.trials:
                if (new := tuning.ask()) is None:
                    break
                left = [run for run in new.runs if run not in new.codes]
                launcher.begin(left, tuning.folder)
                under_way += len(left)
            if not tuning.open and tuning.counted() >= tuning.args.trials:
                return True
            for run, code in launcher.poll():
                for one in tuning.open:
                    if run in one.runs:
                        one.codes[run] = code
            for one in [*tuning.open]:
                if len(one.codes) == len(one.runs):
                    tuning.end(one)
                elif tuning.look(one):
                    for run in one.runs:
                        if run not in one.codes:
                            launcher.drop(run)
                    tuning.end(one, given_up=True)
            time.sleep(sweep.POLL)
        sweep.end_runs(launcher)
    return False


def tune(args: argparse.Namespace) -> int:
    """Carry out the trials and return the exit code."""
    space, fixed = read_space(args.vary or list(VARIED)), read_settings(args.set or [])
    check(args, space, fixed)
    launcher = sweep.make_launcher(args)
    folder = Path(
        args.dir or Path("tunes", f"{args.agent}-{args.env_id.replace('/', '-').replace(':', '-')}")
    ).resolve()
    own = claim(args, space, fixed, folder)
    try:
        sweep.compile_loops()
        tuning = Tuning(args, space, fixed, folder)
        finished = work(tuning, launcher, args.jobs or sweep.cores())
    finally:
        own.release()
    if (best := tuning.best()) is not None:
        value, settings, number = best
        say(f"best  trial {number}: return {value:,.5g}  {in_words(settings)}")
        steps = {"total_timesteps": args.total_timesteps} if args.total_timesteps else {}
        preset = {"preset": args.preset} if args.preset != "default" else {}
        flags = in_words({"env_id": args.env_id} | preset | steps | fixed | settings | {"seed": args.seeds})
        say(f"next  hesscale-rl train {args.agent} {flags}", f"      hesscale-rl report {folder}")
    if not finished:
        return INTERRUPTED
    return DONE if best is not None else FAILED


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl tune", __doc__)
    parser.add_argument("env_id", metavar="ENV", help="an environment's id")
    parser.add_argument("--agent", default="ppo", help="ppo, a2c or trpo (ppo)")
    parser.add_argument("--preset", default="default", help="what the other settings are (default)")
    parser.add_argument("--trials", type=int, default=30, help="settings that are tried in all (30)")
    parser.add_argument("--seeds", type=int, default=2, help="runs a trial, of seeds 0, 1 ... (2)")
    parser.add_argument("-n", "--total-timesteps", type=int, help="steps of a run; default the preset's")
    parser.add_argument("--vary", nargs="+", metavar="NAME=RANGE", help=f"LOW:HIGH or A,B,C ({' '.join(VARIED)})")
    parser.add_argument("--set", nargs="+", metavar="NAME=VALUE", help="other flags of the agent: optimizer=adam")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of settings (0)")
    parser.add_argument("--no-pruning", action="store_true", help="give no trial up")
    parser.add_argument("--dir", type=Path, help="where the runs are; default tunes/AGENT-ENV")
    sweep.add_launcher(parser)
    return sweep.obey_launching(parser, tune)


if __name__ == "__main__":
    sys.exit(main())
