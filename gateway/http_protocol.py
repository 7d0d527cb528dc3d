"""The HTTP server's own guard: what a connection may send before a request reaches the application.

Uvicorn's protocol bounds neither the size of a request's head nor the time it takes to come; here
both are, and what is refused or cannot be parsed gets OpenAI's error object, then a closed
connection.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

import msgspec

from gateway.body_writer import DirectHttpProtocol
from gateway.errors import (
    APIError,
    HeadersTooLargeError,
    InvalidRequestError,
    RequestTimeoutError,
)


@dataclass(frozen=True, slots=True)
class HeadLimits:
    max_bytes: int = 64 * 1024  # of the request line and all headers
    max_headers: int = 256
    timeout_s: float = 30.0  # from its first byte to its last


class GuardedHttpProtocol(DirectHttpProtocol):
    """One connection. Invariant: a deadline runs exactly while a head is incomplete."""

    limits: ClassVar[HeadLimits] = HeadLimits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_head = True
        self._head_bytes = 0  # of a head that is incomplete, as they came
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Whoever connects ahead of time and says nothing is asked for nothing, only let go.
        self._deadline = self.loop.call_later(self.timeout_keep_alive, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        # The parser shows a header once it is whole; one that never ends must count as well.
        self._head_bytes += len(data) if self._is_in_head else 0
        super().data_received(data)
        if self._is_in_head and self._head_bytes > self.limits.max_bytes:
            self._refuse(self._too_large(f"{self.limits.max_bytes} bytes"))
        elif self._is_forgotten():
            self._deadline = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _is_forgotten(self) -> bool:
        """Bytes end uvicorn's wait for another request, but an empty line begins none."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        is_waiting = self.timeout_keep_alive_task is not None or self._deadline is not None
        return not (is_answering or is_waiting or self.transport.is_closing())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stop_deadline()
        self._deadline = self.loop.call_later(self.limits.timeout_s, self._expire)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_deadline()
        num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if num_bytes > self.limits.max_bytes:
            self._refuse(self._too_large(f"{self.limits.max_bytes} bytes"))
        elif len(self.headers) > self.limits.max_headers:
            self._refuse(self._too_large(f"{self.limits.max_headers} headers"))
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():  # else: refused, and there is nobody to take it
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_head = True
        self._head_bytes = 0
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # once its buffer is empty, which a client can put off
            self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Whoever has not taken the last answer by now will not be waited for."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequestError("The request is not valid HTTP."))

    def _too_large(self, limit: str) -> APIError:
        return HeadersTooLargeError(f"The request's headers are larger than the limit of {limit}.")

    def _stop_deadline(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    def _expire(self) -> None:
        self._refuse(
            RequestTimeoutError(f"The request did not come within {self.limits.timeout_s:g} s.")
        )

    def _refuse(self, error: APIError) -> None:
        """Only where no answer is under way on the connection; else it just ends."""
        self._stop_deadline()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_plain_answer(error))
        self.transport.close()


def guarded_protocol(limits: HeadLimits) -> type[GuardedHttpProtocol]:
    """For uvicorn's `http` setting, which wants a class."""
    return type("LimitedHttpProtocol", (GuardedHttpProtocol,), {"limits": limits})


def _plain_answer(error: APIError) -> bytes:
    body = msgspec.json.encode(error.body())
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
