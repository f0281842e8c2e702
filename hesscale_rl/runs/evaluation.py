"""Evaluation while training: the policy as it stands, on environments of its own."""

import contextlib
import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..names import POOL
from ..rl.episode import episode
from ..rl.policy import Policy
from .checkpoint import crossed
from .video import Film, cannot_draw, need_video


class Evaluation:
    """Episodes with the most likely actions and the normaliser as it is, every args.eval_interval steps.

    Episode i of every evaluation begins from the same seed, spawned from `seed`, so that two points of the curve
    differ by the policy alone. The environment is one of its own, made by `make` as envs/__init__.py does; nothing
    that training draws, counts or learns is touched. With args.capture_video_interval it also films the first of
    these episodes. What is due is decided by steps alone, so that a resumed run evaluates where the uninterrupted one
    would have. `best`, `best_step`: the highest mean return yet, and where.

    InputError if the environment, or a picture of it, cannot be had.
    """

    def __init__(self, args: Any, make: Callable[..., Any], seed: np.random.SeedSequence):
        self.interval, self.film_interval = args.eval_interval, args.capture_video_interval
        self.env_id = args.env_id.removeprefix(POOL)
        self.episodes, self.seed = args.eval_episodes, seed
        self.step = self.filmed = 0  # of the last evaluation, and of the last film
        self.best, self.best_step = -math.inf, 0
        flag = f"--capture-video-interval {self.film_interval}"
        if self.film_interval:
            need_video(flag)
        mode = "rgb_array" if self.film_interval else None
        self.env = make(self.env_id, args.env_module, mode, args.env_kwargs)
        if self.film_interval:
            try:
                self.env.reset(seed=next(self._seeds()))
                picture = self.env.render()
            except Exception as error:  # of a driver, of a window, of an environment that does not draw
                self.env.close()
                raise cannot_draw(flag, self.env_id, error) from error
            if not isinstance(picture, np.ndarray) or picture.ndim != 3:
                self.env.close()
                raise InputError(f"{flag}: {self.env_id} draws no pictures: render() returned {type(picture)}")

    def play(self, policy: Policy, step: int, end: bool, stop: Callable[[], bool]) -> dict[str, float]:
        """Return what is logged of an evaluation if one is due at this step; at the run's last, its `end`, it is.

        Nothing where none is due, or where `stop` said between two episodes that the run is to stop.
        """
        if not self._due(self.step, step, self.interval, end):
            return {}
        played: list[tuple[float, int]] = []
        with untouched_random():
            for seed in itertools.islice(self._seeds(), self.episodes):
                if stop():
                    return {}
                played.append(episode(policy, self.env, seed))
        returns = [value for value, _ in played]
        self.step, mean = step, statistics.fmean(returns)
        if mean > self.best:
            self.best, self.best_step = mean, step
        spread = statistics.stdev(returns) if len(returns) > 1 else 0.0
        length = statistics.fmean(steps for _, steps in played)
        return {"eval/episodic_return": mean, "eval/episodic_return_std": spread, "eval/episodic_length": length}

    def film(self, policy: Policy, step: int, end: bool, folder: Path) -> None:
        """Write the first episode as folder/step_N.mp4 if that is due."""
        if not self._due(self.filmed, step, self.film_interval, end):
            return
        with untouched_random(), Film(folder / f"step_{step}.mp4", self.env.metadata.get("render_fps", 30)) as frames:
            episode(policy, self.env, next(self._seeds()), frames=frames)
        self.filmed = step

    def _seeds(self) -> Iterator[int]:
        draws = np.random.default_rng(self.seed)
        while True:
            yield int(draws.integers(2**31))

    @staticmethod
    def _due(last: int, step: int, interval: int, end: bool) -> bool:
        return interval > 0 and step > last and (end or crossed(last, step, interval))

    def summary(self) -> str:
        """Return what is said at the run's end, nothing where there was no evaluation."""
        if not self.best_step:
            return ""
        return (
            f"best {self.best:,.0f} (mean of {self.episodes}) at step {self.best_step:,}; --checkpoint best plays it"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on from."""
        return {"step": self.step, "filmed": self.filmed, "best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.step, self.filmed = state["step"], state["filmed"]
        self.best, self.best_step = state["best"], state["best_step"]


@contextlib.contextmanager
def untouched_random() -> Iterator[None]:
    """Leave the generators that a process shares as they were, whatever an environment of somebody's own draws."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
