"""The streams to leaders: dispatch, aborts, and every way of losing one."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator

import pytest

from gateway.cluster_snapshot import ClusterSnapshot, Deployment, Replica, ReplicaAddress
from gateway.refusals import Refusal
from gateway.tokens import TokenDelta
from gateway.wire import model_info
from gateway.worker_client import WorkerPool
from gateway.worker_connection import MAX_HANDLE, ConnectionTimings, WorkerConnection
from protos import common_pb2, worker_pb2
from tests.fakes import FakeWorker, expected_tokens, model_card, token_request, until

QUICK = ConnectionTimings(connect_timeout_s=5.0, silence_timeout_s=0.3, hang_timeout_s=0.3)


class RecordingSink:
    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.deltas: list[TokenDelta] = []
        self.failures: list[Refusal] = []
        self.num_message_ends = 0

    @property
    def num_ends(self) -> int:
        return len(self.failures) + sum(d.finish_reason is not None for d in self.deltas)

    def on_token(self, token_id: int) -> None:
        self.token_ids.append(token_id)

    def on_message_end(self) -> None:
        self.num_message_ends += 1

    def on_output(self, delta: TokenDelta) -> None:
        self.token_ids.extend(delta.token_ids)
        self.deltas.append(delta)

    def on_failure(self, refusal: Refusal) -> None:
        self.failures.append(refusal)


@pytest.fixture
async def worker() -> AsyncIterator[FakeWorker]:
    worker = FakeWorker(heartbeat_interval_s=0.05)
    await worker.start()
    yield worker
    await worker.stop()


@pytest.fixture
async def connection(worker: FakeWorker) -> AsyncIterator[WorkerConnection]:
    connection = WorkerConnection(leader_of(worker), "gateway-1", QUICK)
    connection.start()
    assert await connection.is_ready(5.0)
    yield connection
    await connection.close()


def leader_of(worker: FakeWorker, epoch: int | None = None) -> ReplicaAddress:
    return ReplicaAddress(
        worker.replica_id, worker.epoch if epoch is None else epoch, worker.address
    )


def submit(connection: WorkerConnection, max_tokens: int = 8) -> tuple[int, RecordingSink]:
    sink = RecordingSink()
    handle = connection.try_submit(token_request(max_tokens=max_tokens), [], None, sink)
    assert handle is not None
    return handle, sink


async def test_submitted_request_gets_its_tokens_and_one_end(connection: WorkerConnection) -> None:
    _, sink = submit(connection, max_tokens=20)
    await until(lambda: sink.num_ends > 0)
    assert sink.token_ids == expected_tokens([5, 6, 7], 0, 20)
    assert sink.deltas[-1].finish_reason == "length"
    assert connection.num_live == 0


async def test_requests_submitted_together_are_all_taken(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    sinks = [submit(connection, max_tokens=3)[1] for _ in range(40)]
    await until(lambda: all(sink.num_ends for sink in sinks))
    assert len(worker.submits) == 40
    assert len({each.handle for each in worker.submits}) == 40
    assert all(sink.num_message_ends <= 2 for sink in sinks)  # once a message; none with the end


async def test_abort_before_the_submit_is_written_sends_neither(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    handle, sink = submit(connection)
    connection.abort(handle)
    _, other = submit(connection)
    await until(lambda: other.num_ends > 0)
    assert len(worker.submits) == 1
    assert worker.aborted == []
    assert sink.token_ids == []


async def test_abort_frees_the_request_at_the_leader_and_is_idempotent(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    worker.hang()
    handle, sink = submit(connection)
    await until(lambda: worker.num_live == 1)
    connection.abort(handle)
    connection.abort(handle)
    assert connection.num_live == 0
    await until(lambda: worker.aborted == ["req"])
    assert sink.num_ends == 0


async def test_tokens_that_cross_an_abort_are_dropped(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    worker.hang()
    handle, sink = submit(connection)
    _, other = submit(connection)
    await until(lambda: worker.num_live == 2)
    worker.step()  # for both, on its way while the abort is made
    connection.abort(handle)
    worker.resume()
    await until(lambda: other.num_ends > 0)
    assert sink.token_ids == []
    assert other.token_ids == expected_tokens([5, 6, 7], 0, 8)


async def test_handles_wrap_around_without_touching_live_ones(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    worker.hang()
    first, _ = submit(connection)
    assert first == 1
    connection._handles = itertools.count(MAX_HANDLE)  # next after 0 would be 1
    assert [submit(connection)[0] for _ in range(3)] == [MAX_HANDLE, 0, 2]


async def test_killed_leader_ends_every_request_once(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    worker.hang()
    sinks = [submit(connection)[1] for _ in range(20)]
    await until(lambda: worker.num_live == 20)
    await worker.kill()
    await until(lambda: all(sink.num_ends for sink in sinks))
    assert {len(sink.failures) for sink in sinks} == {1}
    assert sinks[0].failures[0].is_worth_another_replica
    assert connection.num_live == 0
    assert connection.try_submit(token_request(), [], None, sinks[0]) is None


async def test_lost_leader_is_connected_again_when_it_returns(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    await worker.kill()
    await until(lambda: connection.status().phase == "lost")
    assert not await connection.is_ready(5.0)  # does not wait for a leader that was lost
    await worker.start()
    await until(lambda: connection.is_usable)
    _, sink = submit(connection)
    await until(lambda: sink.num_ends > 0)
    assert sink.token_ids == expected_tokens([5, 6, 7], 0, 8)


async def test_silent_leader_is_lost_within_the_silence_timeout(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    worker.hang()
    _, sink = submit(connection)
    await until(lambda: worker.num_live == 1)
    worker.silence()
    await until(lambda: bool(sink.failures), timeout_s=2.0)
    assert "silent" in sink.failures[0].message


async def test_gateway_that_stood_still_itself_does_not_blame_the_leader(
    connection: WorkerConnection,
) -> None:
    time.sleep(2 * QUICK.silence_timeout_s)  # noqa: ASYNC251
    await asyncio.sleep(QUICK.silence_timeout_s / 2)
    assert connection.status().phase == "open"


async def test_heartbeats_keep_an_idle_stream_open(connection: WorkerConnection) -> None:
    await asyncio.sleep(2 * QUICK.silence_timeout_s)
    status = connection.status()
    assert status.phase == "open"
    assert status.silent_s < QUICK.silence_timeout_s
    assert status.stalled_s == 0


async def test_hung_engine_gives_its_requests_back(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    worker.hang()
    _, sink = submit(connection)
    await until(lambda: bool(sink.failures), timeout_s=3.0)
    assert "no step" in sink.failures[0].message
    await until(lambda: worker.aborted == ["req"])


async def test_stalled_time_grows_while_work_is_pending_and_ends_with_a_step(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    worker.hang()
    submit(connection)
    await until(lambda: connection.status().stalled_s > 0.1)
    worker.step()
    await until(lambda: connection.status().stalled_s < 0.1)


async def test_another_epoch_is_fenced_off(worker: FakeWorker) -> None:
    connection = WorkerConnection(leader_of(worker, epoch=7), "gateway-1", QUICK)
    connection.start()
    assert not await connection.is_ready(5.0)
    assert connection.status().phase == "lost"
    assert worker.num_streams == 0
    await connection.close()


async def test_unreachable_address_is_not_waited_for(worker: FakeWorker) -> None:
    leader = leader_of(worker)
    await worker.kill()
    connection = WorkerConnection(leader, "gateway-1", QUICK)
    connection.start()
    assert not await connection.is_ready(5.0)
    await connection.close()


async def test_draining_leader_takes_no_more_requests(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    worker.is_draining = True
    await until(lambda: not connection.is_usable)
    assert connection.try_submit(token_request(), [], None, RecordingSink()) is None


async def test_refused_submit_reaches_its_sink_with_code_and_field(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    worker.refusal = common_pb2.Error(code=3, message="top_p is 2", field="top_p")
    _, sink = submit(connection)
    await until(lambda: sink.num_ends > 0)
    assert sink.failures == [Refusal(3, "top_p is 2", "top_p")]
    assert connection.num_live == 0


async def test_request_the_leader_aborts_is_given_back(connection: WorkerConnection) -> None:
    handle, sink = submit(connection)
    step = worker_pb2.StepOutputs()
    step.outputs.add(handle=handle, finish_reason=common_pb2.FINISH_REASON_ABORT)
    connection._on_step(step, 0.0)
    assert sink.failures[0].is_worth_another_replica


async def test_closing_gives_the_requests_back(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    worker.hang()
    _, sink = submit(connection)
    await connection.close()
    assert sink.num_ends == 1
    await until(lambda: worker.num_streams == 0)


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool("gateway-1", QUICK)
    yield pool
    await pool.close()
    assert pool.num_connections == 0


def snapshot_of(*replicas: Replica) -> ClusterSnapshot:
    return ClusterSnapshot(1, "s", (Deployment(model_info(model_card()), replicas),))


async def test_pool_connects_replicas_as_they_become_ready(
    pool: WorkerPool, worker: FakeWorker
) -> None:
    leader = leader_of(worker)
    pool.follow(snapshot_of(Replica(leader, "starting")))
    assert pool.status(leader) is None
    pool.follow(snapshot_of(Replica(leader, "ready")))
    assert await pool.connection(leader).is_ready(5.0)
    assert worker.num_streams == 1


@pytest.mark.parametrize("state", ["hung", "dead"])
async def test_pool_gives_up_a_replica_that_is_fenced(
    pool: WorkerPool, worker: FakeWorker, state: str
) -> None:
    leader = leader_of(worker)
    connection = pool.connection(leader)
    assert await connection.is_ready(5.0)
    worker.hang()
    _, sink = submit(connection)
    pool.follow(snapshot_of(Replica(leader, state)))  # type: ignore[arg-type]
    await until(lambda: bool(sink.failures))
    assert pool.num_connections == 0


async def test_pool_keeps_a_draining_replica(pool: WorkerPool, worker: FakeWorker) -> None:
    leader = leader_of(worker)
    assert await pool.connection(leader).is_ready(5.0)
    _, sink = submit(pool.connection(leader))
    pool.follow(snapshot_of(Replica(leader, "draining")))
    await until(lambda: sink.num_ends > 0)
    assert not sink.failures


async def test_pool_keeps_a_forgotten_replica_until_its_requests_end(
    pool: WorkerPool, worker: FakeWorker
) -> None:
    leader = leader_of(worker)
    assert await pool.connection(leader).is_ready(5.0)
    worker.hang()
    handle, _ = submit(pool.connection(leader))
    pool.follow(snapshot_of())
    assert pool.num_connections == 1
    pool.connection(leader).abort(handle)
    pool.follow(snapshot_of())
    assert pool.num_connections == 0


async def test_pool_replaces_an_older_epoch_but_not_a_newer_one(
    pool: WorkerPool, worker: FakeWorker
) -> None:
    worker.epoch = 5
    placed_ahead = pool.connection(leader_of(worker))
    older = leader_of(worker, epoch=4)
    pool.follow(snapshot_of(Replica(older, "ready")))
    assert pool.find(leader_of(worker)) is placed_ahead
    pool.follow(snapshot_of(Replica(leader_of(worker), "ready")))
    assert pool.find(older) is None
    assert pool.find(leader_of(worker)) is placed_ahead


async def test_load_estimate_counts_others_as_of_the_last_heartbeat(
    connection: WorkerConnection, worker: FakeWorker
) -> None:
    other = WorkerConnection(leader_of(worker), "gateway-2", QUICK)
    other.start()
    assert await other.is_ready(5.0)
    worker.hang()
    for _ in range(3):
        submit(other)
    await until(lambda: connection.num_requests == 3)
    submit(connection)
    assert connection.num_requests == 4
    await other.close()
