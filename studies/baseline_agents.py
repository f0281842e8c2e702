"""PPO and A2C the usual way, to measure against: Gymnasium's wrappers, torch at every step, autograd, Adam.

The settings and the order of work are those of CleanRL's ppo_continuous_action.py with one environment; A2C is the
same with one pass over five steps and no clipping of ratios. Nothing here is used for training.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

GAMMA, LAMBDA, CLIP, LR, EPS = 0.99, 0.95, 0.2, 3e-4, 1e-5
Batch = dict[str, Tensor]


def make_env(env_id: str) -> gym.Env:
    """Return the environment with the seven wrappers that do what an agent needs done."""
    env: gym.Env = gym.wrappers.FlattenObservation(gym.make(env_id))
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = gym.wrappers.ClipAction(env)
    env = gym.wrappers.NormalizeObservation(env)
    env = gym.wrappers.TransformObservation(env, lambda obs: np.clip(obs, -10, 10), env.observation_space)
    env = gym.wrappers.NormalizeReward(env, gamma=GAMMA)

    def clipped(reward: Any) -> float:
        return float(np.clip(reward, -10, 10))

    return gym.wrappers.TransformReward(env, clipped)


def network(sizes: list[int], last_gain: float) -> nn.Sequential:
    """Return tanh layers with orthogonal weights and no bias to begin with."""
    layers: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        linear = nn.Linear(a, b)
        nn.init.orthogonal_(linear.weight, last_gain if len(layers) == 2 * len(sizes) - 4 else 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Agent(nn.Module):
    """Two networks of two hidden layers of 64, and a standard deviation for each action."""

    def __init__(self, observations: int, actions: int):
        super().__init__()
        self.critic = network([observations, 64, 64, 1], 1.0)
        self.mean = network([observations, 64, 64, actions], 0.01)
        self.log_std = nn.Parameter(torch.zeros(1, actions))

    def forward(self, obs: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return an action (a new one unless it is given), its log-probability, the entropy and the value."""
        mean = self.mean(obs)
        normal = Normal(mean, self.log_std.expand_as(mean).exp())
        if action is None:
            action = normal.sample()
        return action, normal.log_prob(action).sum(1), normal.entropy().sum(1), self.critic(obs)


def act(agent: Agent, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an action, its log-probability and the value of the observation."""
    with torch.no_grad():
        action, logprob, _, value = agent(obs)
    return action, logprob, value.flatten()


def step(envs: gym.vector.VectorEnv, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take the action; return the observation, the reward and whether the episode is over."""
    obs, reward, terminated, truncated, _ = envs.step(action.numpy())
    return torch.Tensor(obs), torch.tensor(reward).view(-1), torch.Tensor(np.logical_or(terminated, truncated))


@torch.no_grad()
def advantages(agent: Agent, batch: Batch, next_obs: Tensor, next_done: Tensor) -> tuple[Tensor, Tensor]:
    """Return generalised advantages and returns, [T, 1]."""
    values, dones, rewards = batch["values"], batch["dones"], batch["rewards"]
    next_value, last = agent.critic(next_obs).reshape(1, -1), torch.zeros(1)
    out = torch.zeros_like(rewards)
    for t in reversed(range(len(rewards))):
        live = 1 - (next_done if t == len(rewards) - 1 else dones[t + 1])
        following = next_value if t == len(rewards) - 1 else values[t + 1]
        delta = rewards[t] + GAMMA * following * live - values[t]
        out[t] = last = delta + GAMMA * LAMBDA * live * last
    return out, out + values


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: Batch, clip: bool, parts: int, epochs: int) -> None:
    """Learn from a rollout: PPO's loss with `clip`, else A2C's."""
    rows = {name: x.flatten(0, 1) for name, x in batch.items()}
    indices = np.arange(len(rows["obs"]))
    size, fractions = len(indices) // parts, []
    for _ in range(epochs):
        np.random.shuffle(indices)
        for start in range(0, len(indices), size):
            mb = {name: x[indices[start : start + size]] for name, x in rows.items()}
            _, logprob, entropy, value = agent(mb["obs"], mb["actions"])
            value, advantage, target = value.view(-1), mb["advantages"], mb["returns"]
            if clip:
                logratio = logprob - mb["logprobs"]
                ratio = logratio.exp()
                with torch.no_grad():
                    ((ratio - 1) - logratio).mean()
                    fractions.append(((ratio - 1).abs() > CLIP).float().mean().item())
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                near = mb["values"] + (value - mb["values"]).clamp(-CLIP, CLIP)
                value_loss = 0.5 * torch.max((value - target) ** 2, (near - target) ** 2).mean()
            else:
                policy_loss, value_loss = -(advantage * logprob).mean(), 0.5 * ((value - target) ** 2).mean()
            loss = policy_loss - 0.0 * entropy.mean() + 0.5 * value_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def train(env_id: str, algorithm: str, seed: int = 1) -> Iterator[int]:
    """Train for ever; yield the steps taken after every rollout and what was learned from it."""
    torch.manual_seed(seed)
    envs: Any = gym.vector.SyncVectorEnv([lambda: make_env(env_id)])
    agent = Agent(envs.single_observation_space.shape[0], envs.single_action_space.shape[0])
    optimizer = torch.optim.Adam(agent.parameters(), lr=LR, eps=EPS)
    num_steps, parts, epochs = (2048, 32, 10) if algorithm == "ppo" else (5, 1, 1)
    shapes = {"obs": envs.observation_space.shape, "actions": envs.action_space.shape}
    batch = {name: torch.zeros(num_steps, *shape) for name, shape in shapes.items()}
    batch |= {name: torch.zeros(num_steps, 1) for name in ("logprobs", "rewards", "dones", "values")}
    next_obs, next_done, taken = torch.Tensor(envs.reset(seed=seed)[0]), torch.zeros(1), 0
    while True:
        for t in range(num_steps):
            batch["obs"][t], batch["dones"][t] = next_obs, next_done
            action, batch["logprobs"][t], batch["values"][t] = act(agent, next_obs)
            batch["actions"][t] = action
            next_obs, batch["rewards"][t], next_done = step(envs, action)
        batch["advantages"], batch["returns"] = advantages(agent, batch, next_obs, next_done)
        update(agent, optimizer, batch, algorithm == "ppo", parts, epochs)
        taken += num_steps
        yield taken
