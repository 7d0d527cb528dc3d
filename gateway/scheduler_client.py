"""The gateway's end of the control plane: placements, cluster snapshots and model files.

One channel at a time carries the two standing streams, Place and WatchCluster; the scheduler is
reachable while snapshots arrive. Knows no policy: what to do without a scheduler is the router's
business.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from gateway import wire
from gateway.cluster_snapshot import ClusterSnapshot
from gateway.refusals import Code, Refusal
from gateway.standing_stream import OPTIONS, Backoff, Loss, keep_open, keep_writing, run_until_lost
from gateway.wire import Placement, PlacementQuery
from protos import scheduler_pb2, scheduler_pb2_grpc

log = logging.getLogger(__name__)

PlaceCall: TypeAlias = (
    "grpc.aio.StreamStreamCall[scheduler_pb2.PlaceCommand, scheduler_pb2.PlaceReply]"
)
WatchCall: TypeAlias = (
    "grpc.aio.UnaryStreamCall[scheduler_pb2.WatchClusterRequest, scheduler_pb2.ClusterSnapshot]"
)
SnapshotListener = Callable[[ClusterSnapshot], None]


class SchedulerUnreachable(Exception):
    """There is no scheduler to ask, or it was lost before it answered."""


@dataclass(frozen=True, slots=True)
class SchedulerTimings:
    connect_timeout_s: float = 3.0  # a new connection must bring its first snapshot within this
    silence_timeout_s: float = 3.0  # snapshots come every second
    model_files_timeout_s: float = 60.0
    metrics_timeout_s: float = 2.0  # well within a scrape's


class SchedulerClient:
    """Invariant: every pending placement has exactly one future, answered, cancelled or failed by
    the loss of its stream. Owned by the event loop it was started on."""

    def __init__(
        self, address: str, gateway_id: str, timings: SchedulerTimings | None = None
    ) -> None:
        self.address = address
        self._gateway_id = gateway_id
        self._timings = timings or SchedulerTimings()
        self._listeners: list[SnapshotListener] = []
        self._query_ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Placement | Refusal]] = {}
        self._unsent: list[scheduler_pb2.PlaceRequest] = []
        self._cancelled: deque[int] = deque()  # questions taken back
        self._has_commands = asyncio.Event()
        self._is_connected = False
        self._lost_at = 0.0
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Snapshots arrive, so placements are answered."""
        return self._is_connected

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def on_snapshot(self, listener: SnapshotListener) -> None:
        self._listeners.append(listener)

    async def start(self) -> None:
        """Returns at once: connecting goes on in the background. A second call does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(
                keep_open(self._session, self._disconnect, self._backoff)
            )

    async def close(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    async def place(self, query: PlacementQuery, timeout_s: float) -> Placement | Refusal:
        """Raises: SchedulerUnreachable. A caller that is cancelled takes its question back."""
        if not self._is_connected:
            raise SchedulerUnreachable(self.address)
        query_id = next(self._query_ids)
        answer = asyncio.get_running_loop().create_future()
        self._pending[query_id] = answer
        self._unsent.append(wire.place_request(query_id, query))
        self._has_commands.set()
        is_answered = False
        try:
            async with asyncio.timeout(timeout_s):
                result = await answer
            is_answered = True
            return result
        except TimeoutError:
            return Refusal(Code.DEADLINE_EXCEEDED, f"no placement within {timeout_s:.3g} s")
        finally:
            self._pending.pop(query_id, None)
            if not is_answered and self._is_connected:
                self._cancelled.append(query_id)
                self._has_commands.set()

    async def model_files(self, digest: str) -> dict[str, bytes]:
        """By file name. Raises: grpc.aio.AioRpcError, EOFError when a file came incomplete."""
        # A channel of its own: closing the standing one would cancel whoever awaits this.
        async with grpc.aio.insecure_channel(self.address, options=OPTIONS) as channel:
            call = scheduler_pb2_grpc.SchedulerStub(channel).GetModel(
                scheduler_pb2.GetModelRequest(digest=digest),
                timeout=self._timings.model_files_timeout_s,
            )
            files: dict[str, bytearray] = {}
            incomplete: set[str] = set()
            async for chunk in call:
                files.setdefault(chunk.name, bytearray()).extend(chunk.data)
                (incomplete.discard if chunk.last_of_file else incomplete.add)(chunk.name)
        if incomplete:
            raise EOFError(f"incomplete model files: {sorted(incomplete)}")
        return {name: bytes(data) for name, data in files.items()}

    async def metrics(self) -> bytes:
        """Of the whole control plane, for Prometheus. Raises: grpc.aio.AioRpcError."""
        async with grpc.aio.insecure_channel(self.address, options=OPTIONS) as channel:
            reply = await scheduler_pb2_grpc.SchedulerStub(channel).GetMetrics(
                scheduler_pb2.GetMetricsRequest(), timeout=self._timings.metrics_timeout_s
            )
        return bytes(reply.exposition)

    async def _session(self) -> Loss:
        self._lost_at = time.monotonic() + self._timings.connect_timeout_s
        async with grpc.aio.insecure_channel(self.address, options=OPTIONS) as channel:
            stub = scheduler_pb2_grpc.SchedulerStub(channel)
            watch = stub.WatchCluster(
                scheduler_pb2.WatchClusterRequest(gateway_id=self._gateway_id)
            )
            place = stub.Place()
            parts = [self._watch(watch), self._read_replies(place), self._write_commands(place)]
            return await run_until_lost(parts, lambda: self._lost_at)

    async def _watch(self, call: WatchCall) -> None:
        async for message in call:
            self._lost_at = time.monotonic() + self._timings.silence_timeout_s
            if not self._is_connected:
                log.info("scheduler=%s id=%s connected", self.address, message.scheduler_id)
                self._is_connected = True
                self._backoff.reset()
            snapshot = wire.cluster_snapshot(message)
            for listener in self._listeners:
                listener(snapshot)

    async def _read_replies(self, call: PlaceCall) -> None:
        async for reply in call:
            answer = self._pending.pop(reply.id, None)
            if answer is not None and not answer.done():  # else: its caller gave up
                answer.set_result(wire.placement(reply))

    async def _write_commands(self, call: PlaceCall) -> None:
        await keep_writing(self._has_commands, lambda: self._write_queued(call))

    async def _write_queued(self, call: PlaceCall) -> None:
        # Questions first: none is taken back before it has been asked.
        while self._unsent or self._cancelled:
            if self._unsent:
                requests, self._unsent = self._unsent, []
                await call.write(wire.place_command(requests))
            else:
                await call.write(wire.cancel_command(self._cancelled.popleft()))

    def _disconnect(self, reason: str) -> None:
        """Queries die with their stream: a new scheduler knows nothing of them."""
        log.info("scheduler=%s lost: %s", self.address, reason)
        self._is_connected = False
        self._unsent.clear()
        self._cancelled.clear()
        pending, self._pending = self._pending, {}
        for answer in pending.values():
            if not answer.done():
                answer.set_exception(SchedulerUnreachable(self.address))
