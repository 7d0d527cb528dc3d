"""Which requests are running, and whether new ones may come: what a graceful stop needs to know.

The middleware enters and leaves, the server begins the drain and waits, /readyz reads.
"""

import asyncio
from collections.abc import Callable

from gateway.errors import APIError, UnavailableError


class Drain:
    """Owned by the event loop. Invariant: `num_active` counts the entered and not yet left."""

    def __init__(self) -> None:
        self.is_draining = False
        self.num_active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._enders: set[Callable[[APIError], None]] = set()

    def enter(self) -> None:
        self.num_active += 1
        self._idle.clear()

    def leave(self) -> None:
        self.num_active -= 1
        if self.num_active == 0:
            self._idle.set()

    def register(self, end: Callable[[APIError], None]) -> None:
        """`end` breaks a generation off with the given error; for those the deadline cuts short."""
        self._enders.add(end)

    def unregister(self, end: Callable[[APIError], None]) -> None:
        self._enders.discard(end)

    async def run(self, timeout_s: float, grace_s: float = 2.0) -> None:
        """Refuse what is new, let what runs finish; at the deadline end it with an error."""
        self.is_draining = True
        if await self._wait_idle(timeout_s):
            return
        for end in list(self._enders):
            end(UnavailableError("The server shut down before the answer was complete."))
        await self._wait_idle(grace_s)

    async def _wait_idle(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
