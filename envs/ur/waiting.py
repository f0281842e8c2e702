"""How long one has waited for another, on a machine that may itself stand still."""

import time

LOOK = 0.02  # s that one look counts at most


class Waiting:
    """The time in which what one waits for could have come.

    A busy or virtual machine sometimes lets no process run for a second. Whoever wakes up first then sees that the
    other has said nothing for so long, though it had no chance to. So what lies between two looks counts as LOOK at
    most, and nobody is given up who was not looked for many times.
    """

    def __init__(self) -> None:
        self._waited, self._looked = 0.0, time.monotonic()

    def look(self) -> float:
        """Return the seconds waited; to be called at every look in vain."""
        now = time.monotonic()
        self._waited += min(now - self._looked, LOOK)
        self._looked = now
        return self._waited
