"""What a step of each task returns: its observation, its reward and whether it terminated, after Gymnasium's files.

A task is one function (sim, settings, action, before, obs) that fills obs and returns the reward and `terminated`.
`before`: where the body was, along x, before the step. Actions are float32, and NumPy multiplies their sum of squares
in float32 too; all else is float64.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from hesscale_rl.compiled.clock import PHYSICS, TASK, tick
from hesscale_rl.jit import EXACT

from .arithmetic import clip, distance, sum_of_squares
from .library import call, numbers, points


class Simulation(NamedTuple):
    """A model and its data for the loops: views of MuJoCo's own memory, and what a step does with them."""

    mj_step: int  # the functions' addresses, and those of their arguments
    mj_rnePostConstraint: int
    model: int
    data: int
    frame_skip: int
    bodies: tuple[int, int, int]  # the numbers of those that the task names
    dt: float  # s of a step
    timestep: float  # s of a frame
    mass: float  # of all bodies
    two: float  # 2, unknown to the compiler: NumPy's x**2 is the C library's pow, which does not round as x*x does
    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray
    body_mass: np.ndarray
    cinert: np.ndarray  # flat, as the next two
    cvel: np.ndarray
    cfrc_ext: np.ndarray
    qfrc_actuator: np.ndarray
    qfrc_constraint: np.ndarray
    xpos: np.ndarray  # [bodies, 3]
    xipos: np.ndarray  # [bodies, 3]
    site_xpos: np.ndarray  # [sites, 3]


Range = tuple[float, float]
Outcome = tuple[float, bool]  # of a step: its reward, and whether it terminated


class TaskSettings(NamedTuple):
    """Arguments of the tasks that decide a step; of each task, those that it has, under its own names."""

    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.0
    contact_cost_weight: float = 0.0
    impact_cost_weight: float = 0.0
    healthy_reward: float = 0.0
    reward_dist_weight: float = 0.0
    reward_near_weight: float = 0.0
    reward_control_weight: float = 0.0
    terminate_when_unhealthy: bool = False
    exclude_current_positions_from_observation: bool = False
    include_cinert_in_observation: bool = False
    include_cvel_in_observation: bool = False
    include_qfrc_actuator_in_observation: bool = False
    include_cfrc_ext_in_observation: bool = False
    healthy_state_range: Range = (0.0, 0.0)
    healthy_z_range: Range = (0.0, 0.0)
    healthy_angle_range: Range = (0.0, 0.0)
    contact_force_range: Range = (0.0, 0.0)
    contact_cost_range: Range = (0.0, 0.0)
    impact_cost_range: Range = (0.0, 0.0)


WHOLE = (*Simulation._fields[:5], "body_0", "body_1", "body_2")
NUMBERS = (*Simulation._fields[6:10], *(name for name in TaskSettings._fields if not name.endswith("_range")))
RANGES = tuple(name for name in TaskSettings._fields if name.endswith("_range"))
ARRAYS, POINTS = Simulation._fields[10:], Simulation._fields[-3:]
# Both records as one, arrays by their addresses and lengths: a call from Python takes a while for every argument.
BLOCK = np.dtype(
    [("task", "i8"), *((name, "i8") for name in WHOLE), *((name, "f8") for name in NUMBERS)]
    + [(f"{name}_{end}", "f8") for name in RANGES for end in ("low", "high")]
    + [(f"{name}_{part}", "i8") for name in ARRAYS for part in ("at", "n")]
)


@EXACT
def simulation_of(b: Any) -> Simulation:
    """Return the Simulation in a block."""
    return Simulation(
        b.mj_step, b.mj_rnePostConstraint, b.model, b.data, b.frame_skip, (b.body_0, b.body_1, b.body_2),
        b.dt, b.timestep, b.mass, b.two,
        numbers(b.qpos_at, b.qpos_n), numbers(b.qvel_at, b.qvel_n), numbers(b.ctrl_at, b.ctrl_n),
        numbers(b.body_mass_at, b.body_mass_n), numbers(b.cinert_at, b.cinert_n), numbers(b.cvel_at, b.cvel_n),
        numbers(b.cfrc_ext_at, b.cfrc_ext_n), numbers(b.qfrc_actuator_at, b.qfrc_actuator_n),
        numbers(b.qfrc_constraint_at, b.qfrc_constraint_n), points(b.xpos_at, b.xpos_n),
        points(b.xipos_at, b.xipos_n), points(b.site_xpos_at, b.site_xpos_n),
    )  # fmt: skip


@EXACT
def settings_of(b: Any) -> TaskSettings:
    """Return the TaskSettings in a block."""
    return TaskSettings(
        b.forward_reward_weight, b.ctrl_cost_weight, b.contact_cost_weight, b.impact_cost_weight, b.healthy_reward,
        b.reward_dist_weight, b.reward_near_weight, b.reward_control_weight,
        b.terminate_when_unhealthy != 0, b.exclude_current_positions_from_observation != 0,
        b.include_cinert_in_observation != 0, b.include_cvel_in_observation != 0,
        b.include_qfrc_actuator_in_observation != 0, b.include_cfrc_ext_in_observation != 0,
        (b.healthy_state_range_low, b.healthy_state_range_high), (b.healthy_z_range_low, b.healthy_z_range_high),
        (b.healthy_angle_range_low, b.healthy_angle_range_high),
        (b.contact_force_range_low, b.contact_force_range_high),
        (b.contact_cost_range_low, b.contact_cost_range_high),
        (b.impact_cost_range_low, b.impact_cost_range_high),
    )  # fmt: skip


@EXACT
def put(values: np.ndarray, first: int, obs: np.ndarray, at: int) -> int:
    """Write values[first:] into obs from `at` on; return what comes after them."""
    for i in range(first, len(values)):
        obs[at + i - first] = values[i]
    return at + len(values) - first


@EXACT
def put_state(sim: Simulation, settings: TaskSettings, hidden: int, limit: float, obs: np.ndarray) -> int:
    """Write the positions, without the first `hidden` if they are excluded, and the velocities held within limit."""
    at = put(sim.qpos, hidden if settings.exclude_current_positions_from_observation else 0, obs, 0)
    for i in range(len(sim.qvel)):
        obs[at + i] = clip(sim.qvel[i], -limit, limit)
    return at + len(sim.qvel)


@EXACT
def within(x: float, bounds: Range) -> bool:
    """Whether bounds[0] < x < bounds[1]."""
    return bounds[0] < x and x < bounds[1]


@EXACT
def control_cost(settings: TaskSettings, action: np.ndarray) -> float:
    """The cost of an action, float32."""
    return np.float32(settings.ctrl_cost_weight) * sum_of_squares(action)


@EXACT
def half_cheetah(
    sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray
) -> Outcome:
    """Run forward."""
    put_state(sim, settings, 1, math.inf, obs)
    forward = settings.forward_reward_weight * ((sim.qpos[0] - before) / sim.dt)
    return forward - control_cost(settings, action), False


@EXACT
def swimmer(sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray) -> Outcome:
    """Swim forward."""
    put_state(sim, settings, 2, math.inf, obs)
    forward = settings.forward_reward_weight * ((sim.qpos[0] - before) / sim.dt)
    return forward - control_cost(settings, action), False


@EXACT
def walk(sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, healthy: bool) -> Outcome:
    """Return the reward and the end of hopper and walker: run forward while healthy."""
    forward = settings.forward_reward_weight * ((sim.qpos[0] - before) / sim.dt)
    reward = forward + healthy * settings.healthy_reward - control_cost(settings, action)
    return reward, not healthy and settings.terminate_when_unhealthy


@EXACT
def hopper(sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray) -> Outcome:
    """Hop forward; healthy while upright, above the ground, and in a state of moderate numbers."""
    put_state(sim, settings, 1, 10.0, obs)
    healthy = within(sim.qpos[1], settings.healthy_z_range) and within(sim.qpos[2], settings.healthy_angle_range)
    for i in range(2, len(sim.qpos)):
        healthy = healthy and within(sim.qpos[i], settings.healthy_state_range)
    for v in sim.qvel:
        healthy = healthy and within(v, settings.healthy_state_range)
    return walk(sim, settings, action, before, healthy)


@EXACT
def walker2d(sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray) -> Outcome:
    """Walk forward; healthy while upright and above the ground."""
    put_state(sim, settings, 1, 10.0, obs)
    healthy = within(sim.qpos[1], settings.healthy_z_range) and within(sim.qpos[2], settings.healthy_angle_range)
    return walk(sim, settings, action, before, healthy)


@EXACT
def ant(sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray) -> Outcome:
    """Walk forward; contact forces cost, and healthy is a finite state at a moderate height."""
    low, high = settings.contact_force_range
    at, forces = put_state(sim, settings, 2, math.inf, obs), np.empty_like(sim.cfrc_ext)
    for i in range(len(forces)):
        forces[i] = clip(sim.cfrc_ext[i], low, high)
    if settings.include_cfrc_ext_in_observation:
        put(forces, 6, obs, at)
    healthy = settings.healthy_z_range[0] <= sim.qpos[2] and sim.qpos[2] <= settings.healthy_z_range[1]
    for x in sim.qpos:
        healthy = healthy and math.isfinite(x)
    for v in sim.qvel:
        healthy = healthy and math.isfinite(v)
    forward = (sim.xpos[sim.bodies[0], 0] - before) / sim.dt * settings.forward_reward_weight
    costs = control_cost(settings, action) + settings.contact_cost_weight * sum_of_squares(forces)
    reward = forward + healthy * settings.healthy_reward - costs
    return reward, not healthy and settings.terminate_when_unhealthy


@EXACT
def mass_centre(sim: Simulation) -> float:
    """Return where the centre of mass is along x."""
    total = 0.0
    for i in range(len(sim.body_mass)):
        total += sim.body_mass[i] * sim.xipos[i, 0]
    return total / sim.mass


@EXACT
def put_humanoid(sim: Simulation, settings: TaskSettings, obs: np.ndarray) -> None:
    """Write what both humanoids observe."""
    at = put_state(sim, settings, 2, math.inf, obs)
    if settings.include_cinert_in_observation:
        at = put(sim.cinert, 10, obs, at)
    if settings.include_cvel_in_observation:
        at = put(sim.cvel, 6, obs, at)
    if settings.include_qfrc_actuator_in_observation:
        at = put(sim.qfrc_actuator, 6, obs, at)
    if settings.include_cfrc_ext_in_observation:
        put(sim.cfrc_ext, 6, obs, at)


@EXACT
def humanoid(sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray) -> Outcome:
    """Walk forward with the centre of mass; contact forces cost, and healthy is a moderate height."""
    put_humanoid(sim, settings, obs)
    healthy = within(sim.qpos[2], settings.healthy_z_range)
    forward = settings.forward_reward_weight * ((mass_centre(sim) - before) / sim.dt)
    contact = settings.contact_cost_weight * sum_of_squares(sim.cfrc_ext)
    low, high = settings.contact_cost_range
    costs = settings.ctrl_cost_weight * sum_of_squares(sim.ctrl) + clip(contact, low, high)
    reward = forward + healthy * settings.healthy_reward - costs
    return reward, not healthy and settings.terminate_when_unhealthy


@EXACT
def humanoid_standup(
    sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray
) -> Outcome:
    """Get up: the reward is the height, as if it were a speed."""
    put_humanoid(sim, settings, obs)
    control = settings.ctrl_cost_weight * sum_of_squares(sim.ctrl)
    low, high = settings.impact_cost_range
    impact = clip(settings.impact_cost_weight * sum_of_squares(sim.cfrc_ext), low, high)
    return sim.qpos[2] / sim.timestep - control - impact + 1, False


@EXACT
def reacher(sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray) -> Outcome:
    """Reach a target in the plane."""
    finger, target = sim.xpos[sim.bodies[0]], sim.xpos[sim.bodies[1]]
    for i in range(2):
        obs[i], obs[2 + i] = math.cos(sim.qpos[i]), math.sin(sim.qpos[i])
    at = put(sim.qpos, 2, obs, 4)
    for i in range(2):
        obs[at + i], obs[at + 2 + i] = sim.qvel[i], finger[i] - target[i]
    control = -sum_of_squares(action) * np.float32(settings.reward_control_weight)
    return -distance(finger, target) * settings.reward_dist_weight + control, False


@EXACT
def pusher(sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray) -> Outcome:
    """Push an object to its goal."""
    tips, thing, goal = sim.xpos[sim.bodies[0]], sim.xpos[sim.bodies[1]], sim.xpos[sim.bodies[2]]
    for i in range(7):
        obs[i], obs[7 + i] = sim.qpos[i], sim.qvel[i]
    put(goal, 0, obs, put(thing, 0, obs, put(tips, 0, obs, 14)))
    near = -distance(thing, tips) * settings.reward_near_weight
    control = -sum_of_squares(action) * np.float32(settings.reward_control_weight)
    return -distance(thing, goal) * settings.reward_dist_weight + control + near, False


@EXACT
def inverted_pendulum(
    sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray
) -> Outcome:
    """Balance a pole on a cart."""
    put(sim.qvel, 0, obs, put(sim.qpos, 0, obs, 0))
    over = not abs(obs[1]) <= 0.2
    for x in obs:
        over = over or not math.isfinite(x)
    return 0.0 if over else 1.0, over


@EXACT
def inverted_double_pendulum(
    sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray
) -> Outcome:
    """Balance two poles on a cart."""
    joints = len(sim.qpos) - 1
    obs[0] = sim.qpos[0]
    for i in range(joints):
        obs[1 + i], obs[1 + joints + i] = math.sin(sim.qpos[1 + i]), math.cos(sim.qpos[1 + i])
    at = 1 + 2 * joints
    for i in range(len(sim.qvel)):
        obs[at + i] = clip(sim.qvel[i], -10.0, 10.0)
    obs[at + len(sim.qvel)] = clip(sim.qfrc_constraint[0], -10.0, 10.0)
    x, y, two = sim.site_xpos[0, 0], sim.site_xpos[0, 2], sim.two
    over = y <= 1
    far = 0.01 * math.pow(x, two) + math.pow(y - 2, two)
    fast = 1e-3 * math.pow(sim.qvel[1], two) + 5e-3 * math.pow(sim.qvel[2], two)
    return settings.healthy_reward * (not over) - far - fast, over


HALF_CHEETAH, SWIMMER, HOPPER, WALKER2D, ANT, HUMANOID, STANDUP, REACHER, PUSHER, PENDULUM, DOUBLE = range(11)


@EXACT
def returned(
    task: int, sim: Simulation, settings: TaskSettings, action: np.ndarray, before: float, obs: np.ndarray
) -> Outcome:
    """Return what the task says of a step that was taken."""
    if task == HALF_CHEETAH:
        return half_cheetah(sim, settings, action, before, obs)
    if task == HOPPER:
        return hopper(sim, settings, action, before, obs)
    if task == WALKER2D:
        return walker2d(sim, settings, action, before, obs)
    if task == ANT:
        return ant(sim, settings, action, before, obs)
    if task == HUMANOID:
        return humanoid(sim, settings, action, before, obs)
    if task == STANDUP:
        return humanoid_standup(sim, settings, action, before, obs)
    if task == SWIMMER:
        return swimmer(sim, settings, action, before, obs)
    if task == REACHER:
        return reacher(sim, settings, action, before, obs)
    if task == PUSHER:
        return pusher(sim, settings, action, before, obs)
    if task == PENDULUM:
        return inverted_pendulum(sim, settings, action, before, obs)
    return inverted_double_pendulum(sim, settings, action, before, obs)


@EXACT
def step(blocks: np.ndarray, action: np.ndarray, obs: np.ndarray, clock: np.ndarray | None) -> Outcome:
    """Take an action [A] in the simulation of blocks [1], fill obs [O]; return the reward and `terminated`.

    clock: as `tick` takes it.
    """
    block = blocks[0]
    task, sim, settings = block.task, simulation_of(block), settings_of(block)
    before = sim.qpos[0]
    if task == ANT:
        before = sim.xpos[sim.bodies[0], 0]
    if task == HUMANOID:
        before = mass_centre(sim)
    for i in range(len(action)):
        sim.ctrl[i] = action[i]
    tick(clock, TASK)
    for _ in range(sim.frame_skip):
        call(sim.mj_step, sim.model, sim.data)  # type: ignore[call-arg]
    call(sim.mj_rnePostConstraint, sim.model, sim.data)  # type: ignore[call-arg]
    tick(clock, PHYSICS)
    result = returned(task, sim, settings, action, before, obs)
    tick(clock, TASK)
    return result
