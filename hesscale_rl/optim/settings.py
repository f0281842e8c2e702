"""What a parameter group may hold: settings with their ranges, and what is made of those of torch's optimizers."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict


class Range(NamedTuple):
    """The values that a setting may have, and how a message says it."""

    holds: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()  # all of them, where they are words

    def allows(self, value: Any) -> bool:
        """Whether the value is one of them, whatever it is."""
        try:
            return bool(self.holds(value))  # comparisons are so that NaN fails them
        except (TypeError, ValueError, RuntimeError):  # no number at all, or a tensor of many
            return False


POSITIVE = Range(lambda x: 0 < x < float("inf"), "a positive number")
NOT_NEGATIVE = Range(lambda x: 0 <= x < float("inf"), "zero or a positive number")
FRACTION = Range(lambda x: 0 <= x <= 1, "from 0 to 1")
DECAY = Range(lambda x: 0 <= x < 1, "a number in [0, 1)")
WHOLE = Range(lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 1, "at least 1, a whole number")
SWITCH = Range(lambda x: isinstance(x, bool), "True or False")


def or_none(allowed: Range, words: str) -> Range:
    """The same values, or None, which stands for what `words` says."""
    return Range(lambda x: x is None or allowed.holds(x), f"{allowed.words}, or None {words}")


def one_of(*choices: str) -> Range:
    """One of these words."""
    return Range(lambda x: x in choices, f"one of {', '.join(choices)}", choices)


Ranges = dict[str, Range]
EVERY: Ranges = {  # what every optimizer has
    "lr": NOT_NEGATIVE,
    "delta": or_none(POSITIVE, "for no step-size scaling"),
    "weight_decay": NOT_NEGATIVE,
    "average": DECAY,
    "bound": Range(lambda x: 1 <= x < float("inf"), "a number of at least 1"),
}
BETAS: Ranges = {"betas": Range(lambda x: len(x) == 2 and all(0 <= b < 1 for b in x), "two numbers in [0, 1)")}
EPS: Ranges = {"eps": NOT_NEGATIVE}
REACH: Ranges = {"reach": or_none(POSITIVE, "for no bound")}
MAXIMIZE: Ranges = {"maximize": SWITCH}

# What settings are where neither an optimizer nor its user says.
DEFAULTS = {"weight_decay": 0.0, "average": 0.0, "bound": 4.0, "reach": 10.0, "maximize": False, "together": False}


class Shared(TypedDict, total=False):
    """Settings of every optimizer: decoupled weight decay, and the rules of scaling.py beside `delta`."""

    weight_decay: float
    average: float
    bound: float


class Options(Shared, total=False):
    """And of those with a diagonal: the bounds of single parameters (scaling.py), and whether to ascend."""

    reach: float | None
    maximize: bool


class Ascending(Shared, total=False):
    """And of those without these bounds that can ascend."""

    maximize: bool


class Solving(Shared, total=False):
    """And of HessianFree: whether the blocks' products are one batched product."""

    together: bool


TASKS_OWN = "the task's own"  # of a declaration's `supervised` flags: every task says its own

# Keys of a group that are no settings of ours: torch's own, the agents' names, and what schedulers leave.
BOOKKEEPING = {
    *(
        "params",
        "param_names",
        "name",
        "curvature_along",
        "initial_lr",
        "min_lr",
        "max_lr",
        "base_momentum",
        "max_momentum",
        "swa_lr",
    ),
}
# Settings of torch's optimizers that can be left away: those of speed alone, and others where they are off.
SPEED = {"foreach", "fused"}
OFF = {"amsgrad": False, "nesterov": False, "dampening": 0, "capturable": False, "differentiable": False}
DECOUPLED = "decoupled_weight_decay"


def checked(kind: str, ranges: Ranges, group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the group without the settings of torch's optimizers that change nothing.

    `kind`: the optimizer's name; `defaults`: what holds where the group says nothing. ValueError by name for a
    setting that it does not have, one out of its range, and a weight decay that is part of the gradient.
    """
    full = {**defaults, **group}
    if full.get("weight_decay") and not group.get(DECOUPLED, not OFF.keys() & group.keys()):
        raise ValueError(
            f"{kind}: weight_decay={full['weight_decay']} of an optimizer that adds it to the gradient (L2), as "
            f"torch.optim.Adam and SGD do; here it is decoupled, as AdamW's: set it to 0 and give {kind} its own"
        )
    kept = {name: value for name, value in group.items() if not _says_nothing(name, value) and name != DECOUPLED}
    for name, value in {**kept, **{name: full[name] for name in ranges}}.items():
        check(kind, ranges, name, value)
    return kept


def check(kind: str, ranges: Ranges, name: str, value: Any) -> None:
    """ValueError by name for a setting that an optimizer does not have, and for one out of its range."""
    if name in BOOKKEEPING or _says_nothing(name, value):
        return
    if name not in ranges:
        raise ValueError(f"{kind}: {name}={value!r}, a setting that it does not have: {', '.join(ranges)}")
    if not ranges[name].allows(value):
        raise ValueError(f"{kind}: {name}={value}, must be {ranges[name].words}")


def _says_nothing(name: str, value: Any) -> bool:
    """Whether it is a setting of torch's optimizers that changes nothing: of speed alone, or off."""
    return name in SPEED or (name in OFF and not value) or (name == DECOUPLED and value is True)
