"""Take one step of a task, and one rollout: the process that fills the cache with the loops of all.

python -m hesscale_rl.envs.native.compile_all native | profile
"""

import sys

import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.wrappers import TimeLimit
from torch import nn

from hesscale_rl.compiled.cache import PROFILE, compile_here
from hesscale_rl.compiled.clock import TASK, new_clock, tick
from hesscale_rl.networks import GaussianHead, mlp
from hesscale_rl.rl.normalize import RewardNorm
from hesscale_rl.rl.policy import Policy
from hesscale_rl.rl.rollout import Rollout

from .. import mujoco
from ..vector import Envs


def compile_steps(watched: bool = False) -> None:
    """Call every loop once, with every type of argument that it is called with; `watched`: those with clocks."""
    env = Envs(TimeLimit(HalfCheetahEnv(), 1000))  # whose steps are tried at once
    actor = nn.Sequential(*mlp([17, 4, 6]), GaussianHead(6))
    policy = Policy(17, env.action_space, actor, mlp([17, 4, 1]), "log_std", RewardNorm(0.99))
    rollout = Rollout(env, policy, np.random.SeedSequence(0))
    if watched:
        rollout.watch()
        tick(new_clock(), TASK)
    rollout.collect(2, lambda *_: None)


if __name__ == "__main__":
    compile_here()
    mujoco.quiet()
    compile_steps(sys.argv[1] == PROFILE)
