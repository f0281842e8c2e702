"""The arm in MuJoCo: links with mass and inertia, motors with limited torque, and a picture of it all.

The model is built from the arm's table (arms.py); capsules stand for the links' shapes.
"""

import math
from typing import Any

import mujoco
import numpy as np

from .arms import DEFAULT, JOINTS, START, TWISTS, Arm
from .drivers import USUAL, Delays, InProcess
from .motion import Joints
from .safety import Bounds

ARMATURE = 0.1  # kg m^2: not published; what mujoco_menagerie takes for the UR5e
GREY, BLUE, RED = (0.75, 0.77, 0.8, 1), (0.25, 0.5, 0.75, 1), (0.9, 0.2, 0.15, 0.8)
TIMESTEP = 0.004  # s, or a control cycle where that is shorter
STIFFNESS, DAMPING = 400.0, 40.0  # of the joints' servo, per unit of inertia: 1/s^2, 1/s


def shapes(arm: Arm) -> list[tuple[int, tuple, tuple, float]]:
    """Return what stands for the links, capsules: each one's link, its ends in that link's DH frame, and its radius.

    Lengths and offsets are the arm's; how thick a link is and how far a wrist goes is as its footprint.
    """
    g, shoulder, elbow = arm.girth, arm.shoulder, arm.elbow
    upper, fore = -arm.lengths[0], -arm.lengths[1]
    return [
        (0, (0, -0.04 * g, 0), (0, 0, 0), 0.06 * g), (0, (0, 0, 0), (0, 0, shoulder), 0.055 * g),
        (1, (0, 0, shoulder), (upper, 0, shoulder), 0.05 * g), (1, (0, 0, elbow), (0, 0, shoulder), 0.045 * g),
        (2, (0, 0, elbow), (fore, 0, elbow), 0.042 * g), (3, (0, -0.09 * g, 0), (0, 0, 0), 0.038 * g),
        (4, (0, 0.07 * g, 0), (0, 0, 0), 0.038 * g), (5, (0, 0, -0.04 * g), (0, 0, -0.03 * g), 0.035 * g),
    ]  # fmt: skip


def build(arm: Arm = DEFAULT, timestep: float = TIMESTEP) -> mujoco.MjModel:
    """Return the model: the arm on a table, and a ball without a body of its own to mark a target."""
    scale = arm.reach / DEFAULT.reach
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = timestep
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 1280, 960
    spec.visual.headlight.ambient = [0.4, 0.4, 0.4]
    spec.add_texture(
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT, width=64, height=384,
        rgb1=[0.95, 0.97, 1.0], rgb2=[0.7, 0.78, 0.86],
    )  # fmt: skip
    box, capsule = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE
    world = spec.worldbody
    world.add_light(pos=[1.5, -1, 3], dir=[-0.4, 0.3, -0.9])
    # Seen along x: the task's plane is y and z.
    world.add_camera(name="side", pos=[2.3 * scale, 0.0, 0.55 * scale], xyaxes=[0, 1, 0, 0, 0, 1], fovy=42)
    world.add_geom(name="table", type=box, pos=[0, 0, -0.03], size=[0.5 * scale, 0.7 * scale, 0.03],
                   rgba=[0.55, 0.45, 0.35, 1])  # fmt: skip
    column = dict(type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[0.075 * arm.girth, 0.02, 0], pos=[0, 0, 0.02])
    world.add_geom(name="base", rgba=GREY, **column)
    target = world.add_body(name="target", mocap=True)
    target.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.03, 0, 0], rgba=RED, contype=0, conaffinity=0)
    body, place, turn = world, np.zeros(3), np.array([1.0, 0, 0, 0])
    for i in range(JOINTS):
        body = body.add_body(name=f"link{i + 1}", pos=place, quat=turn)
        body.add_joint(name=f"joint{i + 1}", axis=[0, 0, 1], armature=ARMATURE)
        place = np.array([arm.a[i], 0, arm.d[i]])
        turn = np.array([math.cos(TWISTS[i] / 2), math.sin(TWISTS[i] / 2), 0, 0])
        body.explicitinertial = True
        body.mass, body.ipos = arm.mass[i], place + _turned(turn, arm.centre[i])
        body.inertia, body.iquat = _principal(arm.inertia[i], turn)
        for link, start, end, radius in shapes(arm):
            if link == i:
                ends = np.concatenate([place + _turned(turn, start), place + _turned(turn, end)])
                colour = BLUE if i in (1, 2) else GREY
                body.add_geom(type=capsule, fromto=ends, size=[radius, 0, 0], rgba=colour)
        spec.add_actuator(
            name=f"motor{i + 1}", target=f"joint{i + 1}", trntype=mujoco.mjtTrn.mjTRN_JOINT,
            gainprm=[1.0] + [0.0] * 9, ctrlrange=[-arm.torque[i], arm.torque[i]], ctrllimited=True,
        )  # fmt: skip
    body.add_site(name="tcp", pos=place, quat=turn)
    # Neighbours' capsules overlap at the joints; MuJoCo leaves out parent and child, not these.
    for one, other in (
        ("world", "link1"),
        ("world", "link2"),
        ("link1", "link3"),
        ("link3", "link5"),
        ("link4", "link6"),
    ):
        spec.add_exclude(bodyname1=one, bodyname2=other)
    return spec.compile()


def _principal(inertia: tuple[float, ...], turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the principal moments [3] of a tensor (`Arm.inertia`) in a frame that is turned, and their frame."""
    xx, yy, zz, *products = inertia
    if not any(products):
        return np.array([xx, yy, zz]), turn
    xy, xz, yz = products
    moments, axes = np.linalg.eigh([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    axes[:, 2] *= np.linalg.det(axes)  # a rotation, not a reflection
    own, out = np.empty(4), np.empty(4)
    mujoco.mju_mat2Quat(own, axes.ravel())
    mujoco.mju_mulQuat(out, turn, own)
    return moments, out


def _turned(quat: np.ndarray, vector: Any) -> np.ndarray:
    out = np.empty(3)
    mujoco.mju_rotVecQuat(out, np.array(vector, dtype=np.float64), quat)
    return out


class MujocoBody:
    """Joints that motors drive along a reference, by computed torque as far as the motors' torque goes.

    q, qd, torque [6]: views of the simulation.
    """

    def __init__(self, period: float, arm: Arm = DEFAULT) -> None:
        self.model = build(arm, min(period, TIMESTEP))
        self.data = mujoco.MjData(self.model)
        self.q, self.qd, self.torque = self.data.qpos, self.data.qvel, self.data.qfrc_actuator
        self._ctrl = self.data.ctrl
        self._force, self._acceleration = np.empty(JOINTS), np.empty(JOINTS)
        # How long before the end of a control cycle each small step ends.
        self._left = [k * self.model.opt.timestep for k in reversed(range(round(period / self.model.opt.timestep)))]

    def place(self, q: np.ndarray) -> None:
        """Stand at q."""
        mujoco.mj_resetData(self.model, self.data)
        self.q[:] = q
        mujoco.mj_forward(self.model, self.data)

    def follow(self, q: np.ndarray, qd: np.ndarray, qdd: np.ndarray) -> None:
        """Go one control cycle, towards these angles, speeds and accelerations at its end."""
        model, data = self.model, self.data
        for left in self._left:
            mujoco.mj_step1(model, data)
            # Where the reference is at the end of this small step.
            error = q - qd * left + qdd * (left * left / 2) - self.q
            slip = qd - qdd * left - self.qd
            np.multiply(error, STIFFNESS, out=self._acceleration)
            self._acceleration += DAMPING * slip
            self._acceleration += qdd
            mujoco.mj_mulM(model, data, self._force, self._acceleration)
            np.add(self._force, data.qfrc_bias, out=self._ctrl)  # MuJoCo clips it to the motors' range
            mujoco.mj_step2(model, data)

    @property
    def touching(self) -> bool:
        """Whether a link touches another or the table."""
        return self.data.ncon > 0

    def save_state(self) -> np.ndarray:
        """Return all that decides the next steps."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        values = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, values, kind)
        return values

    def load_state(self, state: np.ndarray) -> None:
        """Go on from what `save_state` returned."""
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)


class MujocoDriver(InProcess):
    """Joints with inertia, gravity and motors of limited torque."""

    def __init__(self, bounds: Bounds, delays: Delays = USUAL, q: np.ndarray = START, arm: Arm = DEFAULT):
        if not np.array_equal(bounds.links, arm.links):
            raise ValueError(f"these bounds are of another arm than the {arm.name}")
        super().__init__(bounds, Joints(q, bounds.period, MujocoBody(bounds.period, arm)), delays)


class Scene:
    """Pictures of the arm at any joint angles, whatever moves it."""

    def __init__(self, arm: Arm = DEFAULT, width: int = 640, height: int = 480):
        self.model = build(arm)
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, height, width)

    def draw(self, q: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the picture [height, width, 3], uint8, with the ball at `target` [3] in the base's frame."""
        self.data.qpos[:], self.data.mocap_pos[0] = q, target
        mujoco.mj_forward(self.model, self.data)
        self.renderer.update_scene(self.data, camera="side")
        return self.renderer.render()

    def close(self) -> None:
        """Give back the window."""
        self.renderer.close()
