"""Supervised learning: every task with its optimizers, resumed runs, and the data sets' archives and their faults."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from comparing import assert_equal
from torch import nn

import hesscale_rl as hs
from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE, INTERRUPTED, InputError
from hesscale_rl.runs.checkpoint import newest_checkpoint
from hesscale_rl.scripts import cli, plot, supervised, sweep
from hesscale_rl.scripts.supervised_tasks import data
from hesscale_rl.scripts.supervised_tasks.tasks import TASKS, evaluate, is_taped, layer_blocks
from hesscale_rl.scripts.sweeping import spec as grid

SMALL = supervised.Args(data="digits", epochs=1, batch_size=400, quiet=True)
LSTM = "sequential-mnist-lstm"


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def run(tmp_path, name="run", **changes):
    """Train; return the exit code and the lines of metrics.jsonl."""
    args = replace(SMALL, run_dir=str(tmp_path / name), **changes)
    return supervised.train(args), metrics(tmp_path / name)


# --- tasks


@pytest.mark.parametrize("task", TASKS)
def test_every_task_learns_on_digits(tmp_path, task):
    code, lines = run(tmp_path, "adam", task=task, optimizer="adam", learning_rate=3e-3, epochs=3)
    assert code == DONE and [line["global_step"] for line in lines] == [0, 3, 6, 9]
    assert lines[-1]["loss/train"] < lines[1]["loss/train"]
    assert ("accuracy/test" in lines[-1]) == (task != "autoencoder")
    how = {"task": task, "optimizer": "adahesscale", "learning_rate": 1e-5}
    if task == LSTM:
        with pytest.raises(InputError, match="--optimizer adahesscale: .*HesScale.*--task sequential-mnist-lstm"):
            run(tmp_path, "refused", **how)
        assert not (tmp_path / "refused").exists()
        assert run(tmp_path, "autograd", task=task, optimizer="adahessian")[0] == DONE
    else:
        assert run(tmp_path, "curvature", **how)[0] == DONE


PARAMETERS = {  # of DeepOBS's networks; of the others by hand
    "mnist-mlp": 784 * 1000 + 1000 * 500 + 500 * 100 + 100 * 10 + 1610,
    "cifar10-3c3d": 895_210,
    "cifar100-3c3d": 918_340,
    "cifar100-allcnnc": 1_387_108,
    "hbp-cifar10-mlp": 3072 * 1024 + 1024 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 32 + 32 * 16 + 160 + 2042,
    "autoencoder": 2 * (784 * 1000 + 1000 * 500 + 500 * 250 + 250 * 30)
    + 1000
    + 500
    + 250
    + 30
    + 250
    + 500
    + 1000
    + 784,
    LSTM: (1 + 10 + 1) * 40 + 30 + 2 * ((10 + 10 + 1) * 40 + 30) + 110,
    "cifar10-resnet": (27 + 1) * 16 + 6 * (144 + 1) * 16 + 2570,
}


@pytest.mark.parametrize("task", TASKS)
def test_full_size_networks_take_a_step(task):
    torch.manual_seed(0)
    row = TASKS[task]
    start = row.network(row.data).state_dict()
    x, labels = torch.rand(2, *data.SHAPES[row.data]), torch.tensor([1, 9])
    for name in ("adam", "adahesscale"):
        net = row.network(row.data)
        net.load_state_dict(start)
        args = supervised.fill(supervised.Args(task=task, optimizer=name))
        optimizer, curvature = supervised.make_optimizer(args, net)
        taped = is_taped(net)
        assert taped == (task != LSTM)
        if name == "adahesscale" and not taped:
            with pytest.raises(InputError):
                supervised.check_curvature(args, net, curvature, taped, x)
            continue
        loss, outputs = supervised.update(net, optimizer, curvature, taped, x, row.loss(x, labels))
        if row.reconstruct:
            assert loss == pytest.approx(float((outputs - x.flatten(1)).square().mean()), rel=1e-4)
        else:
            assert outputs.shape == (2, 100 if row.data == "cifar100" else 10)
            assert loss == pytest.approx(float(nn.functional.cross_entropy(outputs, labels)), rel=1e-4)
        assert all(not torch.equal(p, start[k]) for k, p in net.named_parameters() if p.grad.abs().max() > 0)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[task]


def test_accuracy_and_loss_are_those_of_all_examples():
    torch.manual_seed(0)
    net, part = TASKS["mnist-mlp"].network("digits"), data.split("digits").test
    found, outputs = evaluate(net, TASKS["mnist-mlp"], part), net(part.inputs).detach()
    assert found["accuracy"] == pytest.approx(float((outputs.argmax(1) == part.labels).float().mean()))
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, part.labels)), rel=1e-5)


# --- optimizers


@pytest.mark.parametrize("task", ["mnist-mlp", "autoencoder"])
@pytest.mark.parametrize("optimizer", ["newton-cg", "hessian-free"])
def test_second_order_methods_reduce_the_loss(tmp_path, task, optimizer):
    rate = 0.03 if optimizer == "newton-cg" else 0.1
    how = {"batch_size": 64, "iterations": 10, "learning_rate": rate}
    code, lines = run(tmp_path, task=task, optimizer=optimizer, **how)
    assert code == DONE and lines[-1]["loss/validation"] < 0.8 * lines[0]["loss/validation"]


def test_every_other_optimizer_takes_steps(tmp_path):
    for name, found in hs.optim.names().items():
        code, lines = run(tmp_path, name, optimizer=name, learning_rate=1e-3)
        assert code == DONE and lines[-1]["loss/test"] != lines[0]["loss/test"], name
        assert ("optim/eta_net" in lines[-1]) == found.scaled


def test_hessian_free_trains_the_lstm_in_blocks_of_whole_layers(tmp_path):
    net = TASKS[LSTM].network("digits")
    groups = [{id(p) for p in group["params"]} for group in layer_blocks(net, 3)]
    assert groups == [{id(p) for i in own for p in net[i].parameters()} for own in ((3,), (4,), (5, 7))]
    how = {"task": LSTM, "optimizer": "hessian-free", "curvature_rows": 100, "iterations": 4, "learning_rate": 0.3}
    code, lines = run(tmp_path, **how)
    assert code == DONE and lines[-1]["loss/validation"] < lines[0]["loss/validation"]


def test_averaged_weights_are_tested(tmp_path):
    how = {"optimizer": "adam", "learning_rate": 1e-2, "epochs": 2}
    _, plain = run(tmp_path, "plain", **how)
    _, averaged = run(tmp_path, "averaged", averaging=0.9, **how)
    saved = newest_checkpoint(tmp_path / "averaged")
    assert plain[-1]["loss/train"] == averaged[-1]["loss/train"]  # the training is the same
    net = TASKS["mnist-mlp"].network("digits")
    net.load_state_dict({k.removeprefix("module."): v for k, v in saved["averaged"].items() if k != "n_averaged"})
    assert evaluate(net, TASKS["mnist-mlp"], data.split("digits").test)["loss"] == averaged[-1]["loss/test"]
    assert averaged[-1]["loss/test"] != plain[-1]["loss/test"]


# --- runs


def numbers(run):
    lines = [{k: v for k, v in line.items() if k not in ("time", "charts/seconds")} for line in metrics(run)]
    saved = newest_checkpoint(run) | {"logs": None}
    saved["rollout"] = saved["rollout"] | {"seconds": 0}
    return {"metrics": lines, "last": saved}


def resume(path, **changes):
    return replace(supervised.parse(supervised.Args, {"default": SMALL}, ["--resume", str(path)], "agent"), **changes)


@pytest.mark.parametrize(
    "how",
    [
        {"optimizer": "adahessian", "averaging": 0.5},
        {"optimizer": "hessian-free", "task": "autoencoder", "iterations": 5},
        {"optimizer": "adam", "task": LSTM},
    ],
    ids=["adahessian", "hessian-free", "lstm"],
)
def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path, monkeypatch, how):
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert run(tmp_path, "whole", epochs=3, **how)[0] == DONE
    update, taken = supervised.update, []

    def stop(*args):
        taken.append(None)
        if len(taken) == 6:  # the first was to warm up: in the midst of the second epoch
            signal.raise_signal(signal.SIGINT)
        return update(*args)

    monkeypatch.setattr(supervised, "update", stop)
    assert run(tmp_path, "half", epochs=3, **how)[0] == INTERRUPTED
    assert newest_checkpoint(half)["global_step"] == 5
    assert supervised.train(resume(half)) == DONE and len(taken) == 9 + 2
    assert_equal(numbers(half), numbers(whole))


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    # Neither of the compiled loops, whose loading takes longer than the run.
    args = supervised.Args(task="cifar10-resnet", data="digits", optimizer="sgd", epochs=8, quiet=True)
    flags = ["--task", args.task, "--data", "digits", "--optimizer", "sgd", "--epochs", "8", "--quiet"]
    command = [sys.executable, "-m", "hesscale_rl.scripts.cli", "supervised"]
    assert supervised.train(replace(args, run_dir=str(tmp_path / "whole"))) == DONE
    path = tmp_path / "killed"
    process = subprocess.Popen([*command, *flags, "--run-dir", str(path)])
    while not (path / "checkpoints").exists() or len(metrics(path)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert json.loads((path / "status.json").read_text())["status"] == "running"
    assert supervised.train(resume(path)) == DONE
    assert_equal(numbers(path), numbers(tmp_path / "whole"))


def test_a_diverged_run_is_a_result(tmp_path, capsys):
    code, lines = run(tmp_path, optimizer="sgd", task="autoencoder", learning_rate=1e30, epochs=4)
    assert code == DIVERGED and lines[-1]["charts/diverged"] == 1
    assert "diverged at update" in (told := capsys.readouterr().err) and told.count("\n") == 1
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "diverged"


def test_changed_arguments_need_leave_and_then_count(tmp_path):
    run(tmp_path, optimizer="adam")
    changed = resume(tmp_path / "run", epochs=2, learning_rate=1e-4)
    with pytest.raises(InputError, match="changed --learning-rate 0.0001 .*--epochs 2 .*--accept-changes"):
        supervised.train(changed)
    assert supervised.train(replace(changed, accept_changes=True)) == DONE
    saved = newest_checkpoint(tmp_path / "run")
    assert saved["global_step"] == 6 and saved["optimizer"]["param_groups"][0]["lr"] == 1e-4
    other = resume(tmp_path / "run", task="autoencoder", accept_changes=True)
    with pytest.raises(InputError, match="the checkpoint does not fit"):
        supervised.train(other)


def test_the_command_and_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["hesscale-rl", "supervised", "--data", "digits", "--epochs", "1", "--lr", "1e-3"]
    )
    assert cli.main() == DONE
    [path] = (tmp_path / "runs").iterdir()
    assert path.name.startswith("mnist-mlp__digits_adahesscale__1__")
    config = json.loads((path / "config.json").read_text())
    assert config["batch_size"] == 64 and config["blocks"] is None  # what was left open is filled in
    out = capsys.readouterr().out
    assert (
        "done  20 updates in 0:0" in out
        and "accuracy test 0." in out
        and out.endswith(f"run   {path.relative_to(tmp_path)}\n")
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"task": "mnist"}, "--task mnist: did you mean 'mnist-mlp'? must be one of mnist-mlp,"),
        ({"data": "cifar10"}, "--data cifar10: must be one of mnist, fashion-mnist, digits for --task mnist-mlp"),
        ({"optimizer": "adamw"}, "--optimizer adamw: did you mean 'adam'? must be one of"),
        ({"blocks": 2}, "--blocks 2: must be left out: it is for --optimizer hessian-free"),
        ({"optimizer": "hessian-free", "blocks": 9}, "--blocks 9: must be at most 4, the layers"),
        ({"optimizer": "newton-cg", "damping": 2.0}, "--damping 2.0: must be from 0 to 1"),
        ({"optimizer": "kfac", "damping": 0.0}, "--damping 0.0: must be a positive number"),
        ({"optimizer": "hessian-free", "damping": float("nan")}, "--damping nan: must be zero or a positive"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0: must be a positive number"),
        ({"averaging": 1.0}, "--averaging 1.0: must be a number in"),
        ({"batch_size": 2000}, "--batch-size 2000: must be at most 1,297, the training examples"),
        ({"data": None}, "--data mnist: say with --data-dir DIR"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path, changes, words):
    args = replace(SMALL, run_dir=str(tmp_path / "run"), **changes)
    with pytest.raises(InputError) as told:
        supervised.train(args)
    assert words in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_newton_cg_is_refused_where_its_curvature_is_too_large():
    net = TASKS["cifar10-3c3d"].network("cifar10")
    args = supervised.fill(supervised.Args(task="cifar10-3c3d", optimizer="newton-cg"))
    curvature = supervised.make_optimizer(args, net)[1]
    with pytest.raises(InputError, match="HBP, would take 1,200 GiB for --task cifar10-3c3d"):
        supervised.check_curvature(args, net, curvature, True, torch.rand(1, 3, 32, 32))


def test_bad_input_is_one_line_and_a_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hesscale-rl", "--task", "mnist-mlp"])
    assert supervised.main() == BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1


# --- data


@pytest.mark.slow
def test_a_sweep_ends_every_run_once_whatever_became_of_it_before(tmp_path, monkeypatch, capsys):
    spec = tmp_path / "spec.toml"
    spec.write_text(
        "[[settings]]\nagent = 'supervised'\ndata = 'digits'\ntask = 'mnist-mlp'\noptimizer = 'sgd'\n"
        "batch_size = 400\nepochs = 2\nlearning_rate = [0.1, 3e38]\n"
    )
    first, _ = grid.read(spec)
    folder = tmp_path / "runs"
    folder.mkdir()
    assert supervised.train(replace(SMALL, optimizer="sgd", epochs=2, run_dir=str(folder / first.name))) == DONE
    expected = metrics(folder / first.name)
    for name, text in (("metrics.jsonl", ""), ("status.json", '{"status": "running"}')):  # killed before it had saved
        (folder / first.name / name).write_text(text)
    shutil.rmtree(folder / first.name / "checkpoints")
    monkeypatch.setattr(sys, "argv", ["sweep", str(spec), "--dir", str(folder), "-j", "2"])
    assert sweep.main() == DONE and "1/2 done, 1 diverged, 0 failed" in capsys.readouterr().out
    losses = [[row["loss/validation"] for row in lines] for lines in (metrics(folder / first.name), expected)]
    assert losses[0] == losses[1]
    monkeypatch.setattr(sys, "argv", ["plot", "sensitivity", str(folder), "-o", str(tmp_path / "figure")])
    assert plot.main() == DONE and (tmp_path / "figure.png").stat().st_size > 10_000


def test_hessian_free_takes_curvature_from_a_part_of_the_batch():
    full, small = supervised.Args("cifar10-resnet", optimizer="hessian-free"), SMALL
    assert supervised.fill(full).curvature_rows == 250
    assert supervised.fill(replace(full, curvature_rows=7)).curvature_rows == 7
    assert supervised.fill(replace(small, optimizer="hessian-free")).curvature_rows is None
