"""From torch to the loops and back: which networks are chains, and one pass over them."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import networks
from ..curvature.base import BL89, Curvature, HesScale, HesScaleGN, NoCurvature
from ..losses import Loss
from ..losses.checks import is_traced
from ..rules import BUILT_IN, RULES, Refusal, checks
from . import kernels, losses
from .cache import ready

LARGEST = 50_000  # weights in a layer; with more, torch's products are faster than ours

ACTIVATIONS: dict[Any, int] = {
    nn.Tanh: kernels.TANH,
    nn.ReLU: kernels.RELU,
    nn.Sigmoid: kernels.SIGMOID,
    nn.SiLU: kernels.SILU,
    networks.Exp: kernels.EXP,
}
# A rule that a user has registered in its place is the tape's to apply.
OWN_RULES: dict[Any, Any] = {kind: BUILT_IN[kind] for kind in (*ACTIVATIONS, nn.Linear, networks.GaussianHead)}
CURVATURES: tuple[Any, ...] = (NoCurvature, HesScale, HesScaleGN, BL89)

Named = dict[str, Tensor]


class FastMLP:
    """Linear layers, each with an activation or none behind it, and a GaussianHead or none at the end."""

    def __init__(self) -> None:
        self.params: Named = {}  # by name: weight and bias of every layer, then the head's log_std
        self.sizes: list[int] = []  # I of the first layer and O of every layer
        self.codes: list[int] = []  # every layer's activation
        self.log_std: Tensor | None = None

    def add(self, net: nn.Module, path: str = "") -> bool:
        """Append the layers of `net`; return False if one of them does not fit into a chain."""
        if checks.altered(net):
            return False
        for name, layer in net._modules.items():
            kind: Any = type(layer)
            if kind is nn.Sequential:
                if not self.add(layer, f"{path}{name}."):  # type: ignore[arg-type]
                    return False
                continue
            if self.log_std is not None or RULES.get(kind) is not OWN_RULES.get(kind, Refusal):
                return False  # nothing follows a head
            if checks.altered(layer):  # type: ignore[arg-type]
                return False
            own = layer._parameters  # type: ignore[union-attr]
            if kind is nn.Linear:
                w, b = own.get("weight"), own.get("bias")
                if w is None or b is None or len(own) != 2 or w.ndim != 2:
                    return False
                outputs, inputs = w.shape
                if outputs * inputs > LARGEST or b.shape != (outputs,) or (self.sizes and inputs != self.sizes[-1]):
                    return False
                self.sizes += [outputs] if self.sizes else [inputs, outputs]
                self.codes.append(kernels.IDENTITY)
                self.params[f"{path}{name}.weight"], self.params[f"{path}{name}.bias"] = w, b
            elif kind in ACTIVATIONS and not own and self.codes and self.codes[-1] == kernels.IDENTITY:
                self.codes[-1] = ACTIVATIONS[kind]
            elif kind is networks.GaussianHead and self.codes and own["log_std"].shape == (self.sizes[-1],):  # type: ignore[union-attr]
                self.log_std = self.params[f"{path}{name}.log_std"] = own["log_std"]  # type: ignore[assignment]
            else:
                return False
        return True

    def run(self, x: Tensor, loss: Loss, curvature: Curvature) -> tuple[Tensor, Tensor, Named, Named]:
        """Return the loss's value, the outputs, and the gradient and the curvature by parameter name."""
        ready()
        tensors = list(self.params.values())
        inputs, (params, sizes, codes), c = losses.array(x), self.arrays(), self.sizes[-1]
        y, dy, ddy = kernels.forward(params, sizes, codes, inputs)
        z = y[len(y) - len(inputs) * c :].reshape(-1, c)
        if self.log_std is not None:
            z = _beside(z, self.log_std.detach().numpy())
        outputs = torch.from_numpy(z)
        value, *messages = _seed(loss, outputs, curvature)
        results = [[torch.empty_like(p) for p in tensors] for _ in messages]
        if self.log_std is not None:
            for message, result in zip(messages, results, strict=True):
                result[-1].copy_(torch.from_numpy(message[:, c:].sum(0)))
            messages = [np.ascontiguousarray(message[:, :c]) for message in messages]
        g, d = messages[0], messages[1] if len(messages) == 2 else messages[0][:0]
        to = [self.addresses(result) for result in results]
        use_d2f = type(curvature) is not HesScaleGN
        kernels.reverse(params, sizes, codes, inputs, y, dy, ddy, g, d, use_d2f, to[0], to[-1])
        named = [dict(zip(self.params, result, strict=True)) for result in results]
        return value, outputs, named[0], named[1] if len(named) == 2 else {}

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the loops need to know: where the parameters lie [L, 2], the sizes [L + 1], the activations [L].

        The parameters may change in place, but must not be replaced.
        """
        return self.addresses(list(self.params.values())), np.array(self.sizes), np.array(self.codes)

    def addresses(self, tensors: list[Tensor]) -> np.ndarray:
        """Where each layer's weight and bias lie, [L, 2]."""
        return np.array([t.data_ptr() for t in tensors[: 2 * len(self.codes)]]).reshape(-1, 2)


def _seed(loss: Loss, outputs: Tensor, curvature: Curvature) -> tuple[Any, ...]:
    """The loss's value, its gradient and, unless the curvature is Nothing, the message at the outputs, as arrays."""
    if type(curvature) is not BL89 and (seeded := losses.seed(loss, outputs)) is not None:
        value, g, d = seeded
        messages = [g, d] if curvature.wants_diagonal else [g]
        return torch.scalar_tensor(value, dtype=torch.float32, device="cpu"), *messages
    with torch.no_grad():
        total, gradient, diagonal = loss.value_grad_curvature(outputs, diagonal=curvature.wants_diagonal)
        tensors = [gradient, curvature.seed(loss, outputs, diagonal)]
    return total, *(t.to(outputs.dtype).contiguous().numpy() for t in tensors if t is not None)


def _beside(mean: np.ndarray, row: np.ndarray) -> np.ndarray:
    """[mean, row] for every sample: what a GaussianHead does, without numpy's slow ways of repeating a row."""
    n, c = mean.shape
    out = np.empty((n, 2 * c), np.float32)
    out[:, :c], out[:, c:] = mean, row
    return out


def find(net: nn.Module, x: Tensor, curvature: Any) -> FastMLP | None:
    """Return the chain that `net` is, or None where the tape must do the work."""
    if type(net) is not nn.Sequential or type(curvature) not in CURVATURES or not checks.is_plain(x):
        return None
    if (
        x.ndim != 2
        or x.dtype is not torch.float32
        or not x.is_cpu
        or x.requires_grad
        or not x.numel()
        or is_traced(x)
    ):
        return None
    if x.is_neg() or checks.surroundings("cpu"):
        return None
    fast_mlp = FastMLP()
    if not fast_mlp.add(net) or not fast_mlp.codes or fast_mlp.sizes[0] != x.shape[1]:
        return None
    return fast_mlp if all(_is_row(p) for p in fast_mlp.params.values()) else None


def _is_row(p: Tensor) -> bool:
    """Whether p's numbers lie one after the other where its address is, and nobody waits for its gradient."""
    return (
        p.dtype is torch.float32
        and p.is_cpu
        and checks.is_plain(p)
        and p.is_contiguous()
        and not p.is_neg()
        and not checks.has_hooks(p)
    )


def branches(net: nn.Module) -> list[nn.Module]:
    """Return the networks that stand side by side in `net`: those of Heads, or `net` itself."""
    return [*net.branches] if type(net) is networks.Heads and not checks.altered(net) else [net]


def fast_mlps(nets: Iterable[nn.Module], x: Tensor) -> list[FastMLP] | None:
    """Return the chains that all the networks are, or None if one is none."""
    found = [find(net, x, NoCurvature()) for net in nets]
    good = [fast_mlp for fast_mlp in found if fast_mlp is not None]
    return good if len(good) == len(found) else None


def function(net: nn.Module, x: Tensor) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the network as a function of arrays [N, I] -> [N, C], for inputs like x; None if it is no chain.

    It reads the parameters where they lie now: they may change in place, but must not be moved or replaced.
    """
    if (nets := branches(net)) != [net]:
        parts = [function(branch, x) for branch in nets]
        if any(part is None for part in parts):
            return None
        return lambda inputs: np.concatenate([part(inputs) for part in parts if part is not None], 1)
    fast_mlp = find(net, x, NoCurvature())
    if fast_mlp is None:
        return None
    ready()
    outputs = partial(kernels.outputs, *fast_mlp.arrays())
    if fast_mlp.log_std is None:
        return outputs
    last = fast_mlp.log_std.detach().numpy()
    return lambda inputs: _beside(outputs(inputs), last)
