"""What recording cannot see: the surroundings of a call, its input, and hooks, patches and kinds of tensors."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .. import networks
from ..errors import InputError

STRIDED = torch.strided
# Whose forward the compiled loops take for granted: one that is put in its place later is another function.
_PARTS: list[Any] = [
    nn.Sequential,
    nn.Linear,
    nn.Tanh,
    nn.ReLU,
    nn.Sigmoid,
    nn.SiLU,
    networks.Exp,
    networks.Heads,
    networks.GaussianHead,
]
FORWARDS: dict[Any, Any] = {kind: kind.forward for kind in _PARTS}
PLAIN = (Tensor, nn.Parameter)  # subclasses may mean another function by the same operation


def altered(layer: nn.Module) -> str:
    """Return what makes a call of `layer` something else than its type's forward; "" if nothing does."""
    own = layer.__dict__  # read at every call: faster than attributes
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return "it has hooks, which the pass would leave out"
    if "forward" in own or "_call_impl" in own:
        return "its forward was replaced on this one module, which the pass would leave out"
    for name in own["_parameters"]:
        if name in own:
            return f"its attribute {name} hides its parameter of the same name"
    kind = type(layer)
    if FORWARDS.get(kind, kind.forward) is not kind.forward:
        return f"{kind.__qualname__}.forward was replaced"
    return ""


def has_hooks(p: Tensor) -> bool:
    """Whether autograd would call functions of a user's with the gradient of p."""
    return bool(p._backward_hooks or p._post_accumulate_grad_hooks)


def is_plain(t: Any) -> bool:
    """Whether t is a tensor whose numbers lie in memory as its shape says, not a subclass and not sparse."""
    return type(t) in PLAIN and t.layout is STRIDED


def own_precision(device: str) -> str:
    """Return why nothing is done under autocast, with the way out."""
    return (
        f"torch.autocast is on for {device}, and the pass works in the parameters' own precision: call it under "
        f"torch.autocast({device!r}, enabled=False); for another precision convert net and x, as by .bfloat16()"
    )


def surroundings(device: str) -> str:
    """Return what around the call makes net(x) another function, with the way out; "" if nothing does."""
    if torch.is_autocast_enabled(device):
        return own_precision(device)
    if torch_module._has_any_global_hook():
        return "torch has hooks for all modules (register_module_forward_hook and the like): remove() them first"
    return ""


def check_input(x: Any) -> None:
    """Raise InputError unless x is a batch [N, ...], at least one sample, with nothing around the call.

    Several inputs are a tuple, net(*x), or a dict, net(**x).
    """
    if type(x) in (tuple, dict) and x:
        for part in x.values() if type(x) is dict else x:
            if isinstance(part, Tensor):
                check_input(part)
        return
    if not isinstance(x, Tensor):
        raise InputError(f"x must be a torch.Tensor [N, ...], a tuple or a dict of such, got {type(x).__name__}")
    if type(x) not in PLAIN:
        raise InputError(
            f"x is a {type(x).__name__}: hand over a plain tensor, x.as_subclass(torch.Tensor) or its own"
        )
    if x.layout is not torch.strided:
        raise InputError(f"x has the layout {x.layout}: hand over x.to_dense()")
    if x.is_meta:
        raise InputError("x is on the device meta, which holds no numbers: hand over x on the network's device")
    if x.is_nested:
        raise InputError("x is a nested tensor: hand over samples of one shape, x.to_padded_tensor(0.0)")
    if x.requires_grad:
        raise InputError("x requires grad, and nothing flows back into it: hand over x.detach()")
    if x.dtype.is_complex:
        raise InputError(f"x {list(x.shape)} holds {x.dtype}, expected real numbers: torch.view_as_real(x)")
    if x.ndim == 1 and len(x) and x.dtype.is_floating_point:
        raise InputError(f"x has the shape {list(x.shape)}: axis 0 must be the samples; for one sample, x[None]")
    if not x.ndim or not x.shape[0]:
        raise InputError(f"x has the shape {list(x.shape)}: there is no sample in it")
    if reason := surroundings(x.device.type):
        raise InputError(reason)


def check_parameters(params: dict[str, Tensor]) -> None:
    """Raise InputError for a parameter that no rule can compute with."""
    for name, p in params.items():
        if type(p) not in PLAIN or p.layout is not STRIDED or not p.dtype.is_floating_point:
            if isinstance(p, nn.UninitializedParameter):
                raise InputError(f"the parameter {name} has no shape before the first call: call net(x) once before")
            what = type(p).__name__ if type(p) not in PLAIN else p.layout if p.layout is not STRIDED else p.dtype
            raise InputError(
                f"the parameter {name} is a {what}, and rules compute with plain tensors of real numbers; "
                "call net.float(), or make it an nn.Parameter"
            )
