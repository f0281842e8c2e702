"""The policy: actor, critic and all that stands between them and the environment.

Normalisation, the distribution and the bounds of the actions belong to it, so that a checkpoint, an evaluation, an
exported file and a robot act as training did.
"""

from collections.abc import Callable
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ..backend import compiles, has_twin
from ..errors import Diverged, InputError
from ..names import DEVICES
from ..networks import Heads
from ..system.threads import Threads
from .actions import ActionBox
from .normalize import RewardNorm, RunningNorm

DISCRETE = "categorical"
CRITIC, VARIANCE = "critic", "variance"  # names of parameter groups
WIDE, PART = 2048, 1024  # rows of a pass from which on it is done in parts of so many
Function = Callable[[np.ndarray], np.ndarray]
Sampler = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], bool]


@has_twin
def function(net: nn.Module, observations: int) -> Function:
    """Return a network as a function of arrays [N, observations] -> [N, C].

    Its parameters may change in place, but must not be moved or replaced.
    """
    like = next(net.parameters())
    return lambda obs: net(torch.from_numpy(obs).to(like.device, like.dtype)).detach().cpu().float().numpy()


@has_twin
def sampler(policy: "Policy") -> Sampler:
    """Return sample(obs, noise, actions, to_env), which fills the last two for normalised observations [E, O].

    `actions` as `Policy.act` gives them; `to_env` the same held within the bounds, or counted from start, for
    `Policy.given`. It returns whether all numbers that decided the actions are finite. The parameters may change in
    place, but must not be moved or replaced.
    """

    def sample(obs: np.ndarray, noise: np.ndarray, actions: np.ndarray, to_env: np.ndarray) -> bool:
        outputs = policy.outputs(obs)
        actions[:] = policy.choose(outputs, noise)
        to_env[:] = policy.bounded(actions)
        return bool(np.isfinite(outputs + noise if policy.discrete else actions).all())

    return sample


class Policy(nn.Module):
    """Actor [N, O] -> [mean, p] [N, 2 A] or logits [N, C], critic [N, O] -> [N, 1], for normalised observations.

    `parametrization`: what p is, "log_std", "log_var" or "var"; "categorical" for logits. `low`, `high` [A]: the
    bounds of a continuous action; `start`: the number of the first discrete one. `reward_norm`: None, neither
    rewards nor observations are normalised. `rescale`: whether -1 and 1 stand for the bounds (actions.py).
    """

    low: Tensor
    high: Tensor
    threads = Threads(1)  # for passes over many rows; their number changes no digit

    def __init__(
        self,
        observations: int,
        action_space: Any,
        actor: nn.Module,
        critic: nn.Module,
        parametrization: str,
        reward_norm: RewardNorm | None,
        rescale: bool = False,
    ):
        super().__init__()
        self.actor, self.critic, self.parametrization = actor, critic, parametrization
        self.observations = observations
        self.obs_norm = None if reward_norm is None else RunningNorm((observations,))
        self.reward_norm = reward_norm
        self._functions: dict[int, tuple[Place, Function]] = {}  # of each network, good while it lies there
        self.discrete = parametrization == DISCRETE
        if self.discrete:
            if rescale:
                raise InputError("--rescale-actions: the environment's actions are choices, not numbers")
            self.choices, self.start = int(action_space.n), int(action_space.start)
        else:
            self.box = ActionBox(action_space, rescale)
            self._low, self._high = self.box.low, self.box.high
            self.register_buffer("low", torch.from_numpy(self._low.copy()))
            self.register_buffer("high", torch.from_numpy(self._high.copy()))

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups: every network by itself, and a variance that is a parameter."""
        networks: dict[str, nn.Module] = {"actor": self.actor, CRITIC: self.critic}
        if isinstance(self.actor, Heads):
            mean, variance = self.actor.branches
            networks = {"mean": mean, VARIANCE: variance, CRITIC: self.critic}
        elif self.parametrization == "log_var" and isinstance(self.actor, nn.Sequential):
            networks = {"mean": self.actor[:-1], VARIANCE: self.actor[-1], CRITIC: self.critic}
        return [{"params": list(network.parameters()), "name": name} for name, network in networks.items()]

    def place(self, device: str) -> None:
        """Put the networks on a device, InputError if it is not here; the statistics stay on the CPU."""
        if device.partition(":")[0] not in DEVICES:
            raise InputError(f"--device {device}: must be cpu, cuda or cuda:N")
        try:
            where = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
            cause = str(error).partition("\n")[0]
            raise InputError(f"--device {device}: not here ({cause}); take cpu") from None
        self.actor.to(where)
        self.critic.to(where)

    def noise(self, random: np.random.Generator, *shape: int) -> np.ndarray:
        """Return what `act` turns into samples: [*shape, A] normal or [*shape, C] Gumbel, float32."""
        if self.discrete:
            return random.gumbel(size=(*shape, self.choices)).astype(np.float32)
        return random.standard_normal((*shape, len(self._low)), dtype=np.float32)

    def values(self, obs: np.ndarray) -> np.ndarray:
        """Return the critic's values [...] of normalised observations [..., O]."""
        return self._call(self.critic, obs.reshape(-1, self.observations)).reshape(obs.shape[:-1])

    def normalize_and_update(self, obs: np.ndarray) -> np.ndarray:
        """Count in an observation [O]; return it as the networks see it, float32."""
        if self.obs_norm is None:
            return obs.astype(np.float32)
        self.obs_norm.update(obs)
        return self.obs_norm.normalize(obs)

    def act(self, obs: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Return actions for normalised observations [E, O]: [E, A] unclipped, or [E] numbers from 0.

        With noise [E, A] or [E, C] they are samples, with None the most likely ones.
        """
        return self.choose(self.outputs(obs), noise)

    def outputs(self, obs: np.ndarray) -> np.ndarray:
        """Return the actor's outputs [E, C] for normalised observations [E, O]."""
        return self._call(self.actor, obs)

    def choose(self, outputs: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Return the actions of `act` from the actor's outputs [E, C]."""
        if self.discrete:
            return (outputs if noise is None else outputs + noise).argmax(1)
        a = len(self._low)
        mean, p = outputs[:, :a], outputs[:, a:]
        if noise is None:
            return mean
        if self.parametrization == "var":
            return mean + np.sqrt(p) * noise
        return mean + np.exp(p if self.parametrization == "log_std" else p / 2) * noise

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        """Return the mean over the samples of KL(old || new), from the actor's outputs [B, C] of both."""
        if self.discrete:
            log_q, log_p = old.log_softmax(1), new.log_softmax(1)
            return (log_q.exp() * (log_q - log_p)).sum(1).mean()
        std = {"log_std": torch.exp, "log_var": lambda p: (p / 2).exp(), "var": torch.sqrt}[self.parametrization]
        q, p = (Normal(mean, std(spread), validate_args=False) for mean, spread in (old.chunk(2, 1), new.chunk(2, 1)))
        return kl_divergence(q, p).sum(1).mean()

    def _call(self, net: nn.Module, obs: np.ndarray) -> np.ndarray:
        """Return the network's outputs [N, C] for obs [N, O]."""
        if obs.ndim != 2 or obs.shape[1] != self.observations:
            raise ValueError(f"observations have the shape {list(obs.shape)}, expected [N, {self.observations}]")
        known = self._functions.get(id(net))
        if known is None or not known[0].unmoved():
            known = self._functions[id(net)] = Place(net), function(net, self.observations)
        rows = np.ascontiguousarray(obs, dtype=np.float32)
        if len(rows) <= WIDE:
            return known[1](rows)
        parts = [rows[first : first + PART] for first in range(0, len(rows), PART)]
        return np.concatenate(self.threads.run([partial(known[1], part) for part in parts]))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: not the functions, which read this one's parameters, nor its threads."""
        return {name: own for name, own in self.__dict__.items() if name != "threads"} | {"_functions": {}}

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Return what the environment is given for the actions of `act`: elements of its space."""
        return self.given(self.bounded(actions))

    def given(self, bounded: np.ndarray) -> np.ndarray:
        """Return what the environment is given for actions that are within the bounds."""
        return bounded if self.discrete else self.box.given(bounded)

    def bounded(self, actions: np.ndarray) -> np.ndarray:
        """Return the actions of `act` held within the bounds, or counted from the environment's first."""
        return actions + self.start if self.discrete else np.minimum(np.maximum(actions, self._low), self._high)

    def forward(self, obs: Tensor) -> Tensor:
        """Return the most likely actions, as the environment takes them, for raw observations [N, O]: for export."""
        outputs = self.actor(obs.float() if self.obs_norm is None else self.obs_norm(obs))
        if self.discrete:
            return outputs.argmax(1) + self.start
        bounded = torch.minimum(torch.maximum(outputs.chunk(2, 1)[0], self.low), self.high)
        return self.box.given_tensor(bounded)


class Place:
    """Where a network's parameters lie, and the backend: what functions that read them there are good for.

    It is asked before every use, so it does not walk through torch's modules again, but looks whether each has the
    modules and the parameters that it had.
    """

    def __init__(self, net: nn.Module):
        owned: list[dict[str, Any]] = [
            own for module in net.modules() for own in (module._modules, module._parameters)
        ]
        self._owned = [(own, [*own.values()]) for own in owned if own]
        self._lying = [(p, p.data_ptr(), p.dtype) for p in net.parameters()]
        self._compiles = compiles()

    def unmoved(self) -> bool:
        """Whether all is as it was."""
        return (
            self._compiles == compiles()
            and all(len(own) == len(kept) and all(map(is_, own.values(), kept)) for own, kept in self._owned)
            and all(p.data_ptr() == address and p.dtype is dtype for p, address, dtype in self._lying)
        )


def check_spaces(env_id: str, observation_space: Any, action_space: Any) -> None:
    """Raise InputError for an environment that no policy here can act in."""
    from gymnasium.spaces import Box, Discrete

    if not observation_space.shape[0]:
        raise InputError(f"--env-id {env_id}: its observations are {observation_space}: there is nothing to see")
    vector = isinstance(action_space, Box) and len(action_space.shape) == 1 and action_space.shape[0] > 0
    if not (isinstance(action_space, Discrete) or vector):
        needed = "a Discrete, or a Box of rank 1 with at least one action"
        raise InputError(f"--env-id {env_id}: its actions are {action_space}; needed is {needed}")


def check_finite(policy: Policy) -> None:
    """Raise Diverged unless every parameter is finite."""
    if not all(bool(p.isfinite().all()) for p in policy.parameters()):
        raise Diverged("a parameter is not finite")
