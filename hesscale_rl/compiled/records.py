"""What the loops are given: records with names in place of long lists of arguments, and the codes in them.

A loop is given torch's tensors by their addresses, int64: whoever makes a record keeps the tensors where they are.
"""

from typing import NamedTuple

import numpy as np

# An actor's outputs [N, C]: logits, or [mean, p] [N, 2 A], p saying how far actions spread by one of three numbers.
CATEGORICAL, LOG_STD, LOG_VAR, VAR = range(4)
DISTRIBUTIONS = {"categorical": CATEGORICAL, "log_std": LOG_STD, "log_var": LOG_VAR, "var": VAR}

NO_HEAD, GAUSSIAN_HEAD = range(2)  # what follows the last layer; a GaussianHead's log_std is the last parameter

NO_CURVATURE, WITHOUT_D2F, WITH_D2F = range(3)  # what goes back beside the gradient: HesScaleGN's is without f''


class MLP(NamedTuple):
    """Linear layers, each with an activation behind it, and a head.

    `sizes` [L + 1]: the inputs' and every layer's width; `activations` [L]: their codes (kernels.py); `params` [P]:
    addresses of weight [O, I] and bias [O] of every layer, then of the head's vector.
    """

    sizes: np.ndarray
    activations: np.ndarray
    head: int
    params: np.ndarray


class Network(NamedTuple):
    """An MLP that learns: where the gradients and curvatures [P] of its parameters are to be written."""

    mlp: MLP
    grads: np.ndarray
    curvatures: np.ndarray


class Forward(NamedTuple):
    """What a pass forward leaves for the way back: the inputs x [N, I]; flat, layer after layer, [N, O_l] of each.

    y: behind the activation f; dy, ddy: f' and f'' where it was taken.
    """

    x: np.ndarray
    y: np.ndarray
    dy: np.ndarray
    ddy: np.ndarray


class Samples(NamedTuple):
    """What a policy's loss knows of its samples: actions [N, A] or choices [N], and log pi_old and advantages [N]."""

    actions: np.ndarray
    old_logprob: np.ndarray
    advantages: np.ndarray


class PolicyLoss(NamedTuple):
    """PPO's loss; with `clip` 0 the plain policy gradient's. `factor`: 1/N for a mean over the samples."""

    clip: float
    entropy_coef: float
    factor: float


class Batch(NamedTuple):
    """Rows that an agent learns from, [B, ...]: float32, `choices` int64. Of `actions` and `choices` one is empty."""

    obs: np.ndarray
    actions: np.ndarray
    choices: np.ndarray
    old_logprob: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray
    old_values: np.ndarray


class ActorCritic(NamedTuple):
    """The networks of an agent.

    `distribution`: what the actor's outputs are. `separate`: whether `variance` gives their second half; else it is
    not looked at.
    """

    distribution: int
    separate: bool
    mean: Network
    variance: Network
    critic: Network


class Passes(NamedTuple):
    """The passes forward of an agent's networks; `variance` as in ActorCritic."""

    mean: Forward
    variance: Forward
    critic: Forward


class Outputs(NamedTuple):
    """What goes back from the outputs: the actor's z [N, C], the gradient there; the critic's, and its diagonal."""

    z: np.ndarray
    g: np.ndarray
    critic_g: np.ndarray
    critic_d: np.ndarray


class Draws(NamedTuple):
    """Where Hutchinson's signs come from: a seed, uint64, and how many signs there are for every parameter."""

    seed: np.uint64
    samples: int
