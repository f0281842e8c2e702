"""What lets a shell complete commands, flags and choices with Tab.

    hesscale-rl completion bash > ~/.local/share/bash-completion/completions/hesscale-rl
    hesscale-rl completion zsh >> ~/.zshrc

It is made from the help of every command, once: Tab itself starts nothing. Other words are names of files.
"""

import argparse
import contextlib
import importlib
import io
import re
import runpy
import sys
import warnings

from hesscale_rl import agents
from hesscale_rl.errors import DONE
from hesscale_rl.optim import declaration
from hesscale_rl.runs.command_line import Parser, obey
from hesscale_rl.system.console import say

SHELL = """\
_hesscale_rl() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" key="${{COMP_WORDS[1]}}" words=""
  [ "$key" = train ] && [ "$COMP_CWORD" -gt 2 ] && key="train ${{COMP_WORDS[2]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else case "$key $before" in
{choices}
    *) case "$key" in
{flags}
    esac ;;
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _hesscale_rl hesscale-rl
"""


def help_of(words: list[str]) -> str:
    """Return what a command prints for --help."""
    from hesscale_rl.scripts.cli import COMMANDS

    before, said = sys.argv[:], io.StringIO()
    sys.argv[:] = [f"hesscale-rl {' '.join(words)}", "--help"]
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit), warnings.catch_warnings():
            if words[0] == "train":
                warnings.simplefilter("ignore")  # of a program that has imported the agent's file before
                runpy.run_module(f"hesscale_rl.agents.{words[1]}", run_name="__main__", alter_sys=True)
            else:
                importlib.import_module(f"hesscale_rl.{COMMANDS[words[0]].module}").main()
    finally:
        sys.argv[:] = before
    return said.getvalue()


def flags(text: str) -> dict[str, list[str]]:
    """Return the flags that a help text lists, each with its choices ([] if it takes any word)."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        line = line.strip("│| ")
        if line.startswith("-"):
            head = re.split(r" {2,}", line)[0]
            choices = re.search(r"\{([\w.,-]+)\}", head)
            found |= dict.fromkeys(re.findall(r"--[a-z][\w-]*", head), choices[1].split(",") if choices else [])
    return found


def script(shell: str) -> str:
    """Return what a shell is to read: "bash" or "zsh"."""
    from hesscale_rl.scripts.cli import COMMANDS
    from hesscale_rl.scripts.sweeping.state import built_in

    commands = [[name] for name in COMMANDS if name != "train"] + [["train", name] for name in agents.names()]
    own = {" ".join(words): flags(help_of(words)) for words in commands}
    kinds = {"plot plot": "curves sensitivity profile", "train train": " ".join(agents.names())}
    kinds |= {
        "sweep sweep": " ".join(built_in()),
        "ur ur": "sim run train replay",
        "completion completion": "bash zsh",
    }
    choices = [f'    "{key}") words="{words}" ;;' for key, words in kinds.items()]
    for key, known in own.items():
        if "--optimizer" in known:
            known["--optimizer"] = [*declaration.names()]
        choices += [f'    "{key} {flag}") words="{" ".join(some)}" ;;' for flag, some in known.items() if some]
    lines = [f'      "{key}") words="{" ".join(known)}" ;;' for key, known in own.items()]
    text = SHELL.format(commands=" ".join(COMMANDS), choices="\n".join(choices), flags="\n".join(lines))
    return "autoload -U +X bashcompinit && bashcompinit\n" * (shell == "zsh") + text


def complete(args: argparse.Namespace) -> int:
    """Print the script."""
    say(script(args.shell).rstrip())
    return DONE


def main() -> int:
    """Read the command line and return the exit code."""
    parser = Parser("hesscale-rl completion", __doc__)
    parser.add_argument("shell", choices=("bash", "zsh"), help="which one")
    return obey(parser, complete)


if __name__ == "__main__":
    sys.exit(main())
