import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from test_ur_kinematics import Q_REF

from hesscale_rl import envs
from hesscale_rl.envs import state
from hesscale_rl.envs.ur.arms import DEFAULT
from hesscale_rl.envs.ur.drivers import NO_DELAY, KinematicDriver
from hesscale_rl.envs.ur.kinematics import tcp
from hesscale_rl.envs.ur.presets import HALF_TURN, PRESETS
from hesscale_rl.envs.ur.safety import RobotFault
from hesscale_rl.envs.ur_reacher import URReacher
from hesscale_rl.errors import InputError

IDS = tuple(envs.UR_REACHER)


def solve(target, low, high):
    """The joint angles (lift, elbow) nearest to the start that put the hand at y, z; None outside the bounds."""
    from scipy.optimize import least_squares

    def error(joints):
        return (tcp(DEFAULT.links, np.array([*Q_REF[:1], *joints, *Q_REF[3:]])) * HALF_TURN)[1:] - target

    found = []
    for start in ((-2.4, 1.5), (-1.0, 1.0), (-1.0, -1.0), (-2.0, 0.5), (-1.5, -1.5)):
        answer = least_squares(error, np.clip(start, low + 0.01, high - 0.01), bounds=(low, high))
        if answer.cost < 1e-12:
            found.append((np.abs(answer.x - Q_REF[1:3]).max(), tuple(answer.x)))
    return np.array(min(found)[1]) if found else None


def play(env, act, episodes, seed=0):
    """The returns of `act(env, obs, goal)`; episodes whose target has no solution are left out."""
    returns, low, high = [], env.unwrapped._low, env.unwrapped._high
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        goal = solve(env.unwrapped._target, low, high) if act is straight else None
        if act is straight and goal is None:
            continue
        total = 0.0
        for _ in range(100):
            obs, reward, *_ = env.step(act(env, obs, goal))
            total += reward
        returns.append(total)
    return np.array(returns)


def straight(env, obs, goal):
    """Straight through joint space, as fast as can still be stopped."""
    task, way = env.unwrapped.task, goal - obs[:2]
    left = np.abs(way).max()
    late = 0.03 * np.abs(obs[2:4]).max() * task.speed_max
    speed = min(task.speed_max, math.sqrt(2 * task.acceleration * max(left - late, 0)), left / 0.08)
    return way / max(left, 1e-9) * speed / task.speed_max


def nothing(env, obs, goal):
    return np.zeros(2)


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_checks_it(name):
    check_env(gym.make(name).unwrapped, skip_render_check=True)


# The reference's figures are means over 300 targets of another random generator: twice their standard error.
@pytest.mark.parametrize(
    ("name", "act", "mean", "within"),
    [
        ("URReacherStock-v0", straight, 291, 40), ("URReacherStock-v0", nothing, -87, 20),
        ("URReacher-v0", straight, 381, 40), ("URReacher-v0", nothing, -78, 20),
    ],
)  # fmt: skip
def test_returns_are_on_the_published_scale(name, act, mean, within):
    env = gym.make(name, guarded=False, disable_env_checker=True)
    assert play(env, act, 60 if act is straight else 300).mean() == pytest.approx(mean, abs=within)


@pytest.mark.parametrize(("name", "mean"), [("URReacherStock-v0", -94), ("URReacher-v0", -89)])
def test_a_random_policy_returns_what_is_published(name, mean):
    env, random = gym.make(name, guarded=False, disable_env_checker=True), np.random.default_rng(0)
    returns = play(env, lambda *_: random.uniform(-1, 1, 2), 300)
    assert returns.mean() == pytest.approx(mean, abs=20)


def test_targets_are_drawn_as_published():
    env = URReacher("stock")
    env.reset(seed=0)
    start = (tcp(DEFAULT.links, Q_REF) * HALF_TURN)[1:]
    away = np.linalg.norm([env._draw_target() - start for _ in range(4000)], axis=1)
    assert away.mean() == pytest.approx(0.245, abs=0.005)
    np.testing.assert_allclose(np.percentile(away, [10, 90]), [0.12, 0.36], atol=0.01)


@pytest.mark.parametrize(("distance", "reward"), [(0, 5.0), (0.01, 4.90), (0.05, 3.64), (0.1, 1.34), (0.3, -1.50)])
def test_the_reward_is_the_published_one(distance, reward):
    env = URReacher(delays=False)
    env.reset(seed=0)
    env._target = (tcp(DEFAULT.links, Q_REF) * HALF_TURN)[1:] + [distance, 0]
    assert env.step(np.zeros(2))[1] == pytest.approx(reward, abs=0.006)


@pytest.mark.parametrize("preset", PRESETS)
def test_observations(preset):
    env = URReacher(preset, delays=False)
    obs, info = env.reset(seed=0)
    np.testing.assert_allclose(obs[:2], Q_REF[1:3])
    np.testing.assert_array_equal(obs[[2, 3, 6, 7]], 0)
    np.testing.assert_allclose(obs[4:6], (tcp(DEFAULT.links, Q_REF) * HALF_TURN)[1:] - env._target)
    assert info["override"] == ""
    for _ in range(5):
        obs, *_, info = env.step(np.array([0.5, -0.25]))
    state = env.driver.read()
    np.testing.assert_allclose(obs[2:4], state.qd[1:3] / PRESETS[preset].speed_max)
    np.testing.assert_array_equal(obs[6:], [0.5, -0.25])
    np.testing.assert_allclose(info["executed"], [0.5, -0.25])
    assert env.step(np.array([3.0, 0]))[0][6] == 1.0


def test_legacy_observations_have_the_action_as_it_was_given():
    env = URReacher(legacy_obs=True)
    first = env.reset(seed=0)[0]
    assert first[6:].any() and (np.abs(first[6:]) <= 1).all()
    assert env.step(np.array([3.0, -2.0]))[0][6:].tolist() == [3.0, -2.0]


@pytest.mark.parametrize("name", IDS)
def test_an_episode_ends_by_its_time_limit_alone(name):
    env = gym.make(name)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(100)]
    assert ends[:-1] == [(False, False)] * 99 and ends[-1] == (False, True)


@pytest.mark.parametrize("name", IDS)
def test_an_episode_lasts_four_seconds_of_robot_time(name):
    env = gym.make(name)
    begin = env.reset(seed=0)[1]["stamp"]
    for _ in range(100):
        info = env.step(np.zeros(2, np.float32))[4]
    assert info["stamp"] - begin == pytest.approx(4.0, abs=1e-9) and "late" not in info


def test_the_guard_is_told_of():
    env = URReacher()
    env.reset(seed=0)
    seen = {env.step(np.array([1.0, 1.0]))[4]["override"] for _ in range(100)}
    assert "slowed" in seen
    info = env.step(np.array([1.0, 1.0]))[4]
    assert (np.abs(info["executed"]) < 1).all()


@pytest.mark.parametrize("action", [[np.nan, 0], [0, np.inf * 0]])
def test_an_action_that_is_no_number_stops_it(action):
    env = URReacher()
    env.reset(seed=0)
    with pytest.raises(RobotFault, match="must be finite"):
        env.step(np.array(action))


def test_the_same_policy_gets_the_same_return_from_both_arms():
    """Within 2 % of the scale, which ends at 500."""
    returns = {}
    for driver in ("kinematic", "mujoco"):
        returns[driver] = play(URReacher(driver=driver), straight, 10, seed=5)
    np.testing.assert_allclose(returns["kinematic"], returns["mujoco"], atol=10)
    np.testing.assert_allclose(returns["kinematic"].mean(), returns["mujoco"].mean(), rtol=0.02)


@pytest.mark.parametrize("name", IDS)
def test_a_saved_environment_goes_on_to_the_last_bit(name):
    random = np.random.default_rng(0)
    actions = random.uniform(-1, 1, (150, 2))
    one, other = envs.make(name), envs.make(name)
    one.reset(seed=3)
    for action in actions[:50]:
        one.step(action)
    saved = state.save(one)
    assert saved is not None
    state.load(other, saved)
    for action in actions[50:]:
        a, b = one.step(action), other.step(action)
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:4] == b[1:4]
        if a[3]:
            np.testing.assert_array_equal(one.reset()[0], other.reset()[0])


def test_unknown_presets_and_drivers_are_refused():
    with pytest.raises(InputError, match="preset 'v3': must be one of stock, v2"):
        URReacher("v3")
    with pytest.raises(InputError, match="driver 'ros': must be kinematic or mujoco"):
        URReacher(driver="ros")


def test_a_driver_of_ones_own():
    env = URReacher(driver=KinematicDriver(PRESETS["v2"].bounds(), NO_DELAY))
    env.reset(seed=0)
    assert env.step(np.zeros(2))[4]["stamp"] == pytest.approx(0.04)
