"""Where the runs of a sweep are carried out: on this machine, by Ray, or by Slurm. All of them call `perform`.

A run's state is its directory, which all machines share: whoever comes to a run that is finished leaves it alone, and
to one that was interrupted goes on with it. So nothing breaks when a run is handed out twice.
"""

import contextlib
import ctypes
import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from hesscale_rl.errors import BAD_INPUT, DIVERGED, DONE, InputError
from hesscale_rl.scripts.analysis.read_runs import SUPERVISED
from hesscale_rl.scripts.sweeping.spec import Planned, module_name, one_line
from hesscale_rl.scripts.sweeping.state import exit_code, log_path, saved
from hesscale_rl.system.locks import held

ROOT = Path(__file__).resolve().parents[2]  # the checkout, or the installed package: both hold agents/ and scripts/

ATTEMPTS = 2  # a run that crashes is tried once more, and so anew from each of its checkpoints
PROBE, CONNECT = 3.0, 60.0  # seconds for a port to open, and for Ray to answer there
THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def start(run: Planned, folder: Path) -> subprocess.Popen:
    """Start a run, or go on with it where its last checkpoint stands."""
    directory = folder / run.name
    if (directory / "config.json").exists():
        trust = ["--trust-env-module"] if run.agent != SUPERVISED else []  # it was imported as the spec's
        line = ["--resume", str(directory), *trust]
    else:
        shutil.rmtree(directory, ignore_errors=True)  # killed before it had written anything
        line = [*run.flags, "--run-dir", str(directory)]
    # -P: without the file's own folder among the places where modules are looked for.
    source = ROOT / f"{module_name(run.agent).removeprefix('hesscale_rl.').replace('.', '/')}.py"
    command = [sys.executable, "-P", str(source), *line, "--quiet"]

    def prepare() -> None:
        if LIBC is not None:  # a run whose launcher is killed saves and ends, too
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    log = log_path(folder, run.name)
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


class Tries:
    """Counts how often runs were started, anew from each of their checkpoints: who gets further may crash again."""

    def __init__(self) -> None:
        self.begun: Counter[tuple[Planned, int]] = Counter()

    def start(self, run: Planned, folder: Path) -> subprocess.Popen:
        """Start a run."""
        self.begun[run, saved(folder / run.name)] += 1
        return start(run, folder)

    def over(self, run: Planned, folder: Path, code: int) -> bool:
        """Whether that was a run's end."""
        return code in (DONE, DIVERGED, BAD_INPUT) or self.begun[run, saved(folder / run.name)] >= ATTEMPTS


class Performer:
    """Carries out one run where it is called; what Ray and Slurm are given."""

    process: subprocess.Popen | None = None

    def __call__(self, run: Planned, folder: Path) -> int:
        """Do the run, or what is left of it; return its exit code."""
        tries = Tries()
        while True:
            while held(folder / run.name):  # one that was left alone by its launcher is still saving
                time.sleep(0.2)
            code = exit_code(folder / run.name)
            if code is None:
                self.process = tries.start(run, folder)
                code = self.process.wait()
            if tries.over(run, folder, code):
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
    """Takes runs. One that cannot be is an InputError when it is made, which touches no file."""

    def begin(self, runs: Sequence[Planned], folder: Path) -> None:
        """Take runs of a sweep; more may come later."""
        ...

    def drop(self, run: Planned) -> None:
        """Let one run save and end, whatever is left of it."""
        ...

    def poll(self) -> list[tuple[Planned, int]]:
        """Return those that have ended since, with their exit codes; begin what can begin."""
        ...

    def stop(self) -> None:
        """Let the runs save and end; return when they have."""
        ...


class Local:
    """Up to `jobs` processes on this machine, one thread each.

    Which cores they take is the kernel's to decide: it knows what else runs here, another sweep perhaps.
    """

    def __init__(self, jobs: int):
        self.jobs = jobs
        self.running: dict[Planned, subprocess.Popen] = {}
        self.waiting: deque[Planned] = deque()
        self.tries = Tries()

    def begin(self, runs: Sequence[Planned], folder: Path) -> None:
        """Take runs of a sweep; more may come later."""
        self.waiting.extend(runs)
        self.folder = folder

    def drop(self, run: Planned) -> None:
        """Let one run save and end."""
        if run in self.waiting:
            self.waiting.remove(run)
        if (process := self.running.pop(run, None)) is not None:
            process.terminate()
            process.wait()

    def poll(self) -> list[tuple[Planned, int]]:
        """Return what has ended; begin what can begin."""
        ended = []
        for run, process in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[run]
            if self.tries.over(run, self.folder, code):
                ended.append((run, code))
            else:
                self.waiting.appendleft(run)
        for _ in range(len(self.waiting)):
            if len(self.running) >= self.jobs:
                break
            run = self.waiting.popleft()
            if held(self.folder / run.name):  # left alone by a launcher that was killed; it is still saving
                self.waiting.append(run)
            else:
                self.running[run] = self.tries.start(run, self.folder)
        return ended

    def stop(self) -> None:
        """Let the runs save and end; return when they have."""
        self.waiting.clear()
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait()


class OnRay:
    """One Ray task a run, of one CPU; Ray tries again elsewhere when a machine is lost."""

    def __init__(self, address: str | None):
        try:
            import ray
        except ImportError:
            raise InputError("--launcher ray: needs Ray, pip install 'hesscale-rl[ray]'") from None
        self.ray = ray
        self.waiting: dict[Any, Planned] = {}
        if address := address or os.environ.get("RAY_ADDRESS"):  # which Ray takes, too
            self._connect(address)
        else:
            self._init(None)

    def _init(self, address: str | None) -> None:
        try:
            self.ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            what = f"--ray-address {address}" if address else "--launcher ray"
            raise InputError(f"{what}: no cluster there ({one_line(error)})") from None

    def _connect(self, address: str) -> None:
        """Connect, or say soon that there is no cluster: Ray itself tries for a long time, deaf to signals."""
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise InputError(f"--ray-address {address}: must be HOST:PORT, of a cluster's head")
        try:
            socket.create_connection((host.strip("[]"), int(port)), PROBE).close()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"--ray-address {address}: nothing answers there ({reason}); is Ray started?") from None
        logging.getLogger("ray").setLevel(logging.ERROR)  # it warns that it leaves SIGTERM to us
        outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def connect() -> None:
            try:
                self._init(address)
                outcome.put(None)
            except BaseException as error:  # handed over, whatever it is
                outcome.put(error)

        threading.Thread(target=connect, daemon=True).start()
        try:
            failed = outcome.get(timeout=CONNECT)
        except queue.Empty:
            problem = f"what answers there is not Ray, or of another version; {CONNECT:.0f} s were waited"
            raise InputError(f"--ray-address {address}: {problem}") from None
        if failed is not None:
            raise failed

    def begin(self, runs: Sequence[Planned], folder: Path) -> None:
        """Take runs of a sweep; more may come later."""
        task = self.ray.remote(num_cpus=1, max_retries=-1)(perform)
        self.waiting |= {task.remote(run, folder): run for run in runs}

    def drop(self, run: Planned) -> None:
        """Cancel a run, which loses its worker, and with it saves and ends."""
        for task in [task for task, other in self.waiting.items() if other == run]:
            self.ray.cancel(task, force=True)
            del self.waiting[task]

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
    """One array of jobs through submitit, at most `jobs` at once; a job whose time is over saves and queues again."""

    def __init__(self, jobs: int | None, cluster: str, options: dict[str, Any]):
        try:
            import submitit
        except ImportError:
            raise InputError(f"--launcher {cluster}: needs submitit, pip install 'hesscale-rl[slurm]'") from None
        parallel = {"slurm_array_parallelism": jobs} if cluster == "slurm" and jobs else {}
        self.cluster, self.options = cluster, {"cpus_per_task": 1, **parallel, **options}
        self.errors = (RuntimeError, NameError, TypeError, ValueError, submitit.core.utils.FailedJobError)
        self.executor = submitit.AutoExecutor
        self.waiting: dict[Planned, Any] = {}
        with tempfile.TemporaryDirectory() as folder:  # which some executors make at once
            self._call(lambda: self._executor(Path(folder)))

    def _call(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except self.errors as error:
            raise InputError(f"--launcher {self.cluster}: {one_line(error)}") from None

    def _executor(self, folder: Path) -> Any:
        executor = self.executor(folder=folder, cluster=self.cluster)
        executor.update_parameters(**self.options)
        return executor

    def begin(self, runs: Sequence[Planned], folder: Path) -> None:
        """Take runs of a sweep; more may come later."""
        executor = self._executor(folder / "slurm")
        handles = self._call(lambda: executor.map_array(Performer(), runs, [folder] * len(runs)) if runs else [])
        self.waiting |= dict(zip(runs, handles, strict=True))

    def drop(self, run: Planned) -> None:
        """Cancel a job; Slurm gives it time to save."""
        with contextlib.suppress(Exception):  # one that has ended meanwhile
            self.waiting.pop(run).cancel()

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
