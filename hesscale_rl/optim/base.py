"""What the curvature optimizers share: the torch.optim contract, settings and states, the check of the curvature."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..curvature.blocks import Block
from .declaration import Declaration
from .loading import checked_state
from .settings import DEFAULTS, EVERY, Ranges, check, checked


class CurvatureError(RuntimeError):
    """`p.hess_diag` or `p.hess_block` is missing, from an older step, of another shape or kind."""


class CurvatureOptimizer(Optimizer):
    """A step per parameter group: moving averages, an update u, and with `delta` the scaling of u by eta.

    Scaling (Elsayed et al. 2024, algorithm 3): h = sum root u^2 over the group, root the square root of the
    averaged squared curvature; eta = min(1, sqrt(2 delta/h)). `eta` is 1 for a group that is
    not scaled. Give every network a group of its own, as the paper does. `weight_decay` is decoupled, as AdamW's:
    p <- p - lr weight_decay p, which eta does not scale.

    What an optimizer has it says once: in its declaration, and its `averages`.
    """

    declared: Declaration  # set by the decorator `declare`
    former: tuple[tuple[str, Any], ...] = ()  # settings in older versions' checkpoints, where they say nothing
    may_begin_late: tuple[str, ...] = ()  # averages that are not corrected for their start at zero
    # torch.amp.GradScaler would unscale p.grad alone: it leaves both to `step`, which it gives its findings.
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None  # 0-d, above zero: a gradient is not finite; beside it stands `grad_scale`

    def __init__(self, params: Any, defaults: dict[str, Any]):
        every = {name: value for name, value in DEFAULTS.items() if name in self.ranges} | defaults
        for name in every.keys() - self.ranges.keys():
            raise TypeError(
                f"{type(self).__name__}: {name}, a setting that it does not have: {', '.join(self.ranges)}"
            )
        super().__init__(params, every)
        self._eta: list[Tensor | float] = []
        self._seen: list[dict[str, Any]] = []  # of each group what `check_groups` has found good

    @property
    def ranges(self) -> Ranges:
        """The names of all its settings, and the values that they may have."""
        return EVERY | self.declared.ranges

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of what the state of a parameter of this group holds beside its count of steps, in its shape."""
        return ()

    @property
    def eta(self) -> list[Tensor | float]:
        """The last step's scaling factor of each parameter group, 0-d tensors or floats; empty before the first."""
        return list(self._eta)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, after checking its settings as the constructor does."""
        _plain(Optimizer.add_param_group)(self, self._checked(param_group, self.defaults))

    def _checked(self, group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        group = {name: value for name, value in group.items() if (name, value) not in self.former}
        return checked(type(self).__name__, self.ranges, group, defaults)

    def check_groups(self) -> None:
        """Take note of what was set in `param_groups` since the last step; every step begins so.

        ValueError by name for a setting that it does not have, or lacks, and for a value out of its range;
        RuntimeError where one needs an average that would have had to begin with the first step. Where nothing was
        set this costs a comparison of two dicts.
        """
        if len(self._seen) != len(self.param_groups):
            self._seen = [{} for _ in self.param_groups]
        for group, seen in zip(self.param_groups, self._seen, strict=True):
            if not _is_same(group, seen):
                self._check_changed(group, seen)

    def _check_changed(self, group: dict[str, Any], seen: dict[str, Any]) -> None:
        ranges, kind = self.ranges, type(self).__name__
        changed = [name for name, value in group.items() if name not in seen or value is not seen[name]]
        for name in changed:
            if name != "params":
                check(kind, ranges, name, group[name])
        if changed != ["lr"] or len(group) < len(seen):  # more than what schedules set at every step
            for name in ranges.keys() - group.keys():
                raise ValueError(
                    f"{kind}: a parameter group has no {name}; add_param_group fills in what a group does not say"
                )
            for p in group["params"]:
                if p in self.state:
                    self.make_state(group, p)
        for name in seen.keys() - group.keys():
            del seen[name]
        for name in changed:
            seen[name] = group[name] if name == "params" else _frozen(group[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch.optim.Optimizer does."""
        return _plain(Optimizer.state_dict)(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a copy of a state: of this optimizer, or of torch's where the averages are the same.

        Settings that it does not have stay as they are. ValueError, before anything is changed, for settings and
        averages that are of another optimizer.
        """
        groups, state = state_dict["param_groups"], state_dict["state"]
        if [len(group["params"]) for group in groups] == [len(group["params"]) for group in self.param_groups]:
            taken, state = [], dict(state)
            for own, saved in zip(self.param_groups, groups, strict=True):
                rest = {name: value for name, value in own.items() if name in self.ranges}
                group = rest | self._checked(saved, rest)
                taken.append(group)
                for key, p in zip(saved["params"], own["params"], strict=True):
                    if key in state:
                        kept = [name for name in self.averages(group) if name not in self.may_begin_late]
                        state[key] = checked_state(type(self).__name__, kept, state[key], p)
            groups = taken
        _plain(Optimizer.load_state_dict)(self, {**state_dict, "param_groups": groups, "state": state})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_eta", [])
        self.__dict__.setdefault("_seen", [])

    @property
    def reads_curvature(self) -> bool:
        """Whether any group needs `p.hess_diag`."""
        return any(self._group_reads(group) for group in self.param_groups)

    def _group_reads(self, group: dict[str, Any]) -> bool:
        return self.declared.always or group["delta"] is not None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear `p.grad`, `p.hess_diag` and `p.hess_block` of every parameter."""
        for group in self.param_groups:
            for p in group["params"]:
                # A new tensor, not zeros in place: whoever kept the old one may still read it.
                if p.grad is not None:
                    p.grad = None if set_to_none else torch.zeros_like(p.grad)
                curvature = getattr(p, "hess_diag", None)
                if curvature is not None:
                    p.hess_diag = None if set_to_none else torch.zeros_like(curvature)
                if hasattr(p, "hess_block"):
                    p.hess_block = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; return what the closure returns.

        The closure, if given, recomputes gradient and curvature (zero_grad, then hesscale_rl.backward). Parameters
        without gradient are left alone. Raises CurvatureError before anything is changed. By torch.amp.GradScaler's
        `step` gradients and curvatures count divided by its scale, and nothing moves where one is not finite.

        A first step with rates and gradients of zero and without any curvature makes the state and counts for
        nothing: so torch.distributed.checkpoint asks an optimizer what it has to load.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.found_inf is not None and float(self.found_inf) > 0:
            return loss
        self.check_groups()
        if not self.state and self._asks_for_state():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.make_state(group, p)
            return loss
        gathered = [self._gather(group) for group in self.param_groups]
        batches = gathered if self.found_inf is None else self._unscaled(gathered)
        for _, _, curvatures in gathered:  # only now that no group lacks any
            for h in curvatures:
                h.used_at_version = _version(h)  # type: ignore[attr-defined]
        self._eta = self._step_all(batches)
        return loss

    def _asks_for_state(self) -> bool:
        if any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        return not any(
            getattr(p, self.declared.curvature_name, None) is not None or bool(p.grad.any()) for p in params
        )

    def make_state(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        """Return the state of a parameter of this group: its count of steps, and averages that begin with zeros.

        RuntimeError for an average that is missing though steps were taken.
        """
        names = self.averages(group)
        state = self.state[p] if names else {}
        if names and not state:
            state["step"] = 0
        for name in names:
            if name in state:
                continue
            if state["step"] and name not in self.may_begin_late:
                raise RuntimeError(
                    f"{type(self).__name__}: the state has no {name}, which delta={group['delta']} needs from "
                    "the first step on: make a new optimizer"
                )
            state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state

    def _unscaled(self, batches: list[Any]) -> list[Any]:
        """Return the batches divided by GradScaler's scale; CurvatureError where the curvature's is not known."""
        scale, name = getattr(self, "grad_scale", None), self.declared.curvature_name
        read = [h for _, _, curvatures in batches for h in curvatures]
        if any(isinstance(h, Block) for h in read):
            raise CurvatureError(
                f"{type(self).__name__}.step(): p.{name} cannot be unscaled by GradScaler; give "
                "hesscale_rl.backward the loss unscaled, and call optimizer.step() itself"
            )
        if scale is None:  # the scaler's unscale_ was called before
            if any(hasattr(h, "of_version") for h in read):
                raise CurvatureError(
                    f"{type(self).__name__}.step(): GradScaler.unscale_ has divided p.grad by the scale, but not "
                    f"p.{name}; do so for every parameter: "
                    f"p.{name} = p.{name} / scaler.get_scale()"
                )
            return batches
        return [(ps, *([t / scale.to(t.device) for t in ts] for ts in rest)) for ps, *rest in batches]

    def _step_all(self, batches: list[Any]) -> list[Tensor | float]:
        """Step every group with its parameters, gradients and curvatures; return eta of each."""
        return [
            self._step_group(group, *batch) if batch[0] else 1.0
            for group, batch in zip(self.param_groups, batches, strict=True)
        ]

    def _gather(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The group's parameters that have a gradient, their gradients and, if read, their curvatures."""
        params = [p for p in group["params"] if p.grad is not None]
        grads: list[Tensor] = [p.grad for p in params]
        if any(g.layout is not torch.strided for g in grads):
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        if not self._group_reads(group):
            return params, grads, []
        name, usual = self.declared.curvature_name, self.declared.usual_curvature
        curvatures: list[Any] = [getattr(p, name, None) for p in params]
        fresh = [_is_fresh(h, p) for h, p in zip(curvatures, params, strict=True)]
        if not all(fresh):
            names = group.get("param_names") or [f"number {i} {list(p.shape)}" for i, p in enumerate(group["params"])]
            place = {id(p): own for p, own in zip(group["params"], names, strict=True)}
            bad = [place[id(p)] for p, good in zip(params, fresh, strict=True) if not good]
            shown = ", ".join(bad[:3] + ["..."] * (len(bad) > 3))
            raise CurvatureError(
                f"{type(self).__name__}.step(): the curvature p.{name} of {len(bad)} of {len(params)} "
                f"parameters is missing, from an older step or of another shape: {shown}. "
                f"Call hesscale_rl.backward(net, x, loss, curvature=hesscale_rl.{usual}) before each "
                f"step() in place of loss.backward(), or set a new p.{name} yourself"
            )
        return params, grads, curvatures

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor]
    ) -> Tensor | float:
        """Update the parameters in place; return eta."""
        raise NotImplementedError

    def _moments(self, group: dict[str, Any], params: list[Tensor]) -> tuple[list[list[Tensor]], list[int]]:
        """Return the group's averages of every parameter, made on first use, and the counts of steps, raised."""
        names = self.averages(group)
        states = [self.make_state(group, p) for p in params]
        for state in states:
            state["step"] += 1
        return [[state[name] for state in states] for name in names], [state["step"] for state in states]


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch's method without its guard against torch.compile, if nobody has loaded torch's compiler yet.

    The guard's first call would: 2 s more until a program starts.
    """
    return method if "torch._dynamo" in sys.modules else getattr(method, "__wrapped__", method)


def _is_same(group: dict[str, Any], seen: dict[str, Any]) -> bool:
    """Whether the group is what was seen of it."""
    if group.get("params") is not seen.get("params"):
        return False
    try:
        return group == seen
    except (RuntimeError, ValueError):  # a tensor or an array of many
        return False


def _frozen(value: Any) -> Any:
    """What a value is now, where it can be changed in place: numbers for a tensor, a list of its own."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.detach().clone()
    return list(value) if isinstance(value, list) else value


def _version(h: Tensor | Block) -> int | None:
    """How often h was changed in place; blocks and tensors of inference mode do not count."""
    return h._version if isinstance(h, Tensor) and not h.is_inference() else None


def _is_fresh(h: Tensor | Block | None, p: Tensor) -> bool:
    """Whether h fits p, no step has used it as it is now, and p is what it was when h was computed."""
    if h is None or h.shape != p.shape or getattr(h, "used_at_version", -1) == _version(h):
        return False
    return getattr(h, "of_version", p._version) == p._version  # one set by hand has no such mark
