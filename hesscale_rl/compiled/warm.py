"""Have the loops compiled before a process needs them: in another process, which leaves them in the cache.

A process that compiles a loop itself may run other machine code than one that finds it in the cache, and round
otherwise: one seed would give two results, before and after the first run. So nobody compiles for themselves, unless
no cache can be written, and then everybody does.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from . import kernels

_ready = False


def ready() -> None:
    """Return when the loops are in the cache; says so on stderr where that takes its time. Cheap from then on."""
    global _ready
    if _ready:
        return
    _ready = True
    folder = kernels.forward.stats.cache_path
    if folder is None:
        return
    stamp = Path(folder) / f"warm-{_fingerprint()}"
    if stamp.exists() or os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return
    with open(Path(folder) / "warm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of runs that start together, one compiles and the others wait
        if not stamp.exists():
            _fill(Path(folder), stamp)


def _fill(folder: Path, stamp: Path) -> None:
    print("hesscale_rl: compiling its loops, once for this installation (about 30 s)", file=sys.stderr, flush=True)
    # numba looks at the age of one file, not at those of the loops that are called from it.
    for old in (*folder.glob("*.nbi"), *folder.glob("*.nbc"), *folder.glob("warm-*")):
        old.unlink(missing_ok=True)
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command = [sys.executable, "-c", "from hesscale_rl.compiled import warm; warm.compile_all()"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        stamp.touch()


def _fingerprint() -> str:
    """What decides the machine code: our sources, numba, the processor."""
    parts = [numba.__version__, sys.version, str(numba.core.codegen.get_host_cpu_features())]
    parts += [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class _Still:
    """An environment in which nothing happens."""

    num_envs = 1

    def reset(self, seeds):
        return np.zeros((1, 3))

    def step(self, actions):
        over = np.ones(1, dtype=bool)
        return Step(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1), over, over, over)


class Step(NamedTuple):
    """One of its steps, with the fields of envs/vector.py."""

    obs: np.ndarray
    final: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray


def compile_all() -> None:
    """Call every loop once, with every type of argument that it is called with."""
    global _ready
    _ready = True
    import gymnasium as gym
    import torch

    from .. import AdaHesScale, HesScale, backward, losses
    from ..networks import GaussianHead, mlp
    from ..policy import DISCRETE, Policy
    from ..rollout import Rollout
    from .learner import learner

    n, x = 4, torch.randn(4, 3)
    advantages, classes, actions = torch.randn(n), torch.zeros(n, dtype=torch.long), torch.randn(n, 2)
    logits, normal, value = mlp([3, 4, 2]), torch.nn.Sequential(*mlp([3, 4, 2]), GaussianHead(2)), mlp([3, 4, 1])
    for net, loss in (
        (logits, losses.CrossEntropy(classes)),
        (logits, losses.CategoricalPPO(classes, advantages, advantages)),
        (normal, losses.GaussianPPO(actions, advantages, advantages)),
        (value, losses.ValueLoss(advantages)),
    ):
        optimizer = AdaHesScale(net.parameters(), delta=1e-8)
        backward(net, x, loss, HesScale())
        optimizer.step()
    rows = dict(obs=x, logprob=advantages, advantages=advantages, returns=advantages, values=advantages)
    for actor, kind, space, taken in (
        (normal, "log_std", gym.spaces.Box(-1, 1, (2,)), actions),
        (logits, DISCRETE, gym.spaces.Discrete(2), classes),
    ):
        policy = Policy(3, space, actor, value, kind, 0.99)
        fast = learner(policy, AdaHesScale(policy.parameters(), delta=1e-8), HesScale())
        assert fast is not None
        fast.learn(rows | {"actions": taken}, torch.arange(n), 1, True, 0.2, 0.0, 0.2, 0.5, 0.5)
        Rollout(_Still(), policy, np.random.SeedSequence(0)).collect(1, lambda *_: None)
        policy.see(np.zeros(3))
