"""--profile: a table of where the time went, which leaves the numbers as they are."""

import json
from dataclasses import replace

import pytest
from test_resume import SMALL, lines

from hesscale_rl.agents import a2c, ppo
from hesscale_rl.errors import DONE

PARTS = ["act", "physics", "environment", "normaliser", "advantages", "update", "evaluation", "logging", "rest"]


@pytest.mark.parametrize("how", [{}, {"num_envs": 2, "env_threads": 2}, {"env_id": "CartPole-v1"}])
def test_every_part_is_told_and_no_number_changes(tmp_path, capsys, how):
    runs = []
    for profile in (True, False):
        run = tmp_path / str(profile)
        assert ppo.train(replace(SMALL, profile=profile, quiet=not profile, run_dir=str(run), **how)) == DONE
        runs.append([{k: v for k, v in row.items() if k not in ("time", "charts/SPS")} for row in lines(run)])
    assert runs[0] == runs[1]
    table = capsys.readouterr().out
    assert "us a step" in table and "100.0%" in table and all(f"\n{part} " in table for part in PARTS)
    told = json.loads((tmp_path / "True" / "profile.json").read_text())
    assert list(told["us"]) == PARTS and told["steps"] == SMALL.total_timesteps
    native = "env_id" not in how
    none = {"evaluation"} if native else {"evaluation", "physics"}
    assert {part for part, value in told["us"].items() if value < 1e-3} <= none
    assert not (tmp_path / "False" / "profile.json").exists()


def test_an_update_of_a_few_steps_is_told_too(tmp_path):
    args = a2c.Args(env_id="Hopper-v5", total_timesteps=100, profile=True, run_dir=str(tmp_path / "run"))
    assert a2c.train(args) == DONE
    assert json.loads((tmp_path / "run" / "profile.json").read_text())["us"]["update"] > 0
