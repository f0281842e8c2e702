import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ur_kinematics import Q_REF

from hesscale_rl.envs.ur.arms import ARMS
from hesscale_rl.envs.ur.drivers import Delays, InProcess, KinematicDriver
from hesscale_rl.envs.ur.motion import Joints, approach
from hesscale_rl.envs.ur.presets import PRESETS
from hesscale_rl.envs.ur.safety import (
    FREE,
    RETURN_SPEED,
    RETURNING,
    SLOWED,
    STOPPED,
    admit,
    clearance,
    plausible,
    stopping_clearance,
    way_back,
)

NOTHING = np.zeros((0, 6))
SOME = ("UR5", "UR3e", "UR10e")
TASK = st.sampled_from([task.on(ARMS[name]).bounds() for name in SOME for task in PRESETS.values()])


def speeds(lift, elbow):
    return np.array([0, lift, elbow, 0, 0, 0])


def stopped(q, qd, bounds):
    """The poses [T, 6] of an arm that brakes now, cycle by cycle."""
    q, qd, way = q.copy(), qd.copy(), []
    while qd.any():
        before = qd.copy()
        approach(qd, np.zeros(6), bounds.acceleration, bounds.period)
        q = q + (before + qd) * (bounds.period / 2)
        way.append(q)
    return way


@settings(deadline=None, max_examples=48, derandomize=True)
@given(TASK, st.integers(0, 2**31), st.integers(0, 3), st.integers(0, 4), st.sampled_from([1, 5, 100]))
def test_no_command_leads_out_of_the_bounds(bounds, seed, sensing, actuation, every):
    """Nor does losing the one who commands: whatever is held for `hold` can still be stopped inside."""
    driver = KinematicDriver(bounds, Delays((sensing, sensing), (actuation, actuation)))
    random = np.random.default_rng(seed)
    for cycle in range(1, 600):
        if cycle % every == 0:
            driver.speedj(speeds(*random.choice([-3, -1, 1, 3], 2)))
        driver.wait(cycle * bounds.period)
        assert clearance(driver.joints.q_target, bounds) > 0
        if cycle % 7 == 0:
            q, qd = driver.joints.q_target.copy(), driver.joints.qd_target.copy()
            # The arm has not followed the last `actuation` commands; the first cycle of the newest has passed.
            flying = driver.sent[sensing:]
            for k in range(actuation + int(bounds.hold / bounds.period) - 1):
                before, goal = qd.copy(), flying[k] if k < actuation else driver.executed
                approach(qd, goal, bounds.acceleration, bounds.period)
                q = q + (before + qd) * (bounds.period / 2)
                assert clearance(q, bounds) > 0
            # The delays are whole cycles, the guard's ramp is not: what it leaves out is below half a millimetre.
            assert all(clearance(pose, bounds) > -5e-4 for pose in stopped(q, qd, bounds))


def test_a_command_far_from_every_bound_passes_as_it_is():
    command, did = admit(Q_REF, Q_REF, np.zeros(6), NOTHING, speeds(0.3, -0.2), PRESETS["v2"].bounds())
    np.testing.assert_array_equal(command, speeds(0.3, -0.2))
    assert did == FREE


def test_a_command_that_is_too_fast_is_cut():
    command, _ = admit(Q_REF, Q_REF, np.zeros(6), NOTHING, speeds(9.0, -9.0), PRESETS["v2"].bounds())
    assert np.abs(command).max() <= 1.0


def near(bounds):
    """A pose whose nearest bound is the lower one of the lift, 0.015 rad away."""
    q = Q_REF.copy()
    q[1], q[2] = bounds.joint_low[1] + 0.015, np.radians(80)
    return q


def test_near_a_bound_commands_are_slowed_and_inward_ones_are_not():
    bounds = PRESETS["v2"].bounds()
    q = near(bounds)
    command, did = admit(q, q, np.zeros(6), NOTHING, speeds(-1.0, 0), bounds)
    assert did == SLOWED and -1 < command[1] < 0
    command, did = admit(q, q, np.zeros(6), NOTHING, speeds(1.0, 0), bounds)
    assert did == FREE and command[1] == 1.0


def test_a_command_that_cannot_be_stopped_any_more_becomes_a_stop():
    bounds = PRESETS["v2"].bounds()
    q = near(bounds)
    command, did = admit(q, q, speeds(-1.0, 0), NOTHING, speeds(-1.0, 0), bounds)
    assert did == STOPPED and not command.any()


def test_commands_in_flight_count():
    bounds = PRESETS["v2"].bounds()
    q = near(bounds)
    q[1] += 0.1
    assert admit(q, q, np.zeros(6), NOTHING, speeds(-0.5, 0), bounds)[1] == FREE
    assert admit(q, q, np.zeros(6), np.tile(speeds(-1.0, 0), (30, 1)), speeds(-0.5, 0), bounds)[1] != FREE


def test_lag_widens_the_margin():
    bounds = PRESETS["v2"].bounds()
    q = near(bounds)
    assert admit(q, q, np.zeros(6), NOTHING, speeds(-0.1, 0), bounds)[1] == FREE
    assert admit(q + 0.01, q, np.zeros(6), NOTHING, speeds(-0.1, 0), bounds)[1] != FREE


@pytest.mark.parametrize("what", ["base", "lift", "tool"])
def test_an_arm_outside_is_led_back(what):
    """From 0.02 rad beyond a joint's bound, or 2 cm below the tool's box."""
    bounds = PRESETS["v2"].bounds()
    q = Q_REF.copy()
    if what == "base":
        q[0] = bounds.joint_high[0] + 0.02
    elif what == "lift":
        q = near(bounds) - [0, 0.035, 0, 0, 0, 0]
    else:
        while clearance(q, bounds) > -0.02:
            q[1] += 0.01
    assert -0.04 < clearance(q, bounds) < 0
    driver = InProcess(bounds, Joints(Q_REF), Delays((1, 1), (2, 2)))
    driver._rest(q)
    driver.speedj(speeds(1, -1))
    states = [driver.wait(0.04 * k) for k in range(1, 100)]
    assert any(state.override == RETURNING for state in states)
    assert clearance(states[-1].q, bounds) > 0
    led = [state for state in states if state.override == RETURNING]
    assert max(np.linalg.norm(state.qd) for state in led) <= 1.05 * RETURN_SPEED


def test_the_way_back_is_uphill():
    bounds, random = PRESETS["stock"].bounds(), np.random.default_rng(0)
    for _ in range(200):
        q = Q_REF.copy()
        q[1:3] = random.uniform(-3, 3, 2)
        before = clearance(q, bounds)
        if before < 0:
            assert clearance(q + 1e-3 * way_back(q, bounds), bounds) > before


def test_stopping_clearance_is_that_of_the_simulated_stop():
    bounds, random = PRESETS["stock"].bounds(), np.random.default_rng(0)
    for _ in range(400):
        q, qd, command = Q_REF.copy(), np.zeros(6), np.zeros(6)
        q[1:3] = np.radians(random.uniform((-170, -110), (-70, 120)))
        qd[1:3], command[1:3] = random.uniform(-0.3, 0.3, (2, 2))
        if clearance(q, bounds) < 0:
            continue  # led back from there, and judged by where it ends
        at, speed, least = q.copy(), qd.copy(), np.inf
        for _ in range(round(bounds.hold / 0.0005)):
            before = speed.copy()
            approach(speed, command, bounds.acceleration, 0.0005)
            at = at + (before + speed) * 0.00025
            least = min(least, clearance(at, bounds))
        least = min(
            [least, *(clearance(pose, bounds) for pose in stopped(at, speed, bounds._replace(period=0.0005)))]
        )
        found = min(stopping_clearance(q, qd, command, bounds), clearance(q, bounds))
        assert found == pytest.approx(least, abs=1.5e-3)


def test_bounds_that_cannot_be_are_named():
    good = PRESETS["v2"].bounds()
    assert plausible(good, Q_REF) == ""
    assert "joint bounds are empty" in plausible(good._replace(joint_low=good.joint_high), Q_REF)
    assert "beyond this arm" in plausible(good._replace(speed=4.0), Q_REF)
    assert "beyond this arm" in plausible(good._replace(acceleration=0.0), Q_REF)
    assert "the tool is at" in plausible(good._replace(tcp_low=np.array([-1, -1, 0.9])), Q_REF)
    assert "too near" in plausible(good._replace(column=1.0), Q_REF)
