"""One running request as its reader sees it, wherever in the cluster it runs at the moment.

Collects what leaders send, remembers every token so that another leader can continue, and ends
exactly once. Where it runs is the router's decision; this only asks to be moved.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from gateway.errors import APIError, DeadlineError, EngineError
from gateway.refusals import Refusal
from gateway.tokens import ModelInfo, Timing, TokenDelta, TokenRequest
from gateway.worker_connection import WorkerConnection

FailureListener = Callable[["RoutedStream", Refusal], None]
EndListener = Callable[["RoutedStream"], None]

# What waits for a slow client. Plain tokens join one delta, so only those with scores count.
MAX_PENDING_DELTAS = 4096


class RoutedStream:
    """A TokenStream for its reader and a RequestSink for the leader's connection.

    Invariant: `emitted` is exactly what the deltas handed out or pending carry, in order; a stream
    that has ended holds no handle, timer or place in any table. Owned by the event loop.
    """

    def __init__(
        self,
        request: TokenRequest,
        model: ModelInfo,
        on_failure: FailureListener,
        on_end: EndListener,
    ) -> None:
        self.request = request
        self.model = model
        self.emitted: list[int] = []
        self.is_ended = False
        self.excluded: set[str] = set()  # replicas that failed it since its last progress
        self.num_failures = 0  # likewise
        self.placement_s = 0.0
        self._on_failure = on_failure
        self._on_end = on_end
        self._pending: list[TokenDelta] = []
        # Of the last pending delta, while it is nothing but tokens: the next ones join it, so that
        # what waits for a slow client stays small.
        self._open_ids: list[int] | None = None
        self._error: APIError | None = None
        self._listener: Callable[[], None] | None = None
        self._connection: WorkerConnection | None = None
        self._handle = 0
        self._num_emitted_at_failure = 0
        self._num_cached_tokens: int | None = None
        self._has_prompt_logprobs = False
        self._loop = asyncio.get_running_loop()
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        if request.timeout_s is not None:
            self._deadline = self._loop.time() + request.timeout_s
            self._timer = self._loop.call_at(self._deadline, self._expire)

    def listen(self, listener: Callable[[], None] | None) -> None:
        self._listener = listener

    def take(self) -> list[TokenDelta]:
        if not self._pending:
            self.raise_failure()
        elif self._error is not None:
            self._loop.call_soon(self._tell)  # it is still to be taken
        deltas, self._pending = self._pending, []
        self._open_ids = None
        return deltas

    def raise_failure(self) -> None:
        if self._error is not None and not self._pending:
            raise self._error

    def abort(self) -> None:
        if not self.is_ended:
            self.finish(TokenDelta([], "abort"))

    def fail(self, error: APIError) -> None:
        """Tokens that are pending are still read before the error."""
        if not self.is_ended:
            self._error = error
            self._end()

    def finish(self, delta: TokenDelta) -> None:
        self._put(delta)
        self._end()

    def time_left_s(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._loop.time())

    def try_run_on(self, connection: WorkerConnection) -> bool:
        handle = connection.try_submit(
            self._remaining_request(), self.emitted, self.time_left_s(), self
        )
        if handle is None:
            return False
        self._connection, self._handle = connection, handle
        return True

    def on_token(self, token_id: int) -> None:
        self.emitted.append(token_id)
        if self._open_ids is None:
            self._open_ids = [token_id]
            self._pending.append(TokenDelta(self._open_ids))
        else:
            self._open_ids.append(token_id)

    def on_message_end(self) -> None:
        if self._listener is not None:
            self._listener()

    def on_output(self, delta: TokenDelta) -> None:
        self.emitted.extend(delta.token_ids)
        if delta.prompt_logprobs is not None:
            self._has_prompt_logprobs = True
        if delta.timing is not None:
            delta = replace(delta, timing=self._total(delta.timing))
        if delta.finish_reason is None:
            self._put(delta)
            if len(self._pending) > MAX_PENDING_DELTAS:
                self.fail(EngineError("The client reads more slowly than its tokens come."))
            return
        self._connection = None  # it has dropped the handle itself
        self.finish(delta)

    def on_failure(self, refusal: Refusal) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        if len(self.emitted) > self._num_emitted_at_failure:
            self._num_emitted_at_failure = len(self.emitted)
            self.num_failures = 0
            self.excluded.clear()
        self.num_failures += 1
        self.excluded.add(connection.leader.replica_id)
        self._on_failure(self, refusal)

    def _remaining_request(self) -> TokenRequest:
        """Prompt logprobs come once, also when a second leader computes the prompt again."""
        if not self._has_prompt_logprobs:
            return self.request
        sampling = replace(self.request.sampling, prompt_logprobs=None)
        return replace(self.request, sampling=sampling)

    def _total(self, timing: Timing) -> Timing:
        """A later leader finds the first one's output cached too; the client's prompt was cached as
        at first."""
        if self._num_cached_tokens is None:
            self._num_cached_tokens = timing.num_cached_tokens
        return replace(
            timing,
            num_cached_tokens=self._num_cached_tokens,
            placement_s=self.placement_s,
            engine="" if self._connection is None else self._connection.leader.replica_id,
        )

    def _expire(self) -> None:
        self.fail(DeadlineError(f"The request was not finished within {self.request.timeout_s} s."))

    def _end(self) -> None:
        self.is_ended = True
        if self._timer is not None:
            self._timer.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort(self._handle)
        self._on_end(self)
        self._tell()

    def _put(self, delta: TokenDelta) -> None:
        self._pending.append(delta)
        self._open_ids = None

    def _tell(self) -> None:
        if self._listener is not None:
            self._listener()
