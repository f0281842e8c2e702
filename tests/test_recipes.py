"""The recipes of CONTRIBUTING.md, carried out as they stand there in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from contributing import blocks

ROOT = Path(__file__).parents[1]
ROOMS = ("agents", "envs", "scripts", "studies")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project, installed for whoever has its folder as PYTHONPATH."""
    root = tmp_path_factory.mktemp("project")
    nothing = shutil.ignore_patterns("__pycache__", *ROOMS)
    shutil.copytree(ROOT / "hesscale_rl", root / "hesscale_rl", ignore=nothing)
    for room in (*ROOMS, "tests/curvature", "tests/optim", "tests/ur"):
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    for room in ROOMS:
        (root / "hesscale_rl" / room).symlink_to(root / room)
    for file in ("pyproject.toml", "docs/curvature.md"):
        (root / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    return root


def apply(root, block):
    """Put a block's lines where its first line says."""
    first, _, lines = block.partition("\n")
    file, _, table = first.removeprefix("# ").partition(", ")
    path = root / file
    text = path.read_text() if path.exists() else ""
    if table:
        head = re.search(rf"^{table}\b.*[{{(]\n", text, re.MULTILINE)
        assert head, f"{file} has no table {table}"
        text = text[: head.end()] + lines + text[head.end() :]
    else:
        text = f"{text}\n\n{lines}" if text else lines
    path.write_text(text)


def call(root, *command, **more):
    # Plain: to compile the loops for the copy would take longer than all of this.
    environment = os.environ | {"PYTHONPATH": str(root), "NUMBA_DISABLE_JIT": "1", "OMP_NUM_THREADS": "1"} | more
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_activation_a_layer_and_a_curvature_are_what_the_page_says(copy):
    for name in ("An activation", "A layer", "A curvature"):
        for _, block in blocks(name):
            apply(copy, block)
    call(copy, "tests/curvature/test_curvature_table.py")
    table = (copy / "docs" / "curvature.md").read_text()
    assert "AbsHesScale" in table
    said = call(copy, "-m", "pytest", "-p", "no:cacheprovider", "tests/curvature/test_rules.py", "-k",
                "erfc or diff or every_rule")  # fmt: skip
    assert re.search(r"([3-9]|\d\d) passed", said)


def test_an_optimizer_is_one_file_and_one_row(copy):
    for _, block in blocks("An optimizer"):
        apply(copy, block)
    said = call(copy, "-m", "pytest", "-p", "no:cacheprovider", "tests/optim/test_kernels.py", "-k",
                "clipped or every_kernel")  # fmt: skip
    assert "3 passed" in said
    flags = ["--env-id", "InvertedPendulum-v5", "--num-steps", "16", "--total-timesteps", "16", "--quiet"]
    flags += ["--num-minibatches", "2", "--update-epochs", "1", "--optimizer-kwargs", "gamma=0.5"]
    call(
        copy,
        "-m",
        "hesscale_rl",
        "train",
        "ppo",
        "--optimizer",
        "scaled-clipped-newton",
        *flags,
        "--run-dir",
        "runs/own",
    )
    assert "optim/eta_critic" in (copy / "runs" / "own" / "metrics.jsonl").read_text()


def test_an_agent_is_one_file(copy):
    [(_, block)] = blocks("An agent")
    first, *commands = block.splitlines()
    _, source, target = first.split()
    shutil.copy(copy / source, copy / target)
    for command in commands:
        name, *arguments = command.split()
        assert name == "hesscale-rl"
        call(copy, "-m", "hesscale_rl", *arguments)
    assert (copy / "runs" / "mine" / "metrics.jsonl").exists()


def test_an_arm_is_one_entry(copy):
    [(_, block)] = blocks("A robot arm")
    apply(copy, block)
    said = call(copy, "-m", "pytest", "-p", "no:cacheprovider", "tests/ur/test_ur_arms.py", "-k",
                "UR5l and whole or named")  # fmt: skip
    assert "2 passed" in said
    code = "from hesscale_rl import envs; print(envs.make('URReacher-v0', env_kwargs='arm=UR5l').unwrapped.arm.name)"
    call(copy, "-c", code)
