"""Running any forward operation by operation: each torch function that a parameter reaches is run by its rule.

The level is that of torch functions, in which linear, conv2d, layer_norm, softmax and cat are whole: below it, in
aten's primitives, their exact rules would be lost, and every operation would cost more.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .entering import entered
from .errors import InputError
from .losses.checks import is_traced
from .places import failed, in_function_of_its_own, named, unseen, where
from .rules import (
    CONSTANT,
    DEFINED,
    FUNCTIONS,
    IN_PLACE,
    MODULES,
    RULES,
    SHAPE_ONLY,
    NotCovered,
    Refusal,
    Rule,
    UnsupportedLayerError,
    checks,
)
from .rules.autodiff import ByAutodiff

ENTERED = ("torch.nn.functional", "torch.functional")
SET_ITEM = Tensor.__setitem__
COMPLEX = "its result is complex, and curvatures here are of real numbers; compute with real and imaginary parts"
# What would be done to the gradient of a recorded tensor, which autograd does not compute.
REFUSED = {
    Tensor.register_hook: "hooks of tensors that are no parameters are not called; register it on a parameter",
    Tensor.retain_grad: "gradients of tensors that are no parameters are not kept",
    torch.autograd.grad: "there is no graph of what is recorded; compute it before, or by torch.func",
    torch.autograd.backward: "what is recorded goes back by tape.backward(loss, curvature)",
    Tensor.backward: "what is recorded goes back by tape.backward(loss, curvature)",
}


class Recorder(TorchFunctionMode):
    """While it is entered, operations that a parameter reaches are kept in `rules`, in the order in which they ran.

    `parameters`: where derivatives are wanted. `samples`: tensors with the samples on axis 0, if it has to be known
    what becomes of that axis. `places`: whether each rule is to know where it was called.
    """

    own_loss = False  # whether the loss is to be recorded too, so that calls are kept

    def __init__(self, parameters: Iterable[Tensor], samples: Sequence[Tensor] = (), places: bool = False):
        super().__init__()
        self.rules: list[Rule] = []
        self.uses: dict[int, int] = {id(p): 0 for p in parameters}  # by id, how often a parameter is an input
        self.live: dict[int, Any] = dict.fromkeys(self.uses)  # by id, what a parameter reaches, kept so that ids last
        self.n = len(samples[0]) if samples else 0
        # What differs by sample; "" where along axis 0, else what has moved or joined the samples.
        self.varying: dict[int, tuple[Tensor, str]] = {id(t): (t, "") for t in samples}
        self.now: dict[int, Tensor] = {}  # what an operation in place has made of a tensor
        self.places, self.paused = places, False
        self.watches = not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one torch function."""
        kwargs = kwargs or {}
        if self.paused or not (self._reached(args) or (kwargs and self._reached(kwargs.values()))):
            return func(*args, **kwargs)
        if self.watches:
            if torch._C._functorch.maybe_current_level() is not None:  # autograd marks what comes out of there
                return func(*args, **kwargs)
            if torch._C._is_any_autocast_enabled():
                device = next((t.device.type for t in args if isinstance(t, Tensor)), "cpu")
                if torch.is_autocast_enabled(device):
                    raise InputError(f"{where(func)}: {checks.own_precision(device)}")
        if self.now:
            args, kwargs = latest(args, self.now), latest(kwargs, self.now)
        if not torch.is_grad_enabled():
            if in_function_of_its_own():
                raise UnsupportedLayerError(
                    where(func), "it is part of a torch.autograd.Function with its own backward"
                )
            return self._run(func, types, args, kwargs, False)
        torch._C._set_grad_enabled(False)  # the context manager costs more than what it is around
        try:
            return self._run(func, types, args, kwargs, True)
        except Refusal as refusal:
            raise UnsupportedLayerError(where(func), str(refusal)) from None
        finally:
            torch._C._set_grad_enabled(True)

    def _run(self, func: Any, types: Any, args: Any, kwargs: Any, live: bool) -> Any:
        """Run a function that a parameter or a sample reaches; `live`: whether derivatives are wanted of it."""
        if func in CONSTANT or not live:
            return func(*args, **kwargs)
        changed = None
        if func in REFUSED and not (args and id(args[0]) in self.uses):
            raise Refusal(REFUSED[func])
        if kwargs.get("out") is not None:
            raise Refusal("out= writes into a tensor of before; take what the function returns")
        if func in IN_PLACE:
            func, changed = IN_PLACE[func], args[0]
        elif kwargs.get("inplace"):
            kwargs, changed = {k: v for k, v in kwargs.items() if k != "inplace"}, args[0]
        elif func is SET_ITEM:
            changed = args[0]
        if changed is not None:
            self.check_in_place(changed)
        if (definition := DEFINED.get(func)) is not None:
            try:
                with torch.enable_grad(), self:
                    return self.changed_to(changed, definition(*args, **kwargs))
            except NotCovered:
                pass
        kind = FUNCTIONS.get(func)
        if kind is None:
            if isinstance(func, FunctionType) and func.__module__ in ENTERED:
                with torch.enable_grad(), self:
                    return self.changed_to(changed, entered(func)(*args, **kwargs))
            state = torch.get_rng_state()
            y = func(*args, **kwargs)
            if not any(isinstance(t, Tensor) and t.dtype.is_floating_point for t in each(y)):
                if any(isinstance(t, Tensor) and t.dtype.is_complex for t in each(y)):
                    raise Refusal(COMPLEX)
                return y
            if getattr(func, "__name__", "").endswith("_"):
                raise Refusal("it works in place on what has derivatives; take the function without the underscore")
            if not torch.equal(state, torch.get_rng_state()):
                raise Refusal("it draws random numbers, and has no rule")
            rule: Rule = ByAutodiff.of_call(func, args, kwargs, y)
        else:
            try:
                rule = kind.call(func, args, kwargs)
                if func not in SHAPE_ONLY:
                    self.check_inputs(rule, (*args, *kwargs.values()))
            except NotCovered:
                rule = ByAutodiff.of_call(func, args, kwargs, func(*args, **kwargs))
        if types and (odd := [kind for kind in types if kind is not Tensor and kind is not nn.Parameter]):
            raise Refusal(f"{odd[0].__qualname__} is a subclass of Tensor, which may mean another function by it")
        if self.own_loss:
            rule.called = func, args, kwargs
        return self.changed_to(changed, self.keep(rule))

    def check_inputs(self, rule: Rule, values: Iterable[Any]) -> None:
        """Raise NotCovered if a parameter reaches an argument that the rule takes for a setting."""
        for t in values:
            if isinstance(t, Tensor):
                if (id(t) in self.live or t.requires_grad) and not any(t is own for own in rule.inputs.values()):
                    raise NotCovered
            elif type(t) in (tuple, list):
                self.check_inputs(rule, t)

    def check_in_place(self, t: Tensor) -> None:
        """Raise Refusal where a change of t would change what others see of it, or a parameter."""
        if id(t) in self.uses:
            raise Refusal("it changes a parameter in place")
        if is_traced(t):
            return
        own = t.untyped_storage().data_ptr()
        for rule in self.rules:
            for other in (*rule.inputs.values(), *each(rule.y)):
                if other is not t and isinstance(other, Tensor) and own == other.untyped_storage().data_ptr():
                    raise Refusal("it works in place on memory that another tensor shares; clone() before")

    def changed_to(self, t: Tensor | None, y: Any) -> Any:
        """Return y, what t is from now on if that is a tensor that was changed in place."""
        if t is not None:
            self.now[id(t)] = y
            self.live.setdefault(id(t), t)
        return y

    def keep(self, rule: Rule) -> Any:
        """Return what the rule's operation gave; keep the rule if a parameter reaches it."""
        given = rule.inputs
        if any(rule.y is t for t in given.values()):
            return rule.y
        rule.live = []
        for slot, t in given.items():
            if id(t) not in self.live:
                if not t.requires_grad:
                    continue
                self.stray(t)
            rule.live.append(slot)
        outputs = [t for t in each(rule.y) if isinstance(t, Tensor)]
        if self.n:
            rule.varying = [slot for slot, t in given.items() if id(t) in self.varying]
            if rule.varying:
                rule.mixed = next(filter(None, (self.varying[id(given[slot])][1] for slot in rule.varying)), "")
                if not rule.mixed and not rule.keeps_samples(self.n):
                    rule.mixed = where(rule.func if rule.func is not None else rule.layer)
                rule.by_sample = not rule.mixed
                self.varying.update({id(t): (t, rule.mixed) for t in outputs})
            elif rule.live and rule.repeats(self.n):
                rule.by_sample, self.varying[id(rule.y)] = True, (rule.y, "")
        if rule.live:
            self.rules.append(rule)
            for slot in rule.live:
                if id(given[slot]) in self.uses:
                    self.use(given[slot])
            for t in outputs:
                if t.dtype.is_floating_point:
                    self.live[id(t)] = t
                    if self.watches:
                        t.requires_grad_()
                elif t.dtype.is_complex:
                    raise Refusal(COMPLEX)
            if self.watches:
                rule.versions = rule.changes()
            if self.places:
                rule.place = where(rule.func if rule.func is not None else rule.layer)
        return rule.y

    def use(self, p: Tensor) -> None:
        """Count that a parameter is an input of an operation."""
        self.uses[id(p)] += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let what is made of a recorded tensor without this mode's knowledge require grad, so that it is noticed.

        An autograd.Function, a scripted function, torch.func and other threads do not tell a mode what they do.
        Compiled functions run as they were written.
        """
        with ExitStack() as stack:
            if self.watches:
                # Loaded by the first torch.compile of a program; a stance makes every call of Python's slower.
                if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                self._mark(True)
                stack.callback(self._mark, False)
            yield

    def _mark(self, on: bool) -> None:
        for key, t in self.live.items():
            if key not in self.uses and t.dtype.is_floating_point:
                t.requires_grad_(on)

    def check_seen(self, t: Tensor) -> None:
        """Raise InputError for a result that is of parameters, and of which the recording does not know how."""
        if self.watches and t.grad_fn is not None and id(t) not in self.live:
            self.stray(t)

    def call_module(self, kind: type[Rule], layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run a module that has a rule of its own as one operation."""
        if kwargs or len(args) != 1:
            raise Refusal("a rule of a module has one input, and it was called with others")
        [x] = args
        x = self.now.get(id(x), x)
        own: dict[str, Tensor] = {name: p for name, p in layer._parameters.items() if p is not None}
        if not own.keys() <= kind.parameters:
            extra = ", ".join(sorted(own.keys() - kind.parameters))
            raise Refusal(f"its rule does not know the parameter {extra}")
        for name in kind.parameters - own.keys():
            if isinstance(t := layer.__dict__.get(name, layer._buffers.get(name)), Tensor):
                own[name] = t
        self.paused = True
        try:
            with torch.no_grad():
                rule = kind(layer, own, x)
            return self.keep(rule)
        finally:
            self.paused = False

    def _reached(self, values: Iterable[Any]) -> bool:
        """Whether a parameter, or a sample where that counts, reaches one of the arguments."""
        live, varying = self.live, self.varying
        for t in values:
            if isinstance(t, Tensor):
                if id(t) in live or id(t) in varying:
                    return True
                if t.requires_grad:
                    if torch.is_grad_enabled():
                        self.stray(t)
                    return True
            elif (type(t) is tuple or type(t) is list) and self._reached(t):
                return True
        return False

    def stray(self, t: Tensor) -> None:
        """Raise InputError for a tensor into which autograd would send a gradient, and this pass would not."""
        if not t.is_leaf or is_traced(t):
            raise InputError(unseen(t))
        raise InputError(
            f"{where('a tensor')}: {list(t.shape)} requires grad, but is no parameter of the network: make it an "
            "nn.Parameter of a module, or detach() it to be a constant"
        )


def latest(value: Any, now: dict[int, Tensor]) -> Any:
    """Return a value with the tensors in it as they are `now`, by the ids of what they were."""
    if isinstance(value, Tensor):
        return now.get(id(value), value)
    if type(value) is dict:
        return {name: latest(t, now) for name, t in value.items()}
    return type(value)(latest(t, now) for t in value) if type(value) in (tuple, list) else value


def each(y: Any) -> Iterable[Any]:
    """Return the outputs of an operation."""
    return y if isinstance(y, tuple | list) else (y,)


@contextmanager
def modules_with_rules(recorder: Recorder) -> Iterator[None]:
    """While the recorder is entered, let modules of registered types be one operation; run MODULES as told there."""
    kept: list[tuple[Any, Any]] = []
    how: list[tuple[Any, Any, Any]] = [(kind, _watched, rule) for kind, rule in RULES.items()]
    if not torch.compiler.is_compiling():
        how += [(kind, _told, definition) for kind, definition in MODULES.items() if kind not in RULES]
    for kind, run, what in how:
        kept.append((kind, kind.__dict__.get("forward")))
        kind.forward = run(recorder, kind, kind.forward, what)
    try:
        yield
    finally:
        for kind, own in kept:
            if own is None:
                del kind.forward
            else:
                kind.forward = own


def _watched(recorder: Recorder, kind: type, forward: Callable[..., Any], rule: type[Rule]) -> Callable[..., Any]:
    def run(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if (
            type(layer) is kind
            and not recorder.paused
            and recorder in torch.overrides._get_current_function_mode_stack()
        ):
            try:
                return recorder.call_module(rule, layer, *args, **kwargs)
            except Refusal as refusal:
                raise UnsupportedLayerError(where(layer), str(refusal)) from None
        return forward(layer, *args, **kwargs)

    return run


def _told(recorder: Recorder, kind: type, forward: Callable[..., Any], definition: Callable[..., Any]) -> Any:
    def run(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not recorder.paused and recorder in torch.overrides._get_current_function_mode_stack():
            try:
                return definition(layer, *args, **kwargs)
            except NotCovered:
                pass
        return forward(layer, *args, **kwargs)

    return run


@contextmanager
def with_parameters(net: nn.Module, params: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Let `net` use other tensors by its parameters' names; yields them by the first name of each parameter."""
    given: dict[int, Tensor] = {}
    first: dict[str, Tensor] = {}
    missing = []
    for name, p in net.named_parameters(remove_duplicate=False):
        if name not in params:
            missing += [name] if id(p) not in given else []
        elif id(p) not in given:
            given[id(p)] = first[name] = params[name]
        elif given[id(p)] is not params[name]:
            raise ValueError(f"params: {name} is a parameter that has another tensor under its first name")
    if missing:
        raise ValueError(f"params has no {', '.join(missing)}")
    kept = [(m, name, p) for m in net.modules() for name, p in m._parameters.items() if p is not None]
    try:
        for m, name, p in kept:
            m._parameters[name] = given[id(p)]  # type: ignore[assignment]
        yield first
    finally:
        for m, name, p in kept:
            m._parameters[name] = p


def run_forward(net: nn.Module, x: Any, recorder: Recorder) -> Any:
    """Return net(x), net(*x) or net(**x), recorded; an error of torch's is told with the layer's place."""
    for m in net.modules():
        if m._backward_hooks or m._backward_pre_hooks:
            raise UnsupportedLayerError(
                named(net, m).rstrip(", "), "it has hooks for its gradient, which the pass does not call"
            )
    try:
        with modules_with_rules(recorder), torch.enable_grad(), recorder.watching(), recorder:
            y = net(x) if isinstance(x, Tensor) else net(**x) if isinstance(x, dict) else net(*x)
        return latest(y, recorder.now)
    except (InputError, UnsupportedLayerError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{failed(net, x, error)}: {str(error).partition(chr(10))[0]}") from error
