"""A2C with first-order and HesScale optimizers: the whole algorithm in one file.

    python agents/a2c.py --env-id HalfCheetah-v5 --preset paper --optimizer adahesscale

Mnih et al. 2016, synchronous; n-step returns are generalised advantages with lambda 1. HesScale and step-size scaling
as in Elsayed et al. 2024, section 7. Sections as in ppo.py: arguments, networks, advantages, update, loop; the steps
in the environment are hesscale_rl/rl/rollout.py, a run's beginning, account and end hesscale_rl/runs/session.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from hesscale_rl.runs.arguments import answer, check_shared, need_one_of, needs, parse
from hesscale_rl.runs.flags import OptimizerName, PathText

# --- arguments


@dataclass
class Args:
    """A2C with first-order and HesScale optimizers."""

    preset: str = "default"
    """the values that the other flags start from: default or paper (Elsayed et al. 2024)"""
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
    """environment steps in all copies together; the last update may go a little further"""
    seed: int = 1
    """decides everything random: weights, noise, environment"""
    optimizer: OptimizerName = "scaled-adahesscale"
    learning_rate: Annotated[float, tyro.conf.arg(aliases=["--lr"])] = 3e-4
    """step size"""
    delta: float = 1e-8
    """trust-region radius of scaled-NAME, which every optimizer can be had as, for each network by itself"""
    desired_kl: float | None = None
    """let scaled-NAME set step size and radius: how far learning from 2,048 steps takes the policy; about 0.03"""
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
    num_steps: int = 5
    """steps of a rollout in each copy; with one copy a rollout also ends where an episode does"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 1.0
    """lambda of generalised advantage estimation; 1: n-step returns"""
    norm_adv: bool = False
    """normalise the advantages of each rollout"""
    normalize: bool = True
    """normalise observations and rewards"""
    ent_coef: float = 0.0
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """norm at which the gradient of all networks together is cut; 0: never (the curvature is left as it is)"""
    orthogonal: bool = True
    """start from orthogonal weights; else torch's default"""
    log_interval: int = 2000
    """steps between logged updates"""
    std: str = "parameter"
    """spread of continuous actions: parameter, log-variance (one too), shared (outputs of the actor), network"""
    exp_name: str = "a2c"
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
    def rollouts(self) -> None:
        """How many rollouts the run has: as many as reach its steps, since an episode's end may cut one short."""

    @property
    def tape(self) -> str:
        """How hs.backward works where the whole update is not compiled."""
        return "compile" if self.compile else "auto"

    @property
    def window(self) -> tuple[int, int]:
        """The samples after which step sizes are set anew, and how many steps of the optimizer these make."""
        samples = self.num_steps * self.num_envs
        updates = max(WINDOW // samples, 1)
        return updates * samples, updates


WINDOW = 2048  # samples after which step sizes are set anew, about PPO's rollout

PRESETS = {
    "default": Args(),
    "paper": Args(preset="paper", anneal_lr=False, orthogonal=False, vf_coef=1.0, max_grad_norm=0.0, std="network"),
}

STDS = {"parameter": "log_std", "log-variance": "log_var", "shared": "log_std", "network": "var"}  # what p is


def check(args: Args) -> None:
    """Raise InputError with one line for the first argument that cannot be."""
    need = needs(args)
    need_one_of(args, "preset", PRESETS)
    need_one_of(args, "std", STDS)
    check_shared(args)
    need(args.log_interval >= 1, "log_interval", "at least 1")
    steps = args.num_steps * args.num_envs
    rollout = f"--num-steps {args.num_steps}" + f" times --num-envs {args.num_envs}" * (args.num_envs > 1)
    need(steps > 1 or not args.norm_adv, "norm_adv", f"off with {rollout}: one advantage cannot be normalised")
    if args.env_module is None and ":" not in args.env_id:  # else it is asked for when that has been imported
        from hesscale_rl import envs  # after what is answered without Gymnasium

        envs.check_id(args.env_id)


if __name__ == "__main__":
    ARGS = parse(Args, PRESETS, sys.argv[1:], "hesscale-rl train a2c", check)  # before torch is imported

import math

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
    """Return the policy with new networks: two hidden layers of 64 tanh."""
    observations = observation_space.shape[0]
    hidden, start = [observations, 64, 64], {"orthogonal": args.orthogonal}
    actor: nn.Module
    if isinstance(action_space, gym.spaces.Discrete):
        actor, parametrization = mlp([*hidden, int(action_space.n)], last_gain=0.01, **start), DISCRETE
    else:
        actions, parametrization = action_space.shape[0], STDS[args.std]
        if args.std == "shared":
            actor = mlp([*hidden, 2 * actions], last_gain=0.01, **start)
        elif args.std == "network":
            variance = nn.Sequential(*mlp([observations, 64, actions], last_gain=0.01, **start), Exp())
            actor = Heads(mlp([*hidden, actions], last_gain=0.01, **start), variance)
        else:
            actor = nn.Sequential(*mlp([*hidden, actions], last_gain=0.01, **start), GaussianHead(actions))
    reward_norm = RewardNorm(args.gamma, args.num_envs) if args.normalize else None
    critic = mlp([*hidden, 1], **start)
    return Policy(observations, action_space, actor, critic, parametrization, reward_norm, args.rescale_actions)


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
    """Return -A log pi(a) with the entropy bonus."""
    advantages = batch["advantages"]
    if args.norm_adv and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    data = (batch["actions"], advantages, args.ent_coef)
    if policy.discrete:
        return hs.losses.CategoricalPolicyGradient(*data)
    return hs.losses.GaussianPolicyGradient(*data, policy.parametrization)


def learn(
    policy: Policy,
    optimizer: hs.optim.CurvatureOptimizer,
    curvature: hs.Curvature | None,
    batch: dict[str, Tensor],
    args: Args,
) -> tuple[float, float, Tensor]:
    """Take one step on a batch; return the losses of actor and critic, and the actor's outputs before it."""
    critic_loss = hs.losses.ValueLoss(batch["returns"], coef=args.vf_coef)
    optimizer.zero_grad()
    actor = hs.backward(policy.actor, batch["obs"], actor_loss(policy, batch, args), curvature, args.tape)
    critic = hs.backward(policy.critic, batch["obs"], critic_loss, curvature, args.tape)
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
    log: bool,
) -> dict[str, float]:
    """Learn from one rollout in one step, by `learn` or by `fast`, its compiled twin. Return what to log if `log`."""
    if fast is None:
        actor, critic, outputs = learn(policy, optimizer, curvature, batch, args)
    else:
        objective = Objective(args.norm_adv, args.ent_coef, args.vf_coef, args.max_grad_norm)
        actor, critic, outputs, _ = fast.learn(batch, torch.arange(len(batch["obs"])), 1, objective)
    if not math.isfinite(actor + critic):
        raise Diverged(f"the loss is not finite (policy {actor:.3g}, value {critic:.3g})")
    batch["outputs"] = outputs
    return diagnose(policy, optimizer, actor_loss(policy, batch, args), outputs, batch) if log else {}


@torch.no_grad()
def diagnose(
    policy: Policy,
    optimizer: hs.optim.CurvatureOptimizer,
    loss: hs.losses.PolicyGradient,
    outputs: Tensor,
    batch: dict[str, Tensor],
) -> dict[str, float]:
    """Return figures of an update, from the policy's outputs before its step."""
    check_finite(policy)
    logs = {
        "losses/policy_loss": float(loss.objective(loss.log_prob(outputs)).mean()),
        "losses/entropy": float(loss.entropy(outputs).mean()),
        "losses/value_loss": 0.5 * float((batch["returns"] - batch["values"]).square().mean()),
    }
    for group, eta in zip(optimizer.param_groups, optimizer.eta, strict=True):
        logs[f"optim/eta_{group['name']}"] = float(eta)
    return logs | hs.optim.curvature_figures(optimizer)


# --- loop


def train(args: Args, watch: Watch | None = None) -> int:
    """Train and return the exit code; InputError for arguments that cannot be, before anything is created."""
    check(args)
    with Session(args, __file__, envs, make_policy, watch) as session:
        for _ in session.iterations():
            batch = prepare(session.policy, session.collect(stop_at_end=args.num_envs == 1), args)
            if not len(batch["obs"]):
                continue  # every environment only reset itself
            logs = update(*session.learner, batch, args, log := session.due(args.log_interval))
            session.set_steps(batch, logs)
            if log:
                session.log(logs, f"entropy {logs['losses/entropy']:.2g}")
    return session.exit_code


def main(args: Args) -> int:
    """Train and return the exit code; say in one line what is wrong with the arguments."""
    return answer(train, args)


if __name__ == "__main__":
    sys.exit(main(ARGS))
