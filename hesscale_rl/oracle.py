"""Dense derivatives by torch.func, through the network's own forward: slow, and free of every rule in this library.

The tests and the approximation study hold the fast methods against these. All take the network, its parameters by
name, x [N, ...] (a tuple or a dict of several) and a loss of hesscale_rl.losses.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vjp, vmap
from torch.overrides import TorchFunctionMode

from .entering import entered
from .networks import given_to

Params = dict[str, Tensor]


def loss_of(net: nn.Module, x: Tensor, loss: Any) -> Callable[[Params], Tensor]:
    """Return the loss as a function of the parameters."""
    # Parameters that are tied follow their first name; torch's own tie_weights confuses a module that stands twice.
    first: dict[int, str] = {}
    name_of = {}
    for prefix, module in net.named_modules():
        for attribute, p in module._parameters.items():
            if p is not None:
                name = f"{prefix}.{attribute}" if prefix else attribute
                name_of[name] = first.setdefault(id(p), name)

    def value(params: Params) -> Tensor:
        every = {name: params[source] for name, source in name_of.items()}
        with Elementary():
            return loss.value(_applied(net, every, x, tie_weights=False))

    return value


class Elementary(TorchFunctionMode):
    """Normalisations and attention by their definitions.

    The second derivatives of torch 2.13's own fail under vmap, or are wrong (_weight_norm, also by autograd alone).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as asked, but for those functions."""
        return _DEFINITIONS.get(func, func)(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    over = list(range(-len(normalized_shape), 0))
    centred = x - x.mean(over, keepdim=True)
    y = centred / (centred.square().mean(over, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _batch_norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or mean is None or var is None:
        return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)

    def by_channel(t: Tensor) -> Tensor:
        return t.view(-1, *[1] * (x.ndim - 2))

    y = (x - by_channel(mean)) * (by_channel(var) + eps).rsqrt()
    y = y if weight is None else y * by_channel(weight)
    return y if bias is None else y + by_channel(bias)


def _instance_norm(x: Tensor, mean: Any = None, var: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    m = dict(zip(("weight", "bias", "use_input_stats", "momentum", "eps"), args, strict=False)) | kwargs
    if mean is not None or not m.get("use_input_stats", True):
        return F.instance_norm(x, mean, var, *args, **kwargs)
    y = _layer_norm(x, x.shape[2:], eps=m.get("eps", 1e-5))
    weight, bias = (None if (t := m.get(k)) is None else t.view(-1, *[1] * (x.ndim - 2)) for k in ("weight", "bias"))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    over = [i for i in range(v.ndim) if dim == -1 or i != dim % v.ndim]
    return g * (v / v.square().sum(over, keepdim=True).sqrt())


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        bool_mask = attn_mask.dtype is torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if bool_mask else scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ v


def _multihead_attention(*args: Any, **kwargs: Any) -> Any:
    with Elementary():
        return entered(F.multi_head_attention_forward)(*args, **kwargs)


_DEFINITIONS = {
    F.multi_head_attention_forward: _multihead_attention,
    F.scaled_dot_product_attention: _attention,
    F.hardsigmoid: lambda x, inplace=False: F.relu6(x + 3) / 6,  # torch's own slope is rounded to float32
    torch._weight_norm: _weight_norm,
    F.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
    F.batch_norm: _batch_norm,
}


def gradient(net: nn.Module, params: Params, x: Tensor, loss: Any) -> Params:
    """Return the gradient, by name."""
    return grad(loss_of(net, x, loss))(_detached(params))


def hessian(net: nn.Module, params: Params, x: Tensor, loss: Any) -> Params:
    """Return each parameter's own block of the Hessian, [n, n] with n its number of entries."""
    blocks = {}
    params = _detached(params)
    for name, p in params.items():

        def along(flat: Tensor, name: str = name, p: Tensor = p) -> Tensor:
            return loss_of(net, x, loss)({**params, name: flat.view_as(p)})

        blocks[name] = jacrev(grad(along))(p.flatten())
    return blocks


def hessian_product(
    net: nn.Module, params: Params, x: Tensor, loss: Any, traced: bool = False
) -> Callable[[Params], Params]:
    """Return the function v -> H v, both by name. `traced`: under vmap, where only torch.func's slower way works."""
    value = loss_of(net, x, loss)
    if traced:
        product = vjp(grad(value), _detached(params))[1]
        return lambda v: product(v)[0]
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    with torch.enable_grad():
        every = list(leaves.values())
        gradients = torch.autograd.grad(value(leaves), every, create_graph=True, materialize_grads=True)
    # A gradient that depends on no parameter (a linear network's) has no graph, and a Hessian of zeros.
    curved = [g for g in gradients if g.requires_grad]

    def times(v: Params) -> Params:
        along = [direction for direction, g in zip(v.values(), gradients, strict=True) if g.requires_grad]
        if not curved:
            return {name: torch.zeros_like(p) for name, p in leaves.items()}
        columns = torch.autograd.grad(curved, list(leaves.values()), along, retain_graph=True, materialize_grads=True)
        return dict(zip(leaves, columns, strict=True))

    return times


def hessian_diagonal(
    net: nn.Module, params: Params, x: Any, loss: Any, chunk: int = 256, names: Iterable[str] | None = None
) -> Params:
    """Return the Hessian's diagonal, by name, without ever holding the Hessian: `chunk` rows of it at a time.

    `names`: of those parameters alone, which is cheaper.
    """
    params, value = _detached(params), loss_of(net, x, loss)
    wanted = {name: params[name] for name in (params if names is None else names)}

    def of(some: Params) -> Tensor:
        return value({**params, **some})

    product = vjp(grad(of), wanted)[1]  # the Hessian is symmetric, so this is H times a vector
    diagonal = {}
    for name, p in wanted.items():

        def entry(i: Tensor, name: str = name, p: Tensor = p) -> Tensor:
            direction = {k: torch.zeros_like(v) for k, v in wanted.items()}
            direction[name] = (torch.arange(p.numel(), device=p.device) == i).to(p).view_as(p)
            return product(direction)[0][name].flatten().gather(0, i[None])[0]

        index = torch.arange(p.numel(), device=p.device)
        diagonal[name] = vmap(entry, chunk_size=chunk)(index).view_as(p)
    return diagonal


def ggn(net: nn.Module, params: Params, x: Tensor, loss: Any) -> Params:
    """Return each parameter's own block of the generalised Gauss-Newton matrix, sum_n J_n' H_n J_n, [n, n]."""
    params = _detached(params)
    curvature = loss.hessian(_applied(net, params, x))  # [N, C, C]
    jacobian = jacrev(lambda p: _applied(net, p, x))(params)
    return {
        name: torch.einsum("nci,ncd,ndj->ij", j.flatten(2), curvature, j.flatten(2)) for name, j in jacobian.items()
    }


def _applied(net: nn.Module, params: Params, x: Any, **settings: Any) -> Any:
    """net(x), net(*x) or net(**x) with those parameters."""
    args = () if isinstance(x, dict) else x if isinstance(x, tuple) else (given_to(net, x),)
    return functional_call(net, params, args, x if isinstance(x, dict) else None, **settings)


def _detached(params: Params) -> Params:
    return {name: p.detach() for name, p in params.items()}
