"""Uvicorn with a graceful end: SIGTERM refuses new work, lets running streams finish, then stops.

Uvicorn alone would close its listening socket at once, and probes and clients would see refused
connections instead of a 503 that tells them to go elsewhere.
"""

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn

from gateway.drain import Drain

logger = logging.getLogger(__name__)


class GatewayServer(uvicorn.Server):
    """The first signal drains, the second stops at once. Owned by the event loop that serves."""

    def __init__(self, config: uvicorn.Config, drain: Drain, shutdown_timeout_s: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._shutdown_timeout_s = shutdown_timeout_s
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_draining(self) -> bool:
        return self._draining is not None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await super().serve(sockets)
        finally:
            if self._draining is not None:
                self._draining.cancel()
                await asyncio.gather(self._draining, return_exceptions=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In a signal handler: only tell the loop. Uvicorn would remember the signal and raise it
        again at the end; without that, a clean stop ends with status 0."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.begin_shutdown, signal.Signals(sig).name)

    def begin_shutdown(self, why: str) -> None:
        if self._draining is None:
            logger.info("draining why=%s active=%d", why, self._drain.num_active)
            self._draining = asyncio.get_running_loop().create_task(self._stop())
        else:
            self.should_exit = self.force_exit = True

    async def _stop(self) -> None:
        await self._drain.run(self._shutdown_timeout_s)
        self.should_exit = True
