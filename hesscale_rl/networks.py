"""The modules of which the agents' networks are composed, beside those of `torch.nn`.

`Skip` is x + body(x), `Heads` are branches side by side. They are modules like any other: hesscale_rl.backward takes
whatever forward a network has.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn


def changes_input(layer: nn.Module) -> bool | None:
    """Return whether `layer` works in place on its input; None if it hands its input itself on."""
    if isinstance(layer, nn.Sequential):
        return next((found for part in layer if (found := changes_input(part)) is not None), None)
    if vars(layer).get("inplace"):
        return True
    return None if isinstance(layer, nn.Identity | nn.Flatten | nn.Unflatten | nn.Dropout) else False


def given_to(layer: nn.Module, x: Any) -> Any:
    """Return x for a layer that is not the only one to read it: a copy where the layer would change it."""
    return x.clone() if isinstance(x, Tensor) and changes_input(layer) else x


class Skip(nn.Module):
    """The residual block x + body(x); `body` is given layer by layer, as for `nn.Sequential`.

    Both see the same x, also where the body begins with a layer that works in place.
    """

    def __init__(self, *body: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + body(x); both need one shape."""
        y: Tensor = self.body(given_to(self.body, x))
        if y.shape != x.shape:
            raise ValueError(f"Skip: its body maps {list(x.shape)} to {list(y.shape)}, and both are to be added")
        return x + y


class Heads(nn.Module):
    """Branches that see the same input; their outputs [N, C_i] stand side by side, [N, sum C_i]."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' outputs, concatenated along axis 1."""
        return torch.cat([branch(given_to(branch, x)) for branch in self.branches], dim=1)


class GaussianHead(nn.Module):
    """Appends a state-independent log standard deviation to n means: [N, n] -> [N, 2 n].

    `log_std` [n] starts at `initial`, the same for every action.
    """

    def __init__(self, n: int, initial: float = 0.0):
        super().__init__()
        self.log_std = nn.Parameter(torch.full((n,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        """Return [mean, log standard deviation] side by side."""
        if x.shape[1:] != self.log_std.shape:
            raise ValueError(f"GaussianHead({self.log_std.numel()}): its input has the shape {list(x.shape)}")
        return torch.cat([x, self.log_std.expand_as(x)], dim=1)

    def extra_repr(self) -> str:
        """Return what `print(net)` shows of this layer."""
        return str(self.log_std.numel())


class PeepholeLSTM(nn.Module):
    """A layer of LSTM cells whose gates see the cells' states (Gers et al. 2002): x [N, T, I] -> [N, T, units].

    Of elementary operations, so that it has second derivatives of every kind; no rule covers it: train it by
    autograd, with hesscale_rl.measure_curvature for GaussNewton's products.
    """

    def __init__(self, inputs: int, units: int):
        super().__init__()
        self.from_input = nn.Linear(inputs, 4 * units)  # input, forget and output gate, and what is put in
        self.from_output = nn.Linear(units, 4 * units, bias=False)
        self.peephole = nn.Parameter(torch.empty(3, units).uniform_(-(units**-0.5), units**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs after every step; the states begin at zero."""
        h = c = x.new_zeros(len(x), self.peephole.shape[1])
        outputs = []
        # unbind's way back is one stack; that of an index is zeros for all steps, at every step.
        for given in self.from_input(x).unbind(1):
            i, f, o, g = (given + self.from_output(h)).chunk(4, 1)
            i, f = torch.sigmoid(i + self.peephole[0] * c), torch.sigmoid(f + self.peephole[1] * c)
            c = f * c + i * torch.tanh(g)
            h = torch.sigmoid(o + self.peephole[2] * c) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1)


class Exp(nn.Module):
    """The element-wise exponential, for outputs that are variances."""

    def forward(self, x: Tensor) -> Tensor:
        """Return exp(x)."""
        return x.exp()


def mlp(sizes: Sequence[int], *, orthogonal: bool = True, last_gain: float = 1.0) -> nn.Sequential:
    """Return Linear layers of the given sizes with tanh between them.

    `orthogonal`: weights with gain sqrt(2) in the hidden layers and `last_gain` in the last, biases zero, the
    usual start of PPO; otherwise torch's default initialisation.

    >>> mlp([4, 64, 2])
    Sequential(
      (0): Linear(in_features=4, out_features=64, bias=True)
      (1): Tanh()
      (2): Linear(in_features=64, out_features=2, bias=True)
    )
    """
    if len(sizes) < 2:
        raise ValueError(f"mlp needs an input and an output size, got sizes={list(sizes)}")
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        last = i == len(sizes) - 2
        linear = nn.Linear(inputs, outputs)
        if orthogonal:
            nn.init.orthogonal_(linear.weight, last_gain if last else sqrt(2))
            nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, nn.Tanh()]
    return nn.Sequential(*layers)
