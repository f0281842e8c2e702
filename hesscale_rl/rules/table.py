"""The one table of rules: a torch function by its name, and the Rule that knows its derivatives."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import activation, arithmetic, convolution, linear, normalization, pooling, shape
from .rule import Rule

OPERATIONS: dict[str, type[Rule]] = {
    # linear layers
    "linear": linear.Linear,
    "conv1d conv2d conv3d": convolution.Conv,
    "conv_transpose1d conv_transpose2d conv_transpose3d": convolution.ConvTranspose,
    # activations
    "relu": activation.ReLU,
    "leaky_relu": activation.LeakyReLU,
    "elu": activation.ELU,
    "selu": activation.SELU,
    "gelu": activation.GELU,
    "silu": activation.SiLU,
    "tanh": activation.Tanh,
    "sigmoid": activation.Sigmoid,
    "logsigmoid": activation.LogSigmoid,
    "softplus": activation.Softplus,
    "exp": activation.Exp,
    # normalisation, pooling
    "layer_norm": normalization.LayerNorm,
    "batch_norm": normalization.BatchNorm,
    "_weight_norm": normalization.WeightNorm,
    "max_pool1d max_pool2d max_pool3d": pooling.MaxPool,
    "avg_pool1d avg_pool2d avg_pool3d": pooling.MeanPool,
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d": pooling.AdaptiveMeanPool,
    "dropout": pooling.Dropout,
    # arithmetic
    "add __radd__": arithmetic.Add,
    "sub subtract": arithmetic.Sub,
    "rsub __rsub__": arithmetic.Rsub,
    "mul multiply __rmul__": arithmetic.Mul,
    "div divide true_divide": arithmetic.Div,
    # entries that move
    "flatten unflatten view view_as reshape reshape_as squeeze unsqueeze clone contiguous ravel": shape.Reshape,
    "expand expand_as broadcast_to": shape.Expand,
    "__getitem__ transpose permute movedim moveaxis swapaxes swapdims t T mT flip roll": shape.Selection,
    "narrow select unbind split chunk tensor_split": shape.Selection,
    "cat concat concatenate": shape.Cat,
    "pad": shape.Pad,
}

_HOMES: tuple[Any, ...] = (torch, Tensor, F, torch._C._nn, torch.special)


def spellings(name: str) -> list[Any]:
    """Return the functions that torch has under a name: of tensors, of torch and of its modules, and attributes."""
    found = [getattr(home, name) for home in _HOMES if hasattr(home, name)]
    if not name.endswith("_"):
        found += [getattr(Tensor, f"__{name}__")] if hasattr(Tensor, f"__{name}__") else []
    return [getattr(f, "__get__", f) if not callable(f) else f for f in found]


FUNCTIONS: dict[Any, type[Rule]] = {
    f: rule for names, rule in OPERATIONS.items() for name in names.split() for f in spellings(name)
}
# What a function gives does not depend on its arguments' values, or so that no derivative passes.
CONSTANT: set[Any] = {
    f
    for name in [
        "detach",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "rand_like",
        "randn_like",
        "randint_like",
        "bernoulli",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_tensor",
        "data",
        "grad",
    ]
    for f in spellings(name)
}
IN_PLACE: dict[Any, Any] = {  # what works in place, and the function without it
    f: spellings(name)[0]
    for names in OPERATIONS
    for name in names.split()
    if not name.startswith("_")
    for own in (f"{name}_", f"__i{name}__")
    for f in spellings(own)
}
RULES: dict[type[nn.Module], type[Rule]] = {}  # of modules, each one operation whatever its forward does
BUILT_IN: Mapping[Any, type[Rule]] = MappingProxyType(dict(FUNCTIONS))  # before anybody registers another


def register(kind: type[nn.Module] | Callable[..., Any], rule: type[Rule]) -> None:
    """Make `rule` the rule of a torch function in all its spellings, or of a module type (but not its subclasses).

    A module of such a type is one operation, its forward is not looked into.
    """
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise TypeError(f"register: the second argument must be a subclass of rules.Rule, got {rule!r}")
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        RULES[kind] = rule
    elif callable(kind) and not isinstance(kind, type):
        name = getattr(kind, "__name__", "")
        for f in {kind, *(f for f in spellings(name) if FUNCTIONS.get(f) is FUNCTIONS.get(kind))}:
            FUNCTIONS[f] = rule
    else:
        raise TypeError(
            f"register: the first argument must be a torch function or a subclass of torch.nn.Module, got {kind!r}"
        )
