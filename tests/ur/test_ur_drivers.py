import mujoco
import numpy as np
import pytest
from test_ur_kinematics import Q_REF

from hesscale_rl.envs.ur import kinematics
from hesscale_rl.envs.ur.arms import ARMS, DEFAULT
from hesscale_rl.envs.ur.drivers import NO_DELAY, Delays, InProcess, KinematicDriver
from hesscale_rl.envs.ur.dynamics import MujocoBody, MujocoDriver, build
from hesscale_rl.envs.ur.motion import Joints
from hesscale_rl.envs.ur.presets import PRESETS
from hesscale_rl.envs.ur.safety import FREE, OVERRIDES, RobotFault, clearance

V2 = PRESETS["v2"].bounds()
FIXED = Delays((1, 1), (2, 2))
each_arm = pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)


def speeds(lift, elbow):
    return np.array([0, lift, elbow, 0, 0, 0])


def play(driver, seed, steps=300):
    random, states = np.random.default_rng(seed), []
    for k in range(steps):
        driver.speedj(speeds(*random.uniform(-1.5, 1.5, 2)))
        states.append(driver.wait((k + 1) * 0.04))
    return states


@pytest.mark.parametrize("delays", [NO_DELAY, FIXED, Delays((3, 3), (0, 0)), Delays((0, 0), (4, 4))])
def test_the_compiled_cycles_are_the_literal_ones(delays):
    fast, literal = KinematicDriver(V2, delays), InProcess(V2, Joints(Q_REF), delays)
    for one, other in zip(play(fast, 0), play(literal, 0), strict=True):
        for name in ("stamp", "q", "qd", "q_target", "qd_target", "executed", "override"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12)
    assert any(state.override != FREE for state in play(KinematicDriver(V2, delays), 1))


@pytest.mark.parametrize(("sensing", "actuation"), [(0, 0), (1, 3), (2, 0)])
def test_a_command_is_seen_after_the_delays(sensing, actuation):
    """The state of a time is known `sensing` cycles later, and shows the command `actuation` cycles after that."""
    driver = KinematicDriver(V2, Delays((sensing, sensing), (actuation, actuation)))
    driver.draw(np.random.default_rng(0))
    driver.speedj(speeds(0.1, 0))
    moved = [driver.wait(cycle * V2.period).qd[1] != 0 for cycle in range(1, 9)]
    assert moved.index(True) == sensing + actuation


def test_delays_are_drawn_from_their_ranges():
    driver, random, seen = KinematicDriver(V2, Delays((0, 2), (1, 3))), np.random.default_rng(0), set()
    for _ in range(100):
        driver.draw(random)
        seen.add((driver.sensing, driver.actuation))
        assert driver.read().stamp == 0
    assert seen == {(s, a) for s in range(3) for a in (1, 2, 3)}


@pytest.mark.parametrize("kind", [KinematicDriver, MujocoDriver])
def test_stop_and_movej(kind):
    driver = kind(V2)
    driver.speedj(speeds(0.8, -0.8))
    moving = driver.wait(0.4)
    assert np.abs(moving.qd).max() > 0.5
    still = driver.stop()
    assert np.abs(still.qd).max() < 1e-3 and still.stamp > moving.stamp
    back = driver.movej(Q_REF)
    np.testing.assert_allclose(back.q, Q_REF)
    assert back.stamp > still.stamp + 0.5


@pytest.mark.parametrize("kind", [KinematicDriver, MujocoDriver])
def test_a_saved_driver_goes_on_to_the_last_bit(kind):
    driver, again = kind(V2), kind(V2)
    play(driver, 0, 20)
    saved = driver.save_state()
    saved = {name: np.copy(value) if isinstance(value, np.ndarray) else value for name, value in saved.items()}
    first = [driver.wait(0.8 + 0.04 * k) for k in range(1, 20)]
    again.load_state(saved)
    for one, k in zip(first, range(1, 20), strict=True):
        np.testing.assert_array_equal(one.q, again.wait(0.8 + 0.04 * k).q)


@pytest.mark.parametrize(
    "command", [np.full(6, np.nan), speeds(np.inf, 0), np.zeros(5), np.zeros((6, 1)), "fast", None, [[1, 2], [3]]]
)
def test_what_is_no_command_is_refused(command):
    driver = KinematicDriver(V2)
    driver.speedj(speeds(0.5, 0))
    with pytest.raises(RobotFault, match="a command must be"):
        driver.speedj(command)


def test_a_start_outside_is_refused():
    with pytest.raises(ValueError, match=r"joint 2 is at -3\.000 rad, outside"):
        KinematicDriver(V2, q=Q_REF - [0, 0.6, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="cycles"):
        InProcess(V2, Joints(Q_REF, 0.002))


# --- MuJoCo


@each_arm
def test_mujoco_has_the_same_kinematics(arm):
    model, random = build(arm), np.random.default_rng(0)
    data = mujoco.MjData(model)
    for _ in range(30):
        data.qpos[:] = random.uniform(-6, 6, 6)
        mujoco.mj_kinematics(model, data)
        frame = kinematics.frames(arm.links, data.qpos.copy())[-1]
        np.testing.assert_allclose(data.site_xpos[0], frame[:, 3], atol=1e-9)
        np.testing.assert_allclose(data.site_xmat[0].reshape(3, 3), frame[:, :3], atol=1e-9)


def test_mujoco_weighs_what_a_ur5_weighs():
    body = MujocoBody(0.008)
    body.place(Q_REF)
    np.testing.assert_allclose(body.data.qfrc_bias, [0, 17.0, -11.2, -1.5, 0, 0], atol=0.05)
    np.testing.assert_allclose(body.model.body_mass[-6:], DEFAULT.mass)


@each_arm
def test_mujoco_follows_its_reference(arm):
    states = play(MujocoDriver(PRESETS["v2"].on(arm).bounds(), arm=arm), 0, 100)
    assert max(np.abs(s.q - s.q_target).max() for s in states) < 0.004  # at 2 rad/s^2 throughout
    assert max(np.abs(s.qd).max() for s in states) > 0.5


def test_mujoco_torque_is_limited():
    body = MujocoBody(0.008)
    body.place(Q_REF)
    body.follow(Q_REF + 0.5, np.zeros(6), np.zeros(6))
    assert (np.abs(body.torque) <= [150, 150, 150, 28, 28, 28]).all() and (np.abs(body.torque) >= 28).any()


@each_arm
def test_capsules_touch_only_outside_the_bounds(arm):
    body, bounds = MujocoBody(arm.period, arm), PRESETS["v2"].on(arm).bounds()
    random, inside, touched = np.random.default_rng(0), 0, 0
    for _ in range(3000):
        q = Q_REF.copy()
        q[1:3] = random.uniform(np.radians([-200, -170]), np.radians([20, 170]))
        body.q[:] = q
        mujoco.mj_forward(body.model, body.data)
        if clearance(q, bounds) > 0:
            inside += 1
            assert not body.touching
        touched += body.touching
    assert inside > 500 and touched > 100


def test_overrides_have_words():
    assert OVERRIDES[FREE] == "" and len(OVERRIDES) == 4
