"""From torch to the loops and back: which networks are MLPs that they cover, and one pass over them."""

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
from ..rules import BUILT_IN, FUNCTIONS, RULES, checks
from . import kernels, losses
from .cache import ready
from .records import GAUSSIAN_HEAD, MLP, NO_CURVATURE, NO_HEAD, WITH_D2F, WITHOUT_D2F, Forward, Network

LARGEST = 50_000  # weights in a layer; with more, torch's products are faster than ours

ACTIVATIONS: dict[Any, int] = {
    nn.Tanh: kernels.TANH,
    nn.ReLU: kernels.RELU,
    nn.Sigmoid: kernels.SIGMOID,
    nn.SiLU: kernels.SILU,
    networks.Exp: kernels.EXP,
}
KINDS = frozenset({*ACTIVATIONS, nn.Linear, networks.GaussianHead})
# What these are made of: a rule that a user has registered in the place of one of them is the tape's to apply.
_PARTS = (nn.functional.linear, torch.tanh, nn.functional.relu, torch.sigmoid, nn.functional.silu, torch.Tensor.exp)
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
        """Append the layers of `net`; return False if one of them is not covered."""
        if checks.altered(net):
            return False
        for name, layer in net._modules.items():
            kind: Any = type(layer)
            if kind is nn.Sequential:
                if not self.add(layer, f"{path}{name}."):  # type: ignore[arg-type]
                    return False
                continue
            if self.log_std is not None or kind not in KINDS or kind in RULES:
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
        net = self.record()
        done = kernels.forward(net, losses.array(x))
        outputs = torch.from_numpy(self._outputs(done))
        value, *messages = _seed(loss, outputs, curvature)
        grads, *curvatures = ([torch.empty_like(p) for p in self.params.values()] for _ in messages)
        kind = WITHOUT_D2F if type(curvature) is HesScaleGN else WITH_D2F if curvatures else NO_CURVATURE
        to = Network(net, _addresses(grads), _addresses(curvatures[0] if curvatures else grads))
        kernels.reverse(to, done, messages[0], messages[-1], kind)
        named = [dict(zip(self.params, result, strict=True)) for result in (grads, *curvatures)]
        return value, outputs, named[0], named[1] if len(named) == 2 else {}

    def _outputs(self, done: Forward) -> np.ndarray:
        """The outputs after a pass: a view, or with a GaussianHead [z, log_std]."""
        n, c = len(done.x), self.sizes[-1]
        z = done.y[len(done.y) - n * c :].reshape(n, c)
        if self.log_std is None:
            return z
        out = np.empty((n, 2 * c), np.float32)  # numpy's ways of repeating a row are slow
        out[:, :c], out[:, c:] = z, self.log_std.detach().numpy()
        return out

    def record(self) -> MLP:
        """Return what the loops need to know; the parameters may change in place, but must not be replaced."""
        head = NO_HEAD if self.log_std is None else GAUSSIAN_HEAD
        return MLP(np.array(self.sizes), np.array(self.codes), head, _addresses(self.params.values()))

    def network(self, grads: dict[Tensor, Tensor], curvatures: dict[Tensor, Tensor]) -> Network:
        """Return the same with what is written for each parameter: its gradient, and its curvature."""
        to = (_addresses(results[p] for p in self.params.values()) for results in (grads, curvatures))
        return Network(self.record(), *to)


def _addresses(tensors: Iterable[Tensor]) -> np.ndarray:
    """Where each lies."""
    return np.array([t.data_ptr() for t in tensors])


def _seed(loss: Loss, outputs: Tensor, curvature: Curvature) -> tuple[Any, ...]:
    """The loss's value, its gradient and, if there is curvature, the message at the outputs, as arrays."""
    if type(curvature) is not BL89 and (seeded := losses.seed(loss, outputs)) is not None:
        value, g, d = seeded
        messages = [g, d] if curvature.wants_diagonal else [g]
        return torch.scalar_tensor(value, dtype=torch.float32, device="cpu"), *messages
    with torch.no_grad():
        total, gradient, diagonal = loss.value_grad_curvature(outputs, diagonal=curvature.wants_diagonal)
        tensors = [gradient, curvature.seed(loss, outputs, diagonal)]
    return total, *(t.to(outputs.dtype).contiguous().numpy() for t in tensors if t is not None)


def find(net: nn.Module, x: Tensor, curvature: Any) -> FastMLP | None:
    """Return `net` as the loops take it, or None where the tape must do the work."""
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
    if any(FUNCTIONS.get(f) is not BUILT_IN[f] for f in _PARTS):
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
    """Return all the networks as the loops take them, or None if one is not covered."""
    found = [find(net, x, NoCurvature()) for net in nets]
    good = [fast_mlp for fast_mlp in found if fast_mlp is not None]
    return good if len(good) == len(found) else None


def function(net: nn.Module, x: Tensor) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the network as a function of arrays [N, I] -> [N, C], for inputs like x; None if it is not covered.

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
    return partial(kernels.outputs, fast_mlp.record())
