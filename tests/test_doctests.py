"""The examples in docstrings print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDERS = {"hesscale_rl": "", "agents": "hesscale_rl.", "envs": "hesscale_rl.", "scripts": "hesscale_rl."}
EXAMPLES = sorted(
    prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder, prefix in FOLDERS.items()
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text()
)


def test_public_functions_have_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name):
    torch.manual_seed(0)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
