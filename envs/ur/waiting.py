"""How long one has waited for another, on a machine that may itself stand still."""

from .clock import Clock, HostClock

LOOK = 0.02  # s that one look counts at most


class Waiting:
    """The time in which what one waits for could have come, by the host's clock or another.

    A busy or virtual machine sometimes lets no process run for a second. Whoever wakes up first then sees that the
    other has said nothing for so long, though it had no chance to. So what lies between two looks counts as LOOK at
    most, and nobody is given up who was not looked for many times.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = HostClock() if clock is None else clock
        self._waited, self._looked = 0.0, self._clock.now()

    def look(self) -> float:
        """Return the seconds waited; to be called at every look in vain."""
        now = self._clock.now()
        self._waited += min(now - self._looked, LOOK)
        self._looked = now
        return self._waited
