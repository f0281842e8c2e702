import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.distributions import Categorical, Normal, kl_divergence

from hesscale_rl.networks import Exp, Heads, mlp
from hesscale_rl.optim import make_optimizer
from hesscale_rl.rl.policy import Policy
from hesscale_rl.rl.step_control import CRITIC_SHARE, LARGEST, LEAST, MOST, ROOM, VARIANCE_SHARE, StepControl, Window

OBSERVATIONS, ACTIONS, WINDOW = 3, 2, Window(samples=60, steps=20)
DESIRED = 0.02
SHARES = (1.0, VARIANCE_SHARE, 1.0)  # of the groups' step sizes: means, variances, critic


def make_policy(scale=1.0):
    """A policy in float64 with a variance's network of its own; the values are times `scale`."""
    torch.manual_seed(0)
    actor = Heads(mlp([OBSERVATIONS, 8, ACTIONS]), torch.nn.Sequential(*mlp([OBSERVATIONS, 8, ACTIONS]), Exp()))
    critic = mlp([OBSERVATIONS, 8, 1])
    with torch.no_grad():
        for p in critic[-1].parameters():
            p *= scale
    return Policy(OBSERVATIONS, Box(-1, 1, (ACTIONS,)), actor, critic, "var", None).double()


def make_control(policy, lr=1e-3):
    optimizer, _ = make_optimizer("scaled-adahesscale", policy.groups(), lr=lr)
    return StepControl(policy, optimizer, DESIRED, WINDOW)


def make_batch(policy, n=WINDOW.samples, scale=1.0, seed=1):
    random = torch.Generator().manual_seed(seed)
    obs = torch.randn(n, OBSERVATIONS, generator=random, dtype=torch.float64)
    with torch.no_grad():
        values = policy.critic(obs).flatten()
        returns = values + scale * torch.randn(n, generator=random, dtype=torch.float64)
        return {"obs": obs, "outputs": policy.actor(obs), "values": values, "returns": returns}


def move(policy, size, critic_size=None):
    """Change all parameters as learning would, by so much."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for net, step in ((policy.actor, size), (policy.critic, size if critic_size is None else critic_size)):
            for p in net.parameters():
                p += step * torch.randn(p.shape, generator=random, dtype=torch.float64)


def settings(control, name):
    return [group[name] for group in control.optimizer.param_groups]


@pytest.mark.parametrize("parametrization", ["log_std", "log_var", "var"])
def test_kl_is_that_of_the_distributions(parametrization):
    policy = Policy(OBSERVATIONS, Box(-1, 1, (ACTIONS,)), torch.nn.Identity(), mlp([3, 1]), parametrization, None)
    old, new = torch.rand(2, 7, 2 * ACTIONS, dtype=torch.float64) + 0.1
    std = {"log_std": torch.exp, "log_var": lambda p: torch.exp(p / 2), "var": torch.sqrt}[parametrization]
    q, p = (Normal(x[:, :ACTIONS], std(x[:, ACTIONS:])) for x in (old, new))
    torch.testing.assert_close(policy.kl(old, new), kl_divergence(q, p).sum(1).mean())


def test_kl_of_a_softmax_policy():
    policy = Policy(OBSERVATIONS, Discrete(4), mlp([3, 4]), mlp([3, 1]), "categorical", None)
    old, new = torch.randn(2, 7, 4, dtype=torch.float64)
    expected = kl_divergence(Categorical(logits=old), Categorical(logits=new)).mean()
    torch.testing.assert_close(policy.kl(old, new), expected)


def test_a_window_sets_the_steps_of_the_next_one_by_what_it_did():
    policy = make_policy()
    control, batch = make_control(policy), make_batch(policy)
    move(policy, 0.06, 0.2)
    control.learned(batch, [0.5, 1.0, 0.8])
    policy.requires_grad_(False)
    kl = critic = error = 0.0
    for i in range(len(batch["obs"])):  # to the letter of the module's docstring
        (m, v), new = batch["outputs"][i].chunk(2), policy.actor(batch["obs"][i : i + 1])[0]
        m2, v2 = new.chunk(2)
        kl += float((0.5 * (v / v2 + (m2 - m) ** 2 / v2 - 1 - (v / v2).log())).sum()) / len(batch["obs"])
        critic += float((policy.critic(batch["obs"][i : i + 1])[0, 0] - batch["values"][i]) ** 2)
        error += float((batch["returns"][i] - batch["values"][i]) ** 2)
    critic_kl = critic / (2 * error)
    assert LEAST < math.sqrt(DESIRED / kl) < MOST and LEAST < math.sqrt(CRITIC_SHARE * DESIRED / critic_kl) < MOST
    assert control.figures["losses/kl"] == pytest.approx(kl)
    assert control.figures["losses/critic_kl"] == pytest.approx(critic_kl)
    actor = 1e-3 * math.sqrt(DESIRED / kl)  # what was taken is the longer of the actor's two, whose eta is 1
    assert settings(control, "lr") == pytest.approx(
        [actor, VARIANCE_SHARE * actor, 1e-3 * 0.8 * math.sqrt(CRITIC_SHARE * DESIRED / critic_kl)]
    )
    radius, squared_error = ROOM * DESIRED / WINDOW.steps**2, error / len(batch["obs"])
    assert settings(control, "delta") == pytest.approx([radius, radius, CRITIC_SHARE * radius * squared_error])


def test_annealed_a_quarter_of_the_divergence_is_half_of_the_step():
    found = []
    for remaining in (1.0, 0.25):
        policy = make_policy()
        control, batch = make_control(policy), make_batch(policy)
        control.remaining = remaining
        move(policy, 0.06, 0.2)
        control.learned(batch, [1.0, 1.0, 1.0])
        found.append((np.array(settings(control, "lr")), np.array(settings(control, "delta"))))
    (lr, delta), (annealed_lr, annealed_delta) = found
    np.testing.assert_allclose(annealed_lr, lr / 2)
    np.testing.assert_allclose(annealed_delta, delta / 4)


@pytest.mark.parametrize(
    ("size", "factor"), [(0.0, MOST), (1e-6, MOST), (30.0, LEAST), (math.nan, LEAST)], ids=lambda x: f"{x:g}"
)
def test_far_from_what_is_desired_the_next_steps_are_changed_by_a_bounded_factor(size, factor):
    policy = make_policy()
    control, batch = make_control(policy), make_batch(policy)
    move(policy, size)
    control.learned(batch, [1.0, 1.0, 1.0])
    assert settings(control, "lr") == pytest.approx([1e-3 * factor * share for share in SHARES])


def test_no_step_size_grows_without_end_where_nothing_moves():
    policy = make_policy()
    control, batch = make_control(policy), make_batch(policy)
    for _ in range(40):
        control.learned(batch, [1.0, 1.0, 1.0])
    assert settings(control, "lr") == [LARGEST] * 3


def test_a_critic_without_error_keeps_a_radius_that_an_optimizer_takes():
    policy = make_policy()
    control, batch = make_control(policy), make_batch(policy, scale=0.0)
    control.learned(batch, [1.0, 1.0, 1.0])
    assert all(delta > 0 for delta in settings(control, "delta"))


def test_the_scale_of_the_rewards_changes_no_step_size():
    plain, large = make_policy(), make_policy(scale=100.0)
    results = []
    for policy, scale in ((plain, 1.0), (large, 100.0)):
        control, batch = make_control(policy), make_batch(policy, scale=scale)
        with torch.no_grad():
            for p in policy.critic[-1].parameters():
                p *= 1.1
        control.learned(batch, [1.0, 1.0, 1.0])
        results.append((settings(control, "lr"), settings(control, "delta")))
    (lr, delta), (lr_large, delta_large) = results
    assert lr == pytest.approx(lr_large) and delta[:2] == pytest.approx(delta_large[:2])
    assert delta_large[2] == pytest.approx(delta[2] * 100.0**2)


def test_a_window_of_many_batches_is_one_of_all_their_samples():
    whole, parts = make_policy(), make_policy()
    controls = make_control(whole), make_control(parts)
    batch = make_batch(whole)
    move(whole, 0.02)
    controls[0].learned(batch, [0.9, 0.9, 0.9])
    for i, rows in enumerate(np.split(np.arange(WINDOW.samples), 6)):
        assert settings(controls[1], "lr") == [1e-3 * share for share in SHARES]
        if i == 5:
            move(parts, 0.02)
        controls[1].learned({name: x[rows] for name, x in batch.items()}, [0.8 + 0.04 * i] * 3)
    assert settings(controls[0], "lr") == pytest.approx(settings(controls[1], "lr"))
    assert settings(controls[0], "delta") == pytest.approx(settings(controls[1], "delta"))


def test_a_window_goes_on_where_it_was_saved():
    policy, results = make_policy(), []
    first, second = make_batch(policy, 40), make_batch(policy, 20, seed=3)
    for saved in (False, True):
        control = make_control(make_policy())
        control.learned(first, [0.9, 0.9, 0.9])
        if saved:
            state = control.state_dict()
            control = make_control(make_policy())
            control.load_state_dict(state)
        move(control.policy, 0.02)
        control.learned(second, [0.7, 0.7, 0.7])
        results.append((settings(control, "lr"), settings(control, "delta"), control.figures))
    assert results[0] == results[1] and results[0][0] != [1e-3 * share for share in SHARES]


def test_what_was_learned_from_may_change_afterwards():
    policy = make_policy()
    control, batch = make_control(policy), make_batch(policy, 40)
    kept = {name: x.clone() for name, x in batch.items()}
    control.learned(batch, [1.0, 1.0, 1.0])
    for x in batch.values():
        x.zero_()  # a rollout's arrays are used again
    assert all(torch.equal(x, kept[name]) for name, x in control.state_dict()["batch"].items())


def test_the_divergence_goes_with_the_square_of_the_step_size():
    """What the rule is built on: along one path a tenth of the step makes a hundredth of the divergence."""
    found = []
    for size in (1e-3, 1e-4):
        policy = make_policy()
        control, batch = make_control(policy), make_batch(policy)
        move(policy, size)
        control.learned(batch, [1.0, 1.0, 1.0])
        found.append(control.figures)
    for tag in ("losses/kl", "losses/critic_kl"):
        assert found[0][tag] / found[1][tag] == pytest.approx(100, rel=0.05)
