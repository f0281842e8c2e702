"""One or several copies of an environment behind one interface, whichever way they reset themselves.

A step returns what really followed (`final`, for bootstrapping) apart from what comes next (`obs`, after a reset
where an episode ended), so that no agent needs to know the reset mode behind it.
"""

import contextlib
from typing import Any

import gymnasium as gym
import numpy as np

from hesscale_rl.rl.policy import Policy
from hesscale_rl.rl.rollout import Step
from hesscale_rl.system.console import complain

from . import native, state
from .checking import Checked, CheckedPool
from .native.rollout import RolloutDriver, driver
from .plain import NotPlain


class Envs:
    """E copies of one environment, one after the other in this process; where an episode ends, the next begins."""

    def __init__(self, *copies: gym.Env):
        self.copies = [env if isinstance(env, Checked) else Checked(env, "the environment") for env in copies]
        self.observation_space, self.action_space = self.copies[0].observation_space, copies[0].action_space
        self.num_envs = e = len(copies)
        for env in self.copies:
            env.native = native.find(env.env, env.name) if env.native is None else env.native
        # What a step returns changes with the next one: nothing is allocated in between.
        self._final, self._obs = np.empty((e, self.copies[0].length)), np.empty((e, self.copies[0].length))
        self._each = [*zip(range(e), self.copies, self._final, self._obs, strict=True)]
        self._told = False  # that the state cannot be saved
        self._rewards, self._always = np.zeros(e), np.ones(e, dtype=bool)
        self._terminated, self._truncated = np.zeros(e, dtype=bool), np.zeros(e, dtype=bool)

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Begin an episode in each, seeded with one seed each; return the observations [E, O]."""
        for (_, env, _, first), seed in zip(self._each, seeds, strict=True):
            env.reset_into(first, seed=seed)
        return self._obs

    def step(self, actions: np.ndarray) -> Step:
        """Take the actions [E, ...]; where an episode ends, begin the next."""
        over = False
        for i, env, final, first in self._each:
            reward, terminated, truncated = env.step_into(actions[i], final)
            self._rewards[i], self._terminated[i], self._truncated[i] = reward, terminated, truncated
            if terminated or truncated:
                env.reset_into(first)
                over = True
        obs = self._final
        if over:
            obs, going = self._obs, ~(self._terminated | self._truncated)
            obs[going] = self._final[going]
        return Step(obs, self._final, self._rewards, self._terminated, self._truncated, self._always)

    def parts(self) -> "list[Envs]":
        """Return each copy by itself: none waits for another."""
        return [self] if self.num_envs == 1 else [Envs(env) for env in self.copies]

    def driver(self, policy: Policy) -> RolloutDriver | None:
        """Return what takes a rollout's steps with a policy in few calls, None where they are taken one by one."""
        return driver(self.copies[0], policy) if self.num_envs == 1 else None

    def save(self) -> list[state.State] | None:
        """Return the state of every environment, or None if it cannot be known; a line says so if it should be."""
        try:
            states = [state.save(env) for env in self.copies]
        except NotPlain as error:
            if not self._told:
                complain(
                    f"{self.copies[0].name}: {error}; its state is in no checkpoint, so --resume begins new episodes"
                )
            self._told = True
            return None
        return None if any(s is None for s in states) else [s for s in states if s is not None]

    def load(self, states: list[state.State]) -> bool:
        """Go on from what `save` returned; False, after a line that says why, if that cannot be."""
        try:
            for env, own in zip(self.copies, states, strict=True):
                state.load(env, own)
        except Exception as error:  # whatever an environment of somebody's own may do
            complain(f"{self.copies[0].name}: load_state() raised {type(error).__name__}: {error}")
            return False
        return True

    def hint(self) -> str | None:
        """Return what to say before training of what is in them, None if nothing."""
        return self.copies[0].hint()

    def close(self) -> None:
        """Give back windows and memory, of every copy, whatever one of them raises."""
        with contextlib.ExitStack() as stack:
            for env in reversed(self.copies):
                stack.callback(env.close)


class NextStep:
    """E environments of a gymnasium.vector.VectorEnv that resets in the step after the last: EnvPool's.

    The step in which an environment only resets itself is not `valid`, and its action is ignored. `seeded` when it
    was made, a pool takes no seeds at its reset. `name` begins every message.
    """

    def __init__(self, vector: Any, seeded: bool = False, name: str = "the pool"):
        self.vector, self.num_envs, self._seeded = CheckedPool(vector, name), vector.num_envs, seeded
        self.observation_space, self.action_space = vector.single_observation_space, vector.single_action_space
        self._over = np.zeros(self.num_envs, dtype=bool)

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Begin an episode in each."""
        self._over[:] = False
        return self.vector.reset({} if self._seeded else {"seed": list(seeds)})

    def step(self, actions: np.ndarray) -> Step:
        """Take the actions."""
        obs, rewards, terminated, truncated = self.vector.step(actions)
        valid, self._over = ~self._over, terminated | truncated
        return Step(obs, obs, rewards, terminated, truncated, valid)

    def save(self) -> None:
        """Nothing: the environments are behind a wall."""
        return None

    def hint(self) -> str | None:
        """Return what to say before training of what is in them, None if nothing."""
        return self.vector.hint()

    def close(self) -> None:
        """Close the pool."""
        self.vector.close()
