"""A policy that knows nothing, on a robot: fast random motions until something goes wrong. For test_ur_faults.py.

python tests/ur_client.py HOST SEED [what to do wrong, and at which step: nan 50 | shape 50 | fast 50 | exception 50]
"""

import sys
import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np

from envs.ur.rtde import UrRtdeDriver
from envs.ur.safety import RobotFault
from envs.ur.shared import Settings
from envs.ur.tasks import TASKS
from envs.ur_reacher import URReacher
from scripts.supervision import Operated


def main() -> int:
    host, random = sys.argv[1], np.random.default_rng(int(sys.argv[2]))
    wrong, when = (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else ("", 0)
    task = TASKS["v2"]
    try:
        driver = UrRtdeDriver(Settings(host, task.bounds(), task.timeout))
    except RobotFault as fault:
        print(f"{type(fault).__name__}: {fault}", flush=True)
        return 5
    print(f"driver {driver.process.pid}", flush=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            arm = Operated(URReacher(driver=driver), driver, Path(folder) / "steps.jsonl")
            env, step = gym.wrappers.TimeLimit(arm, 100), 0
            while True:
                env.reset(seed=step)
                print("go", flush=True)
                over = False
                while not over:
                    if step % 10 == 0:
                        action = random.choice([-1.0, 1.0], 2)
                    if wrong and step == when:
                        if wrong == "exception":
                            raise ValueError("the policy has a bug")
                        action = {"nan": np.full(2, np.nan), "shape": np.zeros(6), "fast": np.full(2, 1e9)}[wrong]
                    *_, over, _ = env.step(action)
                    step += 1
    except RobotFault as fault:
        print(f"{type(fault).__name__}: {fault}", flush=True)
        return 4
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 130
    finally:
        driver.close()


if __name__ == "__main__":
    sys.exit(main())
