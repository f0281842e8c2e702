"""A parameter's state out of a checkpoint, of this library or of torch.optim."""

from typing import Any

from torch import Tensor


def checked_state(kind: str, names: list[str], saved: dict[str, Any], p: Tensor) -> dict[str, Any]:
    """Return a copy of the state that was saved for p, with its count of steps a number.

    `kind`: the optimizer's name; `names`: the averages that it cannot do without once steps were taken. ValueError
    for one that is missing or of another shape.
    """
    state = {name: _copied(value) for name, value in saved.items() if value is not None}
    if not state:  # torch.optim.SGD's before its first step: a momentum_buffer of None
        return state
    state["step"] = int(state.get("step", 1))  # torch counts in tensors, and in SGD not at all
    for name in names:
        if name not in state:
            raise ValueError(
                f"{kind}: the loaded state has no {name}, but {', '.join(saved)}: it is of another optimizer, or of "
                "one with other settings"
            )
        if state[name].shape != p.shape:
            raise ValueError(
                f"{kind}: {name} of the loaded state is {list(state[name].shape)}, its parameter {list(p.shape)}"
            )
    return state


def _copied(value: Any) -> Any:
    """The same, in memory of its own: two optimizers that share an average would both move it."""
    if isinstance(value, list | tuple):
        return [_copied(part) for part in value]
    return value.detach().clone() if isinstance(value, Tensor) else value
