"""The README's Python runs as printed."""

import math
import re
from pathlib import Path


def test_the_examples_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = ("loss", "returns.mean()")
    assert len(blocks) == len(found)
    for block, value in zip(blocks, found, strict=True):
        names: dict = {}
        exec(block, names)
        assert math.isfinite(eval(value, names))
        assert names.get("action", 0) in (0, 1)
        assert "optimizer" not in names or names["optimizer"].state
