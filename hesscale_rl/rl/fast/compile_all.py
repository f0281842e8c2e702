"""Call every loop once, with every type of argument that it is called with: the process that fills the cache.

python -m hesscale_rl.rl.fast.compile_all common | hutchinson
"""

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from ... import AdaHesScale, AdaHessian, HesScale, Hutchinson, backward, losses
from ...compiled.cache import COMMON, HUTCHINSON, compile_here
from ...networks import GaussianHead, mlp
from ...optim import names
from ..normalize import RewardNorm
from ..policy import DISCRETE, Policy
from ..rollout import Rollout, Step
from .learner import Objective, make_learner
from .normalize import copy_finite


class _Still:
    """An environment in which nothing happens."""

    num_envs = 1

    def reset(self, seeds: Any) -> np.ndarray:
        return np.zeros((1, 3))

    def step(self, actions: np.ndarray) -> Step:
        over = np.ones(1, dtype=bool)
        return Step(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1), over, over, over)


def compile_common() -> None:
    """Call every loop once, with every type of argument that it is called with, but `Hutchinson`'s."""
    n, x = 4, torch.randn(4, 3)
    advantages, classes, actions = torch.randn(n), torch.zeros(n, dtype=torch.long), torch.randn(n, 2)
    logits, normal, value = mlp([3, 4, 2]), torch.nn.Sequential(*mlp([3, 4, 2]), GaussianHead(2)), mlp([3, 4, 1])
    for net, loss in (
        (logits, losses.CrossEntropy(classes)),
        (logits, losses.CategoricalPPO(classes, advantages, advantages)),
        (normal, losses.GaussianPPO(actions, advantages, advantages)),
        (value, losses.ValueLoss(advantages)),
    ):
        optimizer = AdaHesScale(net.parameters(), delta=1e-8)
        backward(net, x, loss, HesScale())
        optimizer.step()
    for found in names().values():
        if (kernel := getattr(found.find_class(), "kernel", None)) is not None:
            assert kernel.calls
    rows = dict(obs=x, logprob=advantages, advantages=advantages, returns=advantages, values=advantages)
    for actor, kind, space, taken in (
        (normal, "log_std", gym.spaces.Box(-1, 1, (2,)), actions),
        (logits, DISCRETE, gym.spaces.Discrete(2), classes),
    ):
        policy = Policy(3, space, actor, value, kind, RewardNorm(0.99))
        fast = make_learner(policy, AdaHesScale(policy.parameters(), delta=1e-8), HesScale())
        assert fast is not None
        fast.learn(rows | {"actions": taken}, torch.arange(n), 1, Objective(True, 0.0, 0.5, 0.5, 0.2, 0.2))
        Rollout(_Still(), policy, np.random.SeedSequence(0)).collect(1, lambda *_: None)
        policy.normalize_and_update(np.zeros(3))
    for first in (np.zeros(3, np.float32), np.zeros(3)):
        copy_finite(first, np.empty(3))


def compile_hutchinson() -> None:
    """Call the loops that only `Hutchinson` needs."""
    n = 4
    policy = Policy(3, gym.spaces.Discrete(2), mlp([3, 4, 2]), mlp([3, 4, 1]), DISCRETE, RewardNorm(0.99))
    fast = make_learner(policy, AdaHessian(policy.parameters(), delta=1e-8), Hutchinson())
    assert fast is not None
    rows = {name: torch.randn(n) for name in ("logprob", "advantages", "returns", "values")}
    rows |= {"obs": torch.randn(n, 3), "actions": torch.zeros(n, dtype=torch.long)}
    fast.learn(rows, torch.arange(n), 1, Objective(True, 0.0, 0.5, 0.5, 0.2, 0.2))


if __name__ == "__main__":
    compile_here()
    {COMMON: compile_common, HUTCHINSON: compile_hutchinson}[sys.argv[1]]()
