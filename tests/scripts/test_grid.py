"""A spec is refused before anything starts, or every run that it asks for has a name of its own that stays."""

from pathlib import Path

import pytest
from small_sweep import SPEC, run_sweep, write

from hesscale_rl.errors import BAD_INPUT
from hesscale_rl.scripts.sweeping import spec as grid

ROOT = Path(__file__).parents[2]


def test_a_spec_is_a_grid_with_names_that_stay():
    text = (ROOT / "scripts" / "sweeps" / "ppo_sensitivity_small.toml").read_text()
    runs = grid.read(ROOT / "scripts" / "sweeps" / "ppo_sensitivity_small.toml")
    assert len(runs) == len({run.name for run in runs}) == 5 * 4 * 8 * 3 and 'agent = "ppo"' in text
    first = runs[0]
    assert first.name == "ppo-paper__HalfCheetah-v5__adam__lr1e-05__total_timesteps=300000__s0"
    assert first.steps == 299_008 and first.flags[:2] == ("--preset", "paper")


def test_python_and_toml_say_the_same_and_pairs_and_flags_are_understood(tmp_path):
    toml = write(tmp_path, SPEC.format(seeds=[1, 2]) + "betas = [0.9, 0.99]\nanneal_lr = false\n")
    text = (
        "SETTINGS = (dict(agent='ppo', env_id='CartPole-v1', optimizer=['adam', 'scaled-adahesscale'], seed=(1, 2),"
    )
    text += "num_steps=256, num_minibatches=4, total_timesteps=4096, checkpoint_interval=512, betas=(0.9, 0.99),"
    python = write(tmp_path, text + "anneal_lr=False),)", "spec.py")
    assert grid.read(toml) == grid.read(python) and len(grid.read(toml)) == 4
    flags = grid.read(toml)[0].flags
    assert "--no-anneal-lr" in flags and flags[flags.index("--betas") + 1 :][:2] == ("0.9", "0.99")


@pytest.mark.parametrize(
    "text, words",
    [
        ("agent = 'pop'", "did you mean 'ppo'?"),
        ("agent = 'ppo'\nlerning_rate = 0.1", "no flag 'lerning_rate': did you mean 'learning_rate'?"),
        ("agent = 'ppo'\nrun_dir = 'x'", "no flag 'run_dir'"),
        ("agent = 'ppo'\nenv_id = 'Hoper-v5'", "did you mean Hopper-v5"),
        ("agent = 'ppo'\noptimizer = ['adam', 'scaled-adm']", "did you mean 'scaled-adam'?"),
        ("agent = 'ppo'\npreset = 'papr'", "did you mean 'paper'?"),
        ("agent = 'ppo'\nseed = []", "seed = []: a grid with no runs"),
        ("agent = 'ppo'\n[[settings]]\nagent = 'ppo'\nbetas = []", "settings 2: betas = []: a grid with no runs"),
        ("agent = 'ppo'\nseed = [1, 2, 1]", "seed = 1 is in its list twice"),
        (
            "agent = 'ppo'\n[[setings]]\nagent = 'a2c'",
            "'setings' is outside of the tables [[settings]]",
        ),
        ("agent = ['ppo', 'pop']", "did you mean 'ppo'?"),
        ("agent = 'ppo'\npreset = ['paper', 'papr']", "did you mean 'paper'?"),
        ("agent = 'ppo'\nexp_name = ['a', 'b']", "exp_name = ['a', 'b']: may not vary"),
        (
            "agent = 'ppo'\n[[settings]]\nagent = 'ppo'\nbackend = 'torch'",
            "differ in backend 'auto' and 'torch'",
        ),
        ("agent = 'ppo'\nbetas = [0.9]", "betas = [0.9]: must be tuple[float, float]"),
        ("agent = 'ppo'\nbetas = [[0.9, 0.99], [0.9, 'x']]", "must be tuple[float, float]"),
        ("agent = 'ppo'\ntarget_kl = 'big'", "target_kl = 'big': must be float | None"),
        ("agent = 'ppo'\ngamma = true", "gamma = True: must be float"),
        ("agent = 'ppo'\ndevice = 'tpu'", "--device tpu: must be cpu, cuda or cuda:N"),
        ("agent = 'ppo'\ndevice = 'cuda:99'", "--device cuda:99: not here"),
        ("agent = 'ppo'\nbackend = 'compiled'\noptimizer = 'adabl89'", "--backend compiled: no compiled update"),
        (
            "agent = 'ppo'\ncurvature_of = 'kl'\noptimizer = ['hessian-free', 'adam']",
            "--curvature-of kl: must be loss",
        ),
        ("agent = 'ppo'\nenv_id = 'envpool:Hoper-v5'", "--env-id envpool:Hoper-v5: "),
        ("agent = 'ppo'\nenv_module = 'no_such_module'", "cannot import no_such_module"),
        ("agent = 'ppo'\nseed = 'one'", "seed = 'one': must be int"),
        ("agent = 'ppo'\nlearning_rate = -1.0", "--learning-rate -1.0: must be a positive number"),
        ("agent = 'supervisd'", "did you mean 'supervised'?"),
        ("agent = 'supervised'\npreset = 'paper'", "there is default"),
        ("agent = 'supervised'\ntask = 'mnist-mpl'", "no task 'mnist-mpl': did you mean 'mnist-mlp'?"),
        ("agent = 'supervised'\noptimizer = 'newton-gc'", "did you mean 'newton-cg'?"),
        ("agent = 'supervised'\nmomentum = 0.9", "--momentum 0.9: must be left out: it is for --optimizer sgd"),
        ("agent = 'supervised'\ndata = 'digits'\nbatch_size = 1298", "--batch-size 1298: must be at most 1,297"),
        (
            "agent = 'supervised'\ndata = 'digits'\ntask = 'sequential-mnist-lstm'",
            "--task sequential-mnist-lstm has LST",
        ),
        ("agent = 'supervised'\ntask = 'cifar10-3c3d'\noptimizer = 'newton-cg'", "would take"),
        (
            "agent = 'supervised'\ndata = 'digits'\noptimizer = 'hessian-free'\nblocks = 9",
            "--blocks 9: must be at most 4",
        ),
        ("agent = 'supervised'", "--data mnist: say with --data-dir DIR where it is kept"),
        ("agent = 'supervised'\ndata = 'digits'\ndata_dir = 'x'", "--data-dir x: must be left out"),
        ("agent = ", "TOMLDecodeError"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys, text, words):
    spec = write(tmp_path, f"[[settings]]\n{text}\n")
    code, out, error = run_sweep(monkeypatch, capsys, spec, "--dir", tmp_path / "runs")
    assert code == BAD_INPUT and words in error and error.count("\n") == 1 and out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ("import sys; sys.exit('no\\nway')", "SystemExit: no way"),
        ("raise ValueError('one\\n  two')", "ValueError: one two"),
        ("SETTINGS = ()", "a grid with no runs"),
        ("SETTINGS = [{'agent': 'ppo', 1: 2}]", "no flag 1: there is "),
        ("SETTINGS = [{'agent': 'ppo', 'preset': {1: 2}}]", "preset {1: 2}: there is "),
        ("SETTINGS = [{'agent': 'ppo', 'learning_rate': 10**400}]", "must be float"),
        ("SETTINGS = [{'agent': 'ppo', 'seed': {1, 2}}]", "must be int"),
        (
            "SETTINGS = [{'agent': 'ppo', 'env_module': 'leaves'}]",
            "--env-module leaves: cannot import leaves: sys.exit(3)",
        ),
    ],
)
def test_a_python_file_that_cannot_be_is_told_in_one_line(tmp_path, monkeypatch, capsys, text, words):
    write(tmp_path, "import sys; sys.exit(3)", "leaves.py")
    monkeypatch.chdir(tmp_path)
    code, out, error = run_sweep(monkeypatch, capsys, write(tmp_path, text, "bad.py"), "--dir", "runs")
    assert code == BAD_INPUT and words in error and error.count("\n") == 1 and out == ""
    assert not (tmp_path / "runs").exists()


def test_supervised_runs_are_named_and_told_apart_as_those_of_agents(tmp_path):
    text = "[[settings]]\nagent = 'supervised'\ndata = 'digits'\ntask = ['autoencoder', 'mnist-mlp']\nseed = [1, 2]\n"
    runs = grid.read(write(tmp_path, text + "optimizer = ['hessian-free', 'adam']\nbatch_size = 400\nepochs = 3"))
    same = "data=digits__batch_size=400__epochs=3__s1"
    assert runs[0].name == f"supervised__autoencoder__hessian-free__lr0.1__{same}"  # its own step size, not given
    assert runs[5].name == f"supervised__mnist-mlp__adam__lr0.001__{same}"
    assert len(runs) == len({run.name for run in runs}) == 8 and {run.steps for run in runs} == {9}
    flags = ("--data", "digits", "--optimizer", "adam", "--batch-size", "400", "--epochs", "3")
    assert runs[5].flags == flags  # the task and the seed are the command's own defaults
    with_rate = text + "optimizer = 'adam'\nbatch_size = 400\nepochs = 3\nlearning_rate = 0.001"
    assert grid.read(write(tmp_path, with_rate))[2].name == runs[5].name


def test_lists_of_presets_arrays_and_ranges_are_understood(tmp_path):
    text = "import numpy as np\nSETTINGS = [dict(agent=['ppo', 'a2c'], preset=('default', 'paper'), seed=range(2),"
    text += "learning_rate=np.array([1e-3, 1e-4]), num_steps=np.int64(64), total_timesteps=6400)]"
    runs = grid.read(write(tmp_path, text, "spec.py"))
    assert len(runs) == len({run.name for run in runs}) == 16
    assert runs[-1].name == "a2c-paper__HalfCheetah-v5__scaled-adahesscale__lr0.0001__total_timesteps=6400__" + (
        "num_steps=64__s1"
    )


def test_names_tell_rates_that_print_equal_and_stay_short_enough_for_files(tmp_path):
    rates = [3e-4, 1e-5, 1.0, 0.3, 0.0001234567, 0.00012345671]
    text = f"SETTINGS = [dict(agent='ppo', seed=3, learning_rate={rates}, env_id='CartPole-v1')]"
    names = [run.name.split("__")[3] for run in grid.read(write(tmp_path, text, "a.py"))]
    assert names == ["lr0.0003", "lr1e-05", "lr1", "lr0.3", "lr0.0001234567", "lr0.00012345671"]
    flags = (
        "gamma=0.9, gae_lambda=0.9, num_steps=256, num_minibatches=4, clip_coef=0.1, update_epochs=3, vf_coef=0.7,"
    )
    flags += (
        "ent_coef=0.01, max_grad_norm=0.7, std='shared', norm_adv=False, clip_vloss=False, anneal_lr=False, eps=1e-7"
    )
    text = f"SETTINGS = [dict(agent='ppo', seed=[3, 4], env_id='CartPole-v1', target_kl=[0.1, 0.2], {flags})]"
    names = [run.name for run in grid.read(write(tmp_path, text, "b.py"))]
    assert len(set(names)) == 4 and {len(name) for name in names} == {grid.LONGEST}
    assert names == [run.name for run in grid.read(tmp_path / "b.py")] and names[0].endswith("__s3")


def test_a_device_of_other_machines_is_theirs_to_have(tmp_path):
    spec = write(tmp_path, "[[settings]]\nagent = 'ppo'\ndevice = 'cuda:99'\n")
    assert grid.read(spec, here=False)[0].flags[-2:] == ("--device", "cuda:99")
