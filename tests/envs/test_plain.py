"""What an environment saves comes back as it was, or is refused by name; training goes on and saves the rest."""

import collections
import dataclasses
import datetime
import decimal
import enum
import io
import pathlib
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.envs.plain import NotPlain, from_plain, to_plain
from hesscale_rl.errors import DONE
from hesscale_rl.runs.checkpoint import newest_checkpoint

Point = collections.namedtuple("Point", "x y")
Color = enum.Enum("Color", "RED BLUE")


@dataclasses.dataclass
class Place:
    x: int = 0


class Text(str):
    pass


KEPT = [
    *(
        None,
        True,
        0,
        -1,
        2**127,
        0.1,
        float("nan"),
        1j,
        "",
        "ä",
        b"\x00",
        [],
        (),
        {},
        [(1, [2])],
        {1: 2, None: 3, "a": ()},
    ),
    *(
        np.arange(6.0).reshape(2, 3),
        np.array(2.5),
        np.zeros((0, 3)),
        np.asfortranarray(np.eye(3))[::2],
        np.array([True]),
    ),
    *(np.ones(2, t) for t in ("f2", "f4", "i1", "i8", "u1", "u2", "u4", "u8", "c8")),
    *(np.float32(0.1), np.float64(0.1), np.int8(-3), np.bool_(True), np.uint64(2**63)),
    *(np.random.default_rng(1).bit_generator.state, np.random.Generator(np.random.MT19937(1)).bit_generator.state),
]
REFUSED = [
    (collections.deque([1]), "collections.deque; save list(...)"),
    (frozenset([1]), "frozenset; save sorted(...)"),
    ({1}, "set; save sorted(...)"),
    (Color.RED, "Color; save its .value"),
    (Place(), "Place; save dataclasses.asdict(...)"),
    (pathlib.Path("a"), "Path; save str(...)"),
    (datetime.datetime(2020, 1, 1), "datetime.datetime; save its .isoformat()"),
    (datetime.timedelta(1), "datetime.timedelta; save its .total_seconds()"),
    (decimal.Decimal("0.1"), "decimal.Decimal; save str(...)"),
    (range(3), "range; save list(...)"),
    (np.random.default_rng(1), "Generator; save its .bit_generator.state"),
    (Point(1, 2), "Point; save tuple(...)"),
    (np.array(["a"]), "an array of <U1"),
    (np.array([None]), "an array of object"),
    (np.ones(1, ">f8"), "an array of >f8"),
    (np.ones(1, "f8,i4"), "an array of "),
    (np.longdouble(1), "an array of "),
    (np.str_("a"), "numpy.str_; save the plain value"),
    (np.datetime64("2020"), "numpy.datetime64; save str(...) of it"),
    (collections.OrderedDict(a=1), "collections.OrderedDict; save dict(...)"),
    (collections.Counter("a"), "collections.Counter; save dict(...)"),
    (collections.defaultdict(int), "collections.defaultdict; save dict(...)"),
    (np.ma.masked_array([1.0], [True]), "MaskedArray; save its .data and .mask"),
    (np.ones(1).view(np.recarray), "recarray; save np.asarray(...)"),
    (torch.ones(1), "torch.Tensor; save its .numpy()"),
    (torch.nn.Parameter(torch.ones(1)), "Parameter; save its .numpy()"),
    (Text("a"), "Text; save the plain value"),
    ({Point(1, 2): 1}, "has the key Point(x=1, y=2)"),
    ({"hesscale_rl": 1}, "has the key 'hesscale_rl'"),
    (object(), "object; allowed are None, bool, int"),
    (len, "builtin_function_or_method; allowed are"),
]


def same(a, b):
    """Of one type, at any depth, and equal to the last bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b or (a != a and b != b)


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("value", KEPT, ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}")
def test_what_is_allowed_comes_back_as_it_was(value):
    assert same(from_plain(through_a_file(to_plain(value, "it"))), value)


@pytest.mark.parametrize(
    "value, words", REFUSED, ids=[type(value).__name__ + words[-12:] for value, words in REFUSED]
)
def test_everything_else_is_refused_with_its_place_and_a_way_out(value, words):
    with pytest.raises(NotPlain) as told:
        to_plain({"a": [0, value]}, "state")
    assert str(told.value).startswith("state['a'][1] ") and words in str(told.value), told.value


def test_a_list_that_contains_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(NotPlain, match="100 containers deep"):
        to_plain(loop, "state")


class Saving(gym.Env):
    """Saves what `saves` returns at its n-th call, which raises if that is an exception."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)
    saves = staticmethod(lambda call: {})
    calls = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, bool(self.np_random.random() < 0.1), {}

    def save_state(self):
        Saving.calls += 1
        value = Saving.saves(Saving.calls)
        if isinstance(value, Exception):
            raise value
        return value

    def load_state(self, state):
        if "bad" in state:
            raise KeyError("no such thing")


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("agent", [ppo, a2c, trpo], ids=["ppo", "a2c", "trpo"])
@pytest.mark.parametrize(
    "saves, words",
    [
        (lambda call: {"queue": collections.deque()}, "save_state()['queue'] is a collections.deque; save list(...)"),
        (lambda call: {} if call < 3 else {"when": range(3)}, "save_state()['when'] is a range"),
        (lambda call: ZeroDivisionError("by zero"), "save_state() raised ZeroDivisionError: by zero"),
        (lambda call: [1], "save_state() returned a list; expected is a dict, or None"),
        (lambda call: None, ""),
        ("no loading", "load_state is None, not a method"),
        (lambda call: {"bad": 1}, "load_state() raised KeyError: 'no such thing'"),
    ],
    ids=["wrong", "wrong later", "raises", "no dict", "not now", "no loading", "loading raises"],
)
def test_whatever_an_environment_saves_the_policy_is_saved(
    tmp_path, monkeypatch, capsys, agent, num_envs, saves, words
):
    if saves == "no loading":
        monkeypatch.setattr(Saving, "load_state", None)
        saves = Saving.saves
    monkeypatch.setattr(Saving, "saves", staticmethod(saves))
    monkeypatch.setattr(Saving, "calls", 0)
    monkeypatch.setitem(gym.registry, "Saving-v0", gym.envs.registration.EnvSpec("Saving-v0", Saving))
    run = str(tmp_path / "run")
    small = {"num_minibatches": 2, "update_epochs": 1} if agent is not a2c else {}
    args = agent.Args(env_id="Saving-v0", num_envs=num_envs, num_steps=16, anneal_lr=False, quiet=True, run_dir=run)
    args = replace(args, total_timesteps=64, checkpoint_interval=32, **small)
    assert agent.main(args) == DONE
    saved = newest_checkpoint(run)
    assert saved["policy"] and (saved["rollout"]["envs"] is None) == ("load_state()" not in words)
    assert agent.main(replace(args, resume=run, total_timesteps=96, accept_changes=True)) == DONE
    told = capsys.readouterr().err
    assert words in told and "begins new episodes" in told and told.count("save_state()") <= 2
