"""What an environment returns and did not declare: one line, for one copy and several, whatever the agent."""

import json
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from hesscale_rl import envs
from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.envs.checking import Checked
from hesscale_rl.envs.vector import Envs, NextStep
from hesscale_rl.errors import BAD_INPUT, DONE, FAILED, EnvironmentFault, InputError

SMALL = {
    ppo: ppo.Args(num_steps=16, total_timesteps=64, num_minibatches=1, update_epochs=1, quiet=True),
    a2c: a2c.Args(num_steps=16, total_timesteps=64, quiet=True),
    trpo: trpo.Args(num_steps=16, total_timesteps=64, num_minibatches=1, update_epochs=1, quiet=True),
}
AGENTS = pytest.mark.parametrize("agent", [ppo, a2c, trpo], ids=["ppo", "a2c", "trpo"])
COPIES = pytest.mark.parametrize("num_envs", [1, 2])
BOX = spaces.Box(-5, 5, (2,), np.float32)
GOOD = np.array([0.5, -0.5], np.float32)


class Point(gym.Env):
    """Right as it is; `answers` replaces the results of its calls by number, `raises` is raised in the third step."""

    observation_space, action_space = BOX, spaces.Box(-1, 1, (1,), np.float32)
    first, later, at, raises = (GOOD, {}), (GOOD, 1.0, False, False, {}), 3, None

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.first

    def step(self, action):
        self.t += 1
        if self.t == self.at:
            if self.raises is not None:
                raise self.raises
            return self.later
        return GOOD, 1.0, False, self.t >= 10, {}


def point(**changes):
    return type("Mine", (Point,), changes)()


@pytest.fixture
def mine():
    """Registers a changed Point as Mine-v0, with a time limit or without."""

    def register(limit=None, **changes):
        gym.register("Mine-v0", lambda: point(**changes), max_episode_steps=limit)

    yield register
    gym.registry.pop("Mine-v0", None)


def step(obs=GOOD, reward=1.0, terminated=False, truncated=False, info=()):
    return obs, reward, terminated, truncated, dict(info)


OBSERVATIONS = {
    "longer": np.zeros(3, np.float32),
    "much longer": np.zeros(2000, np.float32),
    "shorter": np.zeros(1, np.float32),
    "empty": np.zeros(0, np.float32),
    "a scalar": np.float32(1),
    "a number": 1.0,
    "(1, n)": np.zeros((1, 2), np.float32),
    "(n, 1)": np.zeros((2, 1), np.float32),
    "objects": np.array([None, 1.0], object),
    "numbers as objects": np.array([1.0, 2.0], object),
    "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
    "text": np.array(["1", "2"]),
    "complex": np.zeros(2, np.complex64),
    "a longer list": [1.0, 2.0, 3.0],
    "a ragged list": [[1.0], [1.0, 2.0]],
    "None": None,
    "a dict": {"a": GOOD},
    "a class": Point,
    "NaN": np.array([0.0, np.nan], np.float32),
    "infinite": np.array([np.inf, 0.0], np.float32),
    "beyond float32": np.array([1e200, 0.0]),
}
STEPS = {f"observation {name}": step(obs=value) for name, value in OBSERVATIONS.items()}
STEPS |= {
    f"reward {value!r}": step(reward=value)
    for value in (None, [1.0], "1", np.ones(1), np.array([1.0, 2.0]), 1j, np.nan, np.inf, -np.inf, 1e200, {})
}
STEPS |= {
    f"{which} {value!r}": step(**{which: value})
    for which in ("terminated", "truncated")
    for value in (None, 0, 1.0, "no", [False], np.zeros(1, bool), np.zeros(2, bool))
}
STEPS |= {
    "four values": (GOOD, 1.0, False, {}),
    "six values": (GOOD, 1.0, False, False, {}, {}),
    "an observation alone": GOOD,
    "nothing": None,
}
RESETS = {name: (value, {}) for name, value in OBSERVATIONS.items()}
RESETS |= {"no info": GOOD, "no info, four numbers": np.arange(4.0), "nothing": None, "three values": (GOOD, {}, {})}


@pytest.mark.parametrize("came", STEPS.values(), ids=STEPS)
@COPIES
def test_a_wrong_step_is_a_line(came, num_envs):
    vector = Envs(*(point(later=came) for _ in range(num_envs)))
    vector.reset([0] * num_envs)
    with pytest.raises(EnvironmentFault) as told:
        for _ in range(3):
            vector.step(np.zeros((num_envs, 1), np.float32))
    line = str(told.value)
    assert line.startswith("the environment: step() returned ") and "expected: " in line and "\n" not in line
    assert len(line) < 320


@pytest.mark.parametrize("came", RESETS.values(), ids=RESETS)
@COPIES
def test_a_wrong_reset_is_a_line_at_the_first_and_after_an_episode(came, num_envs):
    vector = Envs(*(point(first=came) for _ in range(num_envs)))
    with pytest.raises(EnvironmentFault, match=r"reset\(\) returned .*expected: "):
        vector.reset([0] * num_envs)
    envs = [point() for _ in range(num_envs)]
    vector = Envs(*envs)
    vector.reset([0] * num_envs)
    envs[-1].first = came
    with pytest.raises(EnvironmentFault, match=r"reset\(\) returned .*expected: "):
        for _ in range(10):
            vector.step(np.zeros((num_envs, 1), np.float32))


RIGHT = {
    "float64": step(obs=GOOD.astype(float)),
    "float16": step(obs=GOOD.astype(np.float16)),
    "integers": step(obs=np.array([1, 2])),
    "a list": step(obs=[0.5, -0.5]),
    "a tuple": step(obs=(1, 2)),
    "strided": step(obs=np.arange(8, dtype=np.float32)[::4]),
    "read only": step(obs=np.broadcast_to(np.float32(1), 2)),
    "other bytes": step(obs=GOOD.astype(">f4")),
    **{f"reward {value!r}": step(reward=value) for value in (1, True, np.float32(1), np.array(1.0), np.int8(1))},
    **{f"terminated {value!r}": step(terminated=value) for value in (True, np.True_, np.array(True))},
    **{f"info {value!r}": (GOOD, 1.0, False, False, value) for value in (None, {"a": np.zeros(3)}, {"a": "b"}, 1)},
}


@pytest.mark.parametrize("came", RIGHT.values(), ids=RIGHT)
@COPIES
def test_what_is_meant_the_same_is_taken(came, num_envs):
    vector = Envs(*(point(later=came) for _ in range(num_envs)))
    vector.reset([0] * num_envs)
    for _ in range(3):
        taken = vector.step(np.zeros((num_envs, 1), np.float32))
    np.testing.assert_array_equal(taken.final, [np.asarray(came[0], float)] * num_envs)
    assert taken.rewards.tolist() == [1.0] * num_envs and taken.terminated.tolist() == [bool(came[2])] * num_envs


@given(
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(["?", "b", "B", "h", "i", "q", "e", "f", "d", "F", "D", "O", "U4", "S4", "m8", ">f4", ">i8"]),
    st.sampled_from([np.float32, np.float64, np.int8, np.uint8]),
    st.sampled_from([(2,), (2, 3), ()]),
)
def test_every_array_is_taken_as_it_is_or_refused(shape, kind, declared, declared_shape):
    """No array is broadcast, cut, filled up or read as another kind of number."""
    space = spaces.Box(0, 100, declared_shape, declared)
    value = np.ones(shape, kind)
    env = Checked(point(observation_space=space, first=(value, {})), "it")
    fits = value.shape == declared_shape and value.dtype.kind in "?biuf"
    if fits and np.can_cast(value.dtype, declared, "same_kind"):
        assert env.reset()[0].tolist() == [1.0] * value.size
    else:
        with pytest.raises(EnvironmentFault, match=r"it: reset\(\) returned an observation"):
            env.reset()


PARTS = spaces.Dict(a=spaces.Box(0, 255, (4, 4, 3), np.uint8), b=spaces.Tuple((spaces.Discrete(3), BOX)))
PICTURE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "value, words",
    [
        ({"a": PICTURE[:, :, :1], "b": (1, GOOD)}, "observation['a']: an array of shape (4, 4, 1), uint8"),
        ({"a": PICTURE.astype(np.float32), "b": (1, GOOD)}, "observation['a']: an array of shape (4, 4, 3), float32"),
        ({"a": PICTURE, "b": (3, GOOD)}, "observation['b'][0]: 3 (int)"),
        ({"a": PICTURE, "b": (-1, GOOD)}, "observation['b'][0]: -1 (int)"),
        ({"a": PICTURE, "b": (1.0, GOOD)}, "observation['b'][0]: 1.0 (float)"),
        ({"a": PICTURE, "b": (1, GOOD[:1])}, "observation['b'][1]: an array of shape (1,), float32"),
        ({"a": PICTURE, "b": (1,)}, "observation['b']: a tuple of 1 value"),
        ({"a": PICTURE, "b": (1, GOOD * np.nan)}, "entry 51 is nan"),
        ({"a": PICTURE}, "a dict of 'a'; expected: a dict of 'a', 'b'"),
        (PICTURE, "an array of shape (4, 4, 3), uint8; expected: a dict of 'a', 'b'"),
    ],
)
def test_every_part_is_looked_at(value, words):
    env = Checked(point(observation_space=PARTS, first=({"a": PICTURE, "b": (2, GOOD)}, {})), "it")
    obs, _ = env.reset(seed=0)
    assert obs.shape == (53,) == env.observation_space.shape and obs.tolist() == [0.0] * 50 + [1.0, 0.5, -0.5]
    env.unwrapped.first = value, {}
    with pytest.raises(EnvironmentFault) as told:
        env.reset()
    assert words in str(told.value)


@pytest.mark.parametrize("which", ["observation_space", "action_space"])
@pytest.mark.parametrize("space", [None, "Box", (2,), gym.spaces.Box], ids=str)
def test_spaces_that_are_none(mine, which, space):
    mine(**{which: space})
    with pytest.raises(InputError, match=f"--env-id Mine-v0: its {which} is .*expected: a gymnasium.spaces.Space"):
        envs.make("Mine-v0")


def run(agent, tmp_path, **how):
    return agent.main(replace(SMALL[agent], env_id="Mine-v0", run_dir=str(tmp_path / "a" / "run"), **how))


@AGENTS
@COPIES
@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize(
    "changes, words",
    [
        ({"later": STEPS["observation much longer"]}, "step() returned an observation: an array of shape (2000,)"),
        ({"later": STEPS["four values"]}, "expected: the five values"),
        ({"later": STEPS["reward nan"]}, "the reward nan"),
        ({"first": GOOD}, "reset() returned an array of shape (2,), float32; expected: the two values"),
        ({"reset": lambda self: (GOOD, {})}, "declare reset(self, seed=None, options=None)"),
        ({"raises": RuntimeError("sensor\nlost")}, "step() raised RuntimeError: sensor lost (test_checking.py:"),
        ({"raises": SystemExit(3)}, "step() raised SystemExit: 3 (test_checking.py:"),
    ],
)
def test_before_anything_is_learnt_nothing_is_left(mine, tmp_path, capsys, agent, num_envs, limit, changes, words):
    mine(limit, **changes)
    assert run(agent, tmp_path, num_envs=num_envs) == BAD_INPUT
    line = capsys.readouterr().err
    assert line.startswith("--env-id Mine-v0: ") and words in line and line.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_the_default_directory_is_removed_too_and_a_given_one_stays(mine, tmp_path, monkeypatch):
    mine(first=GOOD)
    monkeypatch.chdir(tmp_path)
    assert ppo.main(replace(SMALL[ppo], env_id="Mine-v0")) == BAD_INPUT and not [*tmp_path.iterdir()]
    Path("mine").mkdir()
    assert ppo.main(replace(SMALL[ppo], env_id="Mine-v0", run_dir="mine")) == BAD_INPUT
    assert [*tmp_path.iterdir()] == [tmp_path / "mine"] and not [*Path("mine").iterdir()]


class Late(Point):
    """Goes wrong after 40 steps, in whatever episode."""

    taken = 0

    def step(self, action):
        Late.taken += 1
        if Late.taken == 40:
            raise RuntimeError("sensor lost")
        return GOOD * Late.taken / 100, 1.0, False, Late.taken % 10 == 0, {}


@AGENTS
@COPIES
def test_a_later_fault_keeps_what_was_learnt_and_the_run_goes_on(tmp_path, capsys, monkeypatch, agent, num_envs):
    monkeypatch.setattr(Late, "taken", 0)
    gym.register("Mine-v0", Late)
    try:
        where = str(tmp_path / "run")
        args = replace(SMALL[agent], env_id="Mine-v0", num_envs=num_envs, run_dir=where, total_timesteps=96)
        assert agent.main(args) == FAILED
        told = capsys.readouterr().err
        assert told.count("Traceback") == 1 and told.count("\n    raise RuntimeError") == 1
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert status["status"] == "failed" and status["checkpoint"] > 16
        assert "--env-id Mine-v0: step() raised RuntimeError: sensor lost" in status["reason"]
        assert f"until step {status['checkpoint']} is kept" in told and f"--resume {where}" in told
        assert agent.main(replace(args, resume=where)) == DONE
    finally:
        del gym.registry["Mine-v0"]


class Pool:
    """A vector environment that returns what it is told to."""

    num_envs, single_observation_space, single_action_space = 2, BOX, Point.action_space

    def __init__(self, *answer):
        self.answer = answer

    def reset(self, **how):
        return np.zeros((2, 2), np.float32), {}

    def step(self, actions):
        return self.answer


PAIR, NO = np.zeros((2, 2), np.float32), np.zeros(2, bool)


@pytest.mark.parametrize(
    "answer",
    [
        (np.zeros((2, 3)), np.zeros(2), NO, NO, {}),
        (np.zeros((3, 2)), np.zeros(2), NO, NO, {}),
        (np.zeros(2), np.zeros(2), NO, NO, {}),
        (PAIR * np.nan, np.zeros(2), NO, NO, {}),
        (PAIR, np.zeros((2, 1)), NO, NO, {}),
        (PAIR, 0.0, NO, NO, {}),
        (PAIR, np.full(2, np.inf), NO, NO, {}),
        (PAIR, np.zeros(2), NO[:1], NO, {}),
        (PAIR, np.zeros(2), NO, np.zeros(2), {}),
        (PAIR, np.zeros(2), NO, {}),
    ],
)
def test_a_pool_is_held_to_the_same(answer):
    pool = NextStep(Pool(*answer))
    pool.reset([0, 0])
    with pytest.raises(EnvironmentFault, match=r"the pool: step\(\) returned .*expected: "):
        pool.step(np.zeros((2, 1), np.float32))
