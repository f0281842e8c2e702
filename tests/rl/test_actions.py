"""What environments are given is an element of their action space, in training and in an exported policy."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from hesscale_rl.agents import a2c, ppo, trpo
from hesscale_rl.envs.vector import Envs
from hesscale_rl.errors import BAD_INPUT, InputError
from hesscale_rl.rl.actions import ActionBox
from hesscale_rl.rl.rollout import Rollout

BOXES = {
    "float32": Box(-1, 1, (2,), np.float32),
    "float64": Box(-0.1, 0.1, (2,), np.float64),  # float32 has no 0.1: the nearest is outside
    "float16": Box(-0.1, 0.1, (2,), np.float16),
    "int32": Box(-3, 3, (2,), np.int32),
    "int64": Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    "int8": Box(-128, 127, (2,), np.int8),
    "uint8": Box(0, 255, (2,), np.uint8),
    "far": Box(100, 200, (2,), np.float32),
    "far whole": Box(100, 200, (2,), np.int32),
    "one-sided": Box(0, 5, (2,), np.int32),
    "half open": Box(np.array([-np.inf, 100], np.float32), np.array([np.inf, 200], np.float32)),
    "endless": Box(-np.inf, np.inf, (2,), np.float32),
}


class Taker(gym.Env):
    """Insists on elements of its action space."""

    observation_space = Box(-1, 1, (3,), np.float32)

    def __init__(self, box):
        self.action_space, self.taken = box, []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), (action, action.dtype)
        self.taken.append(action)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("rescale", [False, True], ids=["as they are", "rescaled"])
@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("agent", [ppo, a2c, trpo], ids=["ppo", "a2c", "trpo"])
def test_every_action_is_in_the_box(agent, name, rescale):
    box = BOXES[name]
    copies = [Taker(box), Taker(box)]
    args = agent.Args(num_envs=2, rescale_actions=rescale)
    if rescale and name == "endless":
        with pytest.raises(InputError, match="--rescale-actions: the environment's actions have no bounds"):
            agent.make_policy(Taker.observation_space, box, args)
        return
    policy = agent.make_policy(Taker.observation_space, box, args)
    Rollout(Envs(*copies), policy, np.random.SeedSequence(0)).collect(100, lambda *_: None)
    assert len(copies[0].taken) == 100
    obs = np.random.default_rng(0).standard_normal((300, 3))
    seen = obs.astype(np.float32) if policy.obs_norm is None else policy.obs_norm.normalize(obs)
    live = policy.to_env(policy.act(seen, None))
    exported = policy(torch.from_numpy(obs)).detach().numpy()
    assert all(box.contains(action) for action in (*live, *exported)) and live.dtype == exported.dtype
    size = max(1.0, float(np.abs(live.astype(float)).max()))  # a box of 1e18 has small actions by cancellation
    np.testing.assert_allclose(live.astype(float), exported.astype(float), rtol=1e-3, atol=1e-4 * size)


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "far", "far whole", "one-sided", "uint8"])
def test_minus_one_and_one_are_the_bounds_when_rescaled(name):
    box, ends = BOXES[name], np.array([[-1, 1], [0, 0]], np.float32)
    taken = ActionBox(box, rescale=True).given(ends)
    assert box.contains(taken[0])
    np.testing.assert_allclose(taken[0].astype(float), [box.low[0], box.high[1]], rtol=1e-6)
    np.testing.assert_allclose(taken[1], (box.low.astype(float) + box.high) / 2, rtol=1e-6, atol=0.5)
    assert (ActionBox(box).hint() is None) == (name == "float32")
    assert ActionBox(box, rescale=True).hint() is None


def test_a_hint_is_given_once_and_choices_are_not_rescaled(tmp_path, capsys):
    gym.register("Mine-v0", lambda: Taker(BOXES["far"]))
    try:
        args = ppo.Args(env_id="Mine-v0", num_steps=8, total_timesteps=8, num_minibatches=1, run_dir=f"{tmp_path}/a")
        ppo.main(args)
        told = capsys.readouterr().err
        assert told.count("action 0 is between 100 and 200") == 1 and "--rescale-actions" in told
    finally:
        del gym.registry["Mine-v0"]
    assert ppo.main(ppo.Args(env_id="CartPole-v1", rescale_actions=True, run_dir=f"{tmp_path}/b")) == BAD_INPUT
    assert "--rescale-actions: the environment's actions are choices" in capsys.readouterr().err
