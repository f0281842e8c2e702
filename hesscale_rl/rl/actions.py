"""Boxes of actions: how the numbers of a policy become actions that are in the environment's space."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

FAR = 0.25  # the share that box and [-1, 1] have in common of the wider one, below which a hint is due


class ActionBox:
    """What a policy does with its numbers [N, A] before an environment takes them as elements of `space`, a Box.

    `low`, `high` [A] float32: the bounds within which its numbers are held; those of the box, or -1 and 1 with
    `rescale`, for every dimension that has two finite bounds. Boxes of float32 and float64 are then given these
    numbers, others what is nearest in their dtype. InputError where there is nothing to rescale.
    """

    def __init__(self, space: Any, rescale: bool = False):
        self.dtype, self.rescale = space.dtype, rescale
        self.inner_low, self.inner_high = _inside(space.low, 1), _inside(space.high, -1)
        self.finite = np.isfinite(self.inner_low) & np.isfinite(self.inner_high)
        if rescale and not self.finite.any():
            raise InputError("--rescale-actions: the environment's actions have no bounds to rescale to")
        within = self.finite & rescale
        self.low, self.high = (
            np.where(within, np.float32(-1), self.inner_low),
            np.where(within, np.float32(1), self.inner_high),
        )
        low, high = self.inner_low.astype(np.float64), self.inner_high.astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinite bounds, whose dimensions stay as they are
            self.scale, self.shift = np.where(within, (high - low) / 2, 1.0), np.where(within, (high + low) / 2, 0.0)
        self.whole = np.issubdtype(self.dtype, np.integer)
        self.as_it_is = not rescale and self.dtype in (np.float32, np.float64)

    def given(self, actions: np.ndarray) -> np.ndarray:
        """Return what the environment is given for actions [N, A] within `low` and `high`: elements of the space."""
        if self.as_it_is:
            return actions
        if self.rescale:
            actions = (actions * self.scale + self.shift).clip(self.inner_low, self.inner_high)
        kind = np.float32 if self.dtype == np.float64 else self.dtype
        return (np.rint(actions) if self.whole else actions).astype(kind)

    def given_tensor(self, actions: Tensor) -> Tensor:
        """The same in torch."""
        if self.as_it_is:
            return actions
        if self.rescale:
            scale, shift, low, high = (
                torch.from_numpy(a) for a in (self.scale, self.shift, self.inner_low, self.inner_high)
            )
            actions = torch.minimum(torch.maximum(actions * scale + shift, low.double()), high.double())
        kind = np.float32 if self.dtype == np.float64 else self.dtype
        return (actions.round() if self.whole else actions).to(torch.from_numpy(np.empty(0, kind)).dtype)

    def hint(self) -> str | None:
        """Return what to say of bounds that a new policy, whose actions are about 0 +- 1, hardly acts within."""
        low, high = np.maximum(self.inner_low, -1), np.minimum(self.inner_high, 1)
        with np.errstate(invalid="ignore"):
            far = self.finite & ((high - low) < FAR * np.maximum(self.inner_high - self.inner_low, 2))
        if self.rescale or not far.any():
            return None
        at = int(np.flatnonzero(far)[0])
        bounds = f"action {at} is between {self.inner_low[at]:g} and {self.inner_high[at]:g}"
        return f"{bounds}, but a new policy acts between -1 and 1: --rescale-actions makes these the bounds"


def _inside(bound: np.ndarray, inward: int) -> np.ndarray:
    """A bound as float32, not outside of what it was."""
    with np.errstate(over="ignore"):
        near = bound.astype(np.float32)
    exact = bound.astype(np.longdouble)
    outside = near < exact if inward > 0 else near > exact
    return np.where(outside, np.nextafter(near, np.float32(inward * np.inf)), near)
