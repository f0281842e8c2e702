"""PPO for continuous actions, with first-order and HesScale optimizers: the whole algorithm in one file.

    python agents/ppo.py --env-id HalfCheetah-v5 --optimizer scaled-adahesscale

Schulman et al. 2017 with the details of CleanRL's ppo_continuous_action.py and their flags; HesScale and step-size
scaling as in Elsayed et al. 2024, section 7. Sections: arguments, networks, rollout, advantages, update, loop.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

# --- arguments


@dataclass
class Args:
    """PPO for continuous actions, with first-order and HesScale optimizers."""

    preset: str = "default"
    """the values that the other flags start from: default (CleanRL's) or paper (Elsayed et al. 2024)"""
    env_id: Annotated[str, tyro.conf.arg(aliases=["--env"])] = "HalfCheetah-v5"
    """a Gymnasium environment with vector observations and continuous actions"""
    total_timesteps: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1_000_000
    """environment steps, rounded down to whole rollouts"""
    seed: int = 1
    """decides everything random: weights, noise, minibatches, environment"""
    optimizer: Annotated[str, tyro.conf.arg(aliases=["--optim"])] = "scaled-adahesscale"
    """sgd, adam, adahesscale, adahesscale-gn, adabl89, each also as scaled-..."""
    learning_rate: Annotated[float, tyro.conf.arg(aliases=["--lr"])] = 3e-4
    """step size"""
    delta: float = 1e-8
    """trust-region radius of the scaled-... optimizers, for each network by itself"""
    betas: tuple[float, float] = (0.9, 0.999)
    """decay rates of the optimizer's moving averages"""
    eps: float = 1e-5
    """what the optimizer adds to its denominator"""
    anneal_lr: bool = True
    """let the step size fall linearly to zero"""
    num_steps: int = 2048
    """environment steps of a rollout"""
    num_minibatches: int = 32
    """minibatches that a rollout is cut into"""
    update_epochs: int = 10
    """passes over a rollout"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    norm_adv: bool = True
    """normalise the advantages of each minibatch"""
    clip_coef: float = 0.2
    """how far the probability ratio may go from 1"""
    clip_vloss: bool = True
    """clip the value loss as PPO's first implementation did"""
    ent_coef: float = 0.0
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """norm at which the gradient of all networks together is cut; 0: never (the curvature is left as it is)"""
    target_kl: float | None = None
    """end an update when the approximate KL divergence exceeds this"""
    std: str = "parameter"
    """standard deviation: parameter , shared (the actor's own outputs), network (one of its own)"""
    exp_name: str = "ppo"
    """name of the experiment, part of the run directory's name"""
    run_dir: str | None = None
    """the run directory; default runs/{env_id}__{exp_name}__{seed}__{time}"""
    torch_threads: int = 1
    """threads of torch; more only slow such small networks down"""
    quiet: bool = False
    """print nothing but errors"""


PRESETS = {
    "default": Args(),
    "paper": Args(preset="paper", anneal_lr=False, clip_vloss=False, vf_coef=1.0, max_grad_norm=0.0, std="network"),
}


def parse(argv: list[str]) -> Args:
    """Return the arguments: the preset's values, then what argv says."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="default")
    preset = first.parse_known_args(argv)[0].preset
    # An unknown preset is left to `check`, which says it in one line.
    return tyro.cli(Args, args=argv, default=PRESETS.get(preset, PRESETS["default"]))


if __name__ == "__main__":
    ARGS = parse(sys.argv[1:])  # before torch is imported, so that --help answers at once

import math
import time
from collections import deque

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

import envs
import hesscale_rl as hs
from hesscale_rl.advantages import gae
from hesscale_rl.errors import BAD_INPUT, EXIT_CODES, Diverged, InputError
from hesscale_rl.networks import Exp, GaussianHead, Heads, mlp
from hesscale_rl.normalize import RewardNorm, RunningNorm
from hesscale_rl.optim import OPTIMIZER_NAMES
from hesscale_rl.progress import Progress
from hesscale_rl.run import Run


def check(args: Args) -> None:
    """Raise InputError with one line for the first argument that cannot be."""

    def need(ok: bool, flag: str, allowed: str) -> None:
        if not ok:
            value = getattr(args, flag)
            raise InputError(f"--{flag.replace('_', '-')} {value}: must be {allowed}")

    need(args.preset in PRESETS, "preset", f"one of {', '.join(PRESETS)}")
    need(args.optimizer in OPTIMIZER_NAMES, "optimizer", f"one of {', '.join(OPTIMIZER_NAMES)}")
    need(args.std in ("parameter", "shared", "network"), "std", "one of parameter, shared, network")
    for flag in ("num_steps", "num_minibatches", "update_epochs", "torch_threads"):
        need(getattr(args, flag) >= 1, flag, "at least 1")
    for flag in ("learning_rate", "delta", "clip_coef"):
        need(0 < getattr(args, flag) < math.inf, flag, "a positive number")
    for flag in ("eps", "max_grad_norm", "vf_coef", "ent_coef"):
        need(0 <= getattr(args, flag) < math.inf, flag, "zero or a positive number")
    for flag in ("gamma", "gae_lambda"):
        need(0 <= getattr(args, flag) <= 1, flag, "between 0 and 1")
    need(all(0 <= b < 1 for b in args.betas), "betas", "two numbers in [0, 1)")
    need(args.target_kl is None or args.target_kl > 0, "target_kl", "a positive number")
    need(args.seed >= 0, "seed", "zero or a positive integer")
    need(args.total_timesteps >= args.num_steps, "total_timesteps", f"at least one rollout, {args.num_steps} steps")
    steps, parts = args.num_steps, args.num_minibatches
    need(steps % parts == 0, "num_minibatches", f"a divisor of --num-steps {steps}")
    alone = "the advantages of one sample cannot be normalised (or give --no-norm-adv)"
    need(steps > parts or not args.norm_adv, "num_minibatches", f"below --num-steps {steps}: {alone}")


# --- networks


class Policy(nn.Module):
    """Actor, critic and the normalisers they need: all that is saved and deployed.

    The actor maps normalised observations [N, O] to [mean, p] [N, 2 A], p by `parametrization`; the critic to [N, 1].
    """

    def __init__(self, env: gym.Env, args: Args):
        super().__init__()
        observations, actions = env.observation_space.shape[0], env.action_space.shape[0]
        self.obs_norm, self.reward_norm = RunningNorm((observations,)), RewardNorm(args.gamma)
        self.register_buffer("low", torch.as_tensor(env.action_space.low))
        self.register_buffer("high", torch.as_tensor(env.action_space.high))
        hidden = [observations, 64, 64]
        self.parametrization = "var" if args.std == "network" else "log_std"
        if args.std == "parameter":
            self.actor = nn.Sequential(*mlp([*hidden, actions], last_gain=0.01), GaussianHead(actions))
        elif args.std == "shared":
            self.actor = mlp([*hidden, 2 * actions], last_gain=0.01)
        else:
            mean = mlp([*hidden, actions], last_gain=0.01)
            variance = nn.Sequential(*mlp([observations, 64, actions], last_gain=0.01), Exp())
            self.actor = Heads(mean, variance)
        self.critic = mlp([*hidden, 1])

    def groups(self) -> list[dict]:
        """Return the optimizer's parameter groups: every network by itself."""
        if isinstance(self.actor, Heads):
            networks = dict(zip(("mean", "variance"), self.actor.branches, strict=True))
        else:
            networks = {"actor": self.actor}
        return [{"params": list(n.parameters()), "name": k} for k, n in (networks | {"critic": self.critic}).items()]

    def act(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the action [A] for a normalised observation [O] and standard normal noise [A]."""
        mean, p = self.actor(torch.from_numpy(obs)[None])[0].chunk(2)
        std = p.exp() if self.parametrization == "log_std" else p.sqrt()
        return (mean + std * torch.from_numpy(noise)).numpy()


# --- rollout


class Rollout:
    """Steps of one environment, with the accounting of its episodes."""

    def __init__(self, env: gym.Env, policy: Policy, args: Args, seed: np.random.SeedSequence):
        self.env, self.policy, self.args = env, policy, args
        env_seed, noise_seed = seed.spawn(2)
        self.noise = np.random.default_rng(noise_seed)
        first, _ = env.reset(seed=int(env_seed.generate_state(1)[0]))
        self.obs = self._normalize(first)
        self.low, self.high = policy.low.numpy(), policy.high.numpy()
        self.step, self.episode_return, self.episode_length = 0, 0.0, 0

    def _normalize(self, obs: np.ndarray) -> np.ndarray:
        if not np.isfinite(obs).all():
            raise Diverged("an observation is not finite")
        self.policy.obs_norm.update(obs)
        return self.policy.obs_norm.normalize(obs)

    @torch.no_grad()
    def collect(self, ended) -> dict[str, np.ndarray]:
        """Return num_steps steps; call ended(step, return, length) for each episode that ends.

        next_obs[t] is what really followed step t: at the end of an episode its final observation.
        """
        steps, shape = self.args.num_steps, self.env.action_space.shape
        noise = self.noise.standard_normal((steps, *shape), dtype=np.float32)
        obs = np.empty((steps, *self.obs.shape), dtype=np.float32)
        next_obs, actions, rewards = np.empty_like(obs), np.empty_like(noise), np.empty(steps, dtype=np.float32)
        terminated, done = np.zeros(steps, dtype=bool), np.zeros(steps, dtype=bool)
        for t in range(steps):
            obs[t] = self.obs
            actions[t] = self.policy.act(self.obs, noise[t])
            raw, reward, terminated[t], truncated, _ = self.env.step(np.clip(actions[t], self.low, self.high))
            # MuJoCo answers a NaN action with a reset of its own and a NaN reward.
            if not (math.isfinite(reward) and np.isfinite(actions[t]).all()):
                raise Diverged("an action or a reward is not finite")
            done[t] = terminated[t] or truncated
            rewards[t] = self.policy.reward_norm.scale(float(reward), bool(done[t]))
            self.obs = next_obs[t] = self._normalize(raw)
            self.step += 1
            self.episode_return += float(reward)
            self.episode_length += 1
            if done[t]:
                ended(self.step, self.episode_return, self.episode_length)
                self.episode_return, self.episode_length = 0.0, 0
                self.obs = self._normalize(self.env.reset()[0])
        return dict(obs=obs, next_obs=next_obs, actions=actions, rewards=rewards, terminated=terminated, done=done)


# --- advantages


@torch.no_grad()
def prepare(policy: Policy, steps: dict[str, np.ndarray], args: Args) -> dict[str, Tensor]:
    """Return the batch that the update learns from, [T, ...]: values and log-probabilities once for all steps."""
    obs, next_obs, actions = (torch.from_numpy(steps[name]) for name in ("obs", "next_obs", "actions"))
    values, next_values = policy.critic(obs)[:, 0], policy.critic(next_obs)[:, 0]
    ends, decay = (steps["terminated"], steps["done"]), (args.gamma, args.gae_lambda)
    advantages, returns = gae(steps["rewards"], values.numpy(), next_values.numpy(), *ends, *decay)
    advantages, returns = torch.from_numpy(advantages), torch.from_numpy(returns)
    if not bool(advantages.isfinite().all()):
        raise Diverged("an advantage is not finite")
    likelihood = hs.losses.GaussianPolicyGradient(actions, advantages, parametrization=policy.parametrization)
    logprob = likelihood.log_prob(policy.actor(obs))
    batch = dict(obs=obs, actions=actions, logprob=logprob)
    return batch | dict(advantages=advantages, returns=returns, values=values)


# --- update


def update(
    policy: Policy,
    optimizer: hs.optim.CurvatureOptimizer,
    curvature: hs.Curvature | None,
    batch: dict[str, Tensor],
    args: Args,
    shuffle: torch.Generator,
) -> dict[str, float]:
    """Learn from one rollout: update_epochs passes in minibatches. Return what is logged."""
    size = args.num_steps // args.num_minibatches
    clip_v = args.clip_coef if args.clip_vloss else None
    params = [p for group in optimizer.param_groups for p in group["params"]]
    etas: list[Tensor] = []
    logs: dict[str, float] = {}
    for _ in range(args.update_epochs):
        order = torch.randperm(args.num_steps, generator=shuffle)
        shuffled = {name: values[order] for name, values in batch.items()}
        for start in range(0, args.num_steps, size):
            mb = {name: values[start : start + size] for name, values in shuffled.items()}
            advantages = mb["advantages"]
            if args.norm_adv:
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            actor_loss = hs.losses.GaussianPPO(
                mb["actions"], mb["logprob"], advantages, args.clip_coef, args.ent_coef, policy.parametrization
            )
            critic_loss = hs.losses.ValueLoss(mb["returns"], mb["values"], clip_v, coef=args.vf_coef)
            optimizer.zero_grad()
            actor = hs.backward(policy.actor, mb["obs"], actor_loss, curvature)
            critic = hs.backward(policy.critic, mb["obs"], critic_loss, curvature)
            if not math.isfinite(actor.value + critic.value):
                raise Diverged(f"the loss is not finite (policy {actor.value:.3g}, value {critic.value:.3g})")
            if args.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(params, args.max_grad_norm)
            optimizer.step()
            etas.append(torch.stack(optimizer.eta))
        logs = diagnose(actor_loss, actor.output, args)  # of the pass's last minibatch, as CleanRL does
        if args.target_kl is not None and logs["losses/approx_kl"] > args.target_kl:
            break
    if not all(bool(p.isfinite().all()) for p in params):
        raise Diverged("a parameter is not finite")
    logs["losses/value_loss"] = float(critic.value) / args.vf_coef if args.vf_coef else 0.0
    error, spread = batch["returns"] - batch["values"], float(batch["returns"].var())
    logs["losses/explained_variance"] = 1 - float(error.var()) / spread if spread else math.nan
    for group, eta in zip(optimizer.param_groups, torch.stack(etas).mean(0).tolist(), strict=True):
        logs[f"optim/eta_{group['name']}"] = eta
    return logs | hs.optim.curvature_figures(optimizer)


@torch.no_grad()
def diagnose(loss: hs.losses.GaussianPPO, outputs: Tensor, args: Args) -> dict[str, float]:
    """Return CleanRL's figures of a minibatch from the policy's outputs before its step."""
    logratio = loss.log_prob(outputs) - loss.old_logprob
    ratio = logratio.exp()
    return {
        "losses/policy_loss": float(loss.objective(loss.log_prob(outputs)).mean()),
        "losses/entropy": float(loss.entropy(outputs).mean()),
        "losses/old_approx_kl": float(-logratio.mean()),
        "losses/approx_kl": float((ratio - 1 - logratio).mean()),
        "losses/clipfrac": float(((ratio - 1).abs() > args.clip_coef).float().mean()),
    }


# --- loop


def train(args: Args) -> int:
    """Train and return the exit code; InputError for arguments that cannot be, before anything is created."""
    check(args)
    env = envs.make(args.env_id)
    if not isinstance(env.action_space, gym.spaces.Box) or len(env.action_space.shape) != 1:
        raise InputError(f"--env-id {args.env_id}: its actions are {env.action_space}; needed is a Box of rank 1")
    torch.set_num_threads(args.torch_threads)
    torch.manual_seed(args.seed)
    rollout_seed, shuffle_seed = np.random.SeedSequence(args.seed).spawn(2)
    shuffle = torch.Generator().manual_seed(int(shuffle_seed.generate_state(1)[0]))
    policy = Policy(env, args)
    optimizer, curvature = hs.make_optimizer(
        args.optimizer, policy.groups(), lr=args.learning_rate, betas=args.betas, eps=args.eps, delta=args.delta
    )
    iterations = args.total_timesteps // args.num_steps
    recent: deque[float] = deque(maxlen=20)
    began, note = time.time(), ""
    with (
        Run(args, args.run_dir, args.quiet, __file__, iterations * args.num_steps) as run,
        Progress(iterations * args.num_steps, args.quiet) as progress,
    ):

        def ended(step: int, episode_return: float, length: int) -> None:
            recent.append(episode_return)
            run.log(step, {"charts/episodic_return": episode_return, "charts/episodic_length": length})
            progress.update(step, episode_return, note)

        def save() -> None:
            state = {"policy": policy.state_dict(), "optimizer": optimizer.state_dict(), "global_step": rollout.step}
            run.save_checkpoint(f"step_{rollout.step}", state)

        rollout = Rollout(env, policy, args, rollout_seed)
        try:
            for iteration in range(iterations):
                if args.anneal_lr:
                    for group in optimizer.param_groups:
                        group["lr"] = args.learning_rate * (1 - iteration / iterations)
                batch = prepare(policy, rollout.collect(ended), args)
                logs = update(policy, optimizer, curvature, batch, args, shuffle)
                logs["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
                logs["charts/SPS"] = rollout.step / (time.time() - began)
                run.log(rollout.step, logs)
                run.flush()
                etas = "/".join(f"{value:.2g}" for tag, value in logs.items() if tag.startswith("optim/eta_"))
                note = f"kl {logs['losses/approx_kl']:.3f}  eta {etas}"
                progress.update(rollout.step, note=note)
            save()
        except Diverged as error:
            run.log(rollout.step, {"charts/diverged": 1.0})
            run.finish("diverged", reason=str(error))
        except KeyboardInterrupt:
            save()
            run.finish("interrupted")
    env.close()
    run.report(recent)
    return EXIT_CODES[run.status]


def main(args: Args) -> int:
    """Train; say in one line what is wrong with the arguments."""
    try:
        return train(args)
    except InputError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main(ARGS))
