"""One episode with a policy that no longer learns: what an evaluation plays, a film shows and an arm does."""

from typing import Any, Protocol

import numpy as np

from ..errors import Diverged
from .policy import Policy


class Pictures(Protocol):
    """What takes up the pictures of an episode: a list, a film."""

    def append(self, picture: Any, /) -> None:
        """Take one, as the environment's render() returns it."""


MAX_STEPS = 100_000  # of an episode: an environment may never end one


def episode(
    policy: Policy,
    env: Any,
    seed: int,
    random: np.random.Generator | None = None,
    frames: Pictures | None = None,
    max_steps: int = MAX_STEPS,
) -> tuple[float, int]:
    """Play one episode from a reset with `seed`, up to max_steps; return its return and length.

    The normaliser stays as it is. `random`: sample the actions; None: the most likely ones. `frames` takes up the
    pictures, one before each step. Diverged for an action that is not finite.
    """
    obs, _ = env.reset(seed=seed)
    total, length, over = 0.0, 0, False
    while not over and length < max_steps:
        if frames is not None:
            frames.append(env.render())
        norm = policy.obs_norm
        seen = obs.astype(np.float32) if norm is None else norm.normalize(obs)
        noise = None if random is None else policy.noise(random, 1)
        chosen = policy.act(seen[None], noise)
        if not np.isfinite(chosen).all():  # before it is clipped: an infinite one would be the greatest
            raise Diverged(f"the policy's action is not finite: {chosen[0].tolist()}; what it learned has diverged")
        obs, reward, terminated, truncated, _ = env.step(policy.to_env(chosen)[0])
        total, length, over = total + float(reward), length + 1, terminated or truncated
    return total, length
