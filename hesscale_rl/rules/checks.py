"""Whether net(x) is what the rules take it for: the one place that decides, for every way of computing it.

A rule knows its layer by type, settings, parameters and input, and computes anew what the layer would. Whatever else
changes what net(x) or autograd gives (a hook, a forward of one module's own, a weight that is no parameter, autocast)
is refused here with its place and the way out, or followed to the letter, like hooks on parameters in tape.py.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..errors import InputError
from .composition import Branching
from .rule import Rule, UnsupportedLayerError
from .table import FORWARDS, RULES

STRIDED = torch.strided
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
        return f"{kind.__qualname__}.forward was replaced since its rule was registered"
    return ""


def has_hooks(p: Tensor) -> bool:
    """Whether autograd would call functions of a user's with the gradient of p."""
    return bool(p._backward_hooks or p._post_accumulate_grad_hooks)


def is_plain(t: Any) -> bool:
    """Whether t is a tensor whose numbers lie in memory as its shape says, not a subclass and not sparse."""
    return type(t) in PLAIN and t.layout is STRIDED


def surroundings(device: str) -> str:
    """Return what around the call makes net(x) another function, with the way out; "" if nothing does."""
    if torch.is_autocast_enabled(device):
        return (
            f"torch.autocast is on for {device}, and the pass works in the parameters' own precision: call it under "
            f"torch.autocast({device!r}, enabled=False); for another precision convert net and x, as by .bfloat16()"
        )
    if torch_module._has_any_global_hook():
        return "torch has hooks for all modules (register_module_forward_hook and the like): remove() them first"
    return ""


def check_input(x: Any) -> None:
    """Raise InputError unless x is a batch [N, ...] of real numbers, at least one, with nothing around the call."""
    if not isinstance(x, Tensor):
        raise InputError(f"x must be a torch.Tensor [N, ...], got {type(x).__name__}: a network here has one input")
    if type(x) not in PLAIN:
        raise InputError(
            f"x is a {type(x).__name__}: hand over a plain tensor, x.as_subclass(torch.Tensor) or its own"
        )
    if x.layout is not torch.strided:
        raise InputError(f"x has the layout {x.layout}: hand over x.to_dense()")
    if x.is_nested:
        raise InputError("x is a nested tensor: hand over samples of one shape, x.to_padded_tensor(0.0)")
    if x.requires_grad:
        raise InputError("x requires grad, and nothing flows back into it: hand over x.detach()")
    if not x.dtype.is_floating_point:
        raise InputError(f"x {list(x.shape)} holds {x.dtype}, expected real floating-point numbers: x.float()")
    if x.ndim == 1 and len(x):
        raise InputError(f"x has the shape {list(x.shape)}: axis 0 must be the samples; for one sample, x[None]")
    if not x.ndim or not x.shape[0]:
        raise InputError(f"x has the shape {list(x.shape)}: there is no sample in it")
    if reason := surroundings(x.device.type):
        raise InputError(reason)


def is_sequence(net: nn.Module) -> bool:
    """Whether net(x) is its children's calls one after the other."""
    kind = type(net)
    if kind is nn.Sequential:
        return True
    return isinstance(net, nn.Sequential) and all(
        getattr(kind, name) is getattr(nn.Sequential, name) for name in ("forward", "__iter__", "__call__")
    )


def check_layer(net: Any, path: str) -> type[Rule] | None:
    """Return the rule of the module that stands at `path`, None for a sequence; UnsupportedLayerError without one."""
    if not isinstance(net, nn.Module):
        raise UnsupportedLayerError(path, net, "it is no module")
    if reason := altered(net):
        raise UnsupportedLayerError(path, net, reason)
    kind = RULES.get(type(net))
    if kind is None:
        if is_sequence(net):
            return None
        raise UnsupportedLayerError(path, net, "no rule is registered for this type")
    if kind.forward is Rule.forward and net.__dict__.get("inplace"):
        raise UnsupportedLayerError(path, net, "it works in place, on the input that its rule keeps; inplace=False")
    return kind


def parts(net: nn.Module, kind: type[Rule] | None) -> list[tuple[str, nn.Module]]:
    """Return what stands in a sequence or a composition, each with the path from it ("body.")."""
    if kind is None:  # named_children() leaves out what stands there twice
        return [(f"{name}.", layer) for name, layer in net._modules.items()]  # type: ignore[misc]
    if issubclass(kind, Branching):
        return [(f"{name}." if name else "", part) for name, part in kind.parts(net).items()]
    return []


def check_network(net: nn.Module, path: str = "") -> None:
    """Raise UnsupportedLayerError for the first module in `net` that no rule covers as it stands."""
    for name, part in parts(net, check_layer(net, path)):
        check_network(part, path + name)


def parameters(
    net: nn.Module, kind: type[Rule], x: Tensor, params: dict[str, Tensor] | None, path: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the rule reads of the layer, by name: its parameters, and its weights that are none.

    The latter are buffers or plain tensors, and constants. `params` by their names in the network, if given, take
    the parameters' place.
    """
    if not kind.parameters and not net._parameters:
        return {}, {}
    own: dict[str, Tensor] = {name: p for name, p in net._parameters.items() if p is not None}
    if own and not own.keys() <= kind.parameters:
        extra = ", ".join(sorted(own.keys() - kind.parameters))
        raise UnsupportedLayerError(path, net, f"its rule does not know the parameter {extra}")
    if params is not None and own:
        if missing := [path + name for name in own if path + name not in params]:
            raise ValueError(f"params has no {', '.join(missing)}: every place of a shared module needs an entry")
        own = {name: params[path + name] for name in own}
    constants: dict[str, Tensor] = {}
    for name in kind.parameters:
        if name not in own and (t := net.__dict__.get(name, net._buffers.get(name))) is not None:
            constants[name] = t
    for name, t in (own | constants if constants else own).items():
        if reason := _flaw(t, x, name in constants):
            raise UnsupportedLayerError(path, net, f"its {name} {reason}")
    return own, constants


def _flaw(t: Any, x: Tensor, constant: bool) -> str:
    """Return why a rule cannot take t as a weight for the input x; "" if it can."""
    if not is_plain(t):
        what = t.layout if isinstance(t, Tensor) and type(t) in PLAIN else type(t).__name__
        return f"is a {what}, where the rule computes with a plain tensor or nn.Parameter"
    if constant and t.requires_grad:
        return "requires grad, but is no nn.Parameter: make it one, or detach() it to be a constant"
    if t.dtype is not x.dtype:
        return f"holds {t.dtype} and its input {x.dtype}: bring net and x to one precision, net.to(x.dtype)"
    return ""
