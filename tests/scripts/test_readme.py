"""The README's Python runs as printed."""

import re
from pathlib import Path


def test_the_example_trains():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 1
    names: dict = {}
    exec(blocks[0], names)
    assert names["result"].value.isfinite()
    assert names["optimizer"].state
