import math

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesscale_rl.envs.ur import kinematics
from hesscale_rl.envs.ur.arms import ARMS, DEFAULT, TWISTS
from hesscale_rl.envs.ur.motion import Joints, Move, approach

Q_REF = np.array([1.58724391, -2.4, 1.5, -0.71790582, 1.63685572, 1.00910473])
ANGLES = st.lists(st.floats(-2 * math.pi, 2 * math.pi), min_size=6, max_size=6).map(np.array)


def denavit_hartenberg(arm, q):
    """The last frame [4, 4] as a product of six matrices."""
    pose = np.eye(4)
    for angle, a, d, alpha in zip(q, arm.a, arm.d, TWISTS, strict=True):
        c, s, ca, sa = math.cos(angle), math.sin(angle), math.cos(alpha), math.sin(alpha)
        pose = pose @ [[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]]
    return pose


@settings(deadline=None)  # the first call compiles
@given(st.sampled_from(list(ARMS.values())), ANGLES)
def test_frames_are_the_dh_formula(arm, q):
    np.testing.assert_allclose(kinematics.frames(arm.links, q)[-1], denavit_hartenberg(arm, q)[:3], atol=1e-12)


def test_tcp_at_the_start_is_the_published_one():
    # SenseAct's frame is the base's, half a turn about z.
    at = kinematics.tcp(DEFAULT.links, Q_REF) * [-1, -1, 1]
    np.testing.assert_allclose(at, [-0.1041, 0.0194, 0.7700], atol=1e-4)


@settings(deadline=None)
@given(ANGLES)
def test_the_tool_follows_the_plane_formula(q):
    """With base and wrists as at the start, TCP height depends on lift and elbow as a plane arm of two links."""
    q = np.array([*Q_REF[:1], *q[1:3], *Q_REF[3:]])
    both = q[1] + q[2] + 0.0334
    z = 0.089159 - 0.425 * math.sin(q[1]) - 0.516652 * math.sin(both)
    at = kinematics.tcp(DEFAULT.links, q)
    assert at[2] == pytest.approx(z, abs=1e-4)  # the published constants have four digits


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.floats(1e-3, math.pi))
def test_rotation_vectors_give_back_the_rotation(axis, angle):
    axis = np.array(axis)
    if np.linalg.norm(axis) < 1e-3:
        return
    axis /= np.linalg.norm(axis)
    quaternion, matrix = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quaternion, axis, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    found = kinematics.rotation_vector(matrix.reshape(3, 3))
    again = np.empty(9)
    mujoco.mju_axisAngle2Quat(quaternion, found / np.linalg.norm(found), float(np.linalg.norm(found)))
    mujoco.mju_quat2Mat(again, quaternion)
    np.testing.assert_allclose(again, matrix, atol=1e-6)


def test_speeds_change_by_the_acceleration_and_arrive_together():
    qd, goal = np.zeros(6), np.array([0.0, 1.0, -0.5, 0.0, 0.0, 0.0])
    approach(qd, goal, 2.0, 0.008)
    np.testing.assert_allclose(qd, [0, 0.016, -0.008, 0, 0, 0])
    for _ in range(70):
        approach(qd, goal, 2.0, 0.008)
    np.testing.assert_array_equal(qd, goal)


def test_speedj_then_stop():
    arm = Joints(Q_REF)
    arm.speedj(np.array([0, 0.5, 0, 0, 0, 0]), 1.0)
    for _ in range(125):
        arm.step()
    assert arm.q[1] - Q_REF[1] == pytest.approx(0.5 - 0.125, abs=0.003)  # half a second of ramp, then 0.5 rad/s
    arm.stopj(2.0)
    for _ in range(32):
        arm.step()
    assert not arm.qd.any() and not arm.moving


@pytest.mark.parametrize(
    ("speed", "duration", "seconds"), [(0.5, 0.0, 0.9), (9.0, 0.0, 2 * math.sqrt(0.2)), (0.5, 2.0, 2.0)]
)
def test_movej_arrives_in_its_time(speed, duration, seconds):
    arm = Joints(Q_REF)
    goal = Q_REF + [0.2, -0.1, 0, 0, 0, 0]
    arm.movej(goal, speed, 1.0, duration)
    cycles = 0
    while arm.moving:
        before = arm.qd.copy()
        arm.step()
        cycles += 1
        assert np.abs(arm.qd - before).max() <= 1.0 * arm.period + 1e-12
    assert cycles * arm.period == pytest.approx(seconds, abs=arm.period)
    np.testing.assert_allclose(arm.q, goal, atol=1e-15)


def test_a_way_that_must_be_quick_speeds_up_harder():
    way = Move(np.zeros(6), np.ones(6), 0.1, 1.0, 0.5)
    assert way.duration == pytest.approx(0.5)
    np.testing.assert_allclose(way.at(0.5)[0], np.ones(6))


def test_servoj_follows():
    arm = Joints(Q_REF)
    for _ in range(100):
        arm.servoj(Q_REF + 0.05)
        arm.step()
    np.testing.assert_allclose(arm.q, Q_REF + 0.05, atol=1e-5)
