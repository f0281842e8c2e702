"""Running statistics for observations and rewards.

They are buffers of the policy, so that a checkpoint, an evaluation and a robot all see the inputs as training saw
them. The per-step methods are compiled loops on numpy views of the buffers (hence CPU only): at one observation per
call the overhead of torch operations would cost more than the arithmetic.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ..compiled.cache import ready
from .fast import normalize as running


class RunningNorm(nn.Module):
    """Centres and scales by the mean and variance of everything `update` has seen, then clips to ±`clip`.

    Buffers, float64: `mean` and `var` of `shape` (the population variance, ddof 0), `count` 0-d. A single observation
    has no spread: `var` keeps its initial 1 until the second one, rather than a 0 that would saturate every output.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0, eps: float = 1e-8) -> None:
        super().__init__()
        self.clip, self.eps = clip, eps
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, x: np.ndarray) -> None:
        """Count in one observation of shape `shape`, by Welford's recurrence."""
        running.welford_update(np.asarray(x, dtype=np.float64).reshape(-1), *self.arrays()[:3])

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
        """Return mean, var and count as flat views, eps and clip: what the loops of rl/fast/normalize.py take."""
        ready()
        # Taken anew for each use: kept on self, they would go stale in a deepcopy.
        flat = self.mean.numpy().reshape(-1), self.var.numpy().reshape(-1), self.count.numpy().reshape(1)
        return *flat, self.eps, self.clip

    def normalize(self, x: np.ndarray) -> np.ndarray:
        """Normalise x [..., *shape] to float32 of the same shape."""
        z = (x - self.mean.numpy()) / np.sqrt(self.var.numpy() + self.eps)
        return z.clip(-self.clip, self.clip).astype(np.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., *shape] like `normalize`, to the last bit, on any device."""
        z = (x.double() - self.mean) / torch.sqrt(self.var + self.eps)
        return z.clamp(-self.clip, self.clip).float()


class RewardNorm(nn.Module):
    """Divides rewards by the running standard deviation of the discounted return, then clips to ±`clip`.

    The mean is not taken off: that would change which policy is best. Buffers: `ret`, the discounted return of the
    episode so far in each of E environments (float64, [E]), and those of `stats`, which all share.
    """

    ret: Tensor

    def __init__(self, gamma: float, num_envs: int = 1, clip: float = 10.0, eps: float = 1e-8) -> None:
        super().__init__()
        self.gamma, self.clip, self.eps = gamma, clip, eps
        self.stats = RunningNorm(())
        self.register_buffer("ret", torch.zeros(num_envs, dtype=torch.float64))

    def scale(self, reward: float, episode_over: bool, env: int = 0) -> float:
        """Count in a reward of environment `env`; return it scaled.

        `episode_over`: terminated or truncated. At a truncation, too, the discounted return begins again, which
        Gymnasium's wrapper forgets: an environment that only ever truncates (HalfCheetah) would add up one endless
        return across its episodes.
        """
        own, stats = self.ret.numpy()[env : env + 1], self.stats.arrays()[:3]
        return running.scale(float(reward), episode_over, self.gamma, own, *stats, self.eps, self.clip)
