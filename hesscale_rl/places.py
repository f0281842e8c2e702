"""How an error names an operation: what it is, the module that called it, and the user's line."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_TORCH, _OURS = str(Path(torch.__file__).parent), str(Path(__file__).parent)


def where(what: Any) -> str:
    """Return how an error names an operation: what it is, the module that called it, and the user's line."""
    name = what if isinstance(what, str) else getattr(what, "__name__", type(what).__qualname__)
    frame, net, layer, line = sys._getframe(1), None, None, ""
    while frame is not None and net is None:
        file, own = frame.f_code.co_filename, frame.f_locals
        if frame.f_code.co_name == "forward" and isinstance(own.get("self"), nn.Module):
            layer = layer or own["self"]
        if file.startswith(_OURS) and frame.f_code.co_name == "run_forward":
            net = own["net"]
        elif not line and not file.startswith(_TORCH) and not file.startswith(_OURS):
            line = f" at {file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    if isinstance(what, nn.Module):
        layer = what
    return f"{named(net, layer)}{'' if isinstance(what, nn.Module) else name}{line}"


def named(net: nn.Module | None, layer: nn.Module | None) -> str:
    """Return "layer PATH of type TYPE: " for a module of a network, "" if it is none."""
    if layer is None:
        return ""
    path = next((name for name, m in (net or layer).named_modules() if m is layer), None)
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    return f"layer {path or ('(the network itself)' if layer is net else '?')} of type {kind}, "


def failed(net: nn.Module, x: Any, error: Exception) -> str:
    """Return the layer that an error came from, and its input."""
    trace, layer, given = error.__traceback__, net, x
    while trace is not None:
        own = trace.tb_frame.f_locals
        if trace.tb_frame.f_code.co_name == "forward" and isinstance(own.get("self"), nn.Module):
            layer = own["self"]
            given = next((t for t in own.values() if isinstance(t, Tensor)), given)
        trace = trace.tb_next
    path = next((name for name, m in net.named_modules() if m is layer), "")
    shape = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
    return f"layer {path or '(the network itself)'} ({type(layer).__qualname__}) with the input {shape}"


def unseen(t: Tensor) -> str:
    """Return the message for a tensor that autograd has made of what was recorded, or of parameters."""
    maker = f"(by {type(t.grad_fn).__name__})" if t.grad_fn is not None else "(under torch.func)"
    return (
        f"{where('a tensor')}: {list(t.shape)} {maker} was computed from parameters by what "
        "cannot be recorded: an autograd.Function, a scripted module, torch.func, another thread, or outside of the "
        "recording. Compute it by torch's functions within, give the module a rule by hesscale_rl.register, or "
        "detach() it to be a constant"
    )


def in_function_of_its_own() -> bool:
    """Whether a user's torch.autograd.Function is running: autograd is off there too, but derivatives pass it."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "apply" and frame.f_code.co_filename.endswith("autograd/function.py"):
            return True
        frame = frame.f_back
    return False
