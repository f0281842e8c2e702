"""Optimizers to compare with that need lines of their own to learn a policy: `hesscale_rl.optim.peers:NAME`."""

from typing import Any

import torch
from torch.optim import AdamW


class MuonAdamW:
    """Muon for the matrices of hidden layers, AdamW for everything else, as Muon's authors use it.

    A network's first and last matrices and all biases are AdamW's, with the same step size: Muon's updates are scaled
    to the size of AdamW's (torch.optim.Muon, adjust_lr_fn "match_rms_adamw"). `lr`, `weight_decay` and `momentum` as
    there; betas and eps are AdamW's. The groups stay as they are given, with one step size each.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ):
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"torch {torch.__version__} has no Muon; it came with 2.9")
        self.param_groups = [{"lr": lr, **group, "params": list(group["params"])} for group in params]
        inner = [[p for p in _matrices(group["params"])[1:-1]] for group in self.param_groups]
        hidden = {id(p) for group in inner for p in group}
        rest = [[p for p in group["params"] if id(p) not in hidden] for group in self.param_groups]
        self._of = []  # each part's groups, and the groups here that they are of
        self._parts: list[torch.optim.Optimizer] = []
        muon: dict[str, Any] = {"weight_decay": weight_decay, "momentum": momentum, "adjust_lr_fn": "match_rms_adamw"}
        adamw: dict[str, Any] = {"weight_decay": weight_decay, "betas": betas, "eps": eps}
        kinds: list[tuple[Any, Any, Any]] = [(torch.optim.Muon, inner, muon), (AdamW, rest, adamw)]
        for kind, lists, own in kinds:
            filled = [(group, part) for group, part in zip(self.param_groups, lists, strict=True) if part]
            if filled:
                self._parts.append(kind([{"params": part} for _, part in filled], lr=lr, **own))
                self._of.append([group for group, _ in filled])

    @property
    def state(self) -> dict[Any, Any]:
        """What is kept for each parameter."""
        return {p: state for part in self._parts for p, state in part.state.items()}

    def step(self) -> None:
        """Take a step, with the step sizes of the groups."""
        for part, groups in zip(self._parts, self._of, strict=True):
            for own, group in zip(part.param_groups, groups, strict=True):
                own["lr"] = group["lr"]
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the parts' states."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the parts' states."""
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def _matrices(params: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p for p in params if p.ndim == 2]
