"""The one table of rules: a torch function by its name, and the Rule that knows its derivatives."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import (
    activation,
    arithmetic,
    composite,
    convolution,
    elementary,
    linear,
    normalization,
    pooling,
    products,
    recurrent,
    reduction,
    shape,
    softmax,
)
from .rule import Rule

OPERATIONS: dict[str, type[Rule]] = {
    # linear layers
    "linear": linear.Linear,
    "conv1d conv2d conv3d": convolution.Conv,
    "conv_transpose1d conv_transpose2d conv_transpose3d": convolution.ConvTranspose,
    "embedding": linear.Embedding,
    "matmul mm bmm mv dot": products.Matmul,
    "einsum": products.Einsum,
    # activations and elementary functions
    "relu": activation.ReLU,
    "leaky_relu": activation.LeakyReLU,
    "elu": activation.ELU,
    "selu": activation.SELU,
    "gelu": activation.GELU,
    "silu": activation.SiLU,
    "tanh": activation.Tanh,
    "sigmoid expit": activation.Sigmoid,
    "logsigmoid": activation.LogSigmoid,
    "softplus": activation.Softplus,
    "exp": activation.Exp,
    "hardtanh": elementary.Hardtanh,
    "relu6": elementary.ReLU6,
    "hardsigmoid": elementary.Hardsigmoid,
    "hardswish": elementary.Hardswish,
    "softsign": elementary.Softsign,
    "mish": elementary.Mish,
    "celu": elementary.CELU,
    "tanhshrink": elementary.Tanhshrink,
    "softshrink": elementary.Softshrink,
    "hardshrink": elementary.Hardshrink,
    "threshold _threshold": elementary.Threshold,
    "rrelu": elementary.RReLU,
    "clamp clip": elementary.Clamp,
    "neg negative __neg__": elementary.Neg,
    "abs absolute __abs__": elementary.Abs,
    "square": elementary.Square,
    "sqrt": elementary.Sqrt,
    "rsqrt": elementary.Rsqrt,
    "reciprocal": elementary.Reciprocal,
    "exp2": elementary.Exp2,
    "expm1": elementary.Expm1,
    "log": elementary.Log,
    "log1p": elementary.Log1p,
    "log2": elementary.Log2,
    "log10": elementary.Log10,
    "sin": elementary.Sin,
    "cos": elementary.Cos,
    "tan": elementary.Tan,
    "asin arcsin": elementary.Asin,
    "acos arccos": elementary.Acos,
    "atan arctan": elementary.Atan,
    "sinh": elementary.Sinh,
    "cosh": elementary.Cosh,
    "asinh arcsinh": elementary.Asinh,
    "atanh arctanh": elementary.Atanh,
    "erf": elementary.Erf,
    # normalisation, pooling, softmax
    "layer_norm": normalization.LayerNorm,
    "rms_norm": normalization.RMSNorm,
    "_weight_norm": normalization.WeightNorm,
    "max_pool1d max_pool2d max_pool3d": pooling.MaxPool,
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d": pooling.AdaptiveMaxPool,
    "avg_pool1d avg_pool2d avg_pool3d": pooling.MeanPool,
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d": pooling.AdaptiveMeanPool,
    "interpolate upsample": pooling.Resize,
    "dropout": pooling.Dropout,
    "softmax": softmax.Softmax,
    "log_softmax": softmax.LogSoftmax,
    "logsumexp": softmax.LogSumExp,
    # arithmetic
    "add __radd__": arithmetic.Add,
    "sub subtract": arithmetic.Sub,
    "rsub __rsub__": arithmetic.Rsub,
    "mul multiply __rmul__": arithmetic.Mul,
    "div divide true_divide": arithmetic.Div,
    "__rdiv__ __rtruediv__": arithmetic.Rdiv,
    "pow": arithmetic.Power,
    "__rpow__": arithmetic.Rpow,
    "maximum": arithmetic.Maximum,
    "minimum": arithmetic.Minimum,
    "atan2 arctan2": arithmetic.Atan2,
    "where": arithmetic.Where,
    "binary_cross_entropy_with_logits": arithmetic.LogisticLoss,
    "masked_fill": arithmetic.MaskedFill,
    # along axes
    "sum": reduction.Sum,
    "mean": reduction.Mean,
    "var": reduction.Var,
    "std": reduction.Std,
    "norm vector_norm": reduction.Norm,
    "amax amin": reduction.Extreme,
    # entries that move
    "flatten unflatten view view_as reshape reshape_as squeeze unsqueeze clone contiguous ravel": shape.Reshape,
    "expand expand_as broadcast_to": shape.Expand,
    "transpose permute movedim moveaxis swapaxes swapdims t T mT H mH": shape.Permutation,
    "__getitem__ narrow select": shape.Slice,
    "split chunk tensor_split": shape.Parts,
    "unbind": shape.Unbind,
    "flip roll index_select gather take_along_dim repeat tile": shape.Selection,
    "repeat_interleave tril triu diag diagonal cumsum unfold fold pixel_shuffle pixel_unshuffle": shape.Selection,
    "channel_shuffle hsplit vsplit diag_embed masked_select rot90 im2col col2im": shape.Selection,
    "cat concat concatenate": shape.Cat,
    "stack": shape.Stack,
    "pad": shape.Pad,
    "to float double half bfloat16 type type_as cuda cpu": shape.Cast,
    "__setitem__": shape.SetItem,
    "scaled_dot_product_attention": softmax.Attention,
    "batch_norm": normalization.BatchNorm,
}
# What is told in terms of others: tried before a rule of the same name; where it raises NotCovered that is taken.
DEFINITIONS: dict[str, Callable[..., Any]] = {
    "addmm addmv addbmm baddbmm": composite.addmm,
    "addcmul": composite.addcmul,
    "addcdiv": composite.addcdiv,
    "lerp": composite.lerp,
    "softmin": composite.softmin,
    "glu": composite.glu,
    "broadcast_tensors": composite.broadcast_tensors,
    "prelu": composite.prelu,
    "mse_loss": composite.mse_loss,
    "l1_loss": composite.l1_loss,
    "nll_loss": composite.nll_loss,
    "cross_entropy": composite.cross_entropy,
    "binary_cross_entropy_with_logits": composite.bce_with_logits,
    "group_norm": composite.group_norm,
    "instance_norm": composite.instance_norm,
    "batch_norm": composite.batch_norm,
    "bilinear": composite.bilinear,
    "scaled_dot_product_attention": composite.attention,
    "max": composite.extreme_of_two("max"),
    "min": composite.extreme_of_two("min"),
    "dropout1d dropout2d dropout3d feature_dropout": composite.channel_dropout,
    "alpha_dropout": composite.alpha_dropout,
    "lstm": recurrent.lstm,
    "gru": recurrent.gru,
    "rnn_tanh": recurrent.rnn_tanh,
    "rnn_relu": recurrent.rnn_relu,
    "lstm_cell": recurrent.lstm_cell,
    "gru_cell": recurrent.gru_cell,
    "rnn_tanh_cell": recurrent.rnn_tanh_cell,
    "rnn_relu_cell": recurrent.rnn_relu_cell,
}

_HOMES: tuple[Any, ...] = (torch, Tensor, F, torch._C._nn, torch.special, torch.linalg)


def spellings(name: str) -> list[Any]:
    """Return the functions that torch has under a name: of tensors, of torch and of its modules, and attributes."""
    found = [getattr(home, name) for home in _HOMES if hasattr(home, name)]
    if not name.endswith("_"):
        found += [getattr(Tensor, f"__{name}__")] if hasattr(Tensor, f"__{name}__") else []
    return [getattr(f, "__get__", f) if not callable(f) else f for f in found]


FUNCTIONS: dict[Any, type[Rule]] = {
    f: rule for names, rule in OPERATIONS.items() for name in names.split() for f in spellings(name)
} | {recurrent.lstm_step: recurrent.LSTMCell, recurrent.gru_step: recurrent.GRUCell}
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
} | {f: zeros for zeros in (torch.zeros_like,) for f in spellings("zero_")}
DEFINED: dict[Any, Callable[..., Any]] = {
    f: definition for names, definition in DEFINITIONS.items() for name in names.split() for f in spellings(name)
}
# Modules whose forward is told in another way, in which the samples stay where they are.
MODULES: dict[type[nn.Module], Callable[..., Any]] = {nn.MultiheadAttention: composite.multihead_attention}
# What looks at its second argument's shape or kind alone.
SHAPE_ONLY = {f for name in ("expand_as", "view_as", "reshape_as", "type_as") for f in spellings(name)}
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
