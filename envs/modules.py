"""Whose module a name means. Our packages agents, envs and scripts have names that users have as well."""

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

OWN = ("agents", "envs", "scripts")
ROOT = Path(__file__).parents[1]


class Names:
    """Finds the packages of `OWN`: ours, or for the names in `given_up` what a user has under them."""

    def __init__(self) -> None:
        self.given_up: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return where a module lies, None for one that is not our concern (importlib's protocol)."""
        if name in self.given_up:
            return _users(name)
        source = ROOT / name / "__init__.py"
        if name not in OWN or not source.exists():
            return None
        return spec_from_file_location(name, source, submodule_search_locations=[str(source.parent)])


_names = Names()
_theirs: dict[str, ModuleType] = {}  # a user's modules under our names, while these are ours


def claim() -> None:
    """Make the names of our packages ours in this process, whatever lies under them on PYTHONPATH. For programs."""
    if _names not in sys.meta_path:
        sys.meta_path.insert(0, _names)


@contextlib.contextmanager
def users_own() -> Iterator[None]:
    """Where a user's module is imported, or their environment made: names that both have are theirs.

    Modules are looked for where the user stands first; that place stays on the path, as the last, for what is
    imported later. A module that goes elsewhere does not take us along.
    """
    place = os.getcwd()
    sys.path.insert(0, place)
    claimed = _names in sys.meta_path
    claim()
    _names.given_up = {name for name in OWN if _users(name) is not None}
    ours = _take(_names.given_up)
    sys.modules.update({name: m for name, m in _theirs.items() if name.partition(".")[0] in _names.given_up})
    try:
        yield
    finally:
        _theirs.update(_take(_names.given_up))
        sys.modules.update(ours)
        _names.given_up = set()
        if not claimed:
            sys.meta_path.remove(_names)
        with contextlib.suppress(ValueError):
            sys.path.remove(place)
        if place not in sys.path:
            sys.path.append(place)
        os.chdir(place)


def _take(names: set[str]) -> dict[str, ModuleType]:
    """Take the modules of these packages out of sys.modules."""
    return {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] in names}


def _users(name: str) -> ModuleSpec | None:
    """Where a user has a package or module of this name, if they have one."""
    return PathFinder.find_spec(name, [path for path in sys.path if Path(path or ".").resolve() != ROOT])
