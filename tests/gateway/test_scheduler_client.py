"""The control plane's streams: placements matched by id, and a scheduler that comes and goes."""

import asyncio
import os
from collections.abc import AsyncIterator

import grpc
import pytest

from gateway.cluster_snapshot import ClusterSnapshot
from gateway.refusals import Code, Refusal
from gateway.scheduler_client import SchedulerClient, SchedulerTimings, SchedulerUnreachable
from gateway.wire import Placement, PlacementQuery
from protos import common_pb2
from tests.fakes import FakeScheduler, FakeWorker, until

QUICK = SchedulerTimings(connect_timeout_s=5.0, silence_timeout_s=0.3, model_files_timeout_s=5.0)


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    scheduler = FakeScheduler(snapshot_interval_s=0.05)
    for name in ("r0", "r1"):
        scheduler.list_worker(FakeWorker(name))
    await scheduler.start()
    yield scheduler
    await scheduler.stop()


@pytest.fixture
async def client(scheduler: FakeScheduler) -> AsyncIterator[SchedulerClient]:
    client = SchedulerClient(scheduler.address, "gateway-1", QUICK)
    await client.start()
    await until(lambda: client.is_connected)
    yield client
    await client.close()


def query(request_id: str = "req") -> PlacementQuery:
    return PlacementQuery(request_id, "tiny", b"", 3, 8)


async def test_placement_names_leader_epoch_and_queue_time(client: SchedulerClient) -> None:
    placement = await client.place(query(), 5.0)
    assert isinstance(placement, Placement)
    assert (placement.leader.replica_id, placement.leader.epoch) == ("r0", 1)
    assert placement.queue_s == 0.25
    assert client.num_pending == 0


async def test_query_carries_everything_the_scheduler_decides_by(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    full = PlacementQuery("req-9", "tiny", b"h" * 32, 40, 7, -2, "acme", 1.5, ("r0",))
    await client.place(full, 5.0)
    sent = scheduler.queries[0]
    assert (sent.request_id, sent.model, sent.block_hashes) == ("req-9", "tiny", b"h" * 32)
    assert (sent.num_prompt_tokens, sent.max_tokens, sent.priority) == (40, 7, -2)
    assert (sent.tenant, sent.timeout_s, list(sent.exclude_replicas)) == ("acme", 1.5, ["r0"])


async def test_replies_out_of_order_reach_their_callers(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    scheduler.is_holding = True
    names = [f"req-{i}" for i in range(10)]
    calls = [asyncio.create_task(client.place(query(name), 5.0)) for name in names]
    await until(lambda: len(scheduler.held) == 10)
    for held in reversed(scheduler.held):
        held.answer(FakeWorker("worker-of-" + held.request.request_id))
    placed = await asyncio.gather(*calls)
    leaders = [p.leader.replica_id for p in placed if isinstance(p, Placement)]
    assert leaders == ["worker-of-" + name for name in names]


async def test_refusal_keeps_code_field_and_advice(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    scheduler.refusal = common_pb2.Error(code=8, message="full", field="f", retry_after_s=4.0)
    assert await client.place(query(), 5.0) == Refusal(Code.RESOURCE_EXHAUSTED, "full", "f", 4.0)


async def test_caller_that_gives_up_cancels_its_query(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    scheduler.is_holding = True
    call = asyncio.create_task(client.place(query(), 5.0))
    await until(lambda: len(scheduler.held) == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert client.num_pending == 0
    await until(lambda: scheduler.cancelled == [scheduler.held[0].request.id])
    scheduler.held[0].answer(FakeWorker())  # too late, and ignored
    scheduler.is_holding = False
    assert isinstance(await client.place(query(), 5.0), Placement)


async def test_deadline_refuses_and_cancels_the_query(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    scheduler.is_holding = True
    result = await client.place(query(), 0.05)
    assert isinstance(result, Refusal)
    assert result.code == Code.DEADLINE_EXCEEDED
    await until(lambda: len(scheduler.cancelled) == 1)
    assert client.num_pending == 0


async def test_stopped_scheduler_fails_pending_queries_at_once(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    scheduler.is_holding = True
    call = asyncio.create_task(client.place(query(), 60.0))
    await until(lambda: len(scheduler.held) == 1)
    await scheduler.stop()
    with pytest.raises(SchedulerUnreachable):
        await call
    with pytest.raises(SchedulerUnreachable):
        await client.place(query(), 60.0)


async def test_silent_scheduler_counts_as_lost(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    scheduler.silence()
    call = asyncio.create_task(client.place(query(), 60.0))
    with pytest.raises(SchedulerUnreachable):
        await call
    assert not client.is_connected


async def test_restarted_scheduler_is_found_on_its_address(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    seen: list[ClusterSnapshot] = []
    client.on_snapshot(seen.append)
    await scheduler.stop()
    await until(lambda: not client.is_connected)
    await scheduler.start()
    await until(lambda: client.is_connected)
    assert seen[-1].scheduler_id == "scheduler-2"
    assert isinstance(await client.place(query(), 5.0), Placement)


async def test_client_that_starts_first_connects_when_the_scheduler_comes(
    scheduler: FakeScheduler,
) -> None:
    await scheduler.stop()
    client = SchedulerClient(scheduler.address, "gateway-1", QUICK)
    await client.start()
    with pytest.raises(SchedulerUnreachable):
        await client.place(query(), 5.0)
    await scheduler.start()
    await until(lambda: client.is_connected)
    await client.close()
    await until(lambda: scheduler.num_place_streams == 0)


async def test_change_brings_a_snapshot_at_once(scheduler: FakeScheduler) -> None:
    scheduler.snapshot_interval_s = 60.0
    client = SchedulerClient(scheduler.address, "gateway-1")
    seen: list[ClusterSnapshot] = []
    client.on_snapshot(seen.append)
    await client.start()
    await until(lambda: len(seen) == 1)
    scheduler.list_worker(FakeWorker("r2"))
    await until(lambda: len(seen) == 2)
    assert [r.replica_id for r in seen[-1].replicas()] == ["r0", "r1", "r2"]
    await client.close()


async def test_model_files_come_whole_over_many_chunks(
    client: SchedulerClient, scheduler: FakeScheduler
) -> None:
    files = {"tokenizer.json": os.urandom(300_000), "chat_template.jinja": b""}
    scheduler.files["abc"] = files
    assert await client.model_files("abc") == files


async def test_unknown_digest_is_an_error(client: SchedulerClient) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="no files of digest"):
        await client.model_files("nope")
