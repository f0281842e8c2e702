"""Running statistics for observations and rewards.

They are buffers of the policy, so that a checkpoint, an evaluation and a robot all see the inputs as training saw
them. What is done at every step is a function of a record of numpy views of the buffers (hence CPU only): at one
observation per call the overhead of torch operations would cost more than the arithmetic.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ..backend import has_twin
from .records import LARGEST, Normalizers, RewardScale, Statistics

_NONE = np.zeros(0)
NO_STATISTICS = Statistics(False, _NONE, _NONE, _NONE, 0.0, 0.0)


@has_twin
def copy_finite(x: np.ndarray, row: np.ndarray) -> bool:
    """Copy x [n] into row [n], float64; return whether float32 holds all of it: no NaN, nothing infinite."""
    row[:] = x
    return bool((np.abs(row) <= LARGEST).all())


@has_twin
def welford_update(x: np.ndarray, stats: Statistics) -> bool:
    """Count x [n] in, by Welford's recurrence; return whether all of it is finite.

    A single observation has no spread: var keeps its initial value until the second.
    """
    stats.counted[0] += 1
    n = stats.counted[0]
    delta = x - stats.mean
    stats.mean[:] += delta / n
    square = delta * (x - stats.mean)
    if n == 2:
        stats.var[:] = square / n
    elif n > 2:
        stats.var[:] += (square - stats.var) / n
    return bool(np.isfinite(x).all())


@has_twin
def normalize(x: np.ndarray, stats: Statistics, out: np.ndarray) -> None:
    """Fill out [n], float32, with (x - mean)/sqrt(var + eps), held within clip; a NaN stays one."""
    out[:] = ((x - stats.mean) / np.sqrt(stats.var + stats.eps)).clip(-stats.clip, stats.clip)


@has_twin
def normalize_and_update(x: np.ndarray, stats: Statistics, out: np.ndarray) -> bool:
    """Count x [n] in and fill out [n], float32, with it normalised, or as it is; return whether x is finite."""
    if not stats.active:
        out[:] = x
        return bool(np.isfinite(x).all())
    finite = welford_update(x, stats)
    normalize(x, stats, out)
    return finite


@has_twin
def scale_and_update(reward: float, over: bool, scale: RewardScale, i: int) -> float:
    """Count in a reward of environment i; return it over the deviation of the discounted return, held within clip.

    `over`: whether the episode is, terminated or truncated. At a truncation, too, the discounted return begins again,
    which Gymnasium's wrapper forgets: an environment that only ever truncates (HalfCheetah) would add up one endless
    return across its episodes.
    """
    stats, ret = scale.stats, scale.ret[i : i + 1]
    if not stats.active:
        return reward
    ret[0] = ret[0] * scale.gamma + reward
    welford_update(ret, stats)
    if over:
        ret[0] = 0.0
    return float((reward / np.sqrt(stats.var[0] + stats.eps)).clip(-stats.clip, stats.clip))


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
        """Count in one observation of shape `shape`."""
        welford_update(np.asarray(x, dtype=np.float64).reshape(-1), self.record())

    def record(self) -> Statistics:
        """Return the statistics as views of the buffers; taken anew for each use, since a deepcopy moves them."""
        mean, var = self.mean.numpy().reshape(-1), self.var.numpy().reshape(-1)
        return Statistics(True, mean, var, self.count.numpy().reshape(1), self.eps, self.clip)

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
        """Count in a reward of environment `env`, whose episode ended or did not; return it scaled."""
        return scale_and_update(float(reward), episode_over, self.record(), env)

    def record(self) -> RewardScale:
        """Return the statistics as views of the buffers, and eps and clip."""
        stats = self.stats.record()._replace(eps=self.eps, clip=self.clip)
        return RewardScale(self.ret.numpy(), self.gamma, stats)


def normalizers(obs: RunningNorm | None, rewards: RewardNorm | None, e: int = 1) -> Normalizers:
    """Return what each of e environments counts in, from where the policy's own statistics stand; None: nothing.

    A single environment counts into the policy's own. Several count into copies, each into its own, so that none
    depends on how far another is; `join` brings them together.
    """
    scale = RewardScale(_NONE, 1.0, NO_STATISTICS) if rewards is None else rewards.record()
    own = NO_STATISTICS if obs is None else obs.record()
    return Normalizers(_each(own, e), scale._replace(stats=_each(scale.stats, e)))


def _each(stats: Statistics, e: int) -> Statistics:
    """The statistics themselves as [1, n], or e copies of them."""
    arrays = stats.mean, stats.var, stats.counted
    mean, var, counted = (a[None] if e == 1 else np.tile(a, (e, 1)) for a in arrays)
    return stats._replace(mean=mean, var=var, counted=counted)


def join(norms: Normalizers, obs: RunningNorm | None, rewards: RewardNorm | None) -> None:
    """Count into the policy's own statistics what each environment has counted into its copy, by `normalizers`."""
    for norm, copies in ((obs, norms.obs), (None if rewards is None else rewards.stats, norms.rewards.stats)):
        if norm is not None and len(copies.mean) > 1:
            join_statistics(norm.record(), copies)


def join_statistics(stats: Statistics, copies: Statistics) -> None:
    """Bring together what E copies [E, n] of `stats` have each counted in since they were made.

    Of count n, mean and sum of squares about it, those of several samples follow from those of each (Chan et al.
    1979); the sample that a copy has counted in is what takes `stats` to where the copy stands.
    """

    def squares(of: Statistics) -> np.ndarray:
        return np.where(of.counted > 1, of.counted * of.var, 0.0)  # var is no spread before the second

    before, own = stats.counted, squares(stats)
    new = copies.counted - before  # [E, 1]
    shift = (copies.mean - stats.mean) * copies.counted / new  # of each sample's mean, from the one before
    within = np.maximum(squares(copies) - own - before * new / copies.counted * shift * shift, 0.0)
    total = before + new.sum(0)
    moved = (new * shift).sum(0) / total
    spread = own + within.sum(0) + before * moved * moved + (new * (shift - moved) ** 2).sum(0)
    stats.mean[:] += moved
    stats.counted[:] = total
    if total > 1:
        stats.var[:] = spread / total
