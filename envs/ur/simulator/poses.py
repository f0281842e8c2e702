"""Poses [x, y, z, rx, ry, rz] in metres and as axis times angle: composition, speed, and joints that reach them."""

import math

import numpy as np

from hesscale_rl.envs.ur.kinematics import TCP, frames, rotation_vector

POSE = 6  # numbers of a pose


def matrix(vector: np.ndarray) -> np.ndarray:
    """Return the rotation [3, 3] of an axis times angle [3] (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = np.asarray(vector) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return the pose [6] of `inner`, which is given in the frame of `outer`."""
    turn = matrix(outer[3:])
    return np.concatenate([outer[:3] + turn @ inner[:3], rotation_vector(turn @ matrix(inner[3:]))])


def jacobian(chain: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return [6, 6]: the speeds of a point [3] of the last link, and its turning, by the joints' speeds.

    chain: what `kinematics.frames` gives. Joint i turns about the z axis of the frame before it.
    """
    axes = np.vstack([[0.0, 0.0, 1.0], chain[:-1, :, 2]])
    origins = np.vstack([np.zeros(3), chain[:-1, :, 3]])
    return np.concatenate([np.cross(axes, point - origins), axes], axis=1).T


def solve(links: np.ndarray, pose: np.ndarray, near: np.ndarray, offset: np.ndarray) -> np.ndarray | None:
    """Return the joints [6] that bring a tool with this offset [6] to a pose [6], or None.

    Newton's method from `near`, damped where the arm is close to singular: it finds the solution on this side.
    """
    q, wanted = np.array(near, dtype=np.float64), matrix(pose[3:])
    for _ in range(100):
        chain = frames(links, q)
        turn = chain[TCP, :, :3]
        point = chain[TCP, :, 3] + turn @ offset[:3]
        error = np.concatenate([pose[:3] - point, rotation_vector(wanted @ (turn @ matrix(offset[3:])).T)])
        length = float(np.abs(error).max())
        if length < 1e-10:
            return q
        j = jacobian(chain, point)
        q += np.clip(j.T @ np.linalg.solve(j @ j.T + 1e-3 * length**2 * np.eye(POSE), error), -0.3, 0.3)
    return None
