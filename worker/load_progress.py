"""How far a rank's loading has come, as events for whoever watches the start.

The loader calls it from its own thread, once a piece; an event goes out once a second at most, and
at the end of a load that took longer: what follows, such as packing, then shows as all read.
"""

import time
from collections.abc import Callable

from worker.startup_events import StartupEvents

_INTERVAL_S = 1.0
_GIB = 1 << 30


class LoadProgress:
    """Owned by the thread that loads. Call it with the bytes done and the bytes in all."""

    def __init__(
        self, events: StartupEvents, phase: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._events = events
        self._phase = phase
        self._clock = clock
        self._started_s = self._told_s = clock()
        self.gib_per_s = 0.0  # until now

    def __call__(self, done: int, total: int) -> None:
        now_s = self._clock()
        self.gib_per_s = done / _GIB / max(now_s - self._started_s, 1e-6)
        is_last_of_several = done == total and self._told_s != self._started_s
        if now_s - self._told_s < _INTERVAL_S and not is_last_of_several:
            return
        self._told_s = now_s
        message = f"{done / _GIB:.2f} of {total / _GIB:.2f} GiB at {self.gib_per_s:.2f} GiB/s"
        self._events.progress(self._phase, message, done / total)
