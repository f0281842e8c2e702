"""The console command `hesscale-rl`. It imports no torch: help and mistakes are answered at once."""

import difflib
import importlib
import runpy
import sys
from importlib.metadata import PackageNotFoundError, version

from hesscale_rl.errors import BAD_INPUT, INTERRUPTED
from hesscale_rl.system.console import complain, guard, say

USAGE = """\
usage: hesscale-rl train AGENT [flags]    train an agent; hesscale-rl train AGENT --help lists its flags
       hesscale-rl supervised [flags]     train on the papers' supervised tasks; --task mnist-mlp --data digits
       hesscale-rl evaluate RUN [flags]   play episodes with what a run has learned; --video draws one
       hesscale-rl export RUN [--onnx]    write the policy for use without this library
       hesscale-rl sweep SPEC [-j N]      carry out a grid of runs; the same command again continues it
       hesscale-rl plot KIND RUNS         figures with intervals: curves, sensitivity, profile
       hesscale-rl report RUNS [--serve]  a page for a sweep or a run; --serve follows it while it goes
       hesscale-rl results RUNS           a table of returns with intervals
       hesscale-rl compare RUNS           which optimizer is better, and how sure that is
       hesscale-rl effective-steps RUNS   what step-size scaling leaves of the step size
       hesscale-rl pack SWEEP FILE        what the figures need of a sweep, small enough to publish
       hesscale-rl ur sim                 a simulated UR controller, for the next two and for any UR client
       hesscale-rl ur run|train|replay    a policy on a UR arm: a dry run, unless --robot-ip names a real one
       hesscale-rl check ENV              whether an environment of yours keeps to what it declares
       hesscale-rl doctor                 what this installation can do
       hesscale-rl --version

agents: {agents}"""

COMMANDS = {
    "supervised": "hesscale_rl.scripts.supervised",
    "evaluate": "hesscale_rl.scripts.evaluate",
    "export": "hesscale_rl.scripts.export",
    "sweep": "hesscale_rl.scripts.sweep",
    "plot": "hesscale_rl.scripts.plot",
    "report": "hesscale_rl.scripts.report",
    "results": "hesscale_rl.scripts.analysis.returns_table",
    "compare": "hesscale_rl.scripts.analysis.compare",
    "effective-steps": "hesscale_rl.scripts.analysis.effective_steps",
    "pack": "hesscale_rl.scripts.sweeping.pack",
    "ur": "hesscale_rl.scripts.ur.deploy",
    "check": "hesscale_rl.scripts.check",
    "doctor": "hesscale_rl.scripts.doctor",
}


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
    if command in COMMANDS:
        sys.argv[1:] = rest
        return importlib.import_module(COMMANDS[command]).main()
    if command != "train":
        return _unknown("command", command, ["train", *COMMANDS])
    return train(rest)


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


def _usage() -> int:
    say(USAGE.format(agents=", ".join(_agents())))
    return 0


def _unknown(what: str, word: str, known: list[str]) -> int:
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
    problem = f"no {what} {word!r}" if word else f"which {what}?"
    complain(f"hesscale-rl: {problem}; {hint} (hesscale-rl --help)")
    return BAD_INPUT


def _version() -> str:
    try:
        return version("hesscale-rl")
    except PackageNotFoundError:  # run from a checkout that is not installed
        import hesscale_rl

        return hesscale_rl.__version__


if __name__ == "__main__":
    sys.exit(main())
