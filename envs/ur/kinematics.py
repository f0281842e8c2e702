"""Where the joints put the links of a UR5: its DH table, and positions in the frame of its base, in metres.

The base frame is the one on the robot's pendant: z up, the cable at negative y.
"""

import math

import numpy as np

from hesscale_rl.jit import EXACT

# Link lengths a, offsets d [m] and twists alpha [rad] of the joints base, shoulder lift, elbow, wrist 1 to 3
# (UR's article "DH parameters for calculations of kinematics and dynamics").
A = (0.0, -0.42500, -0.39225, 0.0, 0.0, 0.0)
D = (0.089159, 0.0, 0.0, 0.10915, 0.09465, 0.0823)
ALPHA = (math.pi / 2, 0.0, 0.0, math.pi / 2, -math.pi / 2, 0.0)
# The twists are quarters of a turn: their cosines and sines are whole numbers, without the rounding of math.cos.
_COS, _SIN = (0.0, 1.0, 1.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 1.0, -1.0, 0.0)

SHOULDER, ELBOW, WRIST_1, WRIST_2, WRIST_3, TCP = range(6)  # the rows of `points`
MAX_SPEED = math.pi  # rad/s, of every joint
MAX_TORQUE = (150.0, 150.0, 150.0, 28.0, 28.0, 28.0)  # N m


@EXACT
def frames(q):
    """Return the pose [6, 3, 4] of each joint's DH frame for the joint angles q [6]: rotation, then origin."""
    out = np.empty((6, 3, 4))
    r = np.eye(3)
    p = np.zeros(3)
    for i in range(6):
        c, s = math.cos(q[i]), math.sin(q[i])
        ca, sa = _COS[i], _SIN[i]
        for k in range(3):
            x, y, z = r[k, 0], r[k, 1], r[k, 2]
            along = c * x + s * y  # the new x axis
            across = c * y - s * x
            p[k] += A[i] * along + D[i] * z
            r[k, 0], r[k, 1], r[k, 2] = along, ca * across + sa * z, ca * z - sa * across
            out[i, k, 0], out[i, k, 1], out[i, k, 2], out[i, k, 3] = r[k, 0], r[k, 1], r[k, 2], p[k]
    return out


@EXACT
def points(q):
    """Return the origins [6, 3] of the joints' frames; the last is the tool's centre point (TCP)."""
    return frames(q)[:, :, 3].copy()


@EXACT
def tcp(q):
    """Return the position [3] of the tool's centre point."""
    return frames(q)[5, :, 3].copy()


def pose(q: np.ndarray) -> np.ndarray:
    """Return the tool's pose [6] as a UR controller gives it: position, then axis times angle."""
    last = frames(q)[5]
    return np.concatenate([last[:, 3], rotation_vector(last[:, :3])])


def rotation_vector(r: np.ndarray) -> np.ndarray:
    """Return the axis [3] times the angle in [0, pi] of a rotation matrix [3, 3]."""
    twist = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
    sine, cosine = np.linalg.norm(twist) / 2, (np.trace(r) - 1) / 2
    angle = math.atan2(sine, cosine)
    if sine > 1e-7:
        return twist * (angle / (2 * sine))
    if cosine > 0:
        return twist / 2
    # Half a turn: the axis is the column of (r + 1)/2 that is longest, its sign free.
    square = (r + np.eye(3)) / 2
    column = square[:, int(np.argmax(np.diag(square)))]
    return angle * column / np.linalg.norm(column)
