"""How fast a saturated queue moves: what retry advice and hopeless deadlines are judged by."""

import math

TIME_CONSTANT_S = 10.0
MIN_OBSERVED_S = 2.0
MIN_PLACED = 8


class DrainRate:
    """Placements per second of the present busy period; unknown until it has been watched for a
    while.

    Only time with requests left waiting counts: what an idle cluster places says nothing of what it
    could. Exponentially weighted, corrected for the young period. Owned by the placement queue.
    """

    __slots__ = ("_count", "_num_placed", "_start_t", "_updated_t")

    def __init__(self) -> None:
        self._start_t: float | None = None  # None: not saturated
        self._updated_t = 0.0
        self._count = 0.0
        self._num_placed = 0

    def record(self, num_placed: int, is_saturated: bool, now: float) -> None:
        if not is_saturated:
            self._start_t = None
            return
        if self._start_t is None:
            self._start_t, self._updated_t = now, now
            self._count, self._num_placed = 0.0, 0
            return  # what was placed now belongs to the time before
        self._count *= math.exp((self._updated_t - now) / TIME_CONSTANT_S)
        self._count += num_placed
        self._num_placed += num_placed
        self._updated_t = now

    def per_s(self, now: float) -> float | None:
        if self._start_t is None or self._num_placed < MIN_PLACED:
            return None
        elapsed_s = now - self._start_t
        if elapsed_s < MIN_OBSERVED_S:
            return None
        weight_s = TIME_CONSTANT_S * (1.0 - math.exp(-elapsed_s / TIME_CONSTANT_S))
        return self._count * math.exp((self._updated_t - now) / TIME_CONSTANT_S) / weight_s
