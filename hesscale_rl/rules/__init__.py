"""What is known of each operation: rule.py says what a Rule is, table.py which function has which."""

from .activation import elementwise
from .arithmetic import binary
from .linear import Affine, Layout, Linear
from .rule import (
    Changed,
    MissingPrimitive,
    NotCovered,
    Refusal,
    Rule,
    Several,
    Slots,
    UnsupportedLayerError,
    columns,
    described,
    unbroadcast,
)
from .table import BUILT_IN, CONSTANT, DEFINED, FUNCTIONS, IN_PLACE, MODULES, OPERATIONS, RULES, SHAPE_ONLY, register

__all__ = [
    "Affine",
    "BUILT_IN",
    "CONSTANT",
    "Changed",
    "DEFINED",
    "FUNCTIONS",
    "IN_PLACE",
    "Layout",
    "Linear",
    "MODULES",
    "MissingPrimitive",
    "NotCovered",
    "OPERATIONS",
    "RULES",
    "Refusal",
    "SHAPE_ONLY",
    "Rule",
    "Several",
    "Slots",
    "UnsupportedLayerError",
    "binary",
    "columns",
    "described",
    "elementwise",
    "register",
    "unbroadcast",
]
