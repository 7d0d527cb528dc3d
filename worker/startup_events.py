"""What a shard is doing while it starts: phases with sizes and seconds, for whoever watches."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StartupEvents:
    """An append-only list. Written from any thread, read by `since`; a few dozen entries and one a
    second while something long goes on.
    """

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def add(
        self,
        phase: str,
        message: str,
        seconds: float = 0.0,
        done: bool = True,
        fraction: float | None = None,
    ) -> None:
        with self._lock:
            self._events.append(
                {
                    "seq": len(self._events) + 1,
                    "t": time.time(),
                    "phase": phase,
                    "message": message,
                    "seconds": seconds,
                    "done": done,
                    "fraction": fraction,
                }
            )

    def progress(self, phase: str, message: str, fraction: float) -> None:
        """A phase goes on; so much of it is done."""
        self.add(phase, message, done=False, fraction=fraction)

    def since(self, seq: int) -> list[dict[str, Any]]:
        """Events with a larger `seq`, oldest first."""
        with self._lock:
            return self._events[seq:]

    @contextmanager
    def phase(self, phase: str) -> Iterator[list[str]]:
        """Times a block. What the block appends to the list becomes the event's message."""
        started, message = time.monotonic(), list[str]()
        yield message
        self.add(phase, ", ".join(message), time.monotonic() - started)
