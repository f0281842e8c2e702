"""PPO with first-order and HesScale optimizers: the whole algorithm in one file.

    python agents/ppo.py --env-id HalfCheetah-v5 --optimizer scaled-adahesscale

Schulman et al. 2017 with the details of CleanRL's ppo_continuous_action.py and their flags; HesScale and step-size
scaling as in Elsayed et al. 2024, section 7. Sections: arguments, networks, advantages, update, loop; the steps in
the environment are hesscale_rl/rl/rollout.py, a run's beginning, account and end hesscale_rl/runs/session.py.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from hesscale_rl.runs.arguments import answer, check_shared, need_one_of, needs, parse
from hesscale_rl.runs.flags import OptimizerName, PathText

# --- arguments


@dataclass
class Args:
    """PPO with first-order and HesScale optimizers."""

    preset: str = "default"
    """the values that the other flags start from: default (CleanRL's) or paper (Elsayed et al. 2024)"""
    env_id: Annotated[str, tyro.conf.arg(aliases=["--env"])] = "HalfCheetah-v5"
    """a Gymnasium environment; envpool:HalfCheetah-v5 takes EnvPool's"""
    env_module: str | None = None
    """a module to import first, which registers environments or optimizers of your own"""
    env_kwargs: str | None = None
    """arguments of the environment: key=value,key=value or a JSON object"""
    rescale_actions: bool = False
    """let -1 and 1 of the policy be the bounds of the actions, where they are finite"""
    num_envs: int = 1
    """copies of the environment; several normalise each for itself until a rollout's end"""
    env_threads: int = 1
    """threads that the copies take their steps in; the same numbers whatever it is"""
    total_timesteps: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1_000_000
    """environment steps in all copies together, rounded down to whole rollouts"""
    seed: int = 1
    """decides everything random: weights, noise, minibatches, environment"""
    optimizer: OptimizerName = "scaled-adahesscale"
    learning_rate: Annotated[float, tyro.conf.arg(aliases=["--lr"])] = 3e-4
    """step size"""
    delta: float = 1e-8
    """trust-region radius of scaled-NAME, which every optimizer can be had as, for each network by itself"""
    desired_kl: float | None = None
    """let scaled-NAME set step size and radius: how far learning from a rollout takes the policy; about 0.03"""
    betas: tuple[float, float] = (0.9, 0.999)
    """decay rates of the optimizer's moving averages"""
    eps: float = 1e-5
    """what the optimizer adds to its denominator"""
    damping: float = 0.01
    """what kfac and hessian-free add to their curvature, and newton-cg's alpha"""
    iterations: int = 10
    """conjugate gradients of a step of hessian-free or newton-cg, at most"""
    curvature_of: str = "loss"
    """what these two take curvature of: loss, or kl, the divergence from the policy as it is (natural gradient)"""
    optimizer_kwargs: Annotated[str | None, tyro.conf.arg(aliases=["--optimizer-arg"])] = None
    """other settings of the optimizer: key=value,key=value or a JSON object"""
    anneal_lr: bool = True
    """let the step size, or the divergence that it is set by, fall linearly to zero"""
    num_steps: int = 2048
    """steps of a rollout in each copy"""
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
    """spread of continuous actions: parameter, log-variance (one too), shared (outputs of the actor), network"""
    exp_name: str = "ppo"
    """name of the experiment, part of the run directory's name"""
    run_dir: PathText = None
    """the run directory; default runs/{env_id}__{exp_name}__{seed}__{time}"""
    resume: PathText = None
    """a run directory: go on where its last checkpoint stands, with its arguments"""
    accept_changes: bool = False
    """let other flags given with --resume change the run"""
    trust_env_module: bool = False
    """with --resume: import the module that the run names, as naming it again with --env-module does"""
    checkpoint_interval: int = 100_000
    """steps between checkpoints; a run that is told to stop writes one more"""
    eval_interval: int = 0
    """steps between evaluations, on environments of their own; the best policy is kept. 0: none"""
    eval_episodes: int = 10
    """episodes of an evaluation, the same ones each time, with the most likely actions"""
    capture_video_interval: int = 0
    """steps between videos of the first of these episodes, RUN/videos/step_N.mp4; 0: none"""
    backend: str = "auto"
    """auto (compiled loops where there are any), compiled (for the update too, or an error), or torch (none)"""
    compile: bool = False
    """let torch.compile work on the torch backend: half a minute at the start; needs a C++ compiler"""
    device: str = "cpu"
    """cpu, the fastest for small networks, or cuda"""
    track: bool = False
    """log to Weights & Biases as well"""
    update_threads: int = 1
    """threads that a compiled update takes where its minibatches are wide; the same numbers whatever it is"""
    torch_threads: int = 1
    """threads of torch; more only slow such small networks down"""
    profile: bool = False
    """say at the end where the time went; profile.json has it too"""
    quiet: bool = False
    """print nothing but errors"""

    @property
    def rollouts(self) -> int:
        """How many rollouts the run has."""
        return self.total_timesteps // (self.num_steps * self.num_envs)

    @property
    def tape(self) -> str:
        """How hs.backward works where the whole update is not compiled."""
        return "compile" if self.compile else "auto"

    @property
    def window(self) -> tuple[int, int]:
        """The samples after which step sizes are set anew, and how many steps of the optimizer these make."""
        return self.num_steps * self.num_envs, self.update_epochs * self.num_minibatches

    @property
    def value_clip(self) -> float:
        """How far a value may go from the old one; 0: anywhere."""
        return self.clip_coef if self.clip_vloss else 0.0


PRESETS = {
    "default": Args(),
    "paper": Args(preset="paper", anneal_lr=False, clip_vloss=False, vf_coef=1.0, max_grad_norm=0.0, std="network"),
}

STDS = {"parameter": "log_std", "log-variance": "log_var", "shared": "log_std", "network": "var"}  # what p is


def check(args: Args) -> None:
    """Raise InputError with one line for the first argument that cannot be."""
    need = needs(args)
    need_one_of(args, "preset", PRESETS)
    need_one_of(args, "std", STDS)
    check_shared(args)
    for flag in ("num_minibatches", "update_epochs"):
        need(getattr(args, flag) >= 1, flag, "at least 1")
    need(0 < args.clip_coef < math.inf, "clip_coef", "a positive number")
    need(args.target_kl is None or args.target_kl > 0, "target_kl", "a positive number")
    steps, parts = args.num_steps * args.num_envs, args.num_minibatches
    rollout = f"--num-steps {args.num_steps}" + f" times --num-envs {args.num_envs}" * (args.num_envs > 1)
    need(steps % parts == 0, "num_minibatches", f"a divisor of {rollout}")
    alone = "the advantages of one sample cannot be normalised (or give --no-norm-adv)"
    need(steps > parts or not args.norm_adv, "num_minibatches", f"below {rollout}: {alone}")
    if args.env_module is None and ":" not in args.env_id:  # else it is asked for when that has been imported
        from hesscale_rl import envs  # after what is answered without Gymnasium

        envs.check_id(args.env_id)


if __name__ == "__main__":
    ARGS = parse(Args, PRESETS, sys.argv[1:], "hesscale-rl train ppo", check)  # before torch is imported

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

import hesscale_rl as hs
from hesscale_rl import envs
from hesscale_rl.errors import Diverged
from hesscale_rl.networks import Exp, GaussianHead, Heads, mlp
from hesscale_rl.rl.fast.learner import Learner, Objective
from hesscale_rl.rl.gae import gae
from hesscale_rl.rl.normalize import RewardNorm
from hesscale_rl.rl.policy import DISCRETE, Policy, check_finite
from hesscale_rl.runs.session import Session, Watch

# --- networks


def make_policy(observation_space: Any, action_space: Any, args: Args) -> Policy:
    """Return the policy with new networks: two hidden layers of 64 tanh, orthogonal weights, biases zero."""
    hidden = [observations := observation_space.shape[0], 64, 64]
    actor: nn.Module
    if isinstance(action_space, gym.spaces.Discrete):
        actor, parametrization = mlp([*hidden, int(action_space.n)], last_gain=0.01), DISCRETE
    else:
        actions, parametrization = action_space.shape[0], STDS[args.std]
        if args.std == "shared":
            actor = mlp([*hidden, 2 * actions], last_gain=0.01)
        elif args.std == "network":
            variance = nn.Sequential(*mlp([observations, 64, actions], last_gain=0.01), Exp())
            actor = Heads(mlp([*hidden, actions], last_gain=0.01), variance)
        else:
            actor = nn.Sequential(*mlp([*hidden, actions], last_gain=0.01), GaussianHead(actions))
    how = (parametrization, RewardNorm(args.gamma, args.num_envs), args.rescale_actions)
    return Policy(observations, action_space, actor, mlp([*hidden, 1]), *how)


# --- advantages


@torch.no_grad()
def prepare(policy: Policy, steps: dict[str, np.ndarray], args: Args) -> dict[str, Tensor]:
    """Return the batch that the update learns from, [B, ...]: values and log-probabilities once for all steps."""
    values, next_values = policy.values(steps["obs"]), policy.values(steps["next_obs"])  # [T, E]
    ends, decay = (steps["terminated"], steps["done"]), (args.gamma, args.gae_lambda)
    advantages, returns = gae(steps["rewards"], values, next_values, *ends, *decay)
    if not np.isfinite(advantages).all():
        raise Diverged("an advantage is not finite")
    rows = dict(obs=steps["obs"], actions=steps["actions"], advantages=advantages, returns=returns, values=values)
    batch = {name: torch.from_numpy(a.reshape(-1, *a.shape[2:])).to(args.device) for name, a in rows.items()}
    batch["outputs"] = policy.actor(batch["obs"])
    batch["logprob"] = likelihood(policy, batch["actions"], batch["advantages"]).log_prob(batch["outputs"])
    valid = steps["valid"].reshape(-1)
    return batch if valid.all() else {name: a[torch.from_numpy(valid)] for name, a in batch.items()}


def likelihood(policy: Policy, actions: Tensor, advantages: Tensor) -> hs.losses.PolicyGradient:
    """Return the loss -A log pi(a), which knows log pi."""
    if policy.discrete:
        return hs.losses.CategoricalPolicyGradient(actions, advantages)
    return hs.losses.GaussianPolicyGradient(actions, advantages, parametrization=policy.parametrization)


# --- update


def actor_loss(policy: Policy, mb: dict[str, Tensor], args: Args) -> hs.losses.PPO:
    """Return PPO's clipped loss for a minibatch."""
    advantages = mb["advantages"]
    if args.norm_adv and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    data = (mb["actions"], mb["logprob"], advantages, args.clip_coef, args.ent_coef)
    if policy.discrete:
        return hs.losses.CategoricalPPO(*data)
    return hs.losses.GaussianPPO(*data, policy.parametrization)


def learn(
    policy: Policy,
    optimizer: hs.optim.CurvatureOptimizer,
    curvature: hs.Curvature | None,
    mb: dict[str, Tensor],
    args: Args,
) -> tuple[float, float, Tensor]:
    """Take one step on a minibatch; return the losses of actor and critic, and the actor's outputs before it."""
    critic_loss = hs.losses.ValueLoss(mb["returns"], mb["values"], args.value_clip or None, coef=args.vf_coef)
    optimizer.zero_grad()
    actor = hs.backward(policy.actor, mb["obs"], actor_loss(policy, mb, args), curvature, args.tape)
    critic = hs.backward(policy.critic, mb["obs"], critic_loss, curvature, args.tape)
    values = float(actor.value), float(critic.value)
    if math.isfinite(sum(values)):
        if args.max_grad_norm > 0:
            nn.utils.clip_grad_norm_([*policy.parameters()], args.max_grad_norm)
        optimizer.step()
    return *values, actor.output


def update(
    policy: Policy,
    optimizer: hs.optim.CurvatureOptimizer,
    curvature: hs.Curvature | None,
    fast: Learner | None,
    batch: dict[str, Tensor],
    args: Args,
    shuffle: torch.Generator,
) -> dict[str, float]:
    """Learn from one rollout in minibatches, by `learn` or by `fast`, its compiled twin; return what is logged."""
    weights = (args.norm_adv, args.ent_coef, args.vf_coef, args.max_grad_norm, args.clip_coef, args.value_clip)
    etas: list[list[float]] = []
    minibatches = min(args.num_minibatches, len(batch["obs"]))  # rows that are no transitions were left out
    for _ in range(args.update_epochs):
        order = torch.randperm(len(batch["obs"]), generator=shuffle)
        if fast is not None:
            actor, critic, outputs, factors = fast.learn(batch, order, minibatches, Objective(*weights))
            etas += factors
        else:
            for part in order.tensor_split(minibatches):
                mb = {name: x[part] for name, x in batch.items()}
                actor, critic, outputs = learn(policy, optimizer, curvature, mb, args)
                if not math.isfinite(actor + critic):
                    break
                etas.append([float(eta) for eta in optimizer.eta])
        if not math.isfinite(actor + critic):
            raise Diverged(f"the loss is not finite (policy {actor:.3g}, value {critic:.3g})")
        last = {name: x[order.tensor_split(minibatches)[-1]] for name, x in batch.items()}
        logs = diagnose(actor_loss(policy, last, args), outputs, args)
        if args.target_kl is not None and logs["losses/approx_kl"] > args.target_kl:
            break
    check_finite(policy)
    logs["losses/value_loss"] = critic / args.vf_coef if args.vf_coef else 0.0
    error, spread = batch["returns"] - batch["values"], float(batch["returns"].var(correction=0))
    logs["losses/explained_variance"] = 1 - float(error.var(correction=0)) / spread if spread else math.nan
    for group, eta in zip(optimizer.param_groups, np.mean(etas, 0).tolist(), strict=True):
        logs[f"optim/eta_{group['name']}"] = eta
    return logs | hs.optim.curvature_figures(optimizer)


@torch.no_grad()
def diagnose(loss: hs.losses.PPO, outputs: Tensor, args: Args) -> dict[str, float]:
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


def train(args: Args, watch: Watch | None = None) -> int:
    """Train and return the exit code; InputError for arguments that cannot be, before anything is created."""
    check(args)
    with Session(args, __file__, envs, make_policy, watch) as session:
        for _ in session.iterations():
            batch = prepare(session.policy, session.collect(), args)
            logs = update(*session.learner, batch, args, session.shuffle)
            session.set_steps(batch, logs)
            session.log(logs, f"kl {logs['losses/approx_kl']:.3f}")
    return session.exit_code


def main(args: Args) -> int:
    """Train and return the exit code; say in one line what is wrong with the arguments."""
    return answer(train, args)


if __name__ == "__main__":
    sys.exit(main(ARGS))
