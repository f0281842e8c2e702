"""Have the loops compiled before a process needs them: in another process, which leaves them in the cache.

A process that compiles a loop itself may run other machine code than one that finds it in the cache, and round
otherwise: one seed would give two results, before and after the first run. So nobody compiles for themselves, unless
no cache can be written, and then everybody does.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numba

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
    print("hesscale_rl: compiling its loops, once for this installation (about 40 s)", file=sys.stderr, flush=True)
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


def compile_all() -> None:
    """Call every loop once, with every type of argument that it is called with."""
    global _ready
    _ready = True
    import gymnasium as gym
    import numpy as np
    import torch

    from .. import AdaHesScale, HesScale, backward, losses
    from ..networks import GaussianHead, mlp
    from ..policy import DISCRETE, Policy
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
        fast.step(rows | {"actions": taken}, True, 0.2, 0.0, 0.2, 0.5, 0.5)
        policy.act(x.numpy(), policy.noise(np.random.default_rng(0), n))
    assert policy.obs_norm is not None and policy.reward_norm is not None
    policy.obs_norm.stepper()(np.zeros(3))
    policy.reward_norm.scale(1.0, False)
