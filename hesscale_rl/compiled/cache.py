"""Have the loops compiled before a process needs them: in another process, which leaves them in the cache.

A process that compiles a loop itself may run other machine code than one that finds it in the cache, and round
otherwise: one seed would give two results, before and after the first run. So nobody compiles for themselves, unless
no cache can be written, and then everybody does. What only some runs need waits until one asks for it.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numba

from ..jit import PLAIN, sources
from ..system.console import complain
from ..system.locks import alone
from . import kernels

# The loops of most runs, those that only AdaHessian's need, and those of MuJoCo's tasks, without and with clocks.
COMMON, HUTCHINSON, NATIVE, PROFILE = "common", "hutchinson", "native", "profile"
# Of each: the program that compiles them, what to call them, and about how many seconds it takes.
PARTS = {
    COMMON: ("hesscale_rl.rl.fast.compile_all", "its loops", 30),
    HUTCHINSON: ("hesscale_rl.rl.fast.compile_all", "AdaHessian's loops", 20),
    NATIVE: ("hesscale_rl.envs.native.compile_all", "the steps of MuJoCo's tasks", 15),
    PROFILE: ("hesscale_rl.envs.native.compile_all", "the steps of MuJoCo's tasks with clocks", 15),
}
_ready: set[str] = set()


def ready(part: str = COMMON) -> None:
    """Return when the loops are in the cache; says so on stderr where that takes its time. Cheap from then on."""
    if part in _ready:
        return
    _ready.add(part)
    if PLAIN:
        return
    stamp = mark(part)
    if stamp is None or stamp.exists():
        return
    # Of runs that start together, one compiles and the others wait.
    with alone(stamp.parent, lambda: _say("waiting for another process that compiles the loops")):
        if not stamp.exists():
            _fill(stamp, part)


def mark(what: str) -> Path | None:
    """Return the file in the cache that says `what` of these sources on this machine; None without a cache.

    It is removed when the loops of other sources are compiled.
    """
    folder = kernels.forward.stats.cache_path
    return None if folder is None else Path(folder) / f"warm-{sources()}-{_machine()}-{what}"


def _say(words: str) -> None:
    complain(f"hesscale_rl: {words}")


def _fill(stamp: Path, part: str) -> None:
    program, what, seconds = PARTS[part]
    _say(f"compiling {what}, once for this installation (about {seconds} s)")
    for old in stamp.parent.glob("warm-*-*"):
        if not old.name.startswith(f"warm-{sources()}-"):
            old.unlink(missing_ok=True)
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command = [sys.executable, "-m", program, part]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        stamp.touch()
    else:
        _say(f"that ended with the exit code {done.returncode}; this process compiles what it needs itself")


def _machine() -> str:
    """The share of Python, numba and the processor in what decides the machine code."""
    parts = [numba.__version__, sys.version, str(numba.core.codegen.get_host_cpu_features())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def compile_here() -> None:
    """Let this process compile what it needs itself, without another one."""
    _ready.update(PARTS)
