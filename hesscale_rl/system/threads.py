"""Work shared by threads: compiled loops, which need no GIL, then run side by side."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any


class Threads:
    """`number` threads that share work, the calling one among them."""

    def __init__(self, number: int):
        self.number = number
        self._others = ThreadPoolExecutor(number - 1) if number > 1 else None  # its threads begin with their work

    def run(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """Do every job once, whichever thread is free; return what they returned, in their order.

        If jobs raise something, the first of them in that order is raised, when no job runs any more. Not more
        threads than jobs take part, and as many as there are jobs do where jobs wait for each other.
        """
        if self._others is None or len(jobs) == 1:
            return [job() for job in jobs]
        results: list[Any] = [None] * len(jobs)
        errors: dict[int, BaseException] = {}
        following = count()

        def work() -> None:
            while (i := next(following)) < len(jobs):
                try:
                    results[i] = jobs[i]()
                except BaseException as error:
                    errors[i] = error

        others: list[Future[None]] = [self._others.submit(work) for _ in range(min(self.number, len(jobs)) - 1)]
        work()
        for other in others:
            other.result()
        if errors:
            raise errors[min(errors)]
        return results
