"""The agents: each file is one whole algorithm, run by `python agents/NAME.py` or `hesscale-rl train NAME`."""

import ast
import pkgutil
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """Return the agents' names, in order: those of the files here, so that a new one needs no entry anywhere."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@cache
def arguments(name: str) -> ModuleType:
    """Return the first section of an agent's file, its `Args`, `PRESETS` and `check`: they are known without torch.

    It ends where a command line is parsed.
    """
    if (whole := f"{__name__}.{name}") in sys.modules:
        return sys.modules[whole]
    spec = find_spec(whole)
    assert spec is not None and spec.origin is not None
    file = ast.parse(Path(spec.origin).read_text())
    parses = [isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in file.body]
    first = ast.Module(file.body[: parses.index(True) if any(parses) else None], [])
    section = ModuleType(f"{__name__}._{name}_arguments")
    sys.modules[section.__name__] = section  # where the dataclass looks for what its annotations name
    exec(compile(first, spec.origin, "exec"), vars(section))
    return section
