"""What happens while replicas come up, as numbered events that the launcher shows.

The supervisors write, the scheduler actor hands out. Old events are dropped; numbers go on.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

MAX_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class StartupEvent:
    seq: int
    t: float  # Unix time
    phase: str
    message: str
    seconds: float  # the phase took; 0 while it lasts
    done: bool
    replica_id: str
    fraction: float | None = None  # of a phase that lasts and can tell


class StartupLog:
    """Invariant: sequence numbers start at 1 and have no gaps. Owned by the scheduler's event
    loop.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._events: deque[StartupEvent] = deque(maxlen=MAX_EVENTS)
        self._last_seq = 0

    def add(
        self,
        phase: str,
        message: str,
        replica_id: str = "",
        seconds: float | None = None,
        fraction: float | None = None,
    ) -> None:
        """With `seconds` the phase is done."""
        self._last_seq += 1
        is_done = seconds is not None
        t = self._wall_clock()
        event = StartupEvent(
            self._last_seq, t, phase, message, seconds or 0.0, is_done, replica_id, fraction
        )
        self._events.append(event)

    def since(self, seq: int) -> list[dict[str, object]]:
        return [asdict(event) for event in self._events if event.seq > seq]

    @property
    def last_message(self) -> str:
        return self._events[-1].message if self._events else ""
