"""Puts every request onto a leader and moves it when that leader is lost.

Asks the scheduler for a placement; without a scheduler it chooses on the last snapshot. A moved
request is its prompt plus the tokens it already has, with the same seed, so the client sees a pause
and no seam. The HTTP edge calls `start`; the streams themselves live in gateway/routed_stream.py.
"""

import asyncio
import logging
from dataclasses import dataclass, replace
from random import Random

from gateway.cluster_snapshot import Replica
from gateway.cluster_view import LiveClusterView
from gateway.errors import EngineError, ModelNotFoundError, UnavailableError
from gateway.refusals import Code, Refusal, api_error, unavailable
from gateway.routed_stream import RoutedStream
from gateway.routing_fallback import Candidate, choose_replica
from gateway.scheduler_client import SchedulerClient, SchedulerUnreachable
from gateway.tokens import ModelInfo, TokenDelta, TokenRequest
from gateway.wire import Placement, PlacementQuery
from gateway.worker_client import WorkerPool
from protos.block_hash import hash_full_blocks, pack, root_hash

log = logging.getLogger(__name__)

_NO_ONE_KNOWS = (Code.UNAVAILABLE, Code.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class RoutingLimits:
    max_failures: int = 3  # leaders that may fail a request without a token between
    connect_timeout_s: float = 2.0  # a placement's leader must be connected within this
    placement_timeout_s: float = 600.0  # in the scheduler's queue, for requests without a deadline
    first_window_s: float = 2.0  # how long a new request waits for any replica to be there
    resume_window_s: float = 30.0  # likewise one that has given tokens to its client
    retry_pause_s: float = 0.05
    max_retry_pause_s: float = 1.0
    inline_hash_tokens: int = 16_384  # longer prompts are hashed off the loop


class Router:
    """The TokenRouter of a cluster.

    Invariant: a stream is in `_live` from `start` to its end, and is either on one connection or
    being routed by exactly one task. Owned by the event loop.
    """

    def __init__(
        self,
        scheduler: SchedulerClient,
        pool: WorkerPool,
        view: LiveClusterView,
        limits: RoutingLimits | None = None,
        rng: Random | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._pool = pool
        self._view = view
        self._limits = limits or RoutingLimits()
        self._rng = rng or Random()
        self._live: set[RoutedStream] = set()
        self._routings: dict[RoutedStream, asyncio.Task[None]] = {}
        view.attach(pool)

    @property
    def num_live(self) -> int:
        return len(self._live)

    async def open(self) -> None:
        """Starts the whole network side. Returns at once; the view says when models are there."""
        await self._view.start()

    async def close(self) -> None:
        """Aborts what runs and closes the whole network side."""
        routings = list(self._routings.values())
        for stream in list(self._live):
            stream.abort()
        await asyncio.gather(*routings, return_exceptions=True)
        await self._view.close()
        await self._pool.close()

    async def start(self, request: TokenRequest) -> RoutedStream:
        stream = RoutedStream(request, self._model(request.model), self._on_failure, self._on_end)
        self._live.add(stream)
        routing = self._begin_routing(stream)
        try:
            await asyncio.wait(
                {routing}
            )  # bounded by the request's deadline and the routing limits
        except asyncio.CancelledError:
            stream.abort()
            raise
        stream.raise_failure()
        return stream

    def _model(self, name: str) -> ModelInfo:
        model = self._view.model(name)
        if model is not None:
            return model
        if not self._view.has_snapshot:
            raise UnavailableError(
                "The gateway has no contact with the cluster yet.", retry_after_s=1.0
            )
        raise ModelNotFoundError(name)

    def _begin_routing(
        self, stream: RoutedStream, cause: Refusal | None = None
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(self._route(stream, cause))
        self._routings[stream] = task
        task.add_done_callback(lambda done: self._end_routing(stream, done))
        return task

    def _end_routing(self, stream: RoutedStream, task: asyncio.Task[None]) -> None:
        if self._routings.get(stream) is task:
            del self._routings[stream]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("request_id=%s routing", stream.request.request_id, exc_info=error)
            stream.fail(EngineError("The gateway failed to route the request."))

    def _on_failure(self, stream: RoutedStream, refusal: Refusal) -> None:
        """The stream has just lost its leader, or was refused by it."""
        request = stream.request
        is_mendable = (
            refusal.is_worth_another_replica and stream.num_failures < self._limits.max_failures
        )
        if not is_mendable:
            stream.fail(api_error(_as_asked(refusal, request), request.model))
        elif len(stream.emitted) >= request.sampling.max_tokens:
            stream.finish(TokenDelta([], "length"))  # only the word of its end was lost
        else:
            log.info("request_id=%s moves: %s", request.request_id, refusal.message)
            self._begin_routing(stream, refusal)

    def _on_end(self, stream: RoutedStream) -> None:
        self._live.discard(stream)
        routing = self._routings.get(stream)
        if routing is not None:
            routing.cancel()

    async def _route(self, stream: RoutedStream, cause: Refusal | None) -> None:
        """Until a leader has the request, or the stream has failed."""
        limits, clock = self._limits, asyncio.get_running_loop().time
        window_s = limits.resume_window_s if stream.emitted else limits.first_window_s
        ends_at = clock() + window_s
        pause_s = limits.retry_pause_s
        while True:
            outcome = await self._try_route(stream)
            if outcome is None:
                return
            if outcome.code != Code.UNAVAILABLE or clock() >= ends_at:
                # "Nobody else is there" says less than why the last leader gave the request back.
                reason = cause if cause and outcome.code == Code.UNAVAILABLE else outcome
                stream.fail(api_error(reason, stream.request.model))
                return
            stream.excluded.clear()  # nobody else is there: a replaced incarnation may be next
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, limits.max_retry_pause_s)

    async def _try_route(self, stream: RoutedStream) -> Refusal | None:
        """None: a leader has the request. Every replica that is out of reach is tried once."""
        while True:
            placement = await self._place(stream)
            if isinstance(placement, Refusal):
                return placement
            leader = placement.leader
            connection = self._pool.connection(leader)
            if await connection.is_ready(self._limits.connect_timeout_s):
                stream.placement_s += placement.queue_s
                if stream.try_run_on(connection):
                    return None
            if leader.replica_id in stream.excluded:
                return unavailable(f"Replica {leader.replica_id} cannot be reached.")
            stream.excluded.add(leader.replica_id)

    async def _place(self, stream: RoutedStream) -> Placement | Refusal:
        if self._scheduler.is_connected:
            try:
                outcome = await self._ask_scheduler(stream)
            except SchedulerUnreachable:
                return self._choose_locally(stream)
            if isinstance(outcome, Placement) or not self._is_ignorance(outcome):
                return outcome
        return self._choose_locally(stream)

    def _is_ignorance(self, refusal: Refusal) -> bool:
        """A scheduler that is still rebuilding its state refuses for want of knowledge, not of
        replicas."""
        return self._view.is_rebuilding and refusal.code in _NO_ONE_KNOWS

    async def _ask_scheduler(self, stream: RoutedStream) -> Placement | Refusal:
        request, num_emitted = stream.request, len(stream.emitted)
        query = PlacementQuery(
            request_id=request.request_id,
            model=request.model,
            block_hashes=await self._block_hashes(stream),
            num_prompt_tokens=len(request.prompt_token_ids) + num_emitted,
            max_tokens=request.sampling.max_tokens - num_emitted,
            priority=request.priority,
            tenant=request.tenant,
            timeout_s=stream.time_left_s(),
            exclude_replicas=tuple(sorted(stream.excluded)),
        )
        limit_s = self._limits.placement_timeout_s
        timeout_s = limit_s if query.timeout_s is None else query.timeout_s
        return await self._scheduler.place(query, timeout_s)

    async def _block_hashes(self, stream: RoutedStream) -> bytes:
        token_ids = stream.request.prompt_token_ids + stream.emitted
        block_size, salt = stream.model.block_size, stream.request.cache_salt
        if len(token_ids) < self._limits.inline_hash_tokens:
            return _packed_hashes(token_ids, block_size, salt)
        return await asyncio.to_thread(_packed_hashes, token_ids, block_size, salt)

    def _choose_locally(self, stream: RoutedStream) -> Placement | Refusal:
        candidates = [
            candidate
            for replica in self._view.replicas(stream.request.model)
            if (candidate := self._candidate(replica)) is not None
        ]
        leader = choose_replica(candidates, stream.excluded, self._rng)
        if leader is None:
            return unavailable(f"No replica of `{stream.request.model}` can be reached.")
        return Placement(leader)

    def _candidate(self, replica: Replica) -> Candidate | None:
        if replica.state != "ready":
            return None
        connection = self._pool.find(replica.leader)
        if connection is None or connection.status().phase == "connecting":
            return Candidate(replica, replica.load.num_running + replica.load.num_waiting)
        return Candidate(replica, connection.num_requests) if connection.is_usable else None


def _packed_hashes(token_ids: list[int], block_size: int, cache_salt: str) -> bytes:
    return pack(hash_full_blocks(token_ids, block_size, root_hash(cache_salt)))


def _as_asked(refusal: Refusal, request: TokenRequest) -> Refusal:
    """Names the client's own field where the engine can only say that it was the grammar."""
    grammar = request.sampling.grammar
    if refusal.field != "grammar" or grammar is None or not grammar.param:
        return refusal
    return replace(refusal, field=grammar.param)
