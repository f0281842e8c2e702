"""Take one step of a task: the process that fills the cache with the loops of all.

python -m hesscale_rl.envs.native.compile_all native
"""

import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

from hesscale_rl.compiled.cache import compile_here

from .. import mujoco
from .library import library
from .stepping import NativeStep, known


def compile_steps() -> None:
    """Call every loop once, with every type of argument that it is called with."""
    env, found = HalfCheetahEnv(), library()
    task = known(env)
    if task is None or found is None:
        return
    env.reset(seed=0)
    own = NativeStep(env, task, found)
    own.look()
    own.step_into(np.zeros(6, np.float32), np.empty(17))


if __name__ == "__main__":
    compile_here()
    mujoco.quiet()
    compile_steps()
