"""The ClusterScheduler's gRPC face: placements, snapshots, model files and reports.

Translates between streams and the pure desk and registry; decides nothing. No Ray here: the actor
hosts the server, tests run it in their own process.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster import wire
from cluster.placement_desk import PlacementDesk
from cluster.placement_request import Decision, Placed
from cluster.registry import ClusterRegistry, ReportOutcome
from cluster.snapshot_feed import SnapshotFeed
from protos import scheduler_pb2, scheduler_pb2_grpc
from protos.channel import SERVER_OPTIONS

logger = logging.getLogger(__name__)

SERVICE_NAME = scheduler_pb2.DESCRIPTOR.services_by_name["Scheduler"].full_name
CHUNK_BYTES = 1 << 20
# Whose reports are not wanted: the stream ends, so that they pause before they try again.
STRANGERS = {
    ReportOutcome.UNKNOWN: grpc.StatusCode.NOT_FOUND,
    ReportOutcome.FENCED: grpc.StatusCode.FAILED_PRECONDITION,
}
ACK_EVERY = 32  # reports; an acknowledgement in between only when a full report is needed
STOP_GRACE_S = 0.5

ReplyContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Replies = deque[scheduler_pb2.PlaceReply]


@dataclass(frozen=True, slots=True)
class ReplicaNews:
    """What the supervisor wants to hear at once. Calls must not block."""

    report_stream_ended: Callable[[str, int], None]  # (replica_id, epoch)


class PlaceStream:
    """One gateway's standing stream: replies on their way to it. Owned by the scheduler's event
    loop.
    """

    def __init__(self) -> None:
        self._replies: Replies = deque()
        self._is_over = False
        self._wake = asyncio.Event()

    def put(self, reply: scheduler_pb2.PlaceReply) -> None:
        self._replies.append(reply)
        self._wake.set()

    def end(self) -> None:
        self._is_over = True
        self._wake.set()

    async def take(self) -> Replies | None:
        """All replies since the last call; None when the gateway has closed its side."""
        while not self._replies:
            if self._is_over:
                return None
            self._wake.clear()
            await self._wake.wait()
        replies, self._replies = self._replies, deque()
        return replies


# What names a waiting request: its stream and the gateway's own number for it.
Key = tuple[PlaceStream, int]


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServicer):
    """Invariant: every decision goes to the stream that asked, or nowhere if that stream is gone.

    Owned by the event loop of its server.
    """

    def __init__(
        self,
        registry: ClusterRegistry,
        desk: PlacementDesk,
        feed: SnapshotFeed,
        model_files: Callable[[str], Awaitable[Mapping[str, bytes]]],
        news: ReplicaNews,
        exposition: Callable[[], bytes] = bytes,
    ) -> None:
        self._registry = registry
        self._desk = desk
        self._feed = feed
        self._model_files = model_files  # raises KeyError for a digest nobody has
        self._news = news
        self._exposition = exposition

    def pump(self) -> None:
        """Decide what can be decided now. Called after every event and by the control loop."""
        self.deliver(self._desk.pump())

    def deliver(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            stream, place_id = self._key(decision)
            if isinstance(decision, Placed):
                record = self._registry.record(decision.replica_id)
                assert record is not None, "a decision names a replica of this very moment"
                stream.put(wire.placement_reply(place_id, decision, record))
            else:
                stream.put(wire.refusal_reply(place_id, decision))

    @staticmethod
    def _key(decision: Decision) -> Key:
        key = decision.key
        assert isinstance(key, tuple)
        return key

    async def Place(
        self,
        request_iterator: AsyncIterator[scheduler_pb2.PlaceCommand],
        context: ReplyContext,
    ) -> AsyncIterator[scheduler_pb2.PlaceReply]:
        stream = PlaceStream()
        waiting: set[int] = set()
        reader = asyncio.create_task(self._read_commands(request_iterator, stream, waiting))
        try:
            while (replies := await stream.take()) is not None:
                for reply in replies:
                    waiting.discard(reply.id)
                    yield reply
            await reader  # it ended the stream; its exception, if any, ends the call
        except ValueError as e:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        finally:
            reader.cancel()
            # Before anything is awaited: another cancellation may come while the reader ends.
            for place_id in waiting:
                self._desk.cancel((stream, place_id))
            await asyncio.gather(reader, return_exceptions=True)

    async def _read_commands(
        self,
        commands: AsyncIterator[scheduler_pb2.PlaceCommand],
        stream: PlaceStream,
        waiting: set[int],
    ) -> None:
        try:
            async for command in commands:
                match command.WhichOneof("command"):
                    case "cancel":
                        waiting.discard(command.cancel.id)
                        self._desk.cancel((stream, command.cancel.id))
                    case "places":
                        for place in command.places.places:
                            self._place(place, stream, waiting)
                    case _:
                        self._place(command.place, stream, waiting)
        finally:
            stream.end()

    def _place(
        self, message: scheduler_pb2.PlaceRequest, stream: PlaceStream, waiting: set[int]
    ) -> None:
        if message.id in waiting:
            raise ValueError(f"id {message.id} is waiting already")
        waiting.add(message.id)
        request = wire.placement_request(message, (stream, message.id))
        self.deliver(self._desk.offer(message.model, request))
        self.pump()

    async def WatchCluster(
        self, request: scheduler_pb2.WatchClusterRequest, context: ReplyContext
    ) -> AsyncIterator[scheduler_pb2.ClusterSnapshot]:
        version = 0
        while True:
            snapshot = await self._feed.next(after_version=version)
            version = snapshot.version
            yield snapshot

    async def GetModel(
        self, request: scheduler_pb2.GetModelRequest, context: ReplyContext
    ) -> AsyncIterator[scheduler_pb2.ModelFileChunk]:
        try:
            files = await self._model_files(request.digest)
        except KeyError:
            message = f"no model with digest {request.digest!r} is deployed"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
        except TimeoutError:
            message = "no replica handed out its model files in time"
            await context.abort(grpc.StatusCode.UNAVAILABLE, message)
        for name, data in files.items():
            for chunk in file_chunks(name, data):
                yield chunk

    async def GetMetrics(
        self, request: scheduler_pb2.GetMetricsRequest, context: ReplyContext
    ) -> scheduler_pb2.MetricsText:
        return scheduler_pb2.MetricsText(exposition=self._exposition())

    async def Report(
        self,
        request_iterator: AsyncIterator[scheduler_pb2.ReplicaReport],
        context: ReplyContext,
    ) -> AsyncIterator[scheduler_pb2.ReportAck]:
        sender: tuple[str, int] | None = None
        try:
            async for message in request_iterator:
                sender = message.replica_id, message.epoch
                outcome = self._apply(message)
                if outcome in STRANGERS:
                    reason = f"{message.replica_id} epoch {message.epoch}: {outcome.value}"
                    await context.abort(STRANGERS[outcome], reason)
                need_full = outcome is ReportOutcome.NEED_FULL
                if need_full or message.full or message.sequence % ACK_EVERY == 0:
                    yield scheduler_pb2.ReportAck(sequence=message.sequence, need_full=need_full)
        except ValueError as e:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        finally:
            if sender is not None:
                self._news.report_stream_ended(*sender)

    def _apply(self, message: scheduler_pb2.ReplicaReport) -> ReportOutcome:
        outcome = self._registry.apply(wire.replica_report(message))
        self.pump()
        return outcome


def file_chunks(name: str, data: bytes) -> list[scheduler_pb2.ModelFileChunk]:
    """An empty file is one empty chunk."""
    starts = range(0, max(1, len(data)), CHUNK_BYTES)
    return [
        scheduler_pb2.ModelFileChunk(
            name=name,
            data=data[start : start + CHUNK_BYTES],
            last_of_file=start + CHUNK_BYTES >= len(data),
        )
        for start in starts
    ]


def bind_address(host: str, port: int) -> str:
    """A loopback address stays private; any other host is how others reach this machine, and need
    not be an address one of its interfaces has.
    """
    is_loopback = host == "localhost" or host.startswith("127.")
    return f"{host}:{port}" if is_loopback else f"0.0.0.0:{port}"


async def start_server(servicer: SchedulerServicer, host: str, port: int) -> grpc.aio.Server:
    """The Scheduler service with health and reflection, serving. Raises: RuntimeError if the port
    is taken.
    """
    server = grpc.aio.server(options=SERVER_OPTIONS)
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(servicer, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for service in ("", SERVICE_NAME):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    server.add_insecure_port(bind_address(host, port))
    await server.start()
    return server
