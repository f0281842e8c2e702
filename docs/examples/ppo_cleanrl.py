"""PPO in CleanRL's shape on a small task of its own: three lines are those of hesscale_rl, marked HesScale."""

import torch
from torch import nn
from torch.distributions import Normal

import hesscale_rl as hs


class Agent(nn.Module):
    """Actor and critic, as such scripts have them."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        self.actor_mean = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
        self.actor_logstd = nn.Parameter(torch.full((1, 2), -0.5))

    def get_action_and_value(self, x, action=None):
        """Action, its log-probability, entropy and value."""
        mean = self.actor_mean(x)
        probs = Normal(mean, torch.exp(self.actor_logstd.expand_as(mean)))
        action = probs.sample() if action is None else action
        return action, probs.log_prob(action).sum(1), probs.entropy().sum(1), self.critic(x)


def reward(x, action):
    """The task, of one step: go where the first two numbers of the observation are, mirrored."""
    return -(action + x[:, :2]).square().sum(1)


def main(updates: int = 20) -> list[float]:
    """Return the mean reward of every rollout."""
    torch.manual_seed(1)
    agent = Agent()
    optimizer = hs.AdaHesScale(agent.parameters(), lr=3e-3)  # HesScale: in place of optim.Adam
    means = []
    for _ in range(updates):
        b_obs = torch.randn(256, 3)
        with torch.no_grad():
            b_actions, b_logprobs, _, b_values = agent.get_action_and_value(b_obs)
        b_returns = reward(b_obs, b_actions)
        b_advantages = b_returns - b_values.flatten()
        means.append(float(b_returns.mean()))
        for _ in range(4):
            for mb_inds in torch.randperm(256).split(64):
                with hs.record() as tape:  # HesScale: around the loss, which stays as it is
                    _, newlogprob, entropy, newvalue = agent.get_action_and_value(b_obs[mb_inds], b_actions[mb_inds])
                    ratio = (newlogprob - b_logprobs[mb_inds]).exp()
                    mb_advantages = b_advantages[mb_inds]
                    mb_advantages = (mb_advantages - mb_advantages.mean()) / (mb_advantages.std() + 1e-8)
                    pg_loss1 = -mb_advantages * ratio
                    pg_loss2 = -mb_advantages * torch.clamp(ratio, 0.8, 1.2)
                    pg_loss = torch.max(pg_loss1, pg_loss2).mean()
                    v_loss = 0.5 * ((newvalue.view(-1) - b_returns[mb_inds]) ** 2).mean()
                    loss = pg_loss - 0.001 * entropy.mean() + v_loss * 0.5
                optimizer.zero_grad()
                tape.backward(loss, hs.HesScale())  # HesScale: in place of loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
    return means


if __name__ == "__main__":
    print("mean reward of the first and of the last rollout:", main()[0], main()[-1])
