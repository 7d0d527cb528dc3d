"""SchedulerServicer over real gRPC in this process; leaders and gateways are plain stubs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster import wire
from cluster.placement_desk import PlacementDesk
from cluster.servicer import (
    ACK_EVERY,
    CHUNK_BYTES,
    SERVICE_NAME,
    ReplicaNews,
    SchedulerServicer,
    bind_address,
    start_server,
)
from cluster.snapshot_feed import SnapshotFeed
from protos import scheduler_pb2, scheduler_pb2_grpc
from protos.block_hash import pack
from tests.cluster.worlds import World, hashes

DEADLINE_S = 10.0
FILES = {"tokenizer.json": b"t" * (2 * CHUNK_BYTES + 5), "config.json": b"{}", "empty": b""}


@dataclass
class Served:
    world: World
    desk: PlacementDesk
    feed: SnapshotFeed
    servicer: SchedulerServicer
    stub: "scheduler_pb2_grpc.SchedulerAsyncStub"
    channel: grpc.aio.Channel
    ended: list[tuple[str, int]] = field(default_factory=list)
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)

    def publish(self, version: int) -> None:
        state = self.world.registry.snapshot()
        self.feed.publish(wire.cluster_snapshot(state, version, "id", {}))


@asynccontextmanager
async def serve(num_replicas: int = 1) -> AsyncIterator[Served]:
    world = World(num_replicas)
    desk = PlacementDesk(world.registry, world.clock)
    desk.open_queue(world.spec)
    feed = SnapshotFeed()
    ended: list[tuple[str, int]] = []
    has_ended = asyncio.Event()

    def on_end(replica_id: str, epoch: int) -> None:
        ended.append((replica_id, epoch))
        has_ended.set()

    async def files(digest: str) -> dict[str, bytes]:
        if digest == "slow":
            raise TimeoutError
        return {"d": FILES}[digest]

    servicer = SchedulerServicer(world.registry, desk, feed, files, ReplicaNews(on_end))
    port = _free_port()
    server = await start_server(servicer, "127.0.0.1", port)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = scheduler_pb2_grpc.SchedulerStub(channel)
            yield Served(world, desk, feed, servicer, stub, channel, ended, has_ended)
    finally:
        await server.stop(0)


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve() as one:
        yield one


def place(place_id: int, **fields: object) -> scheduler_pb2.PlaceCommand:
    defaults = {"id": place_id, "request_id": f"q{place_id}", "model": "model"}
    values: dict[str, Any] = {**defaults, "num_prompt_tokens": 20, **fields}
    return scheduler_pb2.PlaceCommand(place=scheduler_pb2.PlaceRequest(**values))


def cancel(place_id: int) -> scheduler_pb2.PlaceCommand:
    return scheduler_pb2.PlaceCommand(cancel=scheduler_pb2.CancelPlace(id=place_id))


def report(sequence: int, **fields: object) -> scheduler_pb2.ReplicaReport:
    load = scheduler_pb2.ReplicaLoad(num_blocks=100, num_free_blocks=100, max_num_seqs=4)
    values = {"replica_id": "r0", "epoch": 1, "full": sequence == 1, "load": load, **fields}
    return scheduler_pb2.ReplicaReport(sequence=sequence, **values)  # type: ignore[arg-type]


async def read(call: Any) -> Any:
    """The next message, or EOF. The type stubs of gRPC do not know which."""
    return await call.read()


async def until(served: Served, num_queued: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while served.desk.num_queued("model") != num_queued:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_requests_on_one_stream_are_answered(served: Served) -> None:
    call = served.stub.Place(timeout=DEADLINE_S)
    for place_id in (1, 2):
        await call.write(place(place_id))
        reply = await read(call)
        assert reply.id == place_id
        assert (reply.placement.replica_id, reply.placement.address) == ("r0", "r0:1")
        assert reply.placement.epoch == 1
    await call.done_writing()
    assert await read(call) is grpc.aio.EOF


async def test_questions_of_one_message_are_answered_each(served: Served) -> None:
    call = served.stub.Place(timeout=DEADLINE_S)
    places = scheduler_pb2.PlaceRequests(places=[place(id_).place for id_ in (1, 2, 3)])
    await call.write(scheduler_pb2.PlaceCommand(places=places))
    assert {(await read(call)).id for _ in range(3)} == {1, 2, 3}


async def test_waiting_request_is_answered_when_a_report_brings_room(served: Served) -> None:
    call = served.stub.Place(timeout=DEADLINE_S)
    for place_id in range(1, 6):
        await call.write(place(place_id))
    assert [(await read(call)).id for _ in range(4)] == [1, 2, 3, 4]
    await until(served, 1)
    reports = served.stub.Report(timeout=DEADLINE_S)
    await reports.write(report(1, admitted_request_ids=["q1", "q2", "q3", "q4"]))
    assert (await read(call)).id == 5


async def test_later_answer_may_come_first(served: Served) -> None:
    served.world.registry.fail("r0", 1, "killed")
    call = served.stub.Place(timeout=DEADLINE_S)
    await call.write(place(1))
    await call.write(place(2, model="nothing"))
    reply = await read(call)
    assert (reply.id, reply.refusal.code) == (2, grpc.StatusCode.NOT_FOUND.value[0])
    served.world.add_replica("r0", epoch=2)
    served.servicer.pump()
    reply = await read(call)
    assert (reply.id, reply.placement.epoch) == (1, 2)


async def test_cancelled_request_leaves_the_queue(served: Served) -> None:
    served.world.registry.fail("r0", 1, "killed")
    call = served.stub.Place(timeout=DEADLINE_S)
    await call.write(place(1))
    await until(served, 1)
    await call.write(cancel(1))
    await until(served, 0)


@pytest.mark.parametrize("how", ["cancel", "done_writing"])
async def test_gateway_that_leaves_takes_its_requests_with_it(served: Served, how: str) -> None:
    served.world.registry.fail("r0", 1, "killed")
    call = served.stub.Place(timeout=DEADLINE_S)
    for place_id in (1, 2):
        await call.write(place(place_id))
    await until(served, 2)
    if how == "cancel":
        call.cancel()
    else:
        await call.done_writing()
    await until(served, 0)


async def test_same_ids_of_two_gateways_are_two_requests() -> None:
    async with serve(num_replicas=2) as served:
        calls = [served.stub.Place(timeout=DEADLINE_S) for _ in range(2)]
        for call in calls:
            await call.write(place(1))
        replies = [await read(call) for call in calls]
        assert {reply.placement.replica_id for reply in replies} == {"r0", "r1"}


async def test_repeated_id_ends_the_stream(served: Served) -> None:
    served.world.registry.fail("r0", 1, "killed")
    call = served.stub.Place(timeout=DEADLINE_S)
    await call.write(place(1))
    await call.write(place(1))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read(call)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await until(served, 0)


async def test_broken_hashes_name_their_field(served: Served) -> None:
    call = served.stub.Place(timeout=DEADLINE_S)
    await call.write(place(1, block_hashes=b"short"))
    reply = await read(call)
    assert reply.refusal.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert reply.refusal.field == "block_hashes"


async def test_watcher_gets_the_latest_snapshot_and_every_change(served: Served) -> None:
    served.publish(1)
    served.publish(2)
    watch = served.stub.WatchCluster(scheduler_pb2.WatchClusterRequest(), timeout=DEADLINE_S)
    assert (await read(watch)).version == 2
    served.publish(3)
    snapshot = await read(watch)
    assert snapshot.version == 3
    assert snapshot.deployments[0].replicas[0].state == scheduler_pb2.REPLICA_STATE_READY
    watch.cancel()


async def test_slow_watcher_skips_snapshots() -> None:
    feed = SnapshotFeed()
    feed.publish(scheduler_pb2.ClusterSnapshot(version=1))
    assert (await feed.next(0)).version == 1
    waiting = asyncio.create_task(feed.next(1))
    await asyncio.sleep(0)
    for version in (2, 3, 4):
        feed.publish(scheduler_pb2.ClusterSnapshot(version=version))
    async with asyncio.timeout(DEADLINE_S):
        assert (await waiting).version == 4


async def test_model_files_come_in_chunks(served: Served) -> None:
    files: dict[str, bytes] = {}
    ended = []
    request = scheduler_pb2.GetModelRequest(digest="d")
    async for chunk in served.stub.GetModel(request, timeout=DEADLINE_S):
        assert len(chunk.data) <= CHUNK_BYTES
        files[chunk.name] = files.get(chunk.name, b"") + chunk.data
        ended += [chunk.name] * chunk.last_of_file
    assert files == FILES and ended == list(FILES)


@pytest.mark.parametrize(
    ("digest", "code"),
    [("other", grpc.StatusCode.NOT_FOUND), ("slow", grpc.StatusCode.UNAVAILABLE)],
)
async def test_missing_model_files_are_refused(
    served: Served, digest: str, code: grpc.StatusCode
) -> None:
    request = scheduler_pb2.GetModelRequest(digest=digest)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read(served.stub.GetModel(request, timeout=DEADLINE_S))
    assert refused.value.code() is code


async def test_gap_in_reports_asks_for_a_full_one(served: Served) -> None:
    chain = hashes(3)
    call = served.stub.Report(timeout=DEADLINE_S)
    await call.write(report(1, stored_blocks=pack(chain[:1])))
    ack = await read(call)
    assert (ack.sequence, ack.need_full) == (1, False)
    await call.write(report(3, stored_blocks=pack(chain[2:])))
    ack = await read(call)
    assert (ack.sequence, ack.need_full) == (3, True)
    await call.write(report(4, full=True, stored_blocks=pack(chain)))
    assert not (await read(call)).need_full
    assert served.world.fleet.match(pack(chain), served.world.clock()) == {"r0": 3}


async def test_reports_in_order_are_acknowledged_rarely(served: Served) -> None:
    call = served.stub.Report(timeout=DEADLINE_S)
    for sequence in range(1, 2 * ACK_EVERY + 1):
        await call.write(report(sequence))
    await call.done_writing()
    assert [ack.sequence async for ack in call] == [1, ACK_EVERY, 2 * ACK_EVERY]


@pytest.mark.parametrize(
    ("sender", "code"),
    [
        ({"epoch": 9}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"replica_id": "r9"}, grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_report_of_a_stranger_ends_its_stream(
    served: Served, sender: dict[str, Any], code: grpc.StatusCode
) -> None:
    call = served.stub.Report(timeout=DEADLINE_S)
    await call.write(report(1, **sender))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read(call)
    assert refused.value.code() is code


async def test_broken_report_ends_its_stream(served: Served) -> None:
    call = served.stub.Report(timeout=DEADLINE_S)
    await call.write(report(1, stored_blocks=b"short"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read(call)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_end_of_a_report_stream_is_told_at_once(served: Served) -> None:
    call = served.stub.Report(timeout=DEADLINE_S)
    await call.write(report(1))
    await read(call)
    assert served.ended == []
    call.cancel()
    async with asyncio.timeout(DEADLINE_S):
        await served.has_ended.wait()
    assert served.ended == [("r0", 1)]


async def test_health_and_reflection_answer(served: Served) -> None:
    checks = health_pb2_grpc.HealthStub(served.channel)
    request = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
    answer = await checks.Check(request, timeout=DEADLINE_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    listing = reflection.ServerReflectionInfo(timeout=DEADLINE_S)
    await listing.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = [s.name for s in (await read(listing)).list_services_response.service]
    assert SERVICE_NAME in names


async def test_taken_port_is_an_error(served: Served) -> None:
    taken = _free_port()
    first = await start_server(served.servicer, "127.0.0.1", taken)
    try:
        with pytest.raises(RuntimeError):
            await start_server(served.servicer, "127.0.0.1", taken)
    finally:
        await first.stop(0)


@pytest.mark.parametrize(
    ("host", "bound"),
    [
        ("127.0.0.1", "127.0.0.1:5"),
        ("localhost", "localhost:5"),
        ("10.0.0.9", "0.0.0.0:5"),
        ("head.example", "0.0.0.0:5"),
    ],
)
def test_only_loopback_stays_private(host: str, bound: str) -> None:
    assert bind_address(host, 5) == bound
