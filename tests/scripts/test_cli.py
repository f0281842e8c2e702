import subprocess
import sys
from pathlib import Path

import pytest

import hesscale_rl
from hesscale_rl import agents
from hesscale_rl.scripts import cli

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
    assert out.startswith("usage: hesscale-rl train AGENT") and "probe" in out


def test_version(command):
    assert command("--version") == (0, f"hesscale-rl {hesscale_rl.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("trian", "ppo"), "no command 'trian'; did you mean train?"),
        (("fly",), "no command 'fly'; there is train"),
        (("train", "prob"), "no agent 'prob'; did you mean probe?"),
        (("train",), "which agent?; there is "),
        (("train", "--seed", "1"), "no agent '--seed'; there is "),
    ],
)
def test_mistakes_are_one_line_and_exit_2(command, words, expected):
    code, out, err = command(*words)
    assert code == 2 and out == ""
    assert err.startswith(f"hesscale-rl: {expected}") and err.count("\n") == 1


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
