"""A ClusterScheduler without a cluster: the Scheduler service over real gRPC, its answers under
test control.

Places round robin over the workers it was given, or by a script; can refuse, hold replies back,
fall silent, stop, and come back on the same port as another incarnation.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from protos import common_pb2, scheduler_pb2, scheduler_pb2_grpc
from protos.channel import SERVER_OPTIONS
from tests.fake_worker import FakeWorker

PlaceRule = Callable[[scheduler_pb2.PlaceRequest], "FakeWorker | common_pb2.Error | None"]
ReplicaState: TypeAlias = "scheduler_pb2.ReplicaState.ValueType"
GetModelContext: TypeAlias = (
    "grpc.aio.ServicerContext[scheduler_pb2.GetModelRequest, scheduler_pb2.ModelFileChunk]"
)
Outbox = asyncio.Queue[scheduler_pb2.PlaceReply]

CHUNK_BYTES = 64 * 1024


@dataclass(eq=False)
class Listing:
    worker: FakeWorker
    epoch: int
    state: ReplicaState = scheduler_pb2.REPLICA_STATE_READY


@dataclass(eq=False)
class HeldQuery:
    """A query whose answer the test gives."""

    request: scheduler_pb2.PlaceRequest
    outbox: Outbox

    def answer(self, result: FakeWorker | common_pb2.Error) -> None:
        self.outbox.put_nowait(_reply(self.request, result))


class FakeScheduler(scheduler_pb2_grpc.SchedulerServicer):
    """Runs on the loop that started it."""

    def __init__(self, *, snapshot_interval_s: float = 1.0) -> None:
        self.files: dict[str, dict[str, bytes]] = {}  # digest -> name -> content
        self.snapshot_interval_s = snapshot_interval_s
        self.listings: dict[str, Listing] = {}
        self.cards: list[common_pb2.ModelCard] = []  # deployments beside those of the workers
        self.place_rule: PlaceRule | None = None
        self.refusal: common_pb2.Error | None = None  # answers every query
        self.is_holding = False
        self.held: list[HeldQuery] = []
        self.queries: list[scheduler_pb2.PlaceRequest] = []
        self.cancelled: list[int] = []
        self.reports: list[scheduler_pb2.ReplicaReport] = []
        self.exposition = b""  # the control plane's metrics
        self.num_file_requests = 0
        self.num_place_streams = 0
        self.scheduler_id = "scheduler-0"
        self.port = 0
        self._incarnations = itertools.count(1)
        self._versions = itertools.count(1)
        self._turn = itertools.count()
        self._changes: set[asyncio.Event] = set()
        self._is_silent = False
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """On a new port, or as a new incarnation on the old one."""
        self.scheduler_id = f"scheduler-{next(self._incarnations)}"
        self._versions = itertools.count(1)
        self._is_silent = False
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        """Streams break off at once. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace=None)

    def silence(self) -> None:
        """Like a stopped process: connections stay, nothing comes."""
        self._is_silent = True

    def list_worker(
        self,
        worker: FakeWorker,
        state: ReplicaState = scheduler_pb2.REPLICA_STATE_READY,
        epoch: int | None = None,
    ) -> None:
        """Adds the worker or changes what is said of it. `epoch`: as the scheduler believes it to
        be."""
        self.listings[worker.replica_id] = Listing(
            worker, worker.epoch if epoch is None else epoch, state
        )
        self.publish()

    def unlist(self, worker: FakeWorker) -> None:
        self.listings.pop(worker.replica_id, None)
        self.publish()

    def publish(self) -> None:
        for change in self._changes:
            change.set()

    def snapshot(self) -> scheduler_pb2.ClusterSnapshot:
        snapshot = scheduler_pb2.ClusterSnapshot(
            version=next(self._versions), scheduler_id=self.scheduler_id
        )
        cards = {card.deployment: card for card in self.cards}
        cards |= {x.worker.card.deployment: x.worker.card for x in self.listings.values()}
        for name, card in cards.items():
            replicas = [
                _replica(x) for x in self.listings.values() if x.worker.card.deployment == name
            ]
            snapshot.deployments.add(
                model=card, num_desired_replicas=len(replicas), replicas=replicas
            )
        return snapshot

    async def GetMetrics(
        self, request: scheduler_pb2.GetMetricsRequest, context: object
    ) -> scheduler_pb2.MetricsText:
        return scheduler_pb2.MetricsText(exposition=self.exposition)

    async def Place(
        self,
        request_iterator: AsyncIterator[scheduler_pb2.PlaceCommand],
        context: object,
    ) -> AsyncIterator[scheduler_pb2.PlaceReply]:
        outbox: Outbox = asyncio.Queue()
        reader = asyncio.create_task(self._read(request_iterator, outbox))
        self.num_place_streams += 1
        try:
            while True:
                reply = await outbox.get()
                if not self._is_silent:
                    yield reply
        finally:
            self.num_place_streams -= 1
            reader.cancel()

    async def _read(
        self, commands: AsyncIterator[scheduler_pb2.PlaceCommand], outbox: Outbox
    ) -> None:
        async for command in commands:
            if command.HasField("cancel"):
                self.cancelled.append(command.cancel.id)
                continue
            places = [command.place] if command.HasField("place") else command.places.places
            for place in places:
                self._on_query(place, outbox)

    def _on_query(self, query: scheduler_pb2.PlaceRequest, outbox: Outbox) -> None:
        self.queries.append(query)
        if self.is_holding:
            self.held.append(HeldQuery(query, outbox))
        else:
            outbox.put_nowait(_reply(query, self._choose(query)))

    def _choose(self, request: scheduler_pb2.PlaceRequest) -> FakeWorker | common_pb2.Error:
        if self.refusal is not None:
            return self.refusal
        if self.place_rule is not None and (choice := self.place_rule(request)) is not None:
            return choice
        ready = [
            x.worker
            for x in self.listings.values()
            if x.state == scheduler_pb2.REPLICA_STATE_READY
            and request.model in x.worker.card.served_names
            and x.worker.replica_id not in request.exclude_replicas
        ]
        if not ready:
            return common_pb2.Error(code=14, message="no replica is ready")
        return ready[next(self._turn) % len(ready)]

    async def WatchCluster(
        self, request: scheduler_pb2.WatchClusterRequest, context: object
    ) -> AsyncIterator[scheduler_pb2.ClusterSnapshot]:
        change = asyncio.Event()
        self._changes.add(change)
        try:
            while True:
                change.clear()
                if not self._is_silent:
                    yield self.snapshot()
                await _wait(change, self.snapshot_interval_s)
        finally:
            self._changes.discard(change)

    async def GetModel(
        self,
        request: scheduler_pb2.GetModelRequest,
        context: GetModelContext,
    ) -> AsyncIterator[scheduler_pb2.ModelFileChunk]:
        self.num_file_requests += 1
        files = self.files.get(request.digest)
        if files is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no files of digest {request.digest}")
            return
        for name, content in files.items():
            for start in range(0, max(1, len(content)), CHUNK_BYTES):
                data = content[start : start + CHUNK_BYTES]
                is_last = start + CHUNK_BYTES >= len(content)
                yield scheduler_pb2.ModelFileChunk(name=name, data=data, last_of_file=is_last)

    async def Report(
        self,
        request_iterator: AsyncIterator[scheduler_pb2.ReplicaReport],
        context: object,
    ) -> AsyncIterator[scheduler_pb2.ReportAck]:
        async for report in request_iterator:
            self.reports.append(report)
            yield scheduler_pb2.ReportAck(sequence=report.sequence)


async def _wait(change: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await change.wait()
    except TimeoutError:
        return


def _replica(listing: Listing) -> scheduler_pb2.Replica:
    worker = listing.worker
    return scheduler_pb2.Replica(
        replica_id=worker.replica_id,
        address=worker.address,
        epoch=listing.epoch,
        state=listing.state,
        tp_size=1,
        load=scheduler_pb2.ReplicaLoad(
            num_running=worker.num_live, steps=worker.steps, max_num_seqs=256
        ),
    )


def _reply(
    request: scheduler_pb2.PlaceRequest, result: FakeWorker | common_pb2.Error
) -> scheduler_pb2.PlaceReply:
    if isinstance(result, common_pb2.Error):
        return scheduler_pb2.PlaceReply(id=request.id, refusal=result)
    placement = scheduler_pb2.Placement(
        replica_id=result.replica_id, address=result.address, epoch=result.epoch, queue_s=0.25
    )
    return scheduler_pb2.PlaceReply(id=request.id, placement=placement)
