import logging
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from hesscale_rl import envs
from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.envs import mujoco, state, vector
from hesscale_rl.errors import BAD_INPUT, InputError

ROOT = Path(__file__).parents[2]


def complaint(call, env_id):
    with pytest.raises(InputError) as caught:
        call(env_id)
    text = str(caught.value)
    assert text.startswith(f"--env-id {env_id}: ") and "\n" not in text
    return text.removeprefix(f"--env-id {env_id}: ")


@pytest.mark.parametrize("call", [envs.check_id, envs.make])
@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("HalfCheeta-v5", "no such environment; did you mean HalfCheetah-v5, HalfCheetah-v4?"),
        ("halfcheetah-v5", "no such environment; did you mean HalfCheetah-v5, HalfCheetah-v4?"),
        ("Qqqqqqq-v0", "no such environment; gymnasium.pprint_registry() lists what there is"),
        ("HalfCheetah-v9", "no such version; there is HalfCheetah-v5, HalfCheetah-v4"),
        ("CartPole-v7", "no such version; there is CartPole-v1, CartPole-v0"),
        ("Hopper", "has no version in it; there is Hopper-v5, Hopper-v4"),
        ("Hopper-v2", "needs mujoco-py, which no longer runs; take Hopper-v5"),
        ("Walker2d-v3", "needs mujoco-py, which no longer runs; take Walker2d-v5"),
        ("", "no such environment; gymnasium.pprint_registry() lists what there is"),
    ],
)
def test_names_that_cannot_be_are_answered_in_one_line(call, env_id, expected):
    assert complaint(call, env_id) == expected


def test_a_module_that_is_not_there():
    assert complaint(envs.check_id, "no_such_module:Thing-v0").startswith("cannot import no_such_module: ")


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v4", "CartPole-v1", "gymnasium:CartPole-v1"])
def test_names_that_can(env_id):
    envs.check_id(env_id)


@pytest.fixture
def registered():
    """Registers an environment under a name of its own for one test."""
    names = []

    def register(name, entry_point):
        gym.register(name, entry_point)
        names.append(name)

    yield register
    for name in names:
        del gym.registry[name]


def test_a_failing_constructor_becomes_one_line_with_the_cause(registered):
    def fail():
        raise gym.error.DependencyNotInstalled("Box3D is not installed\nand more")

    registered("Broken-v0", fail)
    assert complaint(envs.make, "Broken-v0") == "cannot be made: Box3D is not installed"


def test_observations_that_are_not_vectors_are_flattened():
    env = envs.make("CliffWalking-v1")
    assert env.observation_space.shape == (48,) and env.reset(seed=0)[0].shape == (48,)


def test_observations_that_cannot_be_vectors_are_named(registered):
    class Text(gym.Env):
        observation_space = gym.spaces.Sequence(gym.spaces.Box(0, 1))
        action_space = gym.spaces.Discrete(2)

    registered("Text-v0", Text)
    assert "Sequence" in complaint(envs.make, "Text-v0")


STATES = ["Hopper-v5", "Ant-v5", "Humanoid-v5", "CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0"]


@pytest.mark.parametrize("env_id", STATES)
def test_a_saved_state_goes_on_to_the_last_bit(env_id, tmp_path):
    def play(env, actions):
        lines = []
        for action in actions:
            obs, reward, terminated, truncated, _ = env.step(action)
            lines.append((obs.tobytes(), float(reward), terminated, truncated))
            if terminated or truncated:
                lines.append(env.reset()[0].tobytes())
        return lines

    here, there = envs.make(env_id), envs.make(env_id)
    here.reset(seed=3)
    here.action_space.seed(1)
    actions = [here.action_space.sample() for _ in range(300)]
    play(here, actions[:137])
    torch.save(state.save(here), tmp_path / "state.pt")
    state.load(there, torch.load(tmp_path / "state.pt", weights_only=True))
    assert play(here, actions[137:]) == play(there, actions[137:])


def test_what_cannot_be_saved_is_none_and_the_users_own_can(registered, tmp_path):
    class Own(gym.Env):
        observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)
        t = 0

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, dtype=np.float32), {}

    registered("Own-v0", Own)
    env = envs.make("Own-v0")
    assert state.save(env) is None and vector.Envs(env).save() is None
    Own.save_state = lambda self: {"t": self.t, "rows": [self.rows]}
    Own.load_state = lambda self, saved: (setattr(self, "t", saved["t"]), setattr(self, "rows", saved["rows"][0]))
    env.unwrapped.t, env.unwrapped.rows = np.float64(5), np.arange(3)
    torch.save(state.save(env), tmp_path / "state.pt")
    other = envs.make("Own-v0")
    state.load(other, torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.unwrapped.t == 5 and np.array_equal(other.unwrapped.rows, np.arange(3))


def test_what_may_have_a_state_of_its_own_is_not_taken_for_known():
    class Mine(gym.envs.mujoco.hopper_v5.HopperEnv):
        pass

    assert state.save(gym.wrappers.FrameStackObservation(gym.make("CartPole-v1"), 2)) is None
    assert state.save(Mine()) is None


@pytest.mark.parametrize("num_envs", [1, 2])
def test_an_observation_that_is_written_over_stays_what_it_was(registered, num_envs):
    class Buffer(gym.Env):
        observation_space, action_space = gym.spaces.Box(0, 9, (1,)), gym.spaces.Discrete(2)

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            self.buffer = getattr(self, "buffer", np.zeros(1, dtype=np.float32))
            self.buffer[:] = 0
            return self.buffer, {}

        def step(self, action):
            self.buffer += 1
            return self.buffer, 0.0, False, self.buffer[0] == 4, {}

    registered("Buffer-v0", Buffer)
    vector = envs.make_vector("Buffer-v0", num_envs)
    vector.reset([0] * num_envs)
    taken = []
    for _ in range(4):
        step = vector.step(np.zeros(num_envs, dtype=np.int64))
        taken.append((step.final[0, 0], step.obs[0, 0]))
    assert taken == [(1, 1), (2, 2), (3, 3), (4, 0)]


def test_the_time_limit_is_a_truncation():
    env = envs.make("Pendulum-v1")
    env.reset(seed=0)
    ends = [env.step(np.zeros(1))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


def in_folder(folder, code):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


STEPS = """
import sys, numpy as np, {how}
env = {call}
env.reset(seed=0)
for step in range(5):
    env.step(np.full(env.action_space.shape, {action}))
"""


def test_bare_gymnasium_writes_a_log_into_the_working_directory(tmp_path):
    # Why hesscale_rl.envs.mujoco exists. Should this fail one day, MuJoCo has become quiet by itself.
    done = in_folder(tmp_path, STEPS.format(how="gymnasium as gym", call="gym.make('HalfCheetah-v5')", action="0.0"))
    assert "settotalmass" in done.stderr and (tmp_path / "MUJOCO_LOG.TXT").exists()


def test_two_environments_are_made_and_stepped_in_silence(tmp_path):
    code = "".join(
        STEPS.format(how="envs", call=f"envs.make('{env_id}')", action="0.1")
        for env_id in ("HalfCheetah-v5", "Hopper-v5")
    )
    done = in_folder(tmp_path, code)
    assert done.stdout == done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unstable_simulation_is_told_once_and_writes_no_file(tmp_path):
    code = STEPS.format(how="envs", call="envs.make('Hopper-v5').env", action="np.nan")  # what its numbers pass
    done = in_folder(tmp_path, code)
    assert done.stderr.count("\n") == 1 and "simulation is unstable" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_other_warnings_go_to_the_log_once_each(caplog, monkeypatch):
    monkeypatch.setattr(mujoco, "_seen", set())
    with caplog.at_level(logging.WARNING, logger="hesscale_rl.envs.mujoco"):
        for time in ("0.1000", "0.2000"):
            mujoco._warn(f"Nan in QACC at DOF 3. Time = {time}.")
        mujoco._warn("Nan in QPOS at DOF 3. Time = 0.1.")
        mujoco._warn("compiler attribute 'settotalmass' is deprecated")
    assert [record.message for record in caplog.records] == [
        "Nan in QACC at DOF 3. Time = 0.1000.",
        "Nan in QPOS at DOF 3. Time = 0.1.",
    ]


def test_a_handler_of_the_user_stays():
    def mine(message):
        raise AssertionError(message)

    before = mujoco.mujoco.get_mju_user_warning()
    mujoco.mujoco.set_mju_user_warning(mine)
    try:
        mujoco.quiet()
        assert mujoco.mujoco.get_mju_user_warning() is mine
    finally:
        mujoco.mujoco.set_mju_user_warning(before)


def test_envpool_masks_the_steps_that_only_reset(monkeypatch):
    pytest.importorskip("envpool")
    vector = envs.make_vector("envpool:CartPole-v1", 3, seed=1)
    vector.reset([0, 0, 0])
    after_the_end = np.zeros(3, dtype=bool)
    for _ in range(100):
        step = vector.step(np.ones(3, dtype=np.int64))
        assert np.array_equal(step.valid, ~after_the_end)
        after_the_end = step.terminated | step.truncated
    assert "EnvPool has no CartPol-v1; it has CartPole-v1" in complaint(envs.make_vector, "envpool:CartPol-v1")


def test_envpool_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    assert "pip install 'hesscale-rl[envpool]'" in complaint(envs.make_vector, "envpool:CartPole-v1")


@pytest.mark.parametrize(
    "seen, done, words",
    [
        (
            gym.spaces.Box(0, 1, (0,)),
            gym.spaces.Discrete(2),
            "its observations are Box([], [], (0,), float32)",
        ),
        (gym.spaces.Box(0, 1, (1,)), gym.spaces.Box(-1, 1, (0,)), "its actions are Box([], [], (0,), float32)"),
        (gym.spaces.Box(0, 1, (1,)), gym.spaces.Box(-1, 1, (1, 1)), "needed is a Discrete, or a Box of rank 1"),
        (gym.spaces.Box(0, 1, (1,)), gym.spaces.MultiBinary(2), "its actions are MultiBinary(2)"),
    ],
)
@pytest.mark.parametrize("agent", [a2c, ppo, trpo])
def test_spaces_that_no_policy_acts_in(registered, monkeypatch, tmp_path, capsys, agent, seen, done, words):
    class Odd(gym.Env):
        observation_space, action_space = seen, done

    registered("Odd-v0", Odd)
    monkeypatch.chdir(tmp_path)
    assert agent.main(agent.Args(env_id="Odd-v0")) == BAD_INPUT
    assert words in capsys.readouterr().err and not [*tmp_path.iterdir()]
