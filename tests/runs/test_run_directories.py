"""Run directories that are damaged, or that would run code of somebody's own: one line, and nothing is run."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from hesscale_rl.agents import ppo
from hesscale_rl.errors import BAD_INPUT, DONE, InputError
from hesscale_rl.runs.checkpoint import newest_checkpoint, read_config
from hesscale_rl.scripts import evaluate, export

SMALL = ppo.Args(
    env_id="CartPole-v1", total_timesteps=128, num_steps=128, num_minibatches=4, update_epochs=1, quiet=True
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    assert ppo.train(replace(SMALL, run_dir=str(path))) == DONE
    return path


@pytest.fixture
def run(trained, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(trained, tmp_path / "run")


def call(module, monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    code = module.main()
    return code, *capsys.readouterr()


def change(run, **values):
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "values, words",
    [
        ({"env_id": None}, "env_id is 'None', and must be str"),
        ({"env_id": 7}, "env_id is '7', and must be str"),
        ({"env_id": "No-v0"}, "--env-id No-v0: no such environment"),
        ({"num_envs": "a"}, "num_envs is 'a', and must be int"),
        ({"num_envs": True}, "num_envs is 'True', and must be int"),
        ({"std": "nonsense"}, "--std nonsense: must be one of parameter"),
        ({"std": [1]}, "std is '[1]', and must be str"),
        ({"betas": [0.9]}, "betas is '[0.9]', and must be tuple"),
        ({"gamma": "high"}, "gamma is 'high', and must be float"),
        ({"learning_rate": 10**400}, "learning_rate is '1000"),
        ({"quiet": 1}, "quiet is '1', and must be bool"),
    ],
)
def test_a_value_of_another_kind_is_named(run, monkeypatch, capsys, values, words):
    change(run, **values)
    for module in (evaluate, export):
        code, out, err = call(module, monkeypatch, capsys, run)
        assert (code, out) == (BAD_INPUT, "") and words in err and err.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "null"])
@pytest.mark.parametrize("name", ["config.json", "meta.json"])
def test_a_file_that_is_no_json_object_is_named(run, monkeypatch, capsys, name, content):
    (run / name).write_text(content)
    code, out, err = call(evaluate, monkeypatch, capsys, run)
    assert (code, out) == (BAD_INPUT, "") and f"{run / name}: cannot be read" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "name, value", [("policy", []), ("policy", None), ("policy", {"a": 1}), ("optimizer", 3), ("rollout", None),
                    ("logs", []), ("global_step", "x")]
)  # fmt: skip
def test_a_checkpoint_whose_parts_are_of_another_kind_is_named(run, name, value):
    [path] = (run / "checkpoints").glob("*.pt")
    torch.save(torch.load(path, weights_only=True) | {name: value}, path)
    with pytest.raises(InputError, match=f"{path.name}: damaged, its {name} is"):
        newest_checkpoint(run)
    assert ppo.main(replace(read_config(run, ppo.Args), resume=str(run), run_dir=str(run))) == BAD_INPUT


def test_infinities_and_pairs_come_back_as_they_were(run):
    change(run, learning_rate="inf", betas=[0.5, 1])
    args = read_config(run, ppo.Args)
    assert (args.learning_rate, args.betas) == (float("inf"), (0.5, 1.0))


@pytest.mark.parametrize("values", [{"env_module": "hostile"}, {"env_id": "hostile:CartPole-v1"}])
def test_a_module_that_a_run_names_is_imported_only_when_it_is_trusted(run, tmp_path, monkeypatch, capsys, values):
    (tmp_path / "hostile.py").write_text("print('imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "hostile", raising=False)
    change(run, **values)
    code, out, err = call(evaluate, monkeypatch, capsys, run, "--episodes", 1)
    assert (code, out) == (BAD_INPUT, "") and "--trust-env-module, or --env-module hostile" in err
    for flags in (["--trust-env-module"], ["--env-module", "hostile"]):
        sys.modules.pop("hostile", None)
        code, out, _ = call(evaluate, monkeypatch, capsys, run, "--episodes", 1, *flags)
        assert code == DONE and out.startswith("imported\nreturn ")


def test_a_resumed_run_imports_its_module_only_when_it_is_trusted(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "hostile.py").write_text("print('imported')\n")
    monkeypatch.chdir(tmp_path)
    change(run, env_module="hostile")

    def resume(*flags):
        sys.modules.pop("hostile", None)
        return ppo.main(ppo.parse(ppo.Args, ppo.PRESETS, ["--resume", str(run), "--quiet", *flags], "train"))

    with pytest.raises(SystemExit) as end:
        resume()
    out, err = capsys.readouterr()
    assert end.value.code == BAD_INPUT and out == "" and err.count("\n") == 1
    assert f"--resume {run}: its config.json has the module hostile imported" in err and "--trust-env-module" in err
    for flags in (["--trust-env-module"], ["--env-module", "hostile"]):
        assert resume(*flags) == DONE and capsys.readouterr().out == "imported\n"


def test_an_episode_that_does_not_end_is_cut_and_told(run, monkeypatch, capsys):
    code, out, err = call(evaluate, monkeypatch, capsys, run, "--episodes", 2, "--max-steps", 5)
    assert code == DONE and out.startswith("return 5.0")
    assert err == "2 of 2 episodes were cut after 5 steps (--max-steps)\n"
    assert json.loads((run / "evaluation.json").read_text())["lengths"] == [5, 5]


def test_an_exports_bound_grows_with_each_action():
    live = np.array([[2000.0, 0.5], [-16.0, 0.1]])
    assert export.difference(live + [1e-3, 0.0], live) == pytest.approx((1e-3, 5e-7), rel=1e-6)
    assert export.difference(live + [0.0, 1e-3], live)[1] == pytest.approx(1e-3)  # not of the other action's size
