"""The README's Python runs as printed."""

import re
from pathlib import Path


def test_the_examples_train():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block, value in zip(blocks, ("loss", "result.value"), strict=True):
        names: dict = {}
        exec(block, names)
        assert eval(value, names).isfinite()
        assert names["optimizer"].state
