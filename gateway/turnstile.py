"""Lets requests that arrive together in one by one, so that running streams are served in between.

What a request costs before its first token (parsing, the chat template, encoding) is a stretch of
hundreds of microseconds that nothing interrupts; of thirty requests at once the last stretch would
end before the event loop looked at its sockets again, and every running stream would stand still
for so long. Called by `direct_routes`; knows nothing of requests.
"""

import asyncio
from collections import deque


class Turnstile:
    """One may pass between two looks of the event loop at its sockets. Owned by that loop.

    Who comes alone passes at once; who has to wait passes in the order of arrival.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False

    async def enter(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._is_taken:
            self._is_taken = True
            loop.call_soon(self._turn, loop)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn  # comes with the next turns of the loop; who gives up is passed over

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                loop.call_soon(self._turn, loop)
                return
        self._is_taken = False
