"""Step sizes from what learning did: an actor's and a critic's steps, set by how far the last ones went.

What a step size does to a policy differs from task to task, and while it learns. What it did can be measured. Of a
window of samples that were learned from, PPO's rollout or as many of A2C's, let

    d = mean KL(old || new)                                          of the policy,
    c = mean (V_new - V_old)^2 / (2 mean (R - V_old)^2)              of the values V of the returns R.

c is a KL divergence, too: of predictions R ~ Normal(V, s) whose variance s is the critic's own squared error. Neither
has a unit, whatever rewards and actions are measured in. Along one and the same path both grow with the square of the
step size, so that

    lr <- eta lr sqrt(desired/measured)

would have made of the window what was desired of it. eta is the mean factor by which the trust region has shortened
its steps: lr becomes the step size that was really taken. The root is held between `LEAST` and `MOST`, since small
divergences are noise, and those far from the desired ones belong to another path.

A measure comes too late for a window that its own first steps have spoilt. So no step leaves a trust region
(optim/scaling.py). n steps that all point one way go n times as far as one of them, n^2 times in divergence: with the
radius desired/n^2 each, they go as far as desired. Where gradients cancel, a window's steps may be longer; the radius
leaves them `ROOM`:

    delta = ROOM desired/n^2,   of the critic in units of its squared error.

What remains to be chosen is the divergence desired of the policy. The critic's is `CRITIC_SHARE` times that. A policy
that moves as far from first to last never comes to rest, and where it narrows, the same divergence is a smaller and
smaller step of the means: so what is desired may fall over a run, as step sizes are annealed. Nor should it narrow as
fast as its means learn: a network of variances has `VARIANCE_SHARE` times their step size.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..optim.base import CurvatureOptimizer
from .policy import CRITIC, VARIANCE, Policy

CRITIC_SHARE, VARIANCE_SHARE = 5.0, 0.3
ROOM = 4.0
LEAST, MOST = 0.25, 2.0
LARGEST = 1.0  # a step size from which on the trust region alone decides
TINY = 1e-30  # what divergences, squared errors and radii count as at least


class Window(NamedTuple):
    """After how many samples step sizes are set, and how many steps of the optimizer these make."""

    samples: int
    steps: int


class StepControl:
    """Sets `lr` and `delta` of an optimizer's parameter groups, those of `Policy.groups`; so its state has them.

    `desired_kl`: the mean KL divergence that learning from a window should take the policy; `remaining`, from 1 to 0,
    what of it still holds. Its own state is the window that has begun.
    """

    remaining = 1.0

    def __init__(self, policy: Policy, optimizer: CurvatureOptimizer, desired_kl: float, window: Window):
        self.policy, self.optimizer, self.desired_kl, self.window = policy, optimizer, desired_kl, window
        self.batches: list[dict[str, Tensor]] = []
        self.seen = 0  # their samples
        self.etas: list[list[float]] = []
        self.figures: dict[str, float] = {}  # what is to be logged of the last window
        for group in optimizer.param_groups:
            group["lr"] *= VARIANCE_SHARE if group["name"] == VARIANCE else 1.0
        self._limit(1.0)  # until the critic's error has been seen

    def learned(self, batch: dict[str, Tensor], etas: list[float]) -> None:
        """Count in what was learned from; at a window's end set the steps of the next one.

        batch [B, ...], as it was before: obs, outputs (the actor's), values, returns. etas: of each parameter group
        the mean factor by which the trust region shortened its steps.
        """
        self.batches.append({name: batch[name].clone() for name in ("obs", "outputs", "values", "returns")})
        self.etas.append(etas)
        self.seen += len(batch["obs"])
        if self.seen >= self.window.samples:
            self._set_steps(self._window(), np.mean(self.etas, 0).tolist())
            self.batches, self.etas, self.seen = [], [], 0

    @property
    def _desired(self) -> float:
        return self.desired_kl * max(self.remaining, TINY)

    def _window(self) -> dict[str, Tensor]:
        return {name: torch.cat([rows[name] for rows in self.batches]) for name in self.batches[0]}

    @torch.no_grad()
    def _set_steps(self, old: dict[str, Tensor], etas: list[float]) -> None:
        """Set every group's step size and radius by what has become of the policy and of the values."""
        squared_error = float((old["returns"] - old["values"]).square().mean())
        moved = float((self.policy.critic(old["obs"]).flatten() - old["values"]).square().mean())
        kl = float(self.policy.kl(old["outputs"], self.policy.actor(old["obs"])))
        critic_kl = moved / (2 * max(squared_error, TINY))
        groups = self.optimizer.param_groups
        actor = max(eta for group, eta in zip(groups, etas, strict=True) if group["name"] != CRITIC)
        for group, eta in zip(groups, etas, strict=True):
            if group["name"] == CRITIC:
                factor = eta * _factor(CRITIC_SHARE * self._desired, critic_kl)
            else:  # one for all of the actor: its groups keep their step sizes' ratio
                factor = actor * _factor(self._desired, kl)
            group["lr"] = min(group["lr"] * factor, LARGEST)
        self._limit(squared_error)
        self.figures = {"losses/kl": kl, "losses/critic_kl": critic_kl}
        self.figures |= {f"optim/lr_{group['name']}": group["lr"] for group in groups}

    def _limit(self, squared_error: float) -> None:
        """Set every group's radius."""
        radius = max(ROOM * self._desired / self.window.steps**2, TINY)
        for group in self.optimizer.param_groups:
            # Half of u'Hu of the critic's loss is half of the mean square that its values move.
            group["delta"] = max(CRITIC_SHARE * radius * squared_error, TINY) if group["name"] == CRITIC else radius

    def state_dict(self) -> dict[str, Any]:
        """Return the window that has begun, and what the last one was; `lr` and `delta` are the optimizer's."""
        return {"batch": self._window() if self.batches else {}, "etas": self.etas, "figures": self.figures}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the window that had begun."""
        self.batches, self.etas = [state["batch"]] if state["batch"] else [], [list(etas) for etas in state["etas"]]
        self.seen = sum(len(rows["obs"]) for rows in self.batches)
        self.figures = dict(state["figures"])


def _factor(desired: float, measured: float) -> float:
    """Return what a step size is multiplied by; the least for a divergence that is no number."""
    wanted = (desired / max(measured, TINY)) ** 0.5
    return min(wanted, MOST) if wanted >= LEAST else LEAST  # a NaN compares as false
