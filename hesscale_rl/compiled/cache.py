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

from ..jit import PLAIN, sources
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
    command = [sys.executable, "-m", "hesscale_rl.rl.fast.compile_all", part]
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
    _ready.update((COMMON, HUTCHINSON))
