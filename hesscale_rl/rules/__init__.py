"""What is known of each layer: rule.py says what a Rule is, table.py which layer has which; the rest are rules."""

from .composition import Branching, Heads, Skip
from .convolution import Conv
from .linear import Affine, GaussianHead, Layout, Linear, Reshape
from .normalization import BatchNorm, LayerNorm, Scale
from .pooling import AdaptiveMeanPool, Dropout, MaxPool, MeanPool, ZeroPad
from .rule import MissingPrimitive, Refusal, Rule, UnsupportedLayerError, axes_of, columns
from .table import BUILT_IN, FORWARDS, RULES, register

__all__ = [
    "AdaptiveMeanPool",
    "Affine",
    "BUILT_IN",
    "BatchNorm",
    "Branching",
    "Conv",
    "Dropout",
    "FORWARDS",
    "GaussianHead",
    "Heads",
    "MissingPrimitive",
    "LayerNorm",
    "Layout",
    "Linear",
    "MaxPool",
    "MeanPool",
    "RULES",
    "Refusal",
    "Reshape",
    "Rule",
    "Scale",
    "Skip",
    "UnsupportedLayerError",
    "ZeroPad",
    "axes_of",
    "columns",
    "register",
]
