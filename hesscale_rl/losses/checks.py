"""Checks of a loss's data: errors that name the tensor and its shape."""

import math

import torch
from torch import Tensor


def is_traced(t: Tensor) -> bool:
    """Whether t stands for other tensors, under torch.compile or vmap, so that its values cannot be looked at."""
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(t)


def eye(n: int, like: Tensor) -> Tensor:
    """Return the identity [n, n] of the kind and on the device of `like`, whatever torch's defaults are."""
    return torch.eye(n, dtype=like.dtype, device=like.device)


def finite(name: str, t: Tensor) -> Tensor:
    """Return t if it is a tensor of real numbers, all finite; TypeError or ValueError otherwise."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype == torch.bool or t.dtype.is_complex:
        raise ValueError(f"{name} {list(t.shape)} holds {t.dtype}, expected real numbers")
    # The sum is one cheap operation, but it may overflow on its own; only then look at every entry.
    if not is_traced(t) and not math.isfinite(t.detach().sum()) and not bool(t.isfinite().all()):
        raise ValueError(f"{name} {list(t.shape)}: {int((~t.isfinite()).sum())} entries are not finite")
    return t


def shaped(name: str, t: Tensor, shape: tuple[int, ...] | list[int], why: str) -> Tensor:
    """Return t if it has the shape; ValueError with both shapes and the reason otherwise."""
    if list(t.shape) != list(shape):
        raise ValueError(f"{name} has the shape {list(t.shape)}, expected {list(shape)}: {why}")
    return t


def vector(name: str, t: Tensor) -> Tensor:
    """Return t if it is [N]; ValueError otherwise."""
    if t.ndim != 1:
        raise ValueError(f"{name} has the shape {list(t.shape)}, expected [N]")
    return t


def classes(name: str, t: Tensor) -> Tensor:
    """Return t [N] of integers as int64; TypeError or ValueError otherwise."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype.is_floating_point or t.dtype.is_complex or t.dtype == torch.bool:
        raise ValueError(f"{name} {list(t.shape)} holds {t.dtype}, expected integer classes, torch.int64")
    return vector(name, t).long()


def check_classes(name: str, t: Tensor, outputs: Tensor) -> None:
    """ValueError unless the outputs are [N, C] for the classes t [N]."""
    if outputs.ndim != 2 or outputs.shape[0] != t.shape[0]:
        raise ValueError(
            f"outputs have the shape {list(outputs.shape)} and {name} {list(t.shape)}, expected [{len(t)}, C] and [N]"
        )
    if t.device.type != "cpu":  # there the use of a class out of range would end the process
        check_range(name, t, outputs)


def check_range(name: str, t: Tensor, outputs: Tensor) -> None:
    """ValueError unless the classes t [N] lie below C for the outputs [N, C]."""
    if is_traced(t) or is_traced(outputs) or not t.numel():
        return
    low, high = (int(v) for v in t.aminmax())
    if low < 0 or high >= outputs.shape[1]:
        raise ValueError(
            f"{name} {list(t.shape)} ranges from {low} to {high}, outputs {list(outputs.shape)} "
            f"have the classes 0 to {outputs.shape[1] - 1}"
        )


def pick(name: str, t: Tensor, rows: Tensor) -> Tensor:
    """Return each row's entry of its class, [N, 1]; the range of the classes is looked at only where this fails."""
    try:
        return rows.gather(1, t[:, None])
    except (IndexError, RuntimeError):
        check_range(name, t, rows)
        raise


def real(name: str, value: float) -> float:
    """Return a number if it is finite; ValueError otherwise."""
    if not math.isfinite(value):
        raise ValueError(f"{name}={value}: must be a finite number")
    return value
