"""The documentation: it builds without a warning, its links lead somewhere, its code runs, its commands exist."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.errors import DONE
from hesscale_rl.scripts import completion
from hesscale_rl.scripts.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WITH_CODE = [page for page in PAGES if "```python" in page.read_text() and page.parent.name == "guides"]


def named(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """The anchors of its headings, as the site makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", h.lower())).strip("-") for h in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=named)
def test_its_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: {target.name} has {anchors(target)}"


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    assert importlib.util.find_spec("mkdocstrings_handlers.python")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-f",
        str(ROOT / "mkdocs.yml"),
        "-d",
        str(tmp_path),
    ]
    done = subprocess.run(command, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "api" / "training" / "index.html").read_text()
    assert "hesscale_rl.training.train" in page and "may be dicts" in page
    assert "actor_logstd" in (tmp_path / "guides" / "cleanrl" / "index.html").read_text()  # the whole program
    assert (tmp_path / "examples" / "train.ipynb").exists() and (tmp_path / "results" / "report.png").exists()


@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_its_code_runs_as_printed(page, tmp_path, monkeypatch):
    """Blocks in order, each with the names of those before; whole programs are run by the tests of the examples."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)


def test_its_commands_and_their_flags_exist():
    known = {}
    for page in [*PAGES, ROOT / "README.md"]:
        for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.partition("#")[0].removeprefix("$ ").split()
                if words[:1] != ["hesscale-rl"] or len(words) < 2 or words[1].startswith("-"):
                    continue
                assert words[1] in COMMANDS, f"{named(page)}: {line}"
                own = words[1:3] if words[1] == "train" else words[1:2]
                if words[1] == "ur" or words[1] in ("tune",):
                    continue  # their flags are also those of an agent
                key = " ".join(own)
                if key not in known:
                    known[key] = completion.flags(completion.help_of(own))
                for word in words:
                    flag = word.partition("=")[0]
                    assert not flag.startswith("--") or flag in known[key], f"{named(page)}: {line}: {flag}"


@pytest.mark.parametrize("agent", [ppo, a2c, trpo], ids=["ppo", "a2c", "trpo"])
def test_every_number_that_is_logged_has_its_line(agent, tmp_path):
    small = {"env_id": "Pendulum-v1", "num_steps": 192, "total_timesteps": 384, "quiet": True, "eval_interval": 192}
    args = agent.Args(**small, eval_episodes=1, run_dir=str(tmp_path / "run"))
    assert agent.train(replace(args, preset="paper", std="network")) == DONE
    tags = {tag for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() for tag in json.loads(line)}
    text = (DOCS / "guides" / "numbers.md").read_text()
    for tag in tags - {"global_step", "time"}:
        name = re.sub(r"_(mean|variance|actor|critic)$", "_NET", tag) if "/" in tag else tag
        assert f"`{tag}`" in text or f"`{name}`" in text, tag
