"""TRPO's parts: the natural gradient against dense matrices, and what the line search promises."""

import copy
import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from hesscale_rl.agents import trpo
from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.networks import Exp, GaussianHead, Heads, mlp
from hesscale_rl.rl.normalize import RewardNorm
from hesscale_rl.rl.policy import DISCRETE
from hesscale_rl.scripts import sweep
from hesscale_rl.scripts.sweeping import spec as grid

B, OBS, ACTIONS = 24, 3, 2
KINDS = [*trpo.STDS, DISCRETE]


def problem(kind, seed=0):
    """A small policy in float64 and a batch of what it did, with advantages."""
    torch.manual_seed(seed)
    sizes, actions = [OBS, 4], 3 if kind == DISCRETE else 2 * ACTIONS if kind == "shared" else ACTIONS
    actor = mlp([*sizes, actions])
    if kind == "network":
        actor = Heads(actor, torch.nn.Sequential(*mlp([*sizes, ACTIONS]), Exp()))
    elif kind not in (DISCRETE, "shared"):
        actor = torch.nn.Sequential(*actor, GaussianHead(ACTIONS))
    parametrization = trpo.STDS.get(kind, DISCRETE)
    space = Discrete(3) if kind == DISCRETE else Box(-1, 1, (ACTIONS,))
    policy = trpo.NaturalPolicy(OBS, space, actor, mlp([*sizes, 1]), parametrization, RewardNorm(0.99)).double()
    with torch.no_grad():
        for p in policy.actor.parameters():
            p.add_(0.3 * torch.randn_like(p))
    obs = torch.randn(B, OBS, dtype=torch.float64)
    chosen = torch.randint(3, (B,)) if kind == DISCRETE else torch.randn(B, ACTIONS, dtype=torch.float64)
    batch = {"obs": obs, "actions": chosen, "advantages": torch.randn(B, dtype=torch.float64)}
    return policy, batch


def distribution(policy, outputs):
    """The textbook's, of the actor's outputs."""
    if policy.discrete:
        return Categorical(logits=outputs)
    mean, p = outputs.chunk(2, 1)
    std = {"log_std": p.exp(), "log_var": (p / 2).exp(), "var": p.sqrt()}[policy.parametrization]
    return Independent(Normal(mean, std), 1)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def outputs_at(policy, vector, obs):
    """The actor's outputs where its parameters are `vector`."""
    named, parts, at = dict(policy.actor.named_parameters()), {}, 0
    for name, p in named.items():
        parts[name] = vector[at : at + p.numel()].view_as(p)
        at += p.numel()
    return torch.func.functional_call(policy.actor, parts, (obs,))


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_solves_the_dense_system_of_the_divergences_hessian(kind):
    policy, batch = problem(kind)
    args = trpo.Args(cg_iterations=200, cg_damping=0.1, target_kl=0.01)
    loss = trpo.actor_loss(policy, batch, args)
    start, obs = flat(policy.actor.parameters()).detach(), batch["obs"]
    old = distribution(policy, policy.actor(obs).detach())

    def divergence(vector):
        return kl_divergence(old, distribution(policy, outputs_at(policy, vector, obs))).mean()

    def surrogate(vector):
        new = distribution(policy, outputs_at(policy, vector, obs))
        return (loss.advantages * (new.log_prob(batch["actions"]) - old.log_prob(batch["actions"])).exp()).mean()

    fisher = torch.autograd.functional.hessian(divergence, start)
    [gradient] = torch.autograd.grad(surrogate(leaf := start.clone().requires_grad_()), leaf)
    products = trpo.Products(policy.actor, dict(policy.actor.named_parameters()), obs, loss, "fisher")
    v = [torch.randn_like(p) for p in policy.actor.parameters()]
    names = [name for name, _ in policy.actor.named_parameters()]
    found = products.times(dict(zip(names, v, strict=True)))
    torch.testing.assert_close(flat(found.values()), fisher @ flat(v), rtol=1e-9, atol=1e-11)

    damped = fisher + args.cg_damping * torch.eye(len(fisher), dtype=torch.float64)
    x = torch.linalg.solve(damped, gradient)
    expected = math.sqrt(2 * args.target_kl / float(x @ damped @ x)) * x
    step = flat(trpo.natural_step(policy, obs, loss, args))
    # Conjugate gradients end at 1e-5 of the gradient, which the damping makes 1e-4 of the step at most.
    assert float((step - expected).norm()) < 1e-4 * float(expected.norm())
    few = flat(trpo.natural_step(policy, obs, loss, replace(args, cg_iterations=1)))
    assert float((few - expected).norm()) > 1e-3 * float(expected.norm())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stretch", [1.0, 30.0, -1.0])
def test_an_accepted_step_keeps_to_the_divergence_and_does_not_lower_the_surrogate(kind, stretch):
    policy, batch = problem(kind, seed=1)
    args = trpo.Args(line_search_steps=20)
    before, obs = copy.deepcopy(policy), batch["obs"]
    loss = trpo.actor_loss(policy, batch, args)
    step = [stretch * t for t in trpo.natural_step(policy, obs, loss, args)]
    logs = trpo.line_search(policy, obs, loss, step, args)
    old, new = (distribution(side, side.actor(obs)) for side in (before, policy))
    ratio = (new.log_prob(batch["actions"]) - old.log_prob(batch["actions"])).exp()
    kl, gain = float(kl_divergence(old, new).mean()), float((loss.advantages * (ratio - 1)).mean())
    assert logs["losses/kl"] == pytest.approx(kl, rel=1e-6, abs=1e-12)
    if stretch < 0:  # uphill: none is accepted
        assert logs["optim/accepted"] == 0.0 and logs["optim/line_search_steps"] == 20
        assert all(torch.equal(p, q) for p, q in zip(policy.parameters(), before.parameters(), strict=True))
    else:
        assert logs["optim/accepted"] == 1.0 and 0 < kl <= args.target_kl and gain > 0
        assert (logs["optim/line_search_steps"] > 10) == (stretch > 1)
        taken = flat(policy.actor.parameters()) - flat(before.actor.parameters())
        shrunk = args.backtrack_coef ** (logs["optim/line_search_steps"] - 1)
        torch.testing.assert_close(taken, shrunk * flat(step), rtol=1e-9, atol=1e-12)


def test_a_policy_without_a_gradient_stays_where_it_is():
    policy, batch = problem("parameter")
    args = trpo.Args(norm_adv=False, cg_damping=0.0)
    loss = trpo.actor_loss(policy, batch | {"advantages": torch.zeros(B, dtype=torch.float64)}, args)
    assert not flat(trpo.natural_step(policy, batch["obs"], loss, args)).any()


def test_the_optimizer_has_the_critic_alone_and_the_policys_step_leaves_it_alone():
    policy, batch = problem("network")
    [group] = policy.groups()
    assert {*group["params"]} == {*policy.critic.parameters()} and group["name"] == "critic"
    before = copy.deepcopy(policy.critic.state_dict())
    loss = trpo.actor_loss(policy, batch, trpo.Args())
    trpo.line_search(
        policy, batch["obs"], loss, trpo.natural_step(policy, batch["obs"], loss, trpo.Args()), trpo.Args()
    )
    assert all(torch.equal(value, before[name]) for name, value in policy.critic.state_dict().items())


@pytest.mark.parametrize(
    "flags, line",
    [
        ({"target_kl": 0.0}, "--target-kl 0.0: must be a positive number"),
        ({"target_kl": math.inf}, "--target-kl inf: must be a positive number"),
        ({"cg_iterations": 0}, "--cg-iterations 0: must be at least 1"),
        ({"cg_damping": -0.1}, "--cg-damping -0.1: must be zero or a positive number"),
        ({"cg_damping": math.nan}, "--cg-damping nan: must be zero or a positive number"),
        ({"line_search_steps": 0}, "--line-search-steps 0: must be at least 1"),
        ({"backtrack_coef": 1.0}, "--backtrack-coef 1.0: must be above 0 and below 1"),
        ({"num_minibatches": 5}, "--num-minibatches 5: must be a divisor of --num-steps 2048"),
        (
            {"num_steps": 1, "num_minibatches": 1},
            "--norm-adv: must be off with --num-steps 1: one advantage cannot be normalised",
        ),
        ({"backend": "compiled"}, "--backend compiled: no compiled update"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, flags, line):
    monkeypatch.chdir(tmp_path)
    assert trpo.main(replace(trpo.Args(env_id="CartPole-v1"), **flags)) == BAD_INPUT
    told = capsys.readouterr().err
    assert told.startswith(line) and told.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_max_kl_is_another_name_and_the_papers_preset_has_its_batch():
    args = trpo.parse(trpo.Args, trpo.PRESETS, ["--preset", "paper", "--max-kl", "0.02"], "agent")
    assert (args.target_kl, args.num_steps, args.gae_lambda) == (0.02, 50_000, 1.0)
    trpo.check(args)


def test_a_run_tells_its_figures_and_nothing_of_a_backend_it_never_has(tmp_path, capfd):
    args = trpo.Args(env_id="CartPole-v1", num_steps=64, total_timesteps=200, run_dir=str(tmp_path / "run"))
    assert trpo.main(args) == DONE
    assert "no compiled update" not in capfd.readouterr().err
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    for tag in ("policy_loss", "kl", "value_loss", "entropy"):
        assert f'"losses/{tag}"' in text
    assert '"optim/line_search_steps"' in text and '"optim/accepted"' in text


def test_a_sweep_knows_its_flags_and_steps_and_carries_them_out(tmp_path, monkeypatch):
    spec = tmp_path / "spec.toml"
    spec.write_text(
        "[[settings]]\nagent = 'trpo'\nenv_id = 'CartPole-v1'\ntarget_kl = [0.01, 0.02]\nnum_steps = 64\n"
        "total_timesteps = 200\n"
    )
    runs = grid.read(spec)
    assert [run.steps for run in runs] == [192, 192] and runs[1].flags[-2:] == ("--num-steps", "64")
    monkeypatch.setattr(sys, "argv", ["sweep", str(spec), "-j", "2", "--dir", str(tmp_path / "runs")])
    assert sweep.main() == DONE
    for run in runs:
        assert json.loads((tmp_path / "runs" / run.name / "status.json").read_text())["global_step"] == 192
    same = "trpo__CartPole-v1__adahesscale__lr0.001__total_timesteps=200"
    assert [run.name for run in runs] == [f"{same}__num_steps=64__s1", f"{same}__target_kl=0.02__num_steps=64__s1"]
