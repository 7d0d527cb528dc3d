"""What the gateway knows, how long it keeps it, and whether it calls itself healthy."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.cluster_snapshot import ClusterSnapshot, Deployment, Replica, ReplicaAddress
from gateway.cluster_view import LiveClusterView
from gateway.errors import UnavailableError
from gateway.scheduler_client import SchedulerClient
from gateway.wire import model_info
from gateway.worker_client import WorkerPool
from gateway.worker_connection import ConnectionTimings
from protos import scheduler_pb2
from tests.fakes import FakeCluster, FakeScheduler, FakeWorker, model_card, token_request, until


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def replica(replica_id: str = "r0", state: str = "ready") -> Replica:
    return Replica(ReplicaAddress(replica_id, 1, "127.0.0.1:1"), state)  # type: ignore[arg-type]


def snapshot(*deployments: Deployment, scheduler_id: str = "s1") -> ClusterSnapshot:
    return ClusterSnapshot(1, scheduler_id, deployments)


def deployment(name: str, *replicas: Replica, num_desired: int = 1) -> Deployment:
    card = model_card(name, served_names=[name, f"{name}-alias"])
    return Deployment(model_info(card), replicas, num_desired)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def view(clock: Clock) -> LiveClusterView:
    """Fed by hand: its client is never started and there is no pool."""
    return LiveClusterView(SchedulerClient("127.0.0.1:1", "g"), clock=clock)


async def test_models_are_found_by_every_served_name(view: LiveClusterView) -> None:
    assert view.models() == []
    assert view.model("a") is None
    view.apply(snapshot(deployment("a"), deployment("b")))
    assert [m.deployment for m in view.models()] == ["a", "b"]
    found = view.model("b-alias")
    assert found is not None
    assert found.deployment == "b"
    assert view.model("c") is None


async def test_model_facts_come_from_the_card(view: LiveClusterView) -> None:
    view.apply(snapshot(deployment("a")))
    model = view.model("a")
    assert model is not None
    assert (model.max_model_len, model.block_size, model.vocab_size) == (4096, 16, 512)
    assert (model.eos_token_ids, model.max_logprobs) == ((2,), 20)
    assert (model.digest, model.root) == ("digest-of-a", "/models/a")


async def test_without_contact_the_reason_names_the_scheduler(view: LiveClusterView) -> None:
    assert view.unhealthy_reason() == "no contact yet with the cluster scheduler at 127.0.0.1:1"


async def test_empty_cluster_is_unhealthy(view: LiveClusterView) -> None:
    view.apply(snapshot())
    assert view.unhealthy_reason() == "no model is deployed"


async def test_one_ready_replica_is_enough(view: LiveClusterView) -> None:
    view.apply(snapshot(deployment("a", replica("r0", "hung"), replica("r1"))))
    assert view.unhealthy_reason() is None


async def test_every_model_needs_a_replica(view: LiveClusterView) -> None:
    view.apply(snapshot(deployment("a", replica()), deployment("b", num_desired=2)))
    assert view.unhealthy_reason() == "model b has no replica that can serve: 0 of 2 exist"


@pytest.mark.parametrize("state", ["unknown", "starting", "draining", "hung", "dead"])
async def test_replica_states_that_do_not_serve_are_named(
    view: LiveClusterView, state: str
) -> None:
    view.apply(snapshot(deployment("a", replica("r0", state), replica("r1", state))))
    expected = f"model a has no replica that can serve: r0 is {state}; r1 is {state}"
    assert view.unhealthy_reason() == expected


async def test_new_scheduler_that_knows_nothing_yet_changes_nothing(
    view: LiveClusterView, clock: Clock
) -> None:
    view.apply(snapshot(deployment("a", replica()), deployment("b", replica("r1"))))
    view.apply(snapshot(deployment("b"), scheduler_id="s2"))
    assert view.is_rebuilding
    assert view.unhealthy_reason() is None
    assert {m.deployment for m in view.models()} == {"a", "b"}
    assert [r.replica_id for r in view.replicas("b")] == ["r1"]


async def test_new_scheduler_is_believed_after_its_grace(
    view: LiveClusterView, clock: Clock
) -> None:
    view.apply(snapshot(deployment("a", replica())))
    view.apply(snapshot(scheduler_id="s2"))
    clock.now += 10.1
    view.apply(snapshot(scheduler_id="s2"))
    assert view.models() == []


async def test_same_scheduler_is_believed_at_once(view: LiveClusterView) -> None:
    view.apply(snapshot(deployment("a", replica())))
    view.apply(snapshot(deployment("a")))
    assert view.replicas("a") == ()


async def test_what_a_new_scheduler_does_know_replaces_the_old(view: LiveClusterView) -> None:
    view.apply(snapshot(deployment("a", replica("r0"), replica("r1"))))
    view.apply(snapshot(deployment("a", replica("r0", "draining")), scheduler_id="s2"))
    assert [(r.replica_id, r.state) for r in view.replicas("a")] == [("r0", "draining")]


async def test_knowledge_outlives_the_scheduler() -> None:
    async with FakeCluster() as cluster:
        await cluster.scheduler.stop()
        await until(lambda: not cluster.client.is_connected)
        assert cluster.view.model("tiny") is not None
        assert cluster.view.unhealthy_reason() is None


async def test_killed_replica_makes_the_gateway_unhealthy_without_the_scheduler() -> None:
    async with FakeCluster() as cluster:
        await cluster.scheduler.stop()
        await cluster.workers[0].kill()
        await until(lambda: cluster.view.unhealthy_reason() is not None)
        assert "r0 has been out of reach" in str(cluster.view.unhealthy_reason())


async def test_engine_that_stands_still_with_work_pending_is_unhealthy_until_it_steps() -> None:
    timings = ConnectionTimings(hang_timeout_s=60.0)
    async with FakeCluster(connection=timings, heartbeat_interval_s=0.05) as cluster:
        cluster.view._hang_after_s = 0.2
        worker = cluster.workers[0]
        worker.hang()
        await asyncio.sleep(0.3)
        assert cluster.view.unhealthy_reason() is None  # idle is not hung
        stream = await cluster.router.start(token_request(max_tokens=100))
        await until(lambda: cluster.view.unhealthy_reason() is not None)
        assert "r0 is hung: 1 running" in str(cluster.view.unhealthy_reason())
        worker.step()
        await until(lambda: cluster.view.unhealthy_reason() is None)
        stream.abort()


async def test_replica_the_scheduler_calls_hung_is_unhealthy() -> None:
    async with FakeCluster() as cluster:
        cluster.scheduler.list_worker(cluster.workers[0], scheduler_pb2.REPLICA_STATE_HUNG)
        await until(lambda: cluster.view.unhealthy_reason() is not None)
        assert "r0 is hung" in str(cluster.view.unhealthy_reason())


async def test_pool_attached_later_gets_the_snapshot_there_is(view: LiveClusterView) -> None:
    view.apply(snapshot(deployment("a", replica())))
    pool = WorkerPool("g")
    view.attach(pool)
    assert pool.num_connections == 1
    assert "r0 is being connected" in str(view.unhealthy_reason())
    await pool.close()


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    scheduler = FakeScheduler()
    scheduler.list_worker(FakeWorker())
    await scheduler.start()
    yield scheduler
    await scheduler.stop()


@pytest.fixture
async def live_view(scheduler: FakeScheduler) -> AsyncIterator[LiveClusterView]:
    view = LiveClusterView(SchedulerClient(scheduler.address, "g"))
    await view.start()
    await until(lambda: view.has_snapshot)
    yield view
    await view.close()


async def test_files_of_a_digest_are_fetched_once_for_all_who_ask(
    live_view: LiveClusterView, scheduler: FakeScheduler
) -> None:
    scheduler.files["digest-of-tiny"] = {"tokenizer.json": b"{}"}
    answers = await asyncio.gather(*(live_view.model_files("digest-of-tiny") for _ in range(20)))
    assert all(answer == {"tokenizer.json": b"{}"} for answer in answers)
    assert await live_view.model_files("digest-of-tiny") == {"tokenizer.json": b"{}"}
    assert scheduler.num_file_requests == 1


async def test_files_survive_one_askers_cancellation(
    live_view: LiveClusterView, scheduler: FakeScheduler
) -> None:
    scheduler.files["d"] = {"config.json": b"{}"}
    first = asyncio.create_task(live_view.model_files("d"))
    second = asyncio.create_task(live_view.model_files("d"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == {"config.json": b"{}"}
    assert first.cancelled()
    assert scheduler.num_file_requests == 1


async def test_files_that_cannot_be_had_are_asked_for_again_next_time(
    live_view: LiveClusterView, scheduler: FakeScheduler
) -> None:
    with pytest.raises(UnavailableError, match="no files of digest d"):
        await live_view.model_files("d")
    scheduler.files["d"] = {"config.json": b"{}"}
    assert await live_view.model_files("d") == {"config.json": b"{}"}


async def test_cached_files_need_no_scheduler(
    live_view: LiveClusterView, scheduler: FakeScheduler
) -> None:
    scheduler.files["d"] = {"config.json": b"{}"}
    await live_view.model_files("d")
    await scheduler.stop()
    assert await live_view.model_files("d") == {"config.json": b"{}"}
    with pytest.raises(UnavailableError):
        await live_view.model_files("other")
