"""The console command `hesscale-rl`. It imports no torch: help and mistakes are answered at once."""

import importlib
import runpy
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from hesscale_rl.errors import BAD_INPUT, INTERRUPTED
from hesscale_rl.runs.command_line import near
from hesscale_rl.system.console import complain, guard, say


@dataclass(frozen=True)
class Command:
    """A command: where its main() is, what its line of the help has behind its name, and what it does."""

    module: str
    words: str
    does: str


# Every command, in the groups and the order of the help. `train` has no module: it starts an agent's own file.
GROUPS = {
    "train": {
        "train": Command("", "AGENT", "train an agent; hesscale-rl train AGENT --help lists its flags"),
        "supervised": Command("scripts.supervised", "", "train on the papers' supervised tasks; --task, --data"),
        "evaluate": Command(
            "scripts.evaluate", "RUN", "play episodes with what a run has learned; --video draws one"
        ),
        "export": Command("scripts.export", "RUN", "write the policy for use without this library; --onnx"),
        "check": Command("scripts.check", "ENV", "whether an environment of yours keeps to what it declares"),
        "sweep": Command("scripts.sweep", "SPEC", "carry out a grid of runs; the same command again continues it"),
        "tune": Command("scripts.tune", "ENV", "find settings for a task, by Optuna; the same command again goes on"),
    },
    "look": {
        "report": Command("scripts.report", "RUNS", "a page for a sweep or a run; --serve follows it while it goes"),
        "plot": Command("scripts.plot", "KIND RUNS", "figures with intervals: curves, sensitivity, profile"),
    },
    "compare": {
        "results": Command("scripts.analysis.returns_table", "RUNS", "a table of returns with intervals"),
        "compare": Command("scripts.analysis.compare", "RUNS", "which optimizer is better, and how sure that is"),
        "effective-steps": Command(
            "scripts.analysis.effective_steps", "RUNS", "what step-size scaling leaves of the step size"
        ),
        "pack": Command("scripts.sweeping.pack", "SWEEP FILE", "what the figures need of a sweep, small to publish"),
    },
    "study": {
        "benchmark": Command("studies.throughput", "", "steps per second against the usual way"),
        "cost": Command("studies.cost", "", "the time of one update against Adam; --experiment"),
        "supervised-cost": Command("studies.supervised_cost", "", "time and memory of the supervised tasks' updates"),
        "approximation": Command(
            "studies.approximation_quality", "", "how far each method is from the exact diagonal"
        ),
        "approximation-structures": Command(
            "studies.approximation_structures", "", "the same of an LSTM, a transformer block and a ResNet"
        ),
        "rl-approximation": Command("studies.rl_approximation", "", "the same on PPO's own losses, while it learns"),
        "recurrent": Command("studies.recurrent", "", "whether AdaHesScale trains an LSTM"),
        "diagonality": Command("studies.diagonality", "", "how diagonal the propagated Hessians are"),
    },
    "robot": {
        "ur": Command(
            "scripts.ur.deploy", "sim|run|train|replay", "a policy on a UR arm: a dry run without --robot-ip"
        ),
    },
    "this installation": {
        "doctor": Command("scripts.doctor", "", "what it can do"),
        "completion": Command("scripts.completion", "bash|zsh", "what lets a shell complete commands and flags"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main() -> int:
    """Run the command line in sys.argv and return its exit code."""
    guard()
    try:
        return run(sys.argv[1:] or ["--help"])
    except KeyboardInterrupt:  # while torch is imported: a command that has begun tells of it itself
        complain("interrupted before anything began")
        return INTERRUPTED


def run(argv: list[str]) -> int:
    """Run the command that argv[0] names, with what follows it."""
    command, *rest = argv
    if command in ("-h", "--help"):
        return _usage()
    if command == "--version":
        say(f"hesscale-rl {_version()}")
        return 0
    if command not in COMMANDS:
        return _unknown("command", command, [*COMMANDS])
    if command == "train":
        return train(rest)
    sys.argv[1:] = rest
    return importlib.import_module(f"hesscale_rl.{COMMANDS[command].module}").main()


def train(argv: list[str]) -> int:
    """Run the agent that argv[0] names, with the flags that follow, as if its file had been started itself."""
    if argv[:1] in (["-h"], ["--help"]):
        return _usage()
    agent, *flags = argv or [""]
    if agent not in _agents():
        return _unknown("agent", agent, _agents())
    sys.argv[:] = [f"hesscale-rl train {agent}", *flags]
    runpy.run_module(f"hesscale_rl.agents.{agent}", run_name="__main__", alter_sys=True)
    return 0


def _agents() -> list[str]:
    from hesscale_rl import agents

    return agents.names()


def usage() -> str:
    """Return the help: every command in its group."""
    lines = ["usage: hesscale-rl COMMAND ...; hesscale-rl COMMAND --help has its flags"]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {f'{name} {command.words}':<26} {command.does}" for name, command in commands.items()]
    return "\n".join([*lines, "", f"agents: {', '.join(_agents())}; hesscale-rl --version"])


def _usage() -> int:
    say(usage())
    return 0


def _unknown(what: str, word: str, known: list[str]) -> int:
    problem = f"no {what} {word!r}" if word else f"which {what}?"
    complain(f"hesscale-rl: {problem}; {near(word, known)} (hesscale-rl --help)")
    return BAD_INPUT


def _version() -> str:
    try:
        return version("hesscale-rl")
    except PackageNotFoundError:  # run from a checkout that is not installed
        import hesscale_rl

        return hesscale_rl.__version__


if __name__ == "__main__":
    sys.exit(main())
