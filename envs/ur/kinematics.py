"""Where the joints put the links of an arm: positions in the frame of its base, in metres.

The base frame is the one on the robot's pendant: z up, the cable at negative y. `links` is the arm's DH table, as
`Arm.links` has it (arms.py).
"""

import math

import numpy as np

from hesscale_rl.jit import EXACT

from .arms import JOINTS

SHOULDER, ELBOW, WRIST_1, WRIST_2, WRIST_3, TCP = range(JOINTS)  # the rows of `points`


@EXACT
def frames(links: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the pose [6, 3, 4] of each joint's DH frame for the joint angles q [6]: rotation, then origin."""
    out = np.empty((len(q), 3, 4))
    r = np.eye(3)
    p = np.zeros(3)
    for i in range(len(q)):
        c, s = math.cos(q[i]), math.sin(q[i])
        a, d, ca, sa = links[0, i], links[1, i], links[2, i], links[3, i]
        for k in range(3):
            x, y, z = r[k, 0], r[k, 1], r[k, 2]
            along = c * x + s * y  # the new x axis
            across = c * y - s * x
            p[k] += a * along + d * z
            r[k, 0], r[k, 1], r[k, 2] = along, ca * across + sa * z, ca * z - sa * across
            out[i, k, 0], out[i, k, 1], out[i, k, 2], out[i, k, 3] = r[k, 0], r[k, 1], r[k, 2], p[k]
    return out


@EXACT
def points(links: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the origins [6, 3] of the joints' frames; the last is the tool's centre point (TCP)."""
    return frames(links, q)[:, :, 3].copy()


@EXACT
def tcp(links: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the position [3] of the tool's centre point."""
    return frames(links, q)[TCP, :, 3].copy()


def pose(links: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the tool's pose [6] as a UR controller gives it: position, then axis times angle."""
    last = frames(links, q)[TCP]
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
