"""Torch functions that are told in terms of others: each runs its definition, and what that calls is recorded."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rule import NotCovered, arguments


def addmm(x: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """beta x + alpha a b, also of stacks and vectors."""
    y = torch.matmul(a, b)
    return (x if beta == 1 else beta * x) + (y if alpha == 1 else alpha * y)


def addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Tensor:
    """x + value a b."""
    return x + value * (a * b)


def addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Tensor:
    """x + value a/b."""
    return x + value * (a / b)


def lerp(x: Tensor, end: Tensor, weight: Any) -> Tensor:
    """x (1 - weight) + end weight."""
    return x * (1 - weight) + end * weight


def softmin(x: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """The softmax of -x."""
    return F.softmax(-x, dim=dim, dtype=dtype)


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All in one shape."""
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    return tuple(t.expand(shape) for t in tensors)


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """a sigmoid(b) of the two halves."""
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """x above zero, else weight x; a weight for each channel, or one."""
    w = weight if weight.numel() == 1 or x.ndim == 1 else weight.view(-1, *[1] * (x.ndim - 2))
    return torch.where(x > 0, x, w * x)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


_LOSS = {"size_average": None, "reduce": None, "reduction": "mean", "weight": None}


def mse_loss(x: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The squared error."""
    return _error((x - target).square(), args, kwargs)


def l1_loss(x: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The absolute error."""
    return _error((x - target).abs(), args, kwargs)


def _error(each: Tensor, args: Any, kwargs: Any) -> Tensor:
    m = arguments(_LOSS, args, kwargs)
    if m["size_average"] is not None or m["reduce"] is not None or m["weight"] is not None:
        raise NotCovered
    return _reduced(each, m["reduction"])


_CLASSES = {"weight": None, "size_average": None, "ignore_index": -100, "reduce": None, "reduction": "mean"}


def nll_loss(x: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """-x[target]."""
    m = arguments(_CLASSES, args, kwargs)
    if m["size_average"] is not None or m["reduce"] is not None or target.ndim != x.ndim - 1 or x.ndim < 2:
        raise NotCovered
    used, weight = target != m["ignore_index"], m["weight"]
    safe = torch.where(used, target, torch.zeros_like(target))
    share = used.to(x.dtype) if weight is None else weight[safe] * used
    each = -torch.gather(x, 1, safe[:, None]).squeeze(1) * share
    return each.sum() / share.sum() if m["reduction"] == "mean" else _reduced(each, m["reduction"])


def cross_entropy(x: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """-log softmax(x)[target]."""
    m = arguments(_CLASSES | {"label_smoothing": 0.0}, args, kwargs)
    if m.pop("label_smoothing") or x.ndim < 2 or target.dtype.is_floating_point:
        raise NotCovered
    return nll_loss(F.log_softmax(x, dim=1), target, **m)


def bce_with_logits(x: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """softplus(x) - x target, reduced."""
    m = arguments(dict.fromkeys(("weight", "size_average", "reduce", "reduction", "pos_weight")), args, kwargs)
    how = m.pop("reduction") or "mean"
    if how == "none" or any(value is not None for value in m.values()):
        raise NotCovered
    return _reduced(F.binary_cross_entropy_with_logits(x, target, reduction="none"), how)


def group_norm(x: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Layer normalisation of each group of channels, and a factor for each channel."""
    grouped = x.reshape(len(x), num_groups, -1)
    y = F.layer_norm(grouped, grouped.shape[2:], eps=eps).reshape(x.shape)
    return _by_channel(y, weight, bias)


def _by_channel(y: Tensor, weight: Any, bias: Any) -> Tensor:
    """weight y + bias, of each channel its own: what batch normalisation by running statistics does to centred y."""
    if weight is not None and weight.dtype is y.dtype:
        statistics = y.new_zeros(y.shape[1]), y.new_ones(y.shape[1])
        return F.batch_norm(y, *statistics, weight, bias, False, 0.0, 0.0)
    shape = [-1, *[1] * (y.ndim - 2)]
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def instance_norm(
    x: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    *rest: Any,
    **named: Any,
) -> Tensor:
    """Group normalisation with a group for each channel; by running statistics batch normalisation."""
    given = dict(zip(("use_input_stats", "momentum", "eps"), rest, strict=False)) | named
    if not given.get("use_input_stats", True):
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.0, given.get("eps", 1e-5))
    if running_mean is not None:
        with torch.no_grad():
            F.instance_norm(x.detach(), running_mean, running_var, None, None, *rest, **named)
    return group_norm(x, x.shape[1], weight, bias, given.get("eps", 1e-5))


def batch_statistics(
    x: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any, momentum: float, eps: float
) -> Tensor:
    """Batch normalisation in training: each channel normalised over samples and positions, exactly."""
    if running_mean is not None:
        with torch.no_grad():
            F.batch_norm(x.detach(), running_mean, running_var, None, None, True, momentum, eps)
    channels = x.transpose(0, 1)
    y = F.layer_norm(channels, channels.shape[1:], eps=eps).transpose(0, 1)
    return _by_channel(y, weight, bias)


def bilinear(a: Tensor, b: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    """a' W_o b + bias_o."""
    lead = a.shape[:-1]
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    left = torch.einsum("ni,oij->noj", a, weight)
    y = torch.einsum("noj,nj->no", left, b).reshape(*lead, -1)
    return y if bias is None else y + bias


def attention(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What the rule of attention does not cover: shared keys, and dropout, for which it is taken apart."""
    names = ("key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    m = arguments(dict.fromkeys(names), args, kwargs)
    k, v, mask, scale = m["key"], m["value"], m["attn_mask"], m["scale"]
    if m["enable_gqa"] and q.shape[-3] != k.shape[-3]:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    elif not m["dropout_p"] and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        raise NotCovered
    if not m["dropout_p"] and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=bool(m["is_causal"]), scale=scale)
    scores = torch.matmul(q, k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if m["is_causal"]:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    return torch.matmul(F.dropout(F.softmax(scores, dim=-1), m["dropout_p"] or 0.0), v)


def multihead_attention(
    layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Any]:
    """nn.MultiheadAttention with the samples on axis 0 throughout, where torch moves them to and fro."""
    named = {"key_padding_mask": None, "need_weights": True, "attn_mask": None, "average_attn_weights": True}
    m = arguments(named | {"is_causal": False}, args, kwargs)
    own = query is key is value and layer.batch_first and query.ndim == 3 and layer._qkv_same_embed_dim
    extra = layer.bias_k is not None or layer.add_zero_attn or (layer.dropout and layer.training)
    if not own or extra or (m["is_causal"] and m["attn_mask"] is None):
        raise NotCovered
    n, t, width = query.shape
    projected = F.linear(query, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in projected)
    mask = m["attn_mask"]
    mask = _mask(mask, query, (n, layer.num_heads, t, t) if mask is not None and mask.ndim == 3 else None)
    padding = _mask(m["key_padding_mask"], query, (n, 1, 1, t))
    mask = padding if mask is None else mask if padding is None else mask + padding
    weights = None
    if m["need_weights"]:
        scores = torch.matmul(q * (width // layer.num_heads) ** -0.5, k.transpose(-2, -1))
        weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
        y = torch.matmul(weights, v)
        weights = weights.mean(1) if m["average_attn_weights"] else weights
    else:
        y = F.scaled_dot_product_attention(q, k, v, mask)
    return F.linear(y.transpose(1, 2).flatten(2), layer.out_proj.weight, layer.out_proj.bias), weights


def _mask(mask: Any, like: Tensor, shape: Any) -> Any:
    """A mask of nn.MultiheadAttention, True where nothing is seen, as numbers that are added."""
    if mask is None:
        return None
    if mask.dtype is torch.bool:
        mask = like.new_zeros(mask.shape).masked_fill(mask, -math.inf)
    return mask if shape is None else mask.view(shape)


def extreme_of_two(name: str) -> Any:
    """torch.max and torch.min, which mean three things."""

    def extreme(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        other = kwargs.get("other", args[0] if args else None)
        if isinstance(other, Tensor):
            return getattr(torch, f"{name}imum")(x, other)
        if not args and not kwargs:
            return getattr(torch, f"a{name}")(x)
        dim: Any = kwargs.get("dim", args[0] if args else None)
        keep = kwargs.get("keepdim", args[1] if len(args) > 1 else False)
        _, at = getattr(x.detach(), name)(dim, True)
        y = torch.gather(x, dim, at)
        kind = getattr(torch.return_types, name)
        return kind((y, at) if keep else (y.squeeze(dim), at.squeeze(dim)))

    return extreme


def channel_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels: a mask times x."""
    if not training:
        return x
    ones = torch.ones([*x.shape[:2], *[1] * (x.ndim - 2)], dtype=x.dtype, device=x.device)
    return x * F.dropout(ones, p)


def alpha_dropout(x: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Dropout that keeps mean and variance: an affine map of kept and of dropped entries."""
    if not training or p == 0:
        return x
    low = -1.7580993408473766
    a = ((1 - p) * (1 + p * low * low)) ** -0.5
    kept = torch.bernoulli(torch.full_like(x, 1 - p))
    return x * (kept * a) + ((1 - kept) * low * a - a * low * p)


def batch_norm(x: Tensor, running_mean: Any, running_var: Any, *args: Any, **kwargs: Any) -> Tensor:
    """By running statistics or, in training, by the batch's."""
    m = arguments({"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}, args, kwargs)
    if not m["training"]:
        raise NotCovered
    return batch_statistics(x, running_mean, running_var, m["weight"], m["bias"], m["momentum"], m["eps"])
