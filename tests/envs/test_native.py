"""The compiled steps of MuJoCo's tasks against Gymnasium's own, to the last bit, and what never takes them."""

import logging

import gymnasium as gym
import numpy as np
import pytest
import torch
from comparing import assert_equal
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

from hesscale_rl import backend
from hesscale_rl.agents import ppo
from hesscale_rl.envs import mujoco, native, state
from hesscale_rl.envs.native import finding, proof
from hesscale_rl.envs.vector import Envs
from hesscale_rl.errors import Diverged, EnvironmentFault
from hesscale_rl.rl.rollout import Rollout

NAMES = ["HalfCheetah", "Swimmer", "Hopper", "Walker2d", "Ant", "Humanoid", "HumanoidStandup", "Reacher", "Pusher"]
TASKS = [f"{name}-v5" for name in [*NAMES, "InvertedPendulum", "InvertedDoublePendulum"]]
mujoco.quiet()
ARGUMENTS = [
    ("HalfCheetah-v4", {"ctrl_cost_weight": 2, "exclude_current_positions_from_observation": False}),
    ("Hopper-v5", {"frame_skip": 3, "healthy_reward": -2.5, "healthy_state_range": (-3, 3)}),
    ("Walker2d-v5", {"terminate_when_unhealthy": False, "forward_reward_weight": 0.1}),
    ("Ant-v5", {"contact_force_range": (0.0, 0.5), "main_body": "aux_1", "include_cfrc_ext_in_observation": False}),
    ("Humanoid-v5", {"contact_cost_range": (-1, 1e-3), "include_cvel_in_observation": False}),
    ("Reacher-v5", {"reward_control_weight": 0.3, "reward_dist_weight": 3}),
]


def actions_of(space, steps, seed=0):
    """Actions of every kind: in the bounds, at them, and beyond, float32."""
    random, shape = np.random.default_rng(seed), (steps // 4, *space.shape)
    inside, coins = random.uniform(space.low, space.high, shape), random.random(shape)
    swinging = np.sin(0.3 * np.arange(steps // 4)[:, None] + np.arange(shape[1])) * space.high
    kinds = [inside, np.where(coins < 0.5, space.low, space.high), 3 * random.standard_normal(shape), swinging]
    return np.concatenate(kinds).astype(np.float32)


def made(env_id, **kwargs):
    """Gymnasium's environment, and the same as training has it."""
    kwargs |= {"disable_env_checker": True}
    return gym.make(env_id, **kwargs), Envs(gym.make(env_id, **kwargs)).copies[0]


def compare(own, compiled, actions, counted=None):
    """Both take the actions, beginning anew where an episode ends; return how many did."""
    row, episodes = np.empty(compiled.length), 0
    for action in actions:
        obs, reward, terminated, truncated, _ = own.step(action)
        assert counted is None or compiled.native.takes(action) == counted
        taken = compiled.step_into(action, row)
        assert row.tobytes() == obs.tobytes()
        assert taken == (float(reward), bool(terminated), truncated)
        assert own.unwrapped.data.time == compiled.unwrapped.data.time
        if terminated or truncated:
            episodes += 1
            assert own.reset()[0].tobytes() == compiled.reset()[0].tobytes()
    return episodes


@pytest.mark.parametrize(("env_id", "kwargs"), [*((env_id, {}) for env_id in TASKS), *ARGUMENTS])
@pytest.mark.filterwarnings("ignore:.*out of date")
def test_a_compiled_step_gives_gymnasiums_numbers(env_id, kwargs):
    own, compiled = made(env_id, max_episode_steps=90, **kwargs)
    assert own.reset(seed=3)[0].tobytes() == compiled.reset(seed=3)[0].tobytes()
    assert compare(own, compiled, actions_of(own.action_space, 240), counted=True) > 0
    saved = state.save(own)
    assert saved["time_limits"] == state.save(compiled)["time_limits"]
    state.load(compiled, saved)
    compare(own, compiled, actions_of(own.action_space, 80, seed=1), counted=True)
    assert_equal(state.save(own), state.save(compiled))


def test_a_state_that_is_not_finite_is_what_gymnasium_makes_of_it(caplog):
    own, compiled = made("Hopper-v5")
    row, warned = np.empty(11), []
    for env in (own, compiled):
        env.reset(seed=0)
        env.unwrapped.data.qpos[1] = np.nan
        mujoco._seen.clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            taken = (
                env.step(np.zeros(3, np.float32)) if env is own else compiled.step_into(np.zeros(3, np.float32), row)
            )
        warned.append([record.message for record in caplog.records])
        if env is own:
            obs, reward, terminated, truncated, _ = taken
    assert obs.tobytes() == row.tobytes() and taken == (reward, terminated, truncated)
    assert warned[0] == warned[1] and "Nan, Inf or huge value in QPOS" in warned[0][0]


def rollouts(env, std, calls, stop_at_end=False):
    """What several calls of `collect` return in an environment, the ends of its episodes, and all that is saved."""
    torch.manual_seed(0)
    args = ppo.Args(std=std)
    policy = ppo.make_policy(env.observation_space, env.action_space, args)
    rollout, ends, rows = Rollout(env, policy, np.random.SeedSequence(3)), [], []
    for steps in calls:
        rows.append(rollout.collect(steps, lambda *end: ends.append(end), stop_at_end))
    return rows, ends, rollout.state_dict(), dict(policy.named_buffers()), rollout


@pytest.mark.parametrize(
    ("env_id", "std"), [("Hopper-v5", "parameter"), ("Walker2d-v5", "network"), ("Ant-v5", "shared")]
)
@pytest.mark.parametrize("stop_at_end", [False, True])
def test_a_driven_rollout_is_the_one_that_is_taken_step_by_step(env_id, std, stop_at_end):
    driven, single, own = (Envs(gym.make(env_id, disable_env_checker=True, max_episode_steps=60)) for _ in range(3))
    single.driver = lambda policy: None
    own.copies[0].native = None
    results = [rollouts(env, std, [150, 5, 5, 100], stop_at_end) for env in (driven, single, own)]
    assert (
        results[0][4].parts[0]._driver is not None
        and results[2][4].parts[0]._driver is None
        and len(results[0][1]) >= 2
    )
    for rows, ends, saved, buffers, _ in results[1:]:
        assert ends == results[0][1]
        assert_equal(saved, results[0][2])
        assert_equal(buffers, results[0][3])
        for found, expected in zip(results[0][0], rows, strict=True):
            assert found.keys() == expected.keys()
            assert all(found[name].tobytes() == expected[name].tobytes() for name in found)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Hopper-v5"])
def test_a_rollout_is_driven_only_with_actions_and_networks_that_the_loops_know(env_id):
    env = Envs(gym.make(env_id, disable_env_checker=True))
    args = ppo.Args(rescale_actions=env_id == "Hopper-v5")
    assert env.driver(ppo.make_policy(env.observation_space, env.action_space, args)) is None


def test_actions_that_are_not_as_many_as_the_controls_are_gymnasiums_to_refuse():
    env = gym.make("Hopper-v5", disable_env_checker=True)
    env.unwrapped.action_space = gym.spaces.Box(-1, 1, (40,), np.float32)
    with pytest.raises(EnvironmentFault, match="Action dimension mismatch"):
        rollouts(Envs(env), "parameter", [3])


@pytest.mark.parametrize("what", ["action", "observation"])
def test_a_driven_step_that_is_not_finite_ends_as_a_single_one_does(what):
    messages = []
    for driven in (True, False):
        env = Envs(gym.make("HalfCheetah-v5", disable_env_checker=True))
        rollout = rollouts(env, "parameter", [3])[4]
        if not driven:
            rollout.parts[0]._driver = None
        if what == "action":
            torch.nn.init.constant_(next(rollout.policy.actor.parameters()), np.nan)
        else:
            env.copies[0].unwrapped.model.body_mass[:] = np.nan
            env.copies[0].native.ready = driven
        with pytest.raises((Diverged, EnvironmentFault)) as caught:
            rollout.collect(3, lambda *_: None)
        messages.append(f"{type(caught.value).__name__}: {caught.value}")
    assert messages[0] == messages[1]


class Slower(HalfCheetahEnv):
    pass


class Halved(gym.RewardWrapper):
    def reward(self, reward):
        return reward / 2


class Longer(gym.wrappers.TimeLimit):
    pass


def patched(name):
    env = HopperEnv()
    setattr(env, name, getattr(env, name))
    return env


@pytest.mark.parametrize(
    "env",
    [
        lambda: Slower(),
        lambda: gym.wrappers.TimeLimit(Halved(HopperEnv()), 10),
        lambda: Longer(HopperEnv(), 10),
        lambda: gym.wrappers.OrderEnforcing(gym.wrappers.TimeLimit(HopperEnv(), 10)),
        lambda: gym.wrappers.TimeLimit(gym.wrappers.TimeLimit(HopperEnv(), 10), 20),
        lambda: patched("step"),
        lambda: patched("_get_obs"),
        lambda: gym.make("CartPole-v1"),
        lambda: gym.make("Reacher-v4"),
    ],
    ids=["subclass", "wrapped", "another limit", "another order", "two limits", "step", "obs", "no MuJoCo", "v4"],
)
@pytest.mark.filterwarnings("ignore:.*out of date")
def test_what_is_not_exactly_known_keeps_its_own_step_and_nothing_is_said(env, capsys):
    assert native.find(env(), "--env-id Mine-v0") is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"xml_file": "walker2d.xml"}, "since its model is /"),
        ({"ctrl_cost_weight": np.float64(0.5)}, "since its ctrl_cost_weight is np.float64(0.5)"),
        ({"terminate_when_unhealthy": 1}, "since its terminate_when_unhealthy is 1"),
        ({"healthy_z_range": (1, 2, 3)}, "since its healthy_z_range is (1, 2, 3)"),
    ],
)
def test_arguments_that_are_not_covered_are_named_once(kwargs, reason, capsys):
    finding._said.clear()
    pair = [HopperEnv(**kwargs), HopperEnv(**kwargs)]
    assert [native.find(env, "--env-id Hopper-v5") for env in pair] == [None, None]
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) == 1
        and lines[0].startswith("--env-id Hopper-v5: Gymnasium's own step is taken")
        and reason in lines[0]
    )


@pytest.mark.parametrize("changed", [{"_get_rew": lambda *_: (0.0, {})}, {"is_healthy": property(lambda self: True)}])
def test_a_changed_class_is_not_known(monkeypatch, changed):
    for name, value in changed.items():
        monkeypatch.setattr(HopperEnv, name, value)
    assert native.find(HopperEnv(), "Hopper") is None


@pytest.mark.parametrize("change", ["weight", "step", "limit", "data"])
def test_what_is_changed_later_counts_from_the_next_reset_at_the_latest(change):
    own, compiled = made("HalfCheetah-v5")
    for env in (own, compiled):
        inner = env.unwrapped
        env.reset(seed=0)
        if change == "weight":
            inner._ctrl_cost_weight = 3.0
        elif change == "step":
            inner.step = HalfCheetahEnv.step.__get__(inner)
        elif change == "limit":
            (env if env is own else env.env)._max_episode_steps = 10
        elif change == "data":
            inner.model, inner.data = inner._initialize_simulation()
        env.reset(seed=1)
    compare(own, compiled, actions_of(own.action_space, 40), counted=change != "step")


def test_numbers_that_differ_are_noticed_and_told_with_the_versions(monkeypatch, capsys):
    finding._said.clear()
    monkeypatch.setattr(proof, "_known", {})
    monkeypatch.setattr(proof.cache, "mark", lambda what: None)
    monkeypatch.setattr(finding, "unchanged", lambda kind: True)
    monkeypatch.setattr(HopperEnv, "is_healthy", property(lambda self: self.data.qpos[1] > 1.2))
    assert native.find(HopperEnv(), "--env-id Hopper-v5") is None
    said = capsys.readouterr().err
    assert said.startswith("--env-id Hopper-v5: Gymnasium's own step is taken: the compiled one gives other numbers")
    assert proof.versions() in said


def test_the_answer_is_remembered_in_the_cache(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(proof.cache, "mark", lambda what: tmp_path / what)
    monkeypatch.setattr(proof, "agrees", lambda own: asked.append(own) or True)
    for _ in range(2):
        monkeypatch.setattr(proof, "_known", {})
        assert native.find(HopperEnv(), "Hopper") is not None
    assert len(asked) == 1


def test_without_mujocos_symbols_or_the_backend_gymnasium_steps(monkeypatch):
    with backend.use("torch"):
        assert native.find(HopperEnv(), "Hopper") is None
    monkeypatch.setattr(finding, "library", lambda: None)
    assert native.find(HopperEnv(), "Hopper") is None
