"""Calls that may never come back, made so that nobody has to wait for them."""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any


class Calls:
    """One call at a time, in a thread of its own, which is left behind where a call does not come back.

    ur_rtde waits for answers of its own program on the robot: by spinning, for seconds, and for minutes where another
    program runs there in its place. Who watches the robot must neither wait nor spin with it.
    """

    def __init__(self) -> None:
        self._wanted: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._came: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        self._result: tuple[Any, Exception | None] = (None, None)
        self.busy = False
        threading.Thread(target=self._work, name="ur-calls", daemon=True).start()

    def _work(self) -> None:
        while True:
            call = self._wanted.get()
            try:
                self._came.put((call(), None))
            except Exception as error:
                self._came.put((None, error))

    def begin(self, call: Callable[[], Any]) -> None:
        """Make this call; the one before must have come back."""
        assert not self.busy
        self.busy = True
        self._wanted.put(call)

    def done(self, seconds: float) -> bool:
        """Return whether the call has come back, having waited for it at most so long."""
        if self.busy:
            try:
                self._result = self._came.get(timeout=seconds)
            except Empty:
                return False
            self.busy = False
        return True

    def result(self) -> Any:
        """Return what the call returned; raise what it raised."""
        value, error = self._result
        if error is not None:
            raise error
        return value
