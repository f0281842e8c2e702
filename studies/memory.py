"""The memory that updates take, measured in fresh processes; cost.py and supervised_cost.py say what for."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

Job = Callable[[], Any]  # makes an update, which is called without arguments
Measure = Callable[[Job], Any]
SECONDS, MIB = 3, 4096  # what the first update may take; a method that takes more is left out
M_MMAP_THRESHOLD, LARGE = -3, 2**18  # of glibc's malloc.h; bytes


def peak() -> float:
    """Return the largest resident size that this process had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def limit(mib: float) -> float:
    """Let the peak begin anew at what is held now, forbid more than `mib` above it, and return it, MiB."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still held would serve what follows unseen
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is what is there now
        with open("/proc/self/status") as file:
            held = next(int(line.split()[1]) for line in file if line.startswith("VmData:"))
        highest = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, ((held << 10) + int(mib * 2**20), highest))
    return peak()


def keep_nothing() -> None:
    """From now on give every block of LARGE bytes back to the system as soon as it is freed.

    The resident size is then what is held, where it else depends on what malloc keeps for later: for an update of a
    convolutional network that is anything up to as much again. It makes large blocks slow.
    """
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than with glibc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raise MemoryError for torch's own errors of memory that cannot be had."""
    try:
        yield
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise MemoryError(str(error)) from None


def alone(job: Job) -> float | str:
    """Make an update and run it once; return the rise of the peak resident size, MiB, or what the update is over.

    A process that takes twice SECONDS is ended by a signal.
    """
    update, most = job(), f"over {MIB // 1024} GiB"
    before = limit(MIB)
    signal.setitimer(signal.ITIMER_REAL, 2 * SECONDS)
    began = time.perf_counter()
    try:
        with memory_errors():
            update()
    except MemoryError:
        return most
    if time.perf_counter() - began > SECONDS:
        return f"over {SECONDS} s"
    rise = peak() - before
    return most if rise > MIB else rise


def serve(pipe: Any, first: Sequence[Job], how: Measure) -> None:
    """Run how(job) for every job that comes by the pipe, in a process forked from this one, and send what it gave.

    `first`: jobs to run in this process, so that the forked ones have every compiled loop. Where the other end of the
    pipe is gone, the forked process is ended, and this one too.
    """
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process at the other end
    torch.set_num_threads(1)
    for job in first:
        job()
    gc.collect()
    gc.freeze()  # else every process would search, and so copy, all that torch has made
    with contextlib.suppress(EOFError):
        while True:
            job = pipe.recv()
            ours, theirs = os.pipe()
            if (child := os.fork()) == 0:
                try:
                    answer: Any = how(job)
                except BaseException:
                    answer = RuntimeError(traceback.format_exc())
                os.write(theirs, pickle.dumps(answer))
                os._exit(0)
            os.close(theirs)
            gone = pipe in wait([ours, pipe])  # nothing is sent before the answer
            if gone:
                os.kill(child, signal.SIGKILL)
            with open(ours, "rb") as file:
                sent = file.read()
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if gone:
                return
            late = status == -signal.SIGALRM
            ended = f"over {SECONDS} s" if late else RuntimeError(f"a measuring process ended with {status}")
            pipe.send(ended if status else pickle.loads(sent))


@contextlib.contextmanager
def fresh_processes(first: Sequence[Job], how: Measure = alone) -> Iterator[Measure]:
    """While it lasts, have a function that gives what how(job) gives in a fresh process; `first` as in `serve`.

    The processes are forked from one that holds nothing but the loaded libraries. Started anew each would take
    seconds to import torch, and begin with the peak of the process that starts it, which exec() hands down.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, first, how))
    server.start()
    theirs.close()

    def measure(job: Job) -> Any:
        pipe.send(job)
        answer = pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    try:
        yield measure
    finally:
        pipe.close()  # which ends the server
        server.join()
