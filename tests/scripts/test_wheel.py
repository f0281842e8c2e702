"""What is installed where there is no checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_one_package_and_runs_where_the_users_have_our_names(tmp_path):
    # In a copy: a build leaves its own folders beside the sources.
    apart = shutil.ignore_patterns(".*", "docs", "build", "*.egg-info", "__pycache__")
    for part in ("hesscale_rl", "agents", "envs", "scripts", "studies"):
        shutil.copytree(ROOT / part, tmp_path / "source" / part, symlinks=True, ignore=apart)
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, tmp_path / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(tmp_path), str(tmp_path / "source")], check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site")
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hesscale_rl"}
    for part in (
        "agents/ppo.py",
        "envs/ur/safety.py",
        "studies/cost.py",
        "scripts/sweeps/paper_ppo.toml",
        "scripts/reporting/page.js",
        "scripts/reporting/page.css",
        "py.typed",
    ):
        assert f"hesscale_rl/{part}" in names, part
    for name in ("agents", "envs", "scripts", "studies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')")
    command = [sys.executable, "-P", "-m", "hesscale_rl", "train", "ppo", "--env-id", "Nope-v0"]
    env = {"PYTHONPATH": f"{tmp_path / 'site'}:{tmp_path}"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "--env-id Nope-v0: no such environment" in done.stderr, done.stderr
