"""A policy that knows nothing, on a robot: fast random motions until something goes wrong. For test_ur_faults.py.

python tests/ur/ur_client.py HOST CLOCK SEED [STEP WHAT] CLOCK: of a robot in lock step, or - ; WHAT: see `go_wrong`

What goes wrong does so at the first step from STEP on in which the arm is fast; the robot's stamp is told before.
"""

import os
import signal
import socket
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

import gymnasium as gym
import numpy as np
from ursim import CONTROL_PORT

from hesscale_rl.envs.ur.arms import DEFAULT
from hesscale_rl.envs.ur.presets import PRESETS
from hesscale_rl.envs.ur.rtde import UrRtdeDriver
from hesscale_rl.envs.ur.safety import RobotFault
from hesscale_rl.envs.ur.shared import Settings
from hesscale_rl.envs.ur_reacher import URReacher
from hesscale_rl.scripts.ur.supervision import Operated

ACTIONS = {"nan": np.full(2, np.nan), "inf": np.full(2, np.inf), "shape": np.zeros(6), "fast": np.full(2, 1e9)}
FAST = 0.3  # rad/s


def go_wrong(what, driver, host):
    """Do it: a name of a signal, for this process or the driver's; an exception; or a line for the control port."""
    if what.startswith("policy SIG"):
        if what == "policy SIGSTOP":
            driver._command["awaited"] = np.inf  # in lock step, nobody else would let time go on
        os.kill(os.getpid(), getattr(signal, what.split()[1]))
    elif what.startswith("driver SIG"):
        os.kill(driver.process.pid, getattr(signal, what.split()[1]))
        if what == "driver SIGSTOP":
            tell(host, "release")  # in lock step, a robot waits for whoever is only silent
    elif what == "exception":
        raise ValueError("the policy has a bug")
    elif what not in ACTIONS:
        tell(host, what)


def tell(host, line):
    with socket.create_connection((host, CONTROL_PORT)) as desk:
        desk.sendall(line.encode() + b"\n")
        desk.recv(100)


def play(host, clock, seed, when=0, what="", arm=DEFAULT):
    """Play until the end; return an exit code."""
    random, task = np.random.default_rng(seed), PRESETS["v2"].on(arm)
    try:
        driver = UrRtdeDriver(Settings(host, task.bounds(), task.timeout, arm, clock=clock))
    except RobotFault as fault:
        print(f"{type(fault).__name__}: {fault}", flush=True)
        return 5
    print(f"driver {driver.process.pid}", flush=True)
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            reacher = URReacher(driver=driver, arm=arm.name)
            operated = stack.enter_context(closing(Operated(reacher, driver, Path(folder) / "log")))
            env, step = gym.wrappers.TimeLimit(operated, 100), 0
            while True:
                env.reset(seed=step)
                print("go", flush=True)
                over = False
                while not over:
                    if step % 10 == 0:
                        action = random.choice([-1.0, 1.0], 2)
                    if what and step >= when and np.abs(driver.read().qd).max() > FAST:
                        print(f"fault {driver.read().stamp}", flush=True)
                        go_wrong(what, driver, host)
                        action = ACTIONS.get(what, action)
                        what = ""
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
    at, file, number, *wrong = sys.argv[1:]
    sys.exit(play(at, None if file == "-" else file, int(number), *map(int, wrong[:1]), *wrong[1:]))
