"""What the curvature optimizers share: the torch.optim contract, the check of the curvature, step-size scaling."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..blocks import Block
from ..compiled import steps as compiled_steps

Tensors = tuple[Tensor, ...] | list[Tensor]  # what torch's foreach functions take


class CurvatureError(RuntimeError):
    """`p.hess_diag` or `p.hess_block` is missing, from an older step, of another shape or kind."""


class CurvatureOptimizer(Optimizer):
    """A step per parameter group: moving averages, an update u, and with `delta` the scaling of u by eta.

    Scaling (Elsayed et al. 2024, algorithm 3): h = sum root u^2 over the group, root the square root of the
    averaged squared curvature; eta = min(1, sqrt(2 delta/h)). `eta` is 1 for a group that is
    not scaled. Give every network a group of its own, as the paper does.
    """

    always_reads_curvature = True  # False: only groups with delta do
    curvature_name = "hess_diag"  # the parameters' attribute that is read
    usual_curvature = "HesScale()"  # what fills it, for messages
    # torch.amp.GradScaler would unscale p.grad alone: it leaves both to `step`, which it gives its findings.
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None  # 0-d, above zero: a gradient is not finite; beside it stands `grad_scale`

    def __init__(self, params: Any, defaults: dict[str, Any]):
        super().__init__(params, defaults)
        self._eta: list[Tensor | float] = []

    @property
    def eta(self) -> list[Tensor | float]:
        """The last step's scaling factor of each parameter group, 0-d tensors or floats; empty before the first."""
        return list(self._eta)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, after checking its settings as the constructor does."""
        group = {**self.defaults, **param_group}
        _check(type(self).__name__, group)
        _plain(Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch.optim.Optimizer does."""
        return _plain(Optimizer.state_dict)(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state as torch.optim.Optimizer does."""
        _plain(Optimizer.load_state_dict)(self, state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_eta", [])
        for group in self.param_groups:  # what torch.optim.Adam saved has no delta, and its counts are tensors
            group.setdefault("delta", None)
        for own in self.state.values():
            if isinstance(own.get("step"), Tensor):
                own["step"] = int(own["step"])

    @property
    def reads_curvature(self) -> bool:
        """Whether any group needs `p.hess_diag`."""
        return any(self._group_reads(group) for group in self.param_groups)

    def _group_reads(self, group: dict[str, Any]) -> bool:
        return self.always_reads_curvature or group["delta"] is not None

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
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.found_inf is not None and float(self.found_inf) > 0:
            return loss
        gathered = [self._gather(group) for group in self.param_groups]
        batches = gathered if self.found_inf is None else self._unscaled(gathered)
        for _, _, curvatures in gathered:  # only now that no group lacks any
            for h in curvatures:
                h.used_at_version = _version(h)  # type: ignore[attr-defined]
        self._eta = self._step_all(batches)
        return loss

    def _unscaled(self, batches: list[Any]) -> list[Any]:
        """Return the batches divided by GradScaler's scale; CurvatureError where the curvature's is not known."""
        scale = getattr(self, "grad_scale", None)
        read = [h for _, _, curvatures in batches for h in curvatures]
        if any(isinstance(h, Block) for h in read):
            raise CurvatureError(
                f"{type(self).__name__}.step(): p.{self.curvature_name} cannot be unscaled by GradScaler; give "
                "hesscale_rl.backward the loss unscaled, and call optimizer.step() itself"
            )
        if scale is None:  # the scaler's unscale_ was called before
            if any(hasattr(h, "of_version") for h in read):
                raise CurvatureError(
                    f"{type(self).__name__}.step(): GradScaler.unscale_ has divided p.grad by the scale, but not "
                    f"p.{self.curvature_name}; do so for every parameter: "
                    f"p.{self.curvature_name} = p.{self.curvature_name} / scaler.get_scale()"
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
        if any(g.is_sparse for g in grads):
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        if not self._group_reads(group):
            return params, grads, []
        curvatures: list[Any] = [getattr(p, self.curvature_name, None) for p in params]
        fresh = [_is_fresh(h, p) for h, p in zip(curvatures, params, strict=True)]
        if not all(fresh):
            names = group.get("param_names") or [f"number {i} {list(p.shape)}" for i, p in enumerate(group["params"])]
            place = {id(p): name for p, name in zip(group["params"], names, strict=True)}
            bad = [place[id(p)] for p, good in zip(params, fresh, strict=True) if not good]
            shown = ", ".join(bad[:3] + ["..."] * (len(bad) > 3))
            raise CurvatureError(
                f"{type(self).__name__}.step(): the curvature p.{self.curvature_name} of {len(bad)} of {len(params)} "
                f"parameters is missing, from an older step or of another shape: {shown}. "
                f"Call hesscale_rl.backward(net, x, loss, curvature=hesscale_rl.{self.usual_curvature}) before each "
                f"step() in place of loss.backward(), or set a new p.{self.curvature_name} yourself"
            )
        return params, grads, curvatures

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], curvatures: list[Tensor]
    ) -> Tensor | float:
        """Update the parameters in place; return eta."""
        raise NotImplementedError

    def _moments(self, params: list[Tensor], *names: str) -> tuple[list[list[Tensor]], list[int]]:
        """Return the named moving averages of every parameter, made on first use, and the counts of steps, raised."""
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                state["step"] = 0
                for name in names:
                    state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
            elif missing := [name for name in names if name not in state]:
                raise RuntimeError(
                    f"{type(self).__name__}: the state has no {', '.join(missing)}; delta cannot be set once steps "
                    "were taken without it, so make a new optimizer"
                )
            state["step"] += 1
        return [[state[name] for state in states] for name in names], [state["step"] for state in states]


def adaptive_step(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    squared: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    steps: list[int],
    curvatures: list[Tensor] | None = None,
    w: list[Tensor] | None = None,
) -> Tensor | float:
    """Take a step of Adam's form, u = lr m_hat/(sqrt(v_hat) + eps), v the average of `squared`^2; return eta.

    The scaling measures u by the average w of `curvatures`^2, by v where these are None.
    """
    (beta1, beta2), lr, eps, delta = group["betas"], float(group["lr"]), group["eps"], group["delta"]
    tensors = [params, grads, squared, m, v, *([curvatures, w] if curvatures and w else [])]
    if (eta := compiled_steps.adaptive(tensors, steps, lr, beta1, beta2, eps, delta or 0.0)) is not None:
        return eta
    with torch.no_grad():
        return _torch_step(params, grads, squared, m, v, steps, curvatures, w, lr, beta1, beta2, eps, delta)


def _torch_step(params, grads, squared, m, v, steps, curvatures, w, lr, beta1, beta2, eps, delta) -> Tensor | float:
    """The same, on any device and in any precision."""
    torch._foreach_lerp_(m, grads, 1 - beta1)
    root = average_of_squares(v, squared, beta2, steps)
    u = torch._foreach_div(m, torch._foreach_add(root, eps))
    if curvatures and w:
        root = average_of_squares(w, curvatures, beta2, steps)
    return scale_and_apply(params, u, [lr / (1 - beta1**t) for t in steps], root, delta)


def average_of_squares(v: list[Tensor], x: list[Tensor], beta: float, steps: list[int]) -> Tensors:
    """Move v <- beta v + (1 - beta) x^2 in place; return the root of v, corrected for its start at zero."""
    torch._foreach_mul_(v, beta)
    torch._foreach_addcmul_(v, x, x, 1 - beta)
    root = torch._foreach_sqrt(v)
    torch._foreach_div_(root, [(1 - beta**t) ** 0.5 for t in steps])
    return root


def scale_and_apply(
    params: list[Tensor], u: Tensors, rates: list[float], root: Tensors | None, delta: float | None
) -> Tensor | float:
    """Set p <- p - eta rate u in place, eta = min(1, sqrt(2 delta/h)), h = sum root (rate u)^2; return eta.

    u and root are used up.
    """
    eta: Tensor | float = 1.0
    if delta is not None and root is not None:
        torch._foreach_mul_(root, u)
        torch._foreach_mul_(root, u)
        # No entry is negative: the 1-norm is the sum. In float64, so that no step size makes it overflow.
        sums = torch.stack(torch._foreach_norm(root, 1)).double()
        h = (sums * torch.tensor(rates, dtype=torch.float64, device=sums.device).square()).sum()
        eta = within(delta, h)
        torch._foreach_mul_(u, eta)
    torch._foreach_mul_(u, rates)
    torch._foreach_sub_(params, u)
    return eta


def within(delta: float, h: Tensor) -> Tensor:
    """Return eta = min(1, sqrt(2 delta/|h|)), 0-d: what scales a step u with u'Hu = h."""
    return (2 * delta / h.abs()).sqrt().clamp(max=1)  # h = 0 gives infinity and so 1


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch's method without its guard against torch.compile, if nobody has loaded torch's compiler yet.

    The guard's first call would: 2 s more until a program starts.
    """
    return method if "torch._dynamo" in sys.modules else getattr(method, "__wrapped__", method)


def _version(h: Tensor | Block) -> int | None:
    """How often h was changed in place; blocks and tensors of inference mode do not count."""
    return h._version if isinstance(h, Tensor) and not h.is_inference() else None


def _is_fresh(h: Tensor | Block | None, p: Tensor) -> bool:
    """Whether h fits p, no step has used it as it is now, and p is what it was when h was computed."""
    if h is None or h.shape != p.shape or getattr(h, "used_at_version", -1) == _version(h):
        return False
    return getattr(h, "of_version", p._version) == p._version  # one set by hand has no such mark


def _check(name: str, group: dict[str, Any]) -> None:
    """Raise ValueError for settings out of range; comparisons are so that NaN fails them too."""
    lr, delta, eps, damping = group["lr"], group["delta"], group.get("eps", 0.0), group.get("damping", 0.0)
    if not lr >= 0:
        raise ValueError(f"{name}: lr={lr}, must be >= 0")
    if not eps >= 0:
        raise ValueError(f"{name}: eps={eps}, must be >= 0")
    if not damping >= 0:
        raise ValueError(f"{name}: damping={damping}, must be >= 0")
    if not all(0 <= b < 1 for b in group["betas"]) or len(group["betas"]) != 2:
        raise ValueError(f"{name}: betas={group['betas']}, must be two numbers in [0, 1)")
    if delta is not None and not delta > 0:
        raise ValueError(f"{name}: delta={delta}, must be > 0, or None for no step-size scaling")
