"""What a run has learned, ready to act: `hesscale_rl.load("runs/NAME").act(observation)`."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import agents
from .errors import InputError
from .names import POOL
from .runs.arguments import need_one_of
from .runs.checkpoint import checkpoints, chosen_checkpoint, read_config, read_object, trusted_module

if TYPE_CHECKING:
    import numpy as np

    from .envs.checking import Checked
    from .rl.policy import Policy


class Loaded(NamedTuple):
    """A run's policy, its environment, the run's arguments, and the checkpoint that the policy is of."""

    policy: "Policy"
    env: "Checked"
    args: Any
    checkpoint: dict[str, Any]


def agent_of(run: Path) -> str:
    """Return the name of the agent that made the run; InputError if there is none of ours. It needs no torch."""
    name = read_object(run / "meta.json").get("agent")
    if name == "supervised":
        raise InputError(f"{run}: a supervised run, which plays no episodes; hesscale-rl plot takes it")
    if name not in agents.names():
        raise InputError(f"{run}: made by the agent {name!r}; there is {', '.join(agents.names())}")
    read_object(run / "config.json")
    if not checkpoints(run / "checkpoints"):
        raise InputError(f"{run}: it has no checkpoint yet")
    return name


def read_run(
    run: Path,
    render_mode: str | None = None,
    env_module: str | None = None,
    trust_env_module: bool = False,
    checkpoint: str = "last",
) -> Loaded:
    """Return what a run has learned, and an environment to play it in.

    `checkpoint`: as of `chosen_checkpoint`; `env_module` and `trust_env_module`: as of `trusted_module`. InputError
    for a run directory that is damaged.
    """
    agent = importlib.import_module(f"hesscale_rl.agents.{agent_of(run)}")
    from . import envs

    args = read_config(run, agent.Args)
    need_one_of(args, "std", agent.STDS)
    module = trusted_module(run, args, env_module, trust_env_module)
    saved = chosen_checkpoint(run, checkpoint)
    env = envs.make(args.env_id.removeprefix(POOL), module, render_mode, args.env_kwargs)
    try:
        policy = agent.make_policy(env.observation_space, env.action_space, args)
        policy.load_state_dict(saved["policy"])
    except (RuntimeError, ValueError, TypeError) as error:
        env.close()
        cause = " ".join(str(error).split())[:120]
        raise InputError(f"{run}: its checkpoint is of other networks, or config.json is damaged ({cause})") from None
    return Loaded(policy, env, args, saved)


class Player:
    """A policy that acts on observations as its environment gives them, with the normaliser as it was saved.

    `step`: how many steps of training it has behind it; `returns`: the returns of the last episodes of training;
    `module`: the torch module of it all, networks and normaliser.
    """

    def __init__(self, policy: "Policy", observation_space: Any, checkpoint: dict[str, Any]):
        self.module, self._space = policy, observation_space
        self.step, self.returns = checkpoint["global_step"], list(checkpoint.get("recent", []))

    def act(self, obs: Any, sampled: bool = False) -> "np.ndarray":
        """Return the action for one observation of the environment's space, as its `step` takes it.

        The most likely one; `sampled`: drawn as training does, from NumPy's generator. ValueError for an observation
        of another space.
        """
        import gymnasium as gym
        import numpy as np

        from .envs.checking import wrong

        if (problem := wrong(self._space, obs, "the observation")) is not None:
            raise ValueError(f"{problem[0]}; expected: {problem[1]}")
        flat = np.asarray(gym.spaces.flatten(self._space, obs), np.float64)
        norm = self.module.obs_norm
        seen = (flat.astype(np.float32) if norm is None else norm.normalize(flat))[None]
        noise = self.module.noise(np.random.default_rng(), 1) if sampled else None
        return self.module.to_env(self.module.act(seen, noise))[0]


def load(
    run: str | Path, checkpoint: str = "last", env_module: str | None = None, trust_env_module: bool = False
) -> Player:
    """Return the policy of a run directory, ready to act. The rest as of `hesscale-rl evaluate`."""
    loaded = read_run(Path(run).expanduser(), None, env_module, trust_env_module, checkpoint)
    try:
        return Player(loaded.policy, loaded.env.declared, loaded.checkpoint)
    finally:
        loaded.env.close()
