"""The only traversal of a network: one pass forward that keeps a rule per layer, one pass back over them.

`backward` is what a training loop calls; `value_grad_curvature` is the same without side effects, for torch.func.vmap
over K networks and for torch.compile. No hooks, no autograd graph, no global state.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import compiled
from .backend import compiles
from .curvature.base import Curvature, NoCurvature
from .curvature.blocks import Block
from .errors import InputError
from .losses import Loss, as_loss
from .rules import MissingPrimitive, Refusal, Rule, UnsupportedLayerError, checks


class Result(NamedTuple):
    """What one pass gives: the loss, the network's outputs, and per parameter name its gradient and curvature."""

    value: Tensor  # 0-d
    output: Tensor  # [N, ...]
    grad: dict[str, Tensor]
    curvature: dict[str, Any]  # tensors in the parameters' shapes; of KFAC, KFRA and HBP blocks (curvature/blocks.py)


def record(
    net: nn.Module, x: Tensor, params: dict[str, Tensor] | None = None, path: str = ""
) -> tuple[list[Rule], Tensor]:
    """Run `net` on x [N, ...]; return the tape (a rule per layer, in order) and the outputs.

    `params`: parameters by name to use instead of the network's own. `path`: where `net` stands ("body.").
    """
    kind = checks.check_layer(net, path)
    if kind is None:
        tape: list[Rule] = []
        for name, layer in checks.parts(net, kind):
            part, x = record(layer, x, params, path + name)
            tape += part
        return tape, x
    runs = [record(part, x, params, path + name) for name, part in checks.parts(net, kind)]
    own, constants = checks.parameters(net, kind, x, params, path)
    try:
        if runs:
            rule: Rule = kind(net, x, [tape for tape, _ in runs], [y for _, y in runs], path)  # type: ignore[call-arg, arg-type]
        else:
            rule = kind(net, own | constants if constants else own, x)
    except Refusal as refusal:
        raise UnsupportedLayerError(path, net, str(refusal)) from None
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        place, words = path.rstrip(".") or "(the network itself)", str(error).partition("\n")[0]
        raise InputError(
            f"layer {place} ({type(net).__qualname__}) with the input {list(x.shape)}: {words}"
        ) from error
    rule.path, rule.trained = path, own
    return [rule], rule.y


def _reverse(tape, g, message, curvature, reads, to_input):
    """Carry the gradient g and the curvature's message from the tape's outputs back to its input.

    Appends (path, parameters, gradients, curvatures) of every layer that has any to `reads`. Without `to_input` it
    ends at the first of these and returns nothing of use: nobody asks for derivatives with respect to the data.
    The tape is used up, so that what a layer has kept is free once the pass is below it.
    """
    first = 0 if to_input else next((i for i, r in enumerate(tape) if r.trained or r.branches), len(tape))
    while len(tape) > first:
        rule = tape.pop()
        go_on = to_input or len(tape) > first
        if rule.branches:
            ends = [  # a name for the zip would keep the last branch
                _reverse([*branch], v, m, curvature, reads, go_on)
                for branch, v, m in zip(rule.branches, rule.split(g), curvature.split(rule, message), strict=True)
            ]
            if go_on:
                g, message = sum(v for v, _ in ends), curvature.merge(rule, message, [m for _, m in ends])
            continue
        if rule.trained:
            reads.append((rule.path, rule.trained, rule.grad(g), curvature.read(rule, message)))
        if go_on:
            # The message's step needs the gradient above the layer, so it goes first.
            message = curvature.pull(rule, g, message)
            g = rule.vjp(g)
    return g, message


def _pass(net, x, params, loss, curvature):
    """One pass forward and back: value, outputs, reads."""
    tape, y = record(net, x, params)
    value, g, diagonal = loss.value_grad_curvature(y, diagonal=curvature.wants_diagonal)
    g, diagonal = g.to(y.dtype), None if diagonal is None else diagonal.to(y.dtype)
    reads: list = []
    try:
        _reverse(tape, g, curvature.seed(loss, y, diagonal), curvature, reads, to_input=False)
    except MissingPrimitive as lack:
        raise UnsupportedLayerError(
            lack.rule.path, lack.rule.layer, f"{type(curvature).__name__} cannot pass it, because {lack}"
        ) from None
    return value, y, reads


@torch.no_grad()
def value_grad_curvature(
    net: nn.Module,
    params: dict[str, Tensor],
    x: Tensor,
    loss: Loss | Callable[[Tensor], Tensor],
    curvature: Curvature | None = None,
) -> Result:
    """Return loss, outputs, gradients and curvatures for the parameters `params`, by name, changing nothing.

    For K networks at once: `torch.func.vmap(lambda p, x, t: value_grad_curvature(net, p, x, Loss(t), HesScale()))`
    over stacked parameters.
    """
    checks.check_input(x)
    loss, curvature = as_loss(loss), curvature or NoCurvature()
    if hooked := [] if torch.compiler.is_compiling() else [name for name, p in params.items() if checks.has_hooks(p)]:
        raise InputError(f"params: {hooked[0]} has hooks, which only backward runs; hand over p.detach()")
    if curvature.on_tape:
        return _by_name(net, params, x, loss, curvature)
    result = _by_name(net, params, x, loss, NoCurvature())
    return result._replace(curvature=curvature.estimate(net, params, x, loss))


def _by_name(net, params, x, loss, curvature):
    """One pass forward and back as a Result: what torch.compile is given."""
    value, y, reads = _pass(net, x, params, loss, curvature)
    grad: dict[str, Tensor] = {}
    curv: dict[str, Any] = {}
    for path, own, grads, curvs in reads:
        grad.update({path + name: grads[name] for name in own})
        curv.update({path + name: curvs[name] for name in own if curvs})
    return Result(value, y, grad, curv)


@cache
def _graph() -> Callable[..., Result]:
    return torch.compile(_by_name, fullgraph=True, dynamic=False)


def backward(
    net: nn.Module,
    x: Tensor,
    loss: Loss | Callable[[Tensor], Tensor],
    curvature: Curvature | None = None,
    backend: str = "auto",
) -> Result:
    """Add the loss's gradient to `p.grad` and its curvature to `p.hess_diag` of every parameter p of `net`.

    A curvature that gives blocks (KFAC, KFRA, HBP) adds to `p.hess_block` instead.
    `x` [N, ...] is data: nothing flows back into it, and one that requires grad is refused. `loss`: one of
    hesscale_rl.losses, or any callable outputs -> scalar (slower: its second derivatives come from autodiff). Like
    autograd, it sums into what is there, and it leaves frozen parameters alone and calls the hooks of the others
    (`register_hook` changes what is added to p.grad, not the curvature and not the result); a module that stands
    twice in the network gets the sum over its places, with the methods on the tape without their cross terms.
    `backend`: "auto" takes compiled loops for what they cover (compiled/mlp.py: small MLPs in float32 on the CPU),
    with the tape's results up to rounding, where backend.py allows it; "torch" always takes the tape; "compile" the
    tape by torch.compile, which takes half a minute for each new network, loss or batch size, and a C++ compiler (on
    CUDA: Triton).
    Raises UnsupportedLayerError for a layer without a rule, or one whose call means more than its rule knows (hooks,
    a forward of its own), InputError or ValueError for x that does not fit, or a loss that does not fit the outputs.
    """
    if backend not in ("auto", "torch", "compile"):
        raise ValueError(f"backend={backend!r}: allowed are 'auto', 'torch' and 'compile'")
    if curvature is not None and not isinstance(curvature, Curvature):
        raise TypeError(f"curvature={curvature!r}: must be an object such as hesscale_rl.HesScale(), or None")
    loss, curvature = as_loss(loss), curvature or NoCurvature()
    on_tape = curvature if curvature.on_tape else NoCurvature()
    fast_mlp = compiled.find(net, x, on_tape) if backend == "auto" and compiles() else None
    if fast_mlp is None:
        checks.check_input(x)
    if fast_mlp is not None:
        params = fast_mlp.params
        result = Result(*fast_mlp.run(x, loss, on_tape))
    elif backend == "compile":
        result = _by_graph(net, x, loss, on_tape)
        params = dict(net.named_parameters(remove_duplicate=False))
        params = {name: params[name] for name in result.grad}
    else:
        with torch.no_grad():
            value, y, reads = _pass(net, x, None, loss, on_tape)
        params, result = {}, Result(value, y, {}, {})
        for path, own, grads, curvatures in reads:
            for name, p in own.items():
                params[path + name], result.grad[path + name] = p, grads[name]
                if curvatures:
                    result.curvature[path + name] = curvatures[name]
    if not curvature.on_tape:
        # By every parameter's first name; the gradients of a module that stands twice have two.
        result = result._replace(curvature=curvature.estimate(net, dict(net.named_parameters()), x, loss))
    hooked: dict[Tensor, tuple[Tensor, Any]] = {}  # with the sums over a parameter's places: hooks see it once
    for name, p in params.items():
        if not p.requires_grad:
            continue
        grad, curved = result.grad[name], result.curvature.get(name)
        if fast_mlp is None and checks.has_hooks(p):  # a FastMLP has none
            g, h = hooked.get(p, (None, None))
            hooked[p] = grad if g is None else g + grad, curved if h is None else h + curved
        else:
            _accumulate_curvature(p, curved)
            p.grad = grad if p.grad is None else p.grad.detach() + grad
    if hooked:
        _accumulate_by_autograd(hooked)
    return result


def measure_curvature(
    net: nn.Module, x: Tensor, loss: Loss | Callable[[Tensor], Tensor], curvature: Curvature
) -> dict[str, Any]:
    """Set the curvature alone, `p.hess_diag` or `p.hess_block`, for a network of any modules that autograd trains.

    For the methods that need no rules: GaussNewton, Hutchinson, ExactDiagonal; TypeError for others. Returns the
    curvature by name. Call it after `loss.value(net(x)).backward()`, before the step.
    """
    if not isinstance(curvature, Curvature) or curvature.on_tape:
        raise TypeError(f"measure_curvature: {curvature!r} needs hesscale_rl.backward, and a rule for every layer")
    params: dict[str, Tensor] = dict(net.named_parameters())
    found: dict[str, Any] = curvature.estimate(net, params, x, as_loss(loss))
    for name, value in found.items():
        value.of_version = params[name]._version
        setattr(params[name], "hess_block" if isinstance(value, Block) else "hess_diag", value)
    return found


def _by_graph(net, x, loss, curvature):
    """One pass by torch.compile; what refuses a network there is what the tape says of it."""
    checks.check_network(net)
    params = dict(net.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        try:
            return _graph()(net, params, x, loss, curvature)
        except torch._dynamo.exc.TorchDynamoException:
            _pass(net, x, None, loss, curvature)
            raise


def _accumulate_by_autograd(hooked):
    """Add to p.grad as autograd itself does, for parameters whose hooks it calls on the way; curvature goes first."""
    for p, (_, curvature) in hooked.items():
        _accumulate_curvature(p, curvature)
        if p.grad is not None:
            p.grad = p.grad.detach().clone()  # autograd adds in place
    torch.autograd.backward(list(hooked), [grad.clone() for grad, _ in hooked.values()])


def _accumulate_curvature(p, curvature):
    """Sum out of place, so that an earlier result keeps its values.

    Curvature is summed where the gradient is: one whose gradient was cleared (net.zero_grad() knows no hess_diag), or
    that a step has used, is of the past. It remembers which version of the parameter it belongs to.
    """
    if curvature is not None:
        name = "hess_block" if isinstance(curvature, Block) else "hess_diag"
        old = getattr(p, name, None)
        stale = old is None or p.grad is None or hasattr(old, "used_at_version")
        total = curvature if stale else old + curvature
        total.of_version = p._version
        setattr(p, name, total)
