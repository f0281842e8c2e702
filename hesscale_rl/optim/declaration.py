"""An optimizer declares itself: the decorator of its class says once what the rest of the library needs to know.

    @declare(names={"adahesscale": lambda hs: hs.HesScale()}, ranges=BETAS | EPS | REACH | MAXIMIZE)
    class AdaHesScale(DiagonalOptimizer): ...

From this alone the command line has its names, flags and checks, `make_optimizer` its settings and its curvature, and
the compiled update its kernel. The files of this folder are read without being run, so that a command is checked
before torch is loaded: a declaration there is an expression of what this module and settings.py define, no more. One
of a user's own stands in any module, and is known as soon as that has been imported.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from . import settings
from .settings import EVERY, Range, Ranges

SCALED = "scaled-"  # before its name, an optimizer takes its steps within a trust region of radius `delta`
FOLDER = Path(__file__).parent
Kind = TypeVar("Kind", bound=type)


@dataclass(frozen=True)
class Declaration:
    """What an optimizer says of itself.

    names: on the command line; of each the curvature that it reads, made from the package `hesscale_rl` and the
    settings of `curvature_ranges`. ranges: its own settings, and the values that they may have. flags: settings that
    flags and `make_optimizer` know by another word. arguments: of the constructor, that become the setting named, and
    what they may be. defaults: where `make_optimizer` and the agents begin, if it is
    not where the class does. supervised: what `hesscale-rl supervised` takes for flags that are not given.
    curvature_name: the parameters' attribute that is read, by a step that is scaled or, `always`, by every one;
    usual_curvature: what fills it, for messages.
    """

    names: dict[str, Callable[..., Any]]
    ranges: Ranges
    flags: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, tuple[str, Range]] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    supervised: dict[str, Any] = field(default_factory=dict)
    curvature_ranges: Ranges = field(default_factory=dict)
    curvature_name: str = "hess_diag"
    always: bool = True
    usual_curvature: str = "HesScale()"

    def flag_ranges(self) -> Ranges:
        """What each of its flags may be, those of its curvature among them; lr and delta are everybody's."""
        words = {setting: flag for flag, setting in self.flags.items()}
        every = EVERY | self.ranges | self.curvature_ranges
        hidden = {"lr", "delta", *(setting for setting, _ in self.arguments.values())}
        shown = {words.get(name, name): allowed for name, allowed in every.items() if name not in hidden}
        return shown | {argument: allowed for argument, (_, allowed) in self.arguments.items()}

    def values(self, given: dict[str, Any]) -> dict[str, Any]:
        """The class's own settings of those given by flag, and the defaults for those left out."""
        known = self.flag_ranges().keys() - self.curvature_ranges.keys()
        return self.defaults | {self.flags.get(flag, flag): given[flag] for flag in given if flag in known}


class Name(NamedTuple):
    """What a name of the command line stands for: an optimizer in a module, its curvature, steps scaled or not."""

    plain: str
    scaled: bool
    declaration: Declaration
    module: str
    kind: str

    def make_curvature(self, given: dict[str, Any]) -> Any:
        """The curvature that the optimizer reads, with those of the settings that it has."""
        own = {name: value for name, value in given.items() if name in self.declaration.curvature_ranges}
        return self.declaration.names[self.plain](import_module("hesscale_rl"), **own)

    def find_class(self) -> Any:
        """The optimizer's class."""
        return _outside.get(self.plain) or getattr(import_module(self.module), self.kind)


_outside: dict[str, type] = {}  # the classes of optimizers that do not stand in this folder
_outside_names: dict[str, Name] = {}


def declare(**fields: Any) -> Callable[[Kind], Kind]:
    """Return the decorator of an optimizer's class: it keeps the `Declaration` of these fields as `declared`.

    ValueError if it takes the name of another optimizer.
    """
    declaration = Declaration(**fields)

    def decorate(kind: Kind) -> Kind:
        kind.declared = declaration  # type: ignore[attr-defined]
        if kind.__module__.rpartition(".")[0] != __package__:
            for plain in declaration.names:
                taken = names().get(plain)
                if taken is not None and (taken.module, taken.kind) != (kind.__module__, kind.__name__):
                    raise ValueError(f"optimizer {plain!r} of {kind.__module__}: {taken.module} has one of that name")
            for plain in declaration.names:
                _outside[plain] = kind
                _outside_names[plain] = Name(plain, False, declaration, kind.__module__, kind.__name__)
        return kind

    return decorate


def names() -> dict[str, Name]:
    """Every name of the command line: each optimizer's, and the same for its steps within a trust region."""
    plain = dict(sorted((_of_this_folder() | _outside_names).items()))
    return plain | {SCALED + name: found._replace(scaled=True) for name, found in plain.items()}


def is_scaled(name: str) -> bool:
    """Whether it is the name of an optimizer whose steps are scaled; False for a name of nothing that is known."""
    return name in (known := names()) and known[name].scaled


def find(name: str) -> Name:
    """Return what the name stands for; ValueError with all that there are."""
    known = names()
    if name not in known:
        raise ValueError(f"unknown optimizer {name!r}: allowed are {', '.join(known)}")
    return known[name]


def every_flag() -> dict[str, dict[str, Range]]:
    """All flags of all optimizers: for each those that have it, by their plain names, and what it may be there."""
    flags: dict[str, dict[str, Range]] = {}
    for name, found in names().items():
        for flag, allowed in found.declaration.flag_ranges().items() if not found.scaled else ():
            flags.setdefault(flag, {})[name] = allowed
    return flags


@cache
def _of_this_folder() -> dict[str, Name]:
    found: dict[str, Name] = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text()
        classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
        for node in classes if "\n@declare(" in text else ():
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "declare":
                    call.func = ast.Name("Declaration", ast.Load())
                    code = compile(ast.fix_missing_locations(ast.Expression(call)), str(path), "eval")
                    declaration = eval(code, {**vars(settings), "Declaration": Declaration})
                    module = f"{__package__}.{path.stem}"
                    found |= {name: Name(name, False, declaration, module, node.name) for name in declaration.names}
    return found
