"""PPO and A2C the usual way, to measure against: Gymnasium's wrappers, torch at every step, autograd, torch.optim.Adam.

The settings and the order of work are those of CleanRL's ppo_continuous_action.py (one environment); A2C is the same
with one pass over five steps and no clipping. Nothing here is used for training.
"""

from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

GAMMA, LAMBDA, CLIP, LR, EPS = 0.99, 0.95, 0.2, 3e-4, 1e-5


def make_env(env_id: str) -> gym.Env:
    """Return the environment with the seven wrappers that do what an agent needs done."""
    env = gym.wrappers.FlattenObservation(gym.make(env_id))
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = gym.wrappers.ClipAction(env)
    env = gym.wrappers.NormalizeObservation(env)
    env = gym.wrappers.TransformObservation(env, lambda obs: np.clip(obs, -10, 10), env.observation_space)
    env = gym.wrappers.NormalizeReward(env, gamma=GAMMA)
    return gym.wrappers.TransformReward(env, lambda reward: float(np.clip(reward, -10, 10)))


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    """Return a linear layer with orthogonal weights and no bias to begin with."""
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


class Agent(nn.Module):
    """Two networks of two hidden layers of 64, and a standard deviation for each action."""

    def __init__(self, observations: int, actions: int):
        super().__init__()
        self.critic = nn.Sequential(layer(observations, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.0))
        self.mean = nn.Sequential(
            layer(observations, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, actions, 0.01)
        )
        self.log_std = nn.Parameter(torch.zeros(1, actions))

    def forward(self, obs: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return an action (a new one unless it is given), its log-probability, the entropy and the value."""
        mean = self.mean(obs)
        normal = Normal(mean, self.log_std.expand_as(mean).exp())
        if action is None:
            action = normal.sample()
        return action, normal.log_prob(action).sum(1), normal.entropy().sum(1), self.critic(obs)


def train(
    env_id: str, algorithm: str, num_steps: int, minibatches: int, epochs: int, seed: int = 1
) -> Iterator[None]:
    """Train for ever; yield after every rollout and what was learned from it. algorithm: "ppo" or "a2c"."""
    torch.manual_seed(seed)
    envs = gym.vector.SyncVectorEnv([lambda: make_env(env_id)])
    size, actions_size = envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    agent = Agent(size, actions_size)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LR, eps=EPS)
    obs, actions = torch.zeros(num_steps, 1, size), torch.zeros(num_steps, 1, actions_size)
    logprobs, rewards, dones, values = (torch.zeros(num_steps, 1) for _ in range(4))
    next_obs, next_done = torch.Tensor(envs.reset(seed=seed)[0]), torch.zeros(1)
    while True:
        for t in range(num_steps):
            obs[t], dones[t] = next_obs, next_done
            with torch.no_grad():
                action, logprob, _, value = agent(next_obs)
            actions[t], logprobs[t], values[t] = action, logprob, value.flatten()
            after, reward, terminated, truncated, _ = envs.step(action.numpy())
            rewards[t] = torch.tensor(reward).view(-1)
            next_obs, next_done = torch.Tensor(after), torch.Tensor(np.logical_or(terminated, truncated))
        with torch.no_grad():
            next_value, last = agent.critic(next_obs).reshape(1, -1), torch.zeros(1)
            advantages = torch.zeros_like(rewards)
            for t in reversed(range(num_steps)):
                live = 1 - (next_done if t == num_steps - 1 else dones[t + 1])
                following = next_value if t == num_steps - 1 else values[t + 1]
                delta = rewards[t] + GAMMA * following * live - values[t]
                advantages[t] = last = delta + GAMMA * LAMBDA * live * last
            returns = advantages + values
        batch = [x.flatten(0, 1) for x in (obs, actions, logprobs, advantages, returns, values)]
        indices, size = np.arange(num_steps), num_steps // minibatches
        fractions = []
        for _ in range(epochs):
            np.random.shuffle(indices)
            for start in range(0, num_steps, size):
                mb_obs, mb_actions, old, advantage, target, old_value = (
                    x[indices[start : start + size]] for x in batch
                )
                _, logprob, entropy, value = agent(mb_obs, mb_actions)
                value = value.view(-1)
                if algorithm == "ppo":
                    logratio = logprob - old
                    ratio = logratio.exp()
                    with torch.no_grad():
                        ((ratio - 1) - logratio).mean()
                        fractions.append(((ratio - 1).abs() > CLIP).float().mean().item())
                    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                    policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                    near = old_value + (value - old_value).clamp(-CLIP, CLIP)
                    value_loss = 0.5 * torch.max((value - target) ** 2, (near - target) ** 2).mean()
                else:
                    policy_loss, value_loss = -(advantage * logprob).mean(), 0.5 * ((value - target) ** 2).mean()
                loss = policy_loss - 0.0 * entropy.mean() + 0.5 * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        yield
