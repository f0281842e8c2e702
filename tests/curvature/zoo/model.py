"""What is known of a model, its data and the losses that several take."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

N, F64 = 4, torch.float64


class Model(NamedTuple):
    """A network, its input (a tensor, or a tuple of arguments), a loss of what it returns, and its last layers.

    `last`: the parameters in which HesScale is exact. `rows`: of those which rows; a matrix that also embeds the
    input is exact in the rows of tokens that do not occur in it. `coupled`: whether the loss couples the samples.
    """

    build: Callable[[], nn.Module]
    x: Any
    loss: Callable[[Any], Any]
    last: str
    rows: slice = slice(None)
    coupled: bool = False


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def tokens(*shape, of):
    return torch.randint(of, shape, generator=torch.Generator().manual_seed(1))


def squared(y):
    return (y - 0.3).square().mean()


def classes(y):
    """Cross-entropy; classes on axis 1, as F.cross_entropy has them."""
    labels = torch.arange(y[:, 0].numel()).view(y[:, 0].shape) % y.shape[1]
    return F.cross_entropy(y, labels)


def next_tokens(y):
    """Cross-entropy with the classes on the last axis."""
    return classes(y.flatten(0, -2))


def chosen(q):
    """DQN's loss: the squared error of the actions that were taken."""
    taken = torch.arange(len(q)) % q.shape[1]
    return F.mse_loss(q.gather(1, taken[:, None]).squeeze(1), torch.linspace(-1, 1, len(q), dtype=q.dtype))
