"""The module paths of before, which keep working for one release: `import hesscale_rl.policy` warns and works."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "activations": "rules.activation",
    "advantages": "rl.gae",
    "arguments": "runs.arguments",
    "backpropagation": "curvature.hbp",
    "blocks": "curvature.blocks",
    "checkpoint": "runs.checkpoint",
    "compiled.acting": "rl.fast.policy",
    "compiled.chain": "compiled.mlp",
    "compiled.jit": "jit",
    "compiled.learner": "rl.fast.learner",
    "compiled.minibatch": "rl.fast.minibatch",
    "compiled.products": "compiled.matmul",
    "compiled.running": "rl.fast.normalize",
    "compiled.seeds": "compiled.losses",
    "gauss_newton": "curvature.ggn",
    "layers": "rules",
    "normalize": "rl.normalize",
    "policy": "rl.policy",
    "products": "curvature.matmul",
    "progress": "runs.progress",
    "rollout": "rl.rollout",
    "run": "runs.directory",
    "stochastic": "curvature.hutchinson",
}


class _Alias(Loader):
    """Gives the module that stands elsewhere now."""

    def __init__(self, new: str):
        self.new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module itself, with a note of its own spec, which the import is about to replace."""
        module = import_module(self.new)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it was."""
        module.__spec__ = self.spec


class Moved(MetaPathFinder):
    """Finds what no other finder does: a module by the path that it had."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where `fullname` is now, with a DeprecationWarning, or None."""
        package, _, name = fullname.partition(".")
        if package != __package__ or name not in MOVED:
            return None
        new = f"{package}.{MOVED[name]}"
        warnings.warn(f"{fullname} is {new} now, and will be found there alone", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Alias(new))


def install() -> None:
    """Let Python ask for moved modules last."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())
