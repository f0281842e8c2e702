import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import hesscale_rl
from hesscale_rl import agents
from hesscale_rl.scripts import cli, completion

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs one command line in this process, with an agent `probe` added, and gives (code, stdout, stderr)."""
    (tmp_path / "probe.py").write_text(
        "import sys\nif '--told' in sys.argv: raise KeyboardInterrupt\n"
        "print(__name__, __file__, sys.argv)\nsys.exit(3 if '--fail' in sys.argv else None)\n"
    )
    monkeypatch.setattr(agents, "__path__", [*agents.__path__, str(tmp_path)])

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["hesscale-rl", *words])
        try:
            code = cli.main()
        except SystemExit as leave:
            code = leave.code or 0
        return code, *capsys.readouterr()

    return command


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("train", "--help")])
def test_help(command, words):
    code, out, err = command(*words)
    assert code == 0 and err == ""
    assert out.startswith("usage: hesscale-rl COMMAND") and "probe" in out
    assert all(f"\n  {name} " in out for name in cli.COMMANDS) and max(map(len, out.splitlines())) < 110


def test_version(command):
    assert command("--version") == (0, f"hesscale-rl {hesscale_rl.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("trian", "ppo"), "no command 'trian'; did you mean 'train'?"),
        (("fly",), "no command 'fly'; there is train"),
        (("train", "prob"), "no agent 'prob'; did you mean 'probe'?"),
        (("train",), "which agent?; there is "),
        (("train", "--seed", "1"), "no agent '--seed'; there is "),
    ],
)
def test_mistakes_are_one_line_and_exit_2(command, words, expected):
    code, out, err = command(*words)
    assert code == 2 and out == ""
    assert err.startswith(f"hesscale-rl: {expected}") and err.count("\n") == 1


def test_every_command_is_there_with_a_help_of_its_own():
    for name, its in cli.COMMANDS.items():
        assert not its.module or find_spec(f"hesscale_rl.{its.module}") is not None, name
    names = ("benchmark", "cost", "approximation", "diagonality", "ur", "report", "completion")
    assert all(f"hesscale-rl {name}" in completion.help_of([name]) for name in names)


def test_a_shell_completes_commands_flags_and_choices():
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    ask = "COMP_WORDS=({}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _hesscale_rl; echo ${{COMPREPLY[@]}}"
    lines = {
        "hesscale-rl rep": "report",
        "hesscale-rl train pp": "ppo",
        "hesscale-rl train ppo --total": "--total-timesteps",
        "hesscale-rl train ppo --optimizer scaled-adahessc": "scaled-adahesscale scaled-adahesscale-gn",
        "hesscale-rl plot sens": "sensitivity",
        "hesscale-rl plot curves x --stat": "--statistic",
        "hesscale-rl plot curves x --statistic i": "iqm",
        "hesscale-rl sweep ppo_sens": "ppo_sensitivity_small",
        "hesscale-rl cost --exp": "--experiment",
    }
    script = "\n".join([completion.script("bash"), *(ask.format(line) for line in lines)])
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [*lines.values()] and not done.stderr
    assert completion.script("zsh").startswith("autoload")


def test_train_runs_the_agents_file_as_a_program(command, tmp_path):
    file = str(tmp_path / "probe.py")
    assert command("train", "probe", "--seed", "3") == (0, f"__main__ {file} {[file, '--seed', '3']}\n", "")
    assert command("train", "probe", "--fail")[0] == 3


def test_ctrl_c_while_the_agents_file_is_imported_is_one_line(command):
    assert command("train", "probe", "--told") == (130, "", "interrupted before anything began\n")


def test_help_and_mistakes_import_no_torch():
    code = """
import sys
from hesscale_rl.scripts.cli import main
for words in (["--help"], ["nonsense"], ["train", "nonsense"]):
    sys.argv[1:] = words
    main()
assert "torch" not in sys.modules and "gymnasium" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_a_run_starts_without_torchs_compiler(tmp_path):
    """Whose import is a quarter of what a short run takes."""
    args = f"env_id='CartPole-v1', total_timesteps=256, num_steps=128, quiet=True, run_dir={str(tmp_path / 'run')!r}"
    code = f"import sys\nfrom hesscale_rl.agents import ppo\nassert ppo.main(ppo.Args({args})) == 0\n"
    subprocess.run([sys.executable, "-c", code + "assert 'torch._dynamo' not in sys.modules"], cwd=ROOT, check=True)
