"""Have the loops compiled before a process needs them: in another process, which leaves them in the cache.

A process that compiles a loop itself may run other machine code than one that finds it in the cache, and round
otherwise: one seed would give two results, before and after the first run. So nobody compiles for themselves, unless
no cache can be written, and then everybody does. What only `Hutchinson` needs waits until a run asks for it.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np

from ..jit import PLAIN, sources
from ..rl.fast import normalize as running
from ..system.console import complain
from ..system.locks import alone
from . import kernels

COMMON, HUTCHINSON = "common", "hutchinson"  # the loops of most runs, and those that only AdaHessian's need
_ready: set[str] = set()


def ready(part: str = COMMON) -> None:
    """Return when the loops are in the cache; says so on stderr where that takes its time. Cheap from then on."""
    if part in _ready:
        return
    _ready.add(part)
    if PLAIN:
        return
    folder = kernels.forward.stats.cache_path
    if folder is None:
        return
    stamp = Path(folder) / f"warm-{sources()}-{_machine()}-{part}"
    if stamp.exists():
        return
    # Of runs that start together, one compiles and the others wait.
    with alone(Path(folder), lambda: _say("waiting for another process that compiles the loops")):
        if not stamp.exists():
            _fill(Path(folder), stamp, part)


def _say(words: str) -> None:
    complain(f"hesscale_rl: {words}")


def _fill(folder: Path, stamp: Path, part: str) -> None:
    what, seconds = ("its loops", 30) if part == COMMON else ("AdaHessian's loops", 20)
    _say(f"compiling {what}, once for this installation (about {seconds} s)")
    for old in folder.glob("warm-*-*"):
        if not old.name.startswith(f"warm-{sources()}-"):
            old.unlink(missing_ok=True)
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command = [sys.executable, "-c", f"from hesscale_rl.compiled import warm; warm.compile_{part}()"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        stamp.touch()
    else:
        _say(f"that ended with the exit code {done.returncode}; this process compiles what it needs itself")


def _machine() -> str:
    """The share of Python, numba and the processor in what decides the machine code."""
    parts = [numba.__version__, sys.version, str(numba.core.codegen.get_host_cpu_features())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


class _Still:
    """An environment in which nothing happens."""

    num_envs = 1

    def reset(self, seeds):
        return np.zeros((1, 3))

    def step(self, actions):
        from ..rl.rollout import Step

        over = np.ones(1, dtype=bool)
        return Step(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1), over, over, over)


def compile_common() -> None:
    """Call every loop once, with every type of argument that it is called with, but `Hutchinson`'s."""
    _ready.update((COMMON, HUTCHINSON))
    import gymnasium as gym
    import torch

    from .. import AdaHesScale, HesScale, backward, losses
    from ..networks import GaussianHead, mlp
    from ..rl.fast.learner import Objective, make_learner
    from ..rl.policy import DISCRETE, Policy
    from ..rl.rollout import Rollout

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
        fast = make_learner(policy, AdaHesScale(policy.parameters(), delta=1e-8), HesScale())
        assert fast is not None
        fast.learn(rows | {"actions": taken}, torch.arange(n), 1, Objective(True, 0.0, 0.5, 0.5, 0.2, 0.2))
        Rollout(_Still(), policy, np.random.SeedSequence(0)).collect(1, lambda *_: None)
        policy.see(np.zeros(3))
    for first in (np.zeros(3, np.float32), np.zeros(3)):
        running.take(first, np.empty(3))


def compile_hutchinson() -> None:
    """Call the loops that only `Hutchinson` needs."""
    _ready.update((COMMON, HUTCHINSON))
    import gymnasium as gym
    import torch

    from .. import AdaHessian, Hutchinson
    from ..networks import mlp
    from ..rl.fast.learner import Objective, make_learner
    from ..rl.policy import DISCRETE, Policy

    n = 4
    policy = Policy(3, gym.spaces.Discrete(2), mlp([3, 4, 2]), mlp([3, 4, 1]), DISCRETE, 0.99)
    fast = make_learner(policy, AdaHessian(policy.parameters(), delta=1e-8), Hutchinson())
    assert fast is not None
    rows = {name: torch.randn(n) for name in ("logprob", "advantages", "returns", "values")}
    rows |= {"obs": torch.randn(n, 3), "actions": torch.zeros(n, dtype=torch.long)}
    fast.learn(rows, torch.arange(n), 1, Objective(True, 0.0, 0.5, 0.5, 0.2, 0.2))
