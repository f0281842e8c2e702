"""TRPO with first-order and HesScale optimizers for the critic: the whole algorithm in one file.

    python agents/trpo.py --env-id HalfCheetah-v5 --optimizer adahesscale

Schulman et al. 2015: natural-gradient steps of the policy within a KL divergence, by conjugate gradients and a line
search; the critic learns with an optimizer. Sections as in ppo.py: arguments, networks, advantages, update, loop; the
steps in the environment are hesscale_rl/rl/rollout.py, a run's beginning, account and end
hesscale_rl/runs/session.py.
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
    """TRPO with first-order and HesScale optimizers for the critic."""

    preset: str = "default"
    """the values that the other flags start from: default or paper (Schulman et al. 2015)"""
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
    target_kl: Annotated[float, tyro.conf.arg(aliases=["--max-kl"])] = 0.01
    """how far a step may take the policy: the mean KL divergence of the new one from the old one"""
    cg_iterations: int = 10
    """conjugate gradients of a policy step, at most"""
    cg_damping: float = 0.1
    """what is added to the diagonal of the Fisher matrix"""
    line_search_steps: int = 10
    """steps that are tried, each shorter than the one before; if none is accepted, the policy stays as it is"""
    backtrack_coef: float = 0.8
    """by what a step that is not accepted is multiplied"""
    optimizer: OptimizerName = "adahesscale"
    learning_rate: Annotated[float, tyro.conf.arg(aliases=["--lr"])] = 1e-3
    """the critic's step size"""
    delta: float = 1e-8
    """trust-region radius of scaled-NAME, which every optimizer can be had as"""
    betas: tuple[float, float] = (0.9, 0.999)
    """decay rates of the optimizer's moving averages"""
    eps: float = 1e-5
    """what the optimizer adds to its denominator"""
    damping: float = 0.01
    """what kfac and hessian-free add to their curvature, and newton-cg's alpha"""
    iterations: int = 10
    """conjugate gradients of a step of hessian-free or newton-cg, at most"""
    curvature_of: str = "loss"
    """what these two take curvature of: loss, or kl, the divergence from the critic as it is (natural gradient)"""
    optimizer_kwargs: Annotated[str | None, tyro.conf.arg(aliases=["--optimizer-arg"])] = None
    """other settings of the optimizer: key=value,key=value or a JSON object"""
    anneal_lr: bool = False
    """let the critic's step size fall linearly to zero"""
    num_steps: int = 2048
    """steps of a rollout in each copy"""
    num_minibatches: int = 16
    """minibatches that a rollout is cut into for the critic; the policy takes one step on all of it"""
    update_epochs: int = 10
    """the critic's passes over a rollout"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.97
    """lambda of generalised advantage estimation"""
    norm_adv: bool = True
    """normalise the advantages of each rollout"""
    max_grad_norm: float = 0.5
    """norm at which the critic's gradient is cut; 0: never (the curvature is left as it is)"""
    std: str = "parameter"
    """spread of continuous actions: parameter, log-variance (one too), shared (outputs of the actor), network"""
    exp_name: str = "trpo"
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
    """auto (compiled loops for all but the update, which has none) or torch (no compiled code)"""
    compile: bool = False
    """let torch.compile work on the torch backend: half a minute at the start; needs a C++ compiler"""
    device: str = "cpu"
    """cpu, the fastest for small networks, or cuda"""
    track: bool = False
    """log to Weights & Biases as well"""
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
        """How hs.backward works, where the backend allows it."""
        return "compile" if self.compile else "auto"


PRESETS = {
    "default": Args(),
    "paper": Args(preset="paper", num_steps=50_000, num_minibatches=400, gae_lambda=1.0),
}

STDS = {"parameter": "log_std", "log-variance": "log_var", "shared": "log_std", "network": "var"}  # what p is


def check(args: Args) -> None:
    """Raise InputError with one line for the first argument that cannot be."""
    need = needs(args)
    need_one_of(args, "preset", PRESETS)
    need_one_of(args, "std", STDS)
    check_shared(args)
    for flag in ("cg_iterations", "line_search_steps", "num_minibatches", "update_epochs"):
        need(getattr(args, flag) >= 1, flag, "at least 1")
    need(0 < args.target_kl < math.inf, "target_kl", "a positive number")
    need(0 <= args.cg_damping < math.inf, "cg_damping", "zero or a positive number")
    need(0 < args.backtrack_coef < 1, "backtrack_coef", "above 0 and below 1")
    steps = args.num_steps * args.num_envs
    rollout = f"--num-steps {args.num_steps}" + f" times --num-envs {args.num_envs}" * (args.num_envs > 1)
    need(steps % args.num_minibatches == 0, "num_minibatches", f"a divisor of {rollout}")
    need(steps > 1 or not args.norm_adv, "norm_adv", f"off with {rollout}: one advantage cannot be normalised")


if __name__ == "__main__":
    ARGS = parse(Args, PRESETS, sys.argv[1:], "hesscale-rl train trpo", check)  # before torch is imported

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

import hesscale_rl as hs
from hesscale_rl import envs
from hesscale_rl.curvature.matmul import Products
from hesscale_rl.errors import Diverged
from hesscale_rl.networks import Exp, GaussianHead, Heads, mlp
from hesscale_rl.optim.base import CurvatureOptimizer
from hesscale_rl.optim.conjugate import Systems, Vectors, conjugate_gradients
from hesscale_rl.rl.gae import gae
from hesscale_rl.rl.normalize import RewardNorm
from hesscale_rl.rl.policy import DISCRETE, Policy, check_finite
from hesscale_rl.runs.session import Session, Watch

# --- networks


class NaturalPolicy(Policy):
    """The policy whose critic alone is the optimizer's; the actor takes natural-gradient steps."""

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter group: the critic."""
        return [group for group in super().groups() if group["name"] == "critic"]


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
    return NaturalPolicy(observations, action_space, actor, mlp([*hidden, 1]), *how)


# --- advantages


@torch.no_grad()
def prepare(policy: Policy, steps: dict[str, np.ndarray], args: Args) -> dict[str, Tensor]:
    """Return the batch that the update learns from, [B, ...]."""
    values, next_values = policy.values(steps["obs"]), policy.values(steps["next_obs"])  # [T, E]
    ends, decay = (steps["terminated"], steps["done"]), (args.gamma, args.gae_lambda)
    advantages, returns = gae(steps["rewards"], values, next_values, *ends, *decay)
    if not np.isfinite(advantages).all():
        raise Diverged("an advantage is not finite")
    rows = dict(obs=steps["obs"], actions=steps["actions"], advantages=advantages, returns=returns, values=values)
    batch = {name: torch.from_numpy(a.reshape(-1, *a.shape[2:])).to(args.device) for name, a in rows.items()}
    valid = steps["valid"].reshape(-1)
    return batch if valid.all() else {name: a[torch.from_numpy(valid)] for name, a in batch.items()}


# --- update


def actor_loss(policy: Policy, batch: dict[str, Tensor], args: Args) -> hs.losses.PolicyGradient:
    """Return -A log pi(a), whose gradient is that of the surrogate -A pi(a)/pi_old(a) at the old policy."""
    advantages = batch["advantages"]
    if args.norm_adv and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    if policy.discrete:
        return hs.losses.CategoricalPolicyGradient(batch["actions"], advantages)
    return hs.losses.GaussianPolicyGradient(batch["actions"], advantages, parametrization=policy.parametrization)


@torch.no_grad()
def natural_step(policy: Policy, obs: Tensor, loss: hs.losses.PolicyGradient, args: Args) -> Vectors:
    """Return the step of every parameter of the actor: along x with (F + damping I) x = -g, as long as allowed.

    F, the Fisher matrix, is the Hessian of the KL divergence, of which a step of x so makes about x'Fx/2.
    """
    named = dict(policy.actor.named_parameters())
    policy.actor.zero_grad()
    hs.backward(policy.actor, obs, loss, backend=args.tape)
    descent = [-p.grad for p in named.values() if p.grad is not None]
    fisher = Products(policy.actor, {**named}, obs, loss, "fisher")

    def product(v: Vectors, alive: Tensor | None = None) -> Vectors:
        products = fisher.times(dict(zip(named, v, strict=True)))
        return [products[name] + args.cg_damping * t for name, t in zip(named, v, strict=True)]

    whole = Systems([0] * len(named), 1)  # one system, of all parameters
    x = conjugate_gradients(product, descent, whole, tolerance=1e-5, iterations=args.cg_iterations)
    curvature = float(whole.dot(x, product(x)))
    if not math.isfinite(curvature):
        raise Diverged("the natural gradient is not finite")
    # Without a gradient there is nowhere to go.
    length = math.sqrt(2 * args.target_kl / curvature) if curvature > 0 else 0.0
    return [length * t for t in x]


@torch.no_grad()
def line_search(
    policy: Policy, obs: Tensor, loss: hs.losses.PolicyGradient, step: Vectors, args: Args
) -> dict[str, float]:
    """Take the longest of the tried steps that does not lower the surrogate and stays within the KL divergence.

    Where there is none, the policy stays as it is, to the bit. Returns what is logged.
    """
    params, old = [*policy.actor.parameters()], policy.actor(obs)
    start, old_logprob = [p.clone() for p in params], loss.log_prob(old)
    for k in range(args.line_search_steps):
        for p, from_here, way in zip(params, start, step, strict=True):
            p.copy_(from_here + args.backtrack_coef**k * way)
        new = policy.actor(obs)
        surrogate = (loss.advantages * (loss.log_prob(new) - old_logprob).exp()).mean()
        kl = policy.kl(old, new)
        if surrogate >= loss.advantages.mean() and kl <= args.target_kl:  # neither, if one is NaN
            break
    else:
        for p, from_here in zip(params, start, strict=True):
            p.copy_(from_here)
        new, surrogate, kl = old, loss.advantages.mean(), torch.zeros(())
    logs = {"losses/policy_loss": -surrogate, "losses/kl": kl, "losses/entropy": loss.entropy(new).mean()}
    figures = {tag: float(value) for tag, value in logs.items()}
    return figures | {"optim/line_search_steps": k + 1, "optim/accepted": float(new is not old)}


def learn(
    policy: Policy, optimizer: CurvatureOptimizer, curvature: hs.Curvature | None, mb: dict[str, Tensor], args: Args
) -> float:
    """Take one step of the critic on a minibatch; return its loss."""
    optimizer.zero_grad()
    loss = hs.backward(policy.critic, mb["obs"], hs.losses.ValueLoss(mb["returns"]), curvature, args.tape).value
    if not loss.isfinite():
        raise Diverged(f"the loss is not finite (value {float(loss):.3g})")
    if args.max_grad_norm > 0:
        nn.utils.clip_grad_norm_(policy.critic.parameters(), args.max_grad_norm)
    optimizer.step()
    return float(loss)


def update(
    policy: Policy,
    optimizer: CurvatureOptimizer,
    curvature: hs.Curvature | None,
    batch: dict[str, Tensor],
    args: Args,
    shuffle: torch.Generator,
) -> dict[str, float]:
    """Take a step of the policy on a whole rollout, then the critic's in minibatches; return what is logged."""
    loss = actor_loss(policy, batch, args)
    logs = line_search(policy, batch["obs"], loss, natural_step(policy, batch["obs"], loss, args), args)
    etas = []
    minibatches = min(args.num_minibatches, len(batch["obs"]))  # rows that are no transitions were left out
    for _ in range(args.update_epochs):
        for part in torch.randperm(len(batch["obs"]), generator=shuffle).tensor_split(minibatches):
            mb = {name: x[part] for name, x in batch.items()}
            logs["losses/value_loss"] = learn(policy, optimizer, curvature, mb, args)
            etas.append(float(optimizer.eta[0]))
    check_finite(policy)
    error, spread = batch["returns"] - batch["values"], float(batch["returns"].var(correction=0))
    logs["losses/explained_variance"] = 1 - float(error.var(correction=0)) / spread if spread else math.nan
    return logs | {"optim/eta_critic": float(np.mean(etas))} | hs.optim.curvature_figures(optimizer)


# --- loop


def train(args: Args, watch: Watch | None = None) -> int:
    """Train and return the exit code; InputError for arguments that cannot be, before anything is created."""
    check(args)
    with Session(args, __file__, envs, make_policy, watch) as session:
        for _ in session.iterations():
            batch = prepare(session.policy, session.collect(), args)
            logs = update(*session.learner[:3], batch, args, session.shuffle)
            session.log(logs, f"kl {logs['losses/kl']:.3f}")
    return session.exit_code


def main(args: Args) -> int:
    """Train and return the exit code; say in one line what is wrong with the arguments."""
    return answer(train, args)


if __name__ == "__main__":
    sys.exit(main(ARGS))
