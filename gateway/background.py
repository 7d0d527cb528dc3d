"""Tasks that run beside the requests for as long as the gateway does: started, watched, ended.

Knows nothing of what they do. The application, the tenants and TLS keep theirs here.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

log = logging.getLogger(__name__)


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Runs `work` while the block does, and has ended it on leaving. Should it fail before, the log
    says so at once: nobody awaits it."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell_failure)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _tell_failure(task: "asyncio.Task[None]") -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("background task=%s ended", task.get_name(), exc_info=error)
