"""Fencing tokens: numbers that grow with every incarnation, across restarts of the scheduler
too.
"""

from collections.abc import Callable


class EpochClock:
    """Milliseconds of wall time, but never the same or a smaller number twice.

    A restarted scheduler tells it what it found alive, so that a clock set back does no harm.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._last = 0

    def next(self) -> int:
        self._last = max(self._last + 1, int(self._wall_clock() * 1000))
        return self._last

    def observe(self, epoch: int) -> None:
        self._last = max(self._last, epoch)
