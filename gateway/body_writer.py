"""How a stream's frames reach the client: past the ASGI layers where the server allows it.

Awaiting `send` through every layer costs more than the frame itself, and needs a task to wake for
it. Behind our own protocol class a frame goes from the network's call straight into the socket's
transport; under any other server it waits for the stream's task to send it. Either way a client
that does not read stops its stream: nothing is written that would only fill memory.
"""

from typing import Protocol

from starlette.types import Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_EXTENSION = "shoal.body_writer"


class BodyWriter(Protocol):
    """Writes parts of a response body, after its start and before its last part."""

    def try_write(self, frames: bytes) -> bool:
        """Takes the frames, always. False: no more before `drained` has returned."""
        ...

    async def drained(self) -> None:
        """Returns once more may be written; waits while the client does not read."""
        ...


class TransportWriter:
    """HTTP/1.1 chunks into the connection's transport. The server's cycle still owns the response:
    it wrote the start, and writes the end."""

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport

    def try_write(self, frames: bytes) -> bool:
        if not self._cycle.disconnected:
            self._transport.write(b"%x\r\n%b\r\n" % (len(frames), frames))
        return not self._flow.write_paused

    async def drained(self) -> None:
        if self._flow.write_paused and not self._cycle.disconnected:
            await self._flow.drain()


class SendWriter:
    """Any ASGI server: `drained` sends what was taken."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._frames: list[bytes] = []

    def try_write(self, frames: bytes) -> bool:
        self._frames.append(frames)
        return False

    async def drained(self) -> None:
        body = b"".join(self._frames)
        self._frames.clear()
        if body:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})


class DirectHttpProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, whose scopes say how to write into the connection directly."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: object) -> None:
        cycle.scope["extensions"] = {_EXTENSION: cycle}  # type: ignore[typeddict-item, dict-item]
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]


def body_writer(scope: Scope, send: Send) -> BodyWriter:
    """To be asked for after the response's start: only then is it known how the body is framed."""
    cycle = scope.get("extensions", {}).get(_EXTENSION)
    if isinstance(cycle, RequestResponseCycle) and cycle.chunked_encoding:
        return TransportWriter(cycle)
    return SendWriter(send)
