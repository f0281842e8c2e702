"""Where the runs of a sweep are carried out: on this machine, by Ray, or by Slurm. All of them call `perform`.

A run's state is its directory, which all machines share: whoever comes to a run that is finished leaves it alone, and
to one that was interrupted goes on with it. So nothing breaks when a run is handed out twice.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE, InputError
from scripts.grid import Planned

ATTEMPTS = 2  # a run that crashes is tried once more
ROOT = Path(__file__).resolve().parent.parent
THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def status(directory: Path) -> dict[str, Any]:
    """Return what status.json says; {} if there is none."""
    try:
        return json.loads((directory / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def exit_code(directory: Path) -> int | None:
    """Return the exit code of a run that is finished, else None."""
    return {"done": DONE, "diverged": DIVERGED}.get(status(directory).get("status", ""))


def held(directory: Path) -> bool:
    """Whether a process is writing to a run's directory."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def log_path(folder: Path, run: Planned) -> Path:
    """Where the output of a run goes."""
    return folder / "logs" / f"{run.name}.log"


def start(run: Planned, folder: Path, core: int | None = None) -> subprocess.Popen:
    """Start a run, or go on with it where its last checkpoint stands; on one core, if one is named."""
    directory = folder / run.name
    if (directory / "config.json").exists():
        line = ["--resume", str(directory)]
    else:
        shutil.rmtree(directory, ignore_errors=True)  # killed before it had written anything
        line = [*run.flags, "--run-dir", str(directory)]
    command = [sys.executable, str(ROOT / "agents" / f"{run.agent}.py"), *line, "--quiet"]

    def prepare() -> None:
        if LIBC is not None:  # a run whose launcher is killed saves and ends, too
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if core is not None:
            os.sched_setaffinity(0, {core})

    log = log_path(folder, run)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        # A session of its own: Ctrl-C reaches the launcher alone, which then ends its runs one by one.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **THREADS},
            start_new_session=True,
            preexec_fn=prepare,
        )


class Performer:
    """Carries out one run where it is called; what Ray and Slurm are given."""

    process: subprocess.Popen | None = None

    def __call__(self, run: Planned, folder: Path) -> int:
        """Do the run, or what is left of it; return its exit code."""
        code = None
        for _ in range(ATTEMPTS):
            while held(folder / run.name):  # one that was left alone by its launcher is still saving
                time.sleep(0.2)
            code = exit_code(folder / run.name)
            if code is None:
                self.process = start(run, folder)
                code = self.process.wait()
            if code in (DONE, DIVERGED, BAD_INPUT):
                break
        assert code is not None
        return code

    def checkpoint(self, run: Planned, folder: Path) -> Any:
        """Save and ask for another place in the queue: submitit calls this when Slurm's time is over."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        return DelayedSubmission(Performer(), run, folder)


def perform(run: Planned, folder: Path) -> int:
    """Do a run, or what is left of it; return its exit code."""
    return Performer()(run, folder)


class Launcher(Protocol):
    """Takes runs; `poll` returns those that have ended since, with their exit codes."""

    def poll(self) -> list[tuple[Planned, int]]:
        """Return what has ended; begin what can begin."""
        ...

    def stop(self) -> None:
        """Let the runs save and end; return when they have."""
        ...


class Local:
    """Up to `jobs` processes on this machine, one thread each, each on a core of its own while there are enough."""

    def __init__(self, runs: Sequence[Planned], folder: Path, jobs: int):
        self.waiting, self.folder, self.jobs = deque(runs), folder, jobs
        self.running: dict[Planned, tuple[subprocess.Popen, int | None]] = {}
        self.tries: dict[Planned, int] = {}
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.cores: list[int | None] = [*cores] if jobs <= len(cores) else [None] * jobs

    def poll(self) -> list[tuple[Planned, int]]:
        """Return what has ended; begin what can begin."""
        ended = []
        for run, (process, core) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[run]
            self.cores.append(core)
            if code in (DONE, DIVERGED, BAD_INPUT) or self.tries[run] >= ATTEMPTS:
                ended.append((run, code))
            else:
                self.waiting.appendleft(run)
        for _ in range(len(self.waiting)):
            if len(self.running) >= self.jobs:
                break
            run = self.waiting.popleft()
            if held(self.folder / run.name):  # left alone by a launcher that was killed; it is still saving
                self.waiting.append(run)
                continue
            core = self.cores.pop(0)
            self.tries[run] = self.tries.get(run, 0) + 1
            self.running[run] = start(run, self.folder, core), core
        return ended

    def stop(self) -> None:
        """Let the runs save and end; return when they have."""
        self.waiting.clear()
        for process, _ in self.running.values():
            process.terminate()
        for process, _ in self.running.values():
            process.wait()


class OnRay:
    """One Ray task a run, of one CPU; Ray tries again elsewhere when a machine is lost."""

    def __init__(self, runs: Sequence[Planned], folder: Path, address: str | None):
        try:
            import ray
        except ImportError:
            raise InputError("--launcher ray: needs Ray, pip install -e '.[ray]'") from None
        self.ray = ray
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"--ray-address {address}: no cluster there ({str(error).splitlines()[0]})") from None
        task = ray.remote(num_cpus=1, max_retries=-1)(perform)
        self.waiting = {task.remote(run, folder): run for run in runs}

    def poll(self) -> list[tuple[Planned, int]]:
        """Return what has ended."""
        if not self.waiting:
            return []
        ready, _ = self.ray.wait(list(self.waiting), num_returns=len(self.waiting), timeout=0)
        ended = []
        for task in ready:
            try:
                code = self.ray.get(task)
            except self.ray.exceptions.RayError:
                code = 1
            ended.append((self.waiting.pop(task), code))
        return ended

    def stop(self) -> None:
        """Cancel what waits; what runs loses its worker, and with it saves and ends."""
        for task in self.waiting:
            self.ray.cancel(task, force=True)
        self.ray.shutdown()


class OnSlurm:
    """One array of jobs through submitit, `jobs` at once; a job whose time is over saves and queues again."""

    def __init__(self, runs: Sequence[Planned], folder: Path, jobs: int, cluster: str, options: dict[str, Any]):
        try:
            import submitit
        except ImportError:
            raise InputError("--launcher slurm: needs submitit, pip install -e '.[slurm]'") from None
        try:
            executor = submitit.AutoExecutor(folder=folder / "slurm", cluster=cluster)
            parallel = {"slurm_array_parallelism": jobs} if cluster == "slurm" else {}
            executor.update_parameters(cpus_per_task=1, **parallel, **options)
            handles = executor.map_array(Performer(), runs, [folder] * len(runs)) if runs else []
        except (RuntimeError, NameError, TypeError, ValueError, submitit.core.utils.FailedJobError) as error:
            raise InputError(f"--launcher {cluster}: {str(error).splitlines()[0]}") from None
        self.waiting = dict(zip(runs, handles, strict=True))

    def poll(self) -> list[tuple[Planned, int]]:
        """Return what has ended."""
        ended = [(run, job) for run, job in self.waiting.items() if job.done()]
        for run, _ in ended:
            del self.waiting[run]
        return [(run, 1 if job.exception() is not None else job.result()) for run, job in ended]

    def stop(self) -> None:
        """Cancel the jobs; Slurm gives them time to save."""
        for job in self.waiting.values():
            with contextlib.suppress(Exception):  # one that has ended meanwhile
                job.cancel()
