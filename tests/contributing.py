"""The recipes of CONTRIBUTING.md as they stand there."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^### (.*?):.*?\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def blocks(name):
    """The (language, text) of each block of code in a recipe."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", SECTIONS[name], re.MULTILINE | re.DOTALL)
