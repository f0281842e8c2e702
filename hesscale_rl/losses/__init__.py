"""The losses, each with its exact second derivatives at the outputs; base.py says what a loss is."""

from .base import Autodiff, Loss, as_loss
from .policy import CategoricalPolicyGradient, CategoricalPPO, GaussianPolicyGradient, GaussianPPO
from .supervised import CrossEntropy, MeanSquaredError, ValueLoss

# For annotations, whatever the actions are.
PolicyGradient = CategoricalPolicyGradient | GaussianPolicyGradient
PPO = CategoricalPPO | GaussianPPO

__all__ = [
    "Autodiff",
    "CategoricalPPO",
    "CategoricalPolicyGradient",
    "CrossEntropy",
    "GaussianPPO",
    "GaussianPolicyGradient",
    "Loss",
    "MeanSquaredError",
    "PPO",
    "PolicyGradient",
    "ValueLoss",
    "as_loss",
]
