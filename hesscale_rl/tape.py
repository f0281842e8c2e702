"""The only traversal: the rules of a forward's operations, as they ran, and one walk back over them.

`backward` is what a training loop calls; `value_grad_curvature` is the same without side effects, for torch.func.vmap
over K networks and for torch.compile. recording.py runs the forward. No hooks, no autograd graph, no global state.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from . import compiled, tail
from .accumulation import accumulate, version
from .backend import compiles
from .curvature.base import Curvature, Messages, NoCurvature
from .curvature.blocks import Block
from .errors import InputError
from .losses import Autodiff, Loss, as_loss
from .losses.checks import is_traced
from .networks import given_to
from .places import unseen
from .recording import Recorder, latest, modules_with_rules, run_forward, with_parameters
from .rules import Changed, MissingPrimitive, Refusal, Rule, UnsupportedLayerError, checks


class Result(NamedTuple):
    """What one pass gives: the loss, the network's outputs, and per parameter name its gradient and curvature."""

    value: Tensor  # 0-d
    output: Tensor  # [N, ...]
    grad: dict[str, Tensor]
    curvature: dict[str, Any]  # tensors in the parameters' shapes; of KFAC, KFRA and HBP blocks (curvature/blocks.py)


def operations(net: nn.Module, x: Any, samples: bool = False, places: bool = False) -> tuple[list[Rule], Tensor]:
    """Run `net` on x; return the rules of what a parameter of `net` reaches, in order, and the outputs.

    `samples`: whether the rules are to know which of their inputs differ by sample, and along axis 0; `places`: where
    they were called.
    """
    tape = Recorder(net.parameters(), _samples(x) if samples else (), places)
    y = run_forward(net, given_to(net, x), tape)
    return tape.rules, y


def walk(rules: list[Rule], grads: Messages, messages: Messages, curvature: Curvature) -> None:
    """Carry gradients and a curvature's messages from the outputs, where they have been put, back to the parameters.

    The rules are used up, so that what an operation has kept is free once the pass is below it.
    """
    while rules:
        rule = rules.pop()
        g = grads.take(rule)
        if g is None:  # the loss does not depend on it
            continue
        try:
            if rule.versions is not None and rule.versions != rule.changes():
                raise Changed(
                    "a tensor that it needs for the way back was changed in place after it ran; clone() it before"
                )
            curvature.step(rule, g, messages)  # needs the gradient above the operation
            for slot, v in rule.pull(g, rule.live).items():
                grads.put(rule.inputs[slot], v)
        except (MissingPrimitive, Refusal) as lack:
            raise _Unpassable(len(rules), rule, lack) from None


class _Unpassable(Exception):
    """What a curvature cannot pass: the number of the operation, its rule, and why."""


Passed = tuple[Tensor, Any, dict[str, Tensor], dict[str, Any]]  # a Result's parts


def _pass(net: nn.Module, params: dict[str, Tensor], x: Any, loss: Loss, curvature: Curvature) -> Passed:
    """One pass forward and back: value, outputs, gradients and curvatures by name."""
    checks.check_parameters(params)
    tape = Recorder(params.values(), _samples(x) if curvature.by_sample else ())
    y = run_forward(net, given_to(net, x), tape)
    for t in tree_leaves(y):
        if isinstance(t, Tensor):
            tape.check_seen(t)
    if isinstance(y, Tensor):
        value, g, diagonal = loss.value_grad_curvature(y, diagonal=curvature.wants_diagonal)
        g, diagonal = g.to(y.dtype), None if diagonal is None else diagonal.to(y.dtype)
        grads, messages, rules = Messages(), Messages(tape.uses), tape.rules
        grads.put(y, g)
        curvature.place(messages, y, curvature.seed(loss, y, diagonal))
    else:
        value = _loss_of_several(tape, loss, y)
        check_own_loss(curvature)
        grads, messages = tail.start(tape.rules, value, tape.uses, curvature)
        rules = tape.rules
    del tape
    try:
        walk(rules, grads, messages, curvature)
    except _Unpassable as error:
        number, _, _ = error.args
        # Only now it is worth its while to know the place.
        raise refusal(curvature, operations(net, x, places=True)[0][number].place, error) from None
    found = {name: grads[id(p)] for name, p in params.items() if id(p) in grads}
    curved = {name: messages[id(p)] for name, p in params.items() if messages.get(id(p)) is not None}
    return value, y, found, {name: curvature.read(message) for name, message in curved.items()}


def refusal(curvature: Curvature, place: str, error: "_Unpassable") -> Exception:
    """Return the error for what a curvature cannot pass."""
    lack = error.args[2]
    if isinstance(lack, Changed):
        return InputError(f"{place}: {lack}")
    why = f"{type(curvature).__name__} cannot pass it, because {lack}"
    return UnsupportedLayerError(place, why if isinstance(lack, MissingPrimitive) else str(lack))


def check_own_loss(curvature: Curvature) -> None:
    """Raise InputError for a method that has to know the loss as a function of one tensor of outputs."""
    if not curvature.on_tape or not (curvature.wants_diagonal or isinstance(curvature, NoCurvature)):
        raise InputError(
            f"{type(curvature).__name__} needs a network with one tensor of outputs [N, ...] and its loss apart, "
            "hesscale_rl.backward(net, x, loss); HesScale and HesScaleGN do without"
        )


def _loss_of_several(tape: Recorder, loss: Loss, y: Any) -> Tensor:
    """The loss of outputs that are not one tensor, recorded as the network is."""
    if not isinstance(loss, Autodiff):
        raise InputError(
            f"the network returns a {type(y).__name__}, and {type(loss).__name__} knows one tensor: give as loss a "
            "function of what the network returns, lambda outputs: ..."
        )
    tape.own_loss = True  # of what follows; the network's own operations are no part of the loss's
    with torch.enable_grad(), tape.watching(), tape:
        value = loss.fn(y)
    if not isinstance(value, Tensor) or value.ndim:
        raise InputError("the loss returned no scalar tensor")
    return value


def _samples(x: Any) -> list[Tensor]:
    """The tensors of x."""
    return (
        [x]
        if isinstance(x, Tensor)
        else [t for t in (x.values() if isinstance(x, dict) else x) if isinstance(t, Tensor)]
    )


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


def _by_name(net: nn.Module, params: dict[str, Tensor], x: Any, loss: Loss, curvature: Curvature) -> Result:
    """One pass forward and back as a Result: what torch.compile is given."""
    with with_parameters(net, params) as first:
        return Result(*_pass(net, first, x, loss, curvature))


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
    (`register_hook` changes what is added to p.grad, not the curvature and not the result). Hooks on autograd's
    own nodes (get_gradient_edge(p).node) cannot be seen here, and are called only where p has hooks itself.
    `backend`: "auto" takes compiled loops for what they cover (compiled/mlp.py: small MLPs in float32 on the CPU),
    with the tape's results up to rounding, where backend.py allows it; "torch" always takes the tape; "compile" the
    tape by torch.compile, which takes half a minute for each new network, loss or batch size, and a C++ compiler (on
    CUDA: Triton).
    Raises UnsupportedLayerError for an operation that cannot be passed, InputError or ValueError for x that does not
    fit, or a loss that does not fit the outputs.
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
    else:
        params = dict(net.named_parameters())
        if backend == "compile":
            result = _by_graph(net, params, x, loss, on_tape)
        else:
            with torch.no_grad():
                result = Result(*_pass(net, params, x, loss, on_tape))
    if not curvature.on_tape:
        result = result._replace(curvature=curvature.estimate(net, dict(net.named_parameters()), x, loss))
    found: dict[Tensor, tuple[Tensor, Any]] = {}
    for name, p in params.items():
        if p.requires_grad and name in result.grad:  # neither frozen nor without effect on the loss
            grad, curved = result.grad[name], result.curvature.get(name)
            if p in found:  # a FastMLP tells of each place
                g, h = found[p]
                grad, curved = g + grad, curved if h is None else h + curved
            found[p] = grad, curved
    accumulate(found, hooks=fast_mlp is None)  # a FastMLP has none
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


class Tape(Recorder):
    """The operations of a program with a loss of its own; made by `record`."""

    own_loss = True

    def __init__(self, curvature: Curvature | None = None) -> None:
        super().__init__((), places=True)
        self.curvature = curvature  # of every loss.backward() under it, if there is one
        self.parameters: list[Tensor] = []
        self.versions: dict[int, int] = {}
        self.depth = 0  # how often it is entered

    def __enter__(self) -> "Tape":
        """Record from here on."""
        if not self.depth:
            self.around = ExitStack()
            self.around.enter_context(modules_with_rules(self))
            self.around.enter_context(self.watching())
        self.depth += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Record no more."""
        super().__exit__(*error)
        self.depth -= 1
        if not self.depth:
            self.around.close()

    def stray(self, t: Tensor) -> None:
        """Take a leaf that requires grad as a parameter; refuse what autograd has made of one before."""
        if not t.is_leaf or is_traced(t):
            raise InputError(unseen(t))
        self.parameters.append(t)
        self.uses[id(t)], self.live[id(t)] = 0, t

    def use(self, p: Tensor) -> None:
        """Count it, and remember what the parameter was."""
        super().use(p)
        self.versions.setdefault(id(p), version(p))

    def _run(self, func: Any, types: Any, args: Any, kwargs: Any, live: bool) -> Any:
        """Run a function; loss.backward() is a walk back if the tape has a curvature."""
        if func is Tensor.backward and self.curvature is not None:
            if given := sorted(name for name, value in kwargs.items() if value not in (None, False)) or args[1:]:
                raise Refusal(f"backward under hesscale_rl.record(curvature) takes no {given[0]}")
            self.backward(args[0], self.curvature)
            return None
        return super()._run(func, types, args, kwargs, live)

    def _begin(self) -> None:
        """Forget what was recorded; what is recorded from now on is a program of its own."""
        if self.depth:
            self._mark(False)
        self.rules, self.parameters, self.now = [], [], {}
        self.uses, self.live, self.versions = {}, {}, {}

    def backward(self, loss: Tensor, curvature: Curvature | None = None) -> None:
        """Add the gradient of the 0-d `loss` to `p.grad` and its curvature to `p.hess_diag` of every parameter.

        What follows the last operation that a parameter enters is the loss as a function of the network's outputs,
        and its second derivatives are exact where it is small (tail.py). Once only, as the tape is used up.
        """
        curvature, loss = curvature or NoCurvature(), latest(loss, self.now)
        check_own_loss(curvature)
        if isinstance(loss, Tensor):
            self.check_seen(loss)
            if reason := checks.surroundings(loss.device.type):
                raise InputError(reason)
        if not isinstance(loss, Tensor) or loss.ndim or id(loss) not in self.live:
            raise InputError(
                "tape.backward: the loss must be a scalar tensor that was computed from parameters while this tape "
                "was recording, and the tape is good for one walk back"
            )
        for p in self.parameters:
            if p._version != self.versions.get(id(p), p._version):
                raise InputError(
                    f"a parameter {list(p.shape)} was changed in place after the forward; record it anew"
                )
        checks.check_parameters({str(list(p.shape)): p for p in self.parameters})
        with torch.no_grad():
            rules, parameters = self.rules, self.parameters
            grads, messages = tail.start(rules, loss, self.uses, curvature)
            self._begin()
            places = [rule.place for rule in rules]
            try:
                walk(rules, grads, messages, curvature)
            except _Unpassable as error:
                raise refusal(curvature, places[error.args[0]], error) from None
            reached = [p for p in parameters if id(p) in grads]
            accumulate(
                {
                    p: (grads[id(p)], None if (m := messages.get(id(p))) is None else curvature.read(m))
                    for p in reached
                }
            )


def record(curvature: Curvature | None = None) -> Tape:
    """Return a tape that records what runs under it, `with record() as tape:`; then `tape.backward(loss, curvature)`.

    Parameters are all leaves that require grad and take part, as for autograd. With a `curvature`, each
    loss.backward() under it is that call, so that a training loop of somebody else's needs no change:
    `with record(HesScale()): model.train()`.
    """
    if curvature is not None:
        check_own_loss(curvature)
    return Tape(curvature)


def _by_graph(net: nn.Module, params: dict[str, Tensor], x: Any, loss: Loss, curvature: Curvature) -> Result:
    """One pass by torch.compile; what refuses a network there is what the tape says of it."""
    with torch.no_grad():
        try:
            return _graph()(net, params, x, loss, curvature)
        except torch._dynamo.exc.TorchDynamoException:
            _pass(net, params, x, loss, curvature)
            raise
