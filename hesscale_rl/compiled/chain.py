"""From torch to the loops and back: what a chain is, and one pass over it."""

from typing import Any

from collections.abc import Sequence
import numpy as np
import torch
from torch import Tensor, nn

from .. import networks
from ..curvature import BL89, Curvature, HesScale, HesScaleGN, Nothing
from ..losses import Loss
from . import kernels

LARGEST = 20_000  # weights in a layer; with more, torch's products are faster than ours

ACTIVATIONS: dict[type[nn.Module], int] = {
    nn.Tanh: kernels.TANH,
    nn.ReLU: kernels.RELU,
    nn.Sigmoid: kernels.SIGMOID,
    nn.SiLU: kernels.SILU,
}
CURVATURES: tuple[type[Curvature], ...] = (Nothing, HesScale, HesScaleGN, BL89)

Named = dict[str, Tensor]


class Chain:
    """Linear layers, each with an activation or none behind it, and a GaussianHead or none at the end."""

    def __init__(self) -> None:
        self.params: Named = {}  # by name, in the order of the layers
        self.sizes: list[int] = []
        self.codes: list[int] = []
        self.log_std: Tensor | None = None

    def _add(self, net: nn.Module, path: str) -> bool:
        """Append the layers of `net`; False if one does not belong into a chain."""
        for name, layer in net._modules.items():
            kind, own = type(layer), layer._parameters  # type: ignore[union-attr]
            if self.log_std is not None:
                return False
            if kind is nn.Linear:
                w, b = own["weight"], own["bias"]
                if b is None or w is None or w.numel() > LARGEST or (self.sizes and w.shape[1] != self.sizes[-1]):
                    return False
                if not self.sizes:
                    self.sizes.append(w.shape[1])
                self.sizes.append(w.shape[0])
                self.codes.append(kernels.IDENTITY)
                self.params[f"{path}{name}.weight"], self.params[f"{path}{name}.bias"] = w, b
            elif kind in ACTIVATIONS:
                if not self.codes or self.codes[-1] != kernels.IDENTITY:
                    return False
                self.codes[-1] = ACTIVATIONS[kind]
            elif kind is networks.GaussianHead and self.codes:
                self.log_std = self.params[f"{path}{name}.log_std"] = own["log_std"]
            elif kind is not nn.Sequential or not self._add(layer, f"{path}{name}."):  # type: ignore[arg-type]
                return False
        return True

    def run(self, x: Tensor, loss: Loss, curvature: Curvature) -> tuple[Tensor, Tensor, Named, Named]:
        """Return the loss's value, the outputs, and the gradient and the curvature by parameter name."""
        tensors = list(self.params.values())
        inputs, sizes, codes = x.detach().contiguous().numpy(), np.array(self.sizes), np.array(self.codes)
        params, n, c = self._addresses(tensors), len(inputs), self.sizes[-1]
        y, dy, ddy = kernels.forward(params, sizes, codes, inputs)
        output = torch.from_numpy(y[len(y) - n * c :].reshape(n, c))
        if self.log_std is not None:
            output = torch.cat([output, self.log_std.detach().expand_as(output)], 1)
        value, g, diagonal = loss.value_grad_curvature(output, diagonal=curvature.wants_diagonal)
        d = curvature.seed(loss, output, diagonal)
        results = [[torch.empty_like(p) for p in tensors] for v in (g, d) if v is not None]
        if self.log_std is not None:
            for v, result in zip((g, d), results, strict=False):
                torch.sum(v[:, c:], 0, out=result[-1])
            g, d = g[:, :c], None if d is None else d[:, :c]
        where = [self._addresses(result) for result in results]
        seed = g.contiguous().numpy()
        kernels.reverse(
            params, sizes, codes, inputs, y, dy, ddy, seed, seed[:0] if d is None else d.contiguous().numpy(),
            type(curvature) is not HesScaleGN, where[0], where[-1],
        )
        named = [dict(zip(self.params, result, strict=True)) for result in results]
        return value, output, named[0], named[1] if len(named) > 1 else {}

    def _addresses(self, tensors: Sequence[Tensor]) -> np.ndarray:
        """Where each layer's weight and bias lie, [L, 2]."""
        return np.array([t.data_ptr() for t in tensors[: 2 * len(self.codes)]]).reshape(-1, 2)


def find(net: nn.Module, x: Tensor, curvature: Any) -> Chain | None:
    """Return the chain that `net` is, or None where the tape must do the work."""
    if type(net) is not nn.Sequential or type(curvature) not in CURVATURES:
        return None
    if x.ndim != 2 or x.dtype is not torch.float32 or x.device.type != "cpu":
        return None
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return None
    chain = Chain()
    if not chain._add(net, "") or not chain.codes or chain.sizes[0] != x.shape[1] or not len(x):
        return None
    if any(p.dtype is not torch.float32 or p.device.type != "cpu" for p in chain.params.values()):
        return None
    return chain
