"""Optimizers of other packages, to compare with: `--optimizer module:Class`, by gradients alone.

Any class of torch.optim's kind: made from parameter groups, with `step()`, `param_groups` and a state that
torch.save takes. Those that learn with other weights than they act with (schedule-free ones) say so by having `train`
and `eval`.
"""

import copy
import difflib
import importlib
import inspect
import io
from typing import Any

import torch

from ..errors import InputError


def is_foreign(name: str) -> bool:
    """Whether an optimizer's name is that of a class elsewhere."""
    return ":" in name


def find_class(name: str) -> Any:
    """Return the class that "module:Class" names; InputError with one line if there is none."""
    module, _, kind = name.partition(":")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever a module may do when it is imported
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        way = "; pip install 'hesscale-rl[peers]'" if module in ("schedulefree", "prodigyopt") else ""
        raise InputError(f"--optimizer {name}: cannot import {module}: {cause}{way}") from None
    if not callable(made := getattr(found, kind, None)):
        classes = [word for word, value in vars(found).items() if inspect.isclass(value)]
        close = difflib.get_close_matches(kind, classes, n=1)
        hint = f"; did you mean {module}:{close[0]}?" if close else ""
        raise InputError(f"--optimizer {name}: {module} has no class {kind}{hint}")
    return made


class ForeignOptimizer:
    """One of them behind what the agents use: groups, states, steps, and factors of scaling that are all 1.

    `acts` puts the weights in the parameters that act, are evaluated and saved; the first `zero_grad` after it those
    that learn. `settings` are the class's own; of `flags`, the agents', it takes those that it has. InputError with
    one line where the class does not fit, found out on copies of the parameters.
    """

    reads_curvature, kernel = False, None

    def __init__(self, name: str, groups: list[dict[str, Any]], flags: dict[str, Any], **settings: Any):
        kind = find_class(name)
        given = {flag: value for flag, value in flags.items() if _takes(kind, flag)} | settings
        _try(name, kind, groups, given)
        self.inner = kind(groups, **given)
        self._switches = all(callable(getattr(self.inner, switch, None)) for switch in ("train", "eval"))
        self._learns = False
        self.acts()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, with their names and step sizes."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:
        """What it keeps for each parameter."""
        return self.inner.state

    @property
    def eta(self) -> list[float]:
        """A factor of 1 for each group."""
        return [1.0] * len(self.param_groups)

    def acts(self) -> None:
        """Put the weights in place that act."""
        if self._switches:
            self.inner.eval()
        self._learns = False

    def zero_grad(self) -> None:
        """Clear the gradients; the weights are those that learn from now on."""
        if self._switches and not self._learns:
            self.inner.train()
        self._learns = True
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self) -> None:
        """Take a step by the gradients."""
        self.inner.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as the class does."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.inner.load_state_dict(state)


def _takes(kind: Any, argument: str) -> bool:
    try:
        return argument in inspect.signature(kind).parameters
    except (TypeError, ValueError):
        return False


def _try(name: str, kind: Any, groups: list[dict[str, Any]], given: dict[str, Any]) -> None:
    """Make one for copies, take two steps, save and load it; InputError with the first thing that fails."""
    copies = [{**group, "params": [p.detach().clone().requires_grad_() for p in group["params"]]} for group in groups]
    doing = "cannot be made"
    with torch.random.fork_rng(devices=[]):
        try:
            optimizer = kind(copies, **given)
            for _ in range(2):
                doing = "its train() fails"
                getattr(optimizer, "train", lambda: None)()
                doing = "its step() fails"
                for group in optimizer.param_groups:
                    for p in group["params"]:
                        p.grad = torch.full_like(p, 1e-3)
                optimizer.step()
                doing = "its eval() fails"
                getattr(optimizer, "eval", lambda: None)()
            doing = "its state cannot be saved and loaded"
            data = io.BytesIO()
            torch.save(optimizer.state_dict(), data)
            data.seek(0)
            kind(copy.deepcopy(copies), **given).load_state_dict(torch.load(data, weights_only=True))
        except Exception as error:
            cause = " ".join(str(error).split())[:160] or type(error).__name__
            way = ""
            if "2D" in cause or "Muon" in name:
                way = "; biases are no matrices: take hesscale_rl.optim.peers:MuonAdamW, which has AdamW for them"
            raise InputError(f"--optimizer {name}: does not fit: {doing}: {cause}{way}") from None
