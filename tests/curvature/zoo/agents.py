"""The networks of public agents of reinforcement learning, in the shape of each."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal

from zoo.model import Model, N, chosen, normal, squared

IMAGE = normal(2, 4, 36, 36).abs() * 100


def layer_init(layer, std=2**0.5, bias=0.0):
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias)
    return layer


def ppo_loss(logprob, entropy, value):
    """The clipped losses of policy and critic with an entropy bonus."""
    old, advantage, target = (
        logprob.detach() + 0.1 * normal(len(value)),
        normal(len(value), seed=1),
        normal(len(value)),
    )
    ratio = (logprob - old).exp()
    policy = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 0.8, 1.2)).mean()
    value = value.view(-1)
    near = target + torch.clamp(value - target, -0.2, 0.2)
    critic = 0.5 * torch.max((value - target) ** 2, (near - target - 0.3) ** 2).mean()
    return policy - 0.01 * entropy.mean() + 0.5 * critic


def discrete(outputs):
    logits, value = outputs
    probs = Categorical(logits=logits)
    return ppo_loss(probs.log_prob(torch.arange(len(logits)) % logits.shape[1]), probs.entropy(), value)


def continuous(outputs):
    mean, logstd, value = outputs
    probs = Normal(mean, logstd.expand_as(mean).exp())
    return ppo_loss(probs.log_prob(normal(*mean.shape, seed=2)).sum(1), probs.entropy().sum(1), value)


class PPOAgent(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(
            layer_init(nn.Linear(5, 16)),
            nn.Tanh(),
            layer_init(nn.Linear(16, 16)),
            nn.Tanh(),
            layer_init(nn.Linear(16, 1), 1.0),
        )
        self.actor = nn.Sequential(
            layer_init(nn.Linear(5, 16)),
            nn.Tanh(),
            layer_init(nn.Linear(16, 16)),
            nn.Tanh(),
            layer_init(nn.Linear(16, 3), 0.01),
        )

    def forward(self, x):
        return self.actor(x), self.critic(x)


class ContinuousAgent(PPOAgent):
    def __init__(self):
        super().__init__()
        self.actor_logstd = nn.Parameter(torch.zeros(1, 3))

    def forward(self, x):
        mean = self.actor(x)
        return mean, self.actor_logstd.expand_as(mean), self.critic(x)


class AtariAgent(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            layer_init(nn.Conv2d(4, 4, 8, stride=4)),
            nn.ReLU(),
            layer_init(nn.Conv2d(4, 6, 4, stride=2)),
            nn.ReLU(),
            layer_init(nn.Conv2d(6, 6, 3, stride=1)),
            nn.ReLU(),
            nn.Flatten(),
            layer_init(nn.Linear(6, 16)),
            nn.ReLU(),
        )
        self.actor = layer_init(nn.Linear(16, 3), std=0.01)
        self.critic = layer_init(nn.Linear(16, 1), std=1)

    def forward(self, x):
        hidden = self.network(x / 255.0)
        return self.actor(hidden), self.critic(hidden)


class QNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        return self.network(x)


class NatureQNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 8, 4), nn.Conv2d(4, 6, 4, 2)
        self.fc1, self.fc2 = nn.Linear(54, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.conv1(x / 255.0))
        x = F.relu(self.conv2(x))
        return self.fc2(F.relu(self.fc1(x.view(x.size(0), -1))))


class DuelingNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.value, self.advantage = nn.Linear(5, 16), nn.Linear(16, 1), nn.Linear(16, 3)

    def forward(self, x):
        h = F.relu(self.body(x))
        advantage = self.advantage(h)
        return self.value(h) + advantage - advantage.mean(dim=1, keepdim=True)


class CategoricalQNetwork(nn.Module):
    """C51: a distribution over atoms for every action."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3 * 7))

    def forward(self, x):
        pmfs = torch.softmax(self.network(x).view(len(x), 3, 7), dim=2)
        return pmfs[torch.arange(len(x)), torch.arange(len(x)) % 3]


def distributional(pmfs):
    target = torch.softmax(normal(*pmfs.shape), 1)
    return (-(target * pmfs.clamp(min=1e-5, max=1 - 1e-5).log()).sum(-1)).mean()


class NoisyLinear(nn.Module):
    """Factorised noise, held for the pass."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight_mu = nn.Parameter(torch.empty(outputs, inputs).uniform_(-0.4, 0.4))
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), 0.1))
        self.bias_mu, self.bias_sigma = nn.Parameter(torch.zeros(outputs)), nn.Parameter(torch.full((outputs,), 0.1))
        self.register_buffer("eps_in", torch.randn(inputs))
        self.register_buffer("eps_out", torch.randn(outputs))

    def forward(self, x):
        weight = self.weight_mu + self.weight_sigma * self.eps_out.ger(self.eps_in)
        return F.linear(x, weight, self.bias_mu + self.bias_sigma * self.eps_out)


class NoisyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = NoisyLinear(5, 12), NoisyLinear(12, 3)

    def forward(self, x):
        return self.last(F.relu(self.first(x)))


class SACActor(nn.Module):
    """Mean and log standard deviation, squashed into [-5, 2]; returns an action and its log-probability."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 16), nn.Linear(16, 16)
        self.fc_mean, self.fc_logstd = nn.Linear(16, 2), nn.Linear(16, 2)
        self.register_buffer("action_scale", torch.tensor([2.0, 0.5]))
        self.register_buffer("action_bias", torch.tensor([0.0, 0.1]))

    def forward(self, x):
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        mean, log_std = self.fc_mean(x), torch.tanh(self.fc_logstd(x))
        std = (-5 + 0.5 * (2 + 5) * (log_std + 1)).exp()
        x_t = mean + std * normal(*mean.shape, seed=3)  # rsample with the noise of this pass
        y_t = torch.tanh(x_t)
        log_prob = Normal(mean, std).log_prob(x_t) - torch.log(self.action_scale * (1 - y_t.pow(2)) + 1e-6)
        return y_t * self.action_scale + self.action_bias, log_prob.sum(1, keepdim=True)


def soft(outputs):
    action, log_prob = outputs
    return (0.2 * log_prob - (action - 0.3).square().sum(1, keepdim=True)).mean()


class SoftQNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(7, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, x, a):
        x = torch.cat([x, a], 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class DeterministicActor(nn.Module):
    """TD3's and DDPG's."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc_mu = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.register_buffer("action_scale", torch.tensor([2.0, 0.5]))
        self.register_buffer("action_bias", torch.tensor([0.0, 0.1]))

    def forward(self, x):
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        return torch.tanh(self.fc_mu(x)) * self.action_scale + self.action_bias


class ActorThroughCritic(nn.Module):
    """DDPG's loss of the actor: minus the value of its actions, the critic frozen."""

    def __init__(self):
        super().__init__()
        self.actor, self.critic = DeterministicActor(), SoftQNetwork().requires_grad_(False)

    def forward(self, x):
        return self.critic(x, self.actor(x))


class MlpPolicy(nn.Module):
    """SB3's ActorCriticPolicy: flattened features, an extractor with two branches, heads of one linear layer."""

    def __init__(self):
        super().__init__()
        self.features_extractor = nn.Flatten()
        self.policy_net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.value_net_body = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.action_net, self.value_net = nn.Linear(16, 3), nn.Linear(16, 1)
        self.log_std = nn.Parameter(torch.zeros(3))

    def forward(self, obs):
        features = self.features_extractor(obs)
        mean = self.action_net(self.policy_net(features))
        return mean, torch.ones_like(mean) * self.log_std, self.value_net(self.value_net_body(features))


class CnnPolicy(nn.Module):
    """SB3's NatureCNN, shared by actor and critic."""

    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(4, 4, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(4, 6, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(6, 6, kernel_size=3),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.linear = nn.Sequential(nn.Linear(6, 12), nn.ReLU())
        self.action_net, self.value_net = nn.Linear(12, 3), nn.Linear(12, 1)

    def forward(self, obs):
        features = self.linear(self.cnn(obs.float().to(self.action_net.weight.dtype) / 255.0))
        return self.action_net(features), self.value_net(features)


class LeanAgent(nn.Module):
    """LeanRL's continuous agent: get_action_and_value in one forward, distribution included."""

    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
        self.actor_mean = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
        self.actor_logstd = nn.Parameter(torch.zeros(1, 3))

    def forward(self, obs, action):
        mean = self.actor_mean(obs)
        probs = Normal(mean, torch.exp(self.actor_logstd.expand_as(mean)))
        return probs.log_prob(action).sum(1), probs.entropy().sum(1), self.critic(obs)


class RslActorCritic(nn.Module):
    """rsl_rl's: ELU networks and a noise parameter that is a standard deviation itself."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(5, 16), nn.ELU(), nn.Linear(16, 12), nn.ELU(), nn.Linear(12, 3))
        self.critic = nn.Sequential(nn.Linear(5, 16), nn.ELU(), nn.Linear(16, 12), nn.ELU(), nn.Linear(12, 1))
        self.std = nn.Parameter(0.8 * torch.ones(3))

    def forward(self, observations):
        mean = self.actor(observations)
        return mean, (mean * 0.0 + self.std).log(), self.critic(observations)


class RecurrentPolicy(nn.Module):
    """CleanRL's ppo_atari_lstm without its images: an LSTM whose state begins anew where an episode ended."""

    def __init__(self):
        super().__init__()
        self.network, self.lstm = nn.Linear(5, 8), nn.LSTM(8, 6)
        self.actor, self.critic = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x, done):
        hidden = F.relu(self.network(x))  # [T, N, 8]
        state, outputs = (hidden.new_zeros(1, x.shape[1], 6), hidden.new_zeros(1, x.shape[1], 6)), []
        for h, d in zip(hidden, done, strict=True):
            keep = (1.0 - d).view(1, -1, 1)
            h, state = self.lstm(h.unsqueeze(0), (keep * state[0], keep * state[1]))
            outputs += [h]
        flat = torch.flatten(torch.cat(outputs), 0, 1)
        return self.actor(flat), self.critic(flat)


def of_log_probs(outputs):
    return ppo_loss(*outputs)


X = normal(N, 5)
MODELS = {
    "CleanRL ppo": Model(PPOAgent, X, discrete, "actor.4 critic.4"),
    "CleanRL ppo_continuous_action": Model(ContinuousAgent, X, continuous, "actor.4 critic.4"),
    "CleanRL ppo_atari": Model(AtariAgent, IMAGE, discrete, "actor critic"),
    "CleanRL ppo_atari_lstm": Model(
        RecurrentPolicy, (normal(3, 2, 5), torch.tensor([[0, 0], [1, 0], [0, 0]]).double()), discrete, "actor critic"
    ),
    "CleanRL dqn": Model(QNetwork, X, chosen, "network.4"),
    "CleanRL dqn_atari": Model(NatureQNetwork, IMAGE, chosen, "fc2"),
    "CleanRL c51": Model(CategoricalQNetwork, X, distributional, "network.2"),
    "CleanRL sac actor": Model(SACActor, X, soft, "fc_mean fc_logstd"),
    "CleanRL sac critic": Model(SoftQNetwork, (X, normal(N, 2)), squared, "fc3"),
    "CleanRL td3 actor": Model(DeterministicActor, X, squared, "fc_mu"),
    "CleanRL ddpg actor through its critic": Model(ActorThroughCritic, X, lambda q: -q.mean(), "actor.fc_mu"),
    "SB3 MlpPolicy": Model(MlpPolicy, X, continuous, "action_net value_net"),
    "SB3 CnnPolicy": Model(CnnPolicy, IMAGE.long(), discrete, "action_net value_net"),
    "LeanRL ppo_continuous_action": Model(LeanAgent, (X, normal(N, 3)), of_log_probs, "actor_mean.4 critic.4"),
    "rsl_rl ActorCritic": Model(RslActorCritic, X, continuous, "actor.4 critic.4"),
    "dueling DQN": Model(DuelingNetwork, X, chosen, "value advantage"),
    "noisy DQN": Model(NoisyNetwork, X, chosen, "last"),
}
