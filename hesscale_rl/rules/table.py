"""The one table of rules: a layer type, and the Rule that knows its derivatives."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from .. import networks
from . import activation, composition, convolution, linear, normalization, pooling
from .rule import Rule

RULES: dict[type[nn.Module], type[Rule]] = {
    # linear layers, compositions, reshapes
    nn.Linear: linear.Linear,
    networks.GaussianHead: linear.GaussianHead,
    networks.Skip: composition.Skip,
    networks.Heads: composition.Heads,
    nn.Flatten: linear.Reshape,
    nn.Unflatten: linear.Reshape,
    nn.Identity: linear.Reshape,
    # activations
    nn.ReLU: activation.ReLU,
    nn.LeakyReLU: activation.LeakyReLU,
    nn.ELU: activation.ELU,
    nn.SELU: activation.SELU,
    nn.GELU: activation.GELU,
    nn.SiLU: activation.SiLU,
    nn.Tanh: activation.Tanh,
    nn.Sigmoid: activation.Sigmoid,
    nn.LogSigmoid: activation.LogSigmoid,
    nn.Softplus: activation.Softplus,
    networks.Exp: activation.Exp,
    # convolution, normalisation, pooling
    nn.Conv1d: convolution.Conv,
    nn.Conv2d: convolution.Conv,
    nn.Conv3d: convolution.Conv,
    nn.ConvTranspose1d: convolution.Conv,
    nn.ConvTranspose2d: convolution.Conv,
    nn.ConvTranspose3d: convolution.Conv,
    nn.LayerNorm: normalization.LayerNorm,
    nn.BatchNorm1d: normalization.BatchNorm,
    nn.BatchNorm2d: normalization.BatchNorm,
    nn.BatchNorm3d: normalization.BatchNorm,
    nn.MaxPool1d: pooling.MaxPool,
    nn.MaxPool2d: pooling.MaxPool,
    nn.MaxPool3d: pooling.MaxPool,
    nn.AvgPool1d: pooling.MeanPool,
    nn.AvgPool2d: pooling.MeanPool,
    nn.AvgPool3d: pooling.MeanPool,
    nn.AdaptiveAvgPool1d: pooling.AdaptiveMeanPool,
    nn.AdaptiveAvgPool2d: pooling.AdaptiveMeanPool,
    nn.AdaptiveAvgPool3d: pooling.AdaptiveMeanPool,
    nn.ZeroPad1d: pooling.ZeroPad,
    nn.ZeroPad2d: pooling.ZeroPad,
    nn.ZeroPad3d: pooling.ZeroPad,
    nn.Dropout: pooling.Dropout,
}
BUILT_IN: Mapping[type[nn.Module], type[Rule]] = MappingProxyType(dict(RULES))  # before anybody registers another

# What each type's rule computes: a forward that is put in its place later is not that.
_OWN: list[Any] = [nn.Sequential, *RULES]

FORWARDS: dict[Any, Any] = {kind: kind.forward for kind in _OWN}


def register(layer: type[nn.Module], rule: type[Rule]) -> None:
    """Make `rule` the rule of the module type `layer` (of exactly this type, not of its subclasses)."""
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise TypeError(f"register: the first argument must be a subclass of torch.nn.Module, got {layer!r}")
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise TypeError(f"register: the second argument must be a subclass of rules.Rule, got {rule!r}")
    RULES[layer], FORWARDS[layer] = rule, layer.forward
