"""A sweep of small runs, for the tests of what is refused and of what is carried out."""

import sys

from hesscale_rl.scripts import sweep

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


def run_sweep(monkeypatch, capsys, *arguments):
    """In this process: exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["sweep", *map(str, arguments)])
    code = sweep.main()
    return code, *capsys.readouterr()
