"""The memory that an update takes, each measured in a fresh process; scripts/cost.py says what for."""

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
from typing import Any

Job = Callable[[], Callable[[], object]]  # makes an update
Measure = Callable[[Job], float | str]
SECONDS, MIB = 3, 4096  # what the first update may take; a method that takes more is left out


def peak() -> float:
    """Return the largest resident size that this process had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def alone(job: Job) -> float | str:
    """Make an update and run it once; return the rise of the peak resident size, MiB, or what the update is over.

    A process that takes twice SECONDS is ended by a signal.
    """
    update, most = job(), f"over {MIB // 1024} GiB"
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still held would serve the update unseen
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is what is there now
        with open("/proc/self/status") as file:
            held = next(int(line.split()[1]) for line in file if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, ((held << 10) + (MIB << 20),) * 2)
    signal.setitimer(signal.ITIMER_REAL, 2 * SECONDS)
    before, began = peak(), time.perf_counter()
    try:
        update()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):  # torch's own, of what it cannot have
            raise
        return most
    if time.perf_counter() - began > SECONDS:
        return f"over {SECONDS} s"
    rise = peak() - before
    return most if rise > MIB else rise


def serve(pipe: Any, first: Sequence[Job]) -> None:
    """Run every job that comes by the pipe in a process of its own, forked from this one, and send what it gave.

    `first`: jobs to run in this process, so that the forked ones have every compiled loop.
    """
    import torch

    torch.set_num_threads(1)
    for job in first:
        job()
    gc.collect()
    gc.freeze()  # else every process would search, and so copy, all that torch has made
    with contextlib.suppress(EOFError):
        while True:
            job: Job = pipe.recv()
            ours, theirs = os.pipe()
            if (child := os.fork()) == 0:
                try:
                    answer: Any = alone(job)
                except BaseException:
                    answer = RuntimeError(traceback.format_exc())
                os.write(theirs, pickle.dumps(answer))
                os._exit(0)
            os.close(theirs)
            with open(ours, "rb") as file:
                sent = file.read()
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            late = status == -signal.SIGALRM
            ended = f"over {SECONDS} s" if late else RuntimeError(f"a measuring process ended with {status}")
            pipe.send(ended if status else pickle.loads(sent))


@contextlib.contextmanager
def fresh_processes(first: Sequence[Job]) -> Iterator[Measure]:
    """While it lasts, have a function that gives what `alone` gives, from a fresh process; `first` as in `serve`.

    The processes are forked from one that holds nothing but the loaded libraries. Started anew each would take
    seconds to import torch, and begin with the peak of the process that starts it, which exec() hands down.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, first))
    server.start()
    theirs.close()

    def measure(job: Job) -> float | str:
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
