"""The table of arms: every one of them is sound, plays the task, and is named nowhere else."""

import ast
from pathlib import Path

import mujoco
import numpy as np
import pytest
from test_ur_kinematics import Q_REF

from hesscale_rl import envs
from hesscale_rl.envs.ur.arms import ARMS, DEFAULT, JOINTS, START
from hesscale_rl.envs.ur.dynamics import MujocoBody
from hesscale_rl.envs.ur.kinematics import tcp
from hesscale_rl.envs.ur.presets import HALF_TURN, PRESETS
from hesscale_rl.envs.ur.safety import clearance, plausible
from hesscale_rl.envs.ur_reacher import URReacher
from hesscale_rl.errors import InputError

FOLDER = Path(__file__).parents[2] / "envs"
each = pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)


def constants(path):
    """What stands in a file's code as it is, but for docstrings."""
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    said = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return {node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in said}


def test_no_arm_is_named_and_no_length_stands_outside_the_table():
    lengths = {abs(x) for arm in ARMS.values() for x in (*arm.lengths, *arm.offsets)}
    for path in {FOLDER / "ur_reacher.py", *(FOLDER / "ur").rglob("*.py")} - {FOLDER / "ur" / "arms.py"}:
        found = constants(path)
        assert not found & (ARMS.keys() | lengths), path
        # 6 is a safety mode, a command and the length of a pose in the controller's own words.
        assert path.parent.name == "simulator" or JOINTS not in found - {True} or path.name == "safety.py", path


@each
def test_an_arm_is_whole(arm):
    for values in (arm.mass, arm.centre, arm.inertia, arm.torque, arm.speed):
        assert len(values) == JOINTS
    assert arm.links.shape == (4, JOINTS) and (arm.max_speed > 0).all()
    for xx, yy, zz, *products in arm.inertia:
        xy, xz, yz = products or (0.0, 0.0, 0.0)
        a, b, c = np.linalg.eigvalsh([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        assert a > 0 and c < a + b  # as of a body with mass
    # A centre of mass lies within its link, or not far beside it.
    for i, centre in enumerate(arm.centre):
        assert np.linalg.norm(centre) < 0.05 + abs(arm.a[i]) + arm.shoulder


@each
def test_an_arm_holds_itself_up_wherever_the_task_takes_it(arm):
    body, bounds, random = MujocoBody(arm.period, arm), PRESETS["v2"].on(arm).bounds(), np.random.default_rng(0)
    np.testing.assert_allclose(body.model.body_mass[-JOINTS:], arm.mass)
    for _ in range(300):
        body.q[:] = START
        body.q[1:3] = random.uniform(np.radians([-170, -150]), np.radians([-10, 150]))
        mujoco.mj_forward(body.model, body.data)
        if clearance(body.q, bounds) > 0:
            assert (np.abs(body.data.qfrc_bias) < np.array(arm.torque)).all()


@pytest.mark.parametrize("preset", PRESETS)
@each
def test_the_task_lies_where_the_arm_reaches(arm, preset):
    task = PRESETS[preset].on(arm)
    bounds = task.bounds()
    assert plausible(bounds, START) == "" and clearance(START, bounds) > 0.02
    env = URReacher(preset, arm=arm.name)
    env.reset(seed=0)
    start = (tcp(arm.links, START) * HALF_TURN)[1:]
    away = np.linalg.norm([env._draw_target() - start for _ in range(500)], axis=1) / arm.reach
    assert 0.2 < away.mean() < 0.4  # of the arm's length: a UR5's are 0.3


def test_the_numbers_of_the_papers_are_the_default_arms_to_the_last_bit():
    for task in PRESETS.values():
        assert task.on(DEFAULT) == task
    assert (START == Q_REF).all()
    bounds = PRESETS["stock"].bounds()
    assert bounds[3].tolist() == [-0.2, -0.4, 0.5] and bounds[4].tolist() == [0.2, 0.3, 1.0]
    assert (bounds.table, bounds.column, bounds.period, bounds.fastest) == (0.1, 0.2, 0.008, np.pi)


def test_an_arm_that_is_not_in_the_table_is_answered_with_the_closest():
    with pytest.raises(InputError, match=r"^--env-id URReacher-v0 --env-kwargs arm=UR5f: .*did you mean 'UR5'\?"):
        envs.make("URReacher-v0", env_kwargs="arm=UR5f")
    with pytest.raises(InputError, match=r"arm 7: must be one of UR3, UR5, UR10"):
        URReacher(arm=7)
    with pytest.raises(InputError, match="arm 'UR3': the driver's is another one"):
        URReacher(arm="UR3", driver=URReacher().driver)
