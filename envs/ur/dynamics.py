"""The arm in MuJoCo: links with mass and inertia, motors with limited torque, and a picture of it all.

The model is built from the DH table and UR's published masses; capsules stand for the links' shapes.
"""

import math
from typing import Any

import mujoco
import numpy as np

from .arm import Arm
from .drivers import USUAL, Delays, InProcess
from .kinematics import ALPHA, MAX_TORQUE, A, D
from .presets import Q_REF
from .safety import Bounds

# Mass [kg], centre of mass [m] and principal inertias [kg m^2] of each link, in its DH frame. UR's article "DH
# parameters for calculations of kinematics and dynamics"; the inertias are those of cylinders.
MASS = (3.7, 8.393, 2.33, 1.219, 1.219, 0.1879)
CENTRE = (
    (0.0, -0.02561, 0.00193), (0.2125, 0.0, 0.11336), (0.15, 0.0, 0.0265),
    (0.0, -0.0018, 0.01634), (0.0, 0.0018, 0.01634), (0.0, 0.0, -0.001159),
)  # fmt: skip
INERTIA = (
    (0.014972, 0.010406, 0.014972), (0.015107, 0.133886, 0.133886), (0.004095, 0.031217, 0.031217),
    (0.002014, 0.002194, 0.002014), (0.001831, 0.002194, 0.001831), (8.06e-5, 8.06e-5, 1.32e-4),
)  # fmt: skip
ARMATURE = 0.1  # kg m^2: not published; what mujoco_menagerie takes for the UR5e
# The links' shapes: capsules from, to and radius [m] in the DH frame of their link.
SHAPES = (
    ((0, -0.04, 0), (0, 0, 0), 0.06), ((0, 0, 0), (0, 0, 0.136), 0.055),
    ((0, 0, 0.136), (0.425, 0, 0.136), 0.05), ((0, 0, 0.0165), (0, 0, 0.136), 0.045),
    ((0, 0, 0.0165), (0.39225, 0, 0.0165), 0.042),
    ((0, -0.09, 0), (0, 0, 0), 0.038), ((0, 0.07, 0), (0, 0, 0), 0.038), ((0, 0, -0.04), (0, 0, -0.03), 0.035),
)  # fmt: skip
LINK_OF_SHAPE = (0, 0, 1, 1, 2, 3, 4, 5)
GREY, BLUE, RED = (0.75, 0.77, 0.8, 1), (0.25, 0.5, 0.75, 1), (0.9, 0.2, 0.15, 0.8)
TIMESTEP = 0.004  # s, or a control cycle where that is shorter
STIFFNESS, DAMPING = 400.0, 40.0  # of the joints' servo, per unit of inertia: 1/s^2, 1/s


def build(timestep: float = TIMESTEP) -> mujoco.MjModel:
    """Return the model: the arm on a table, and a ball without a body of its own to mark a target."""
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
    world.add_camera(name="side", pos=[2.3, 0.0, 0.55], xyaxes=[0, 1, 0, 0, 0, 1], fovy=42)
    world.add_geom(name="table", type=box, pos=[0, 0, -0.03], size=[0.5, 0.7, 0.03], rgba=[0.55, 0.45, 0.35, 1])
    column = dict(type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[0.075, 0.02, 0], pos=[0, 0, 0.02])
    world.add_geom(name="base", rgba=GREY, **column)
    target = world.add_body(name="target", mocap=True)
    target.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.03, 0, 0], rgba=RED, contype=0, conaffinity=0)
    body, place, turn = world, np.zeros(3), np.array([1.0, 0, 0, 0])
    for i in range(6):
        body = body.add_body(name=f"link{i + 1}", pos=place, quat=turn)
        body.add_joint(name=f"joint{i + 1}", axis=[0, 0, 1], armature=ARMATURE)
        place, turn = np.array([A[i], 0, D[i]]), np.array([math.cos(ALPHA[i] / 2), math.sin(ALPHA[i] / 2), 0, 0])
        body.explicitinertial = True
        body.mass, body.inertia, body.iquat = MASS[i], INERTIA[i], turn
        body.ipos = place + _turned(turn, CENTRE[i])
        for link, (start, end, radius) in zip(LINK_OF_SHAPE, SHAPES, strict=True):
            if link == i:
                ends = np.concatenate([place + _turned(turn, start), place + _turned(turn, end)])
                colour = BLUE if i in (1, 2) else GREY
                body.add_geom(type=capsule, fromto=ends, size=[radius, 0, 0], rgba=colour)
        spec.add_actuator(
            name=f"motor{i + 1}", target=f"joint{i + 1}", trntype=mujoco.mjtTrn.mjTRN_JOINT,
            gainprm=[1.0] + [0.0] * 9, ctrlrange=[-MAX_TORQUE[i], MAX_TORQUE[i]], ctrllimited=True,
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


def _turned(quat: np.ndarray, vector: Any) -> np.ndarray:
    out = np.empty(3)
    mujoco.mju_rotVecQuat(out, np.array(vector, dtype=np.float64), quat)
    return out


class MujocoBody:
    """Six joints that motors drive along a reference, by computed torque as far as the motors' torque goes.

    q, qd, torque [6]: views of the simulation.
    """

    def __init__(self, period: float) -> None:
        self.model = build(min(period, TIMESTEP))
        self.data = mujoco.MjData(self.model)
        self.q, self.qd, self.torque = self.data.qpos, self.data.qvel, self.data.qfrc_actuator
        self._ctrl = self.data.ctrl
        self._force, self._acceleration = np.empty(6), np.empty(6)
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

    def __init__(self, bounds: Bounds, delays: Delays = USUAL, q: np.ndarray = Q_REF):
        super().__init__(bounds, Arm(q, bounds.period, MujocoBody(bounds.period)), delays)


class Scene:
    """Pictures of the arm at any joint angles, whatever moves it."""

    def __init__(self, width: int = 640, height: int = 480):
        self.model = build()
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
