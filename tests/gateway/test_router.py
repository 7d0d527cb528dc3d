"""Requests through the whole network side over real gRPC: placed, streamed, moved, refused, given
up."""

import asyncio
from dataclasses import fields

import pytest

from gateway.cluster_view import LiveClusterView
from gateway.errors import (
    APIError,
    DeadlineError,
    EngineError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
)
from gateway.routed_stream import MAX_PENDING_DELTAS, RoutedStream
from gateway.router import Router, RoutingLimits
from gateway.scheduler_client import SchedulerClient, SchedulerTimings
from gateway.tokens import Grammar, TokenDelta, TokenLogprobs, TokenRequest
from gateway.worker_client import WorkerPool
from gateway.worker_connection import ConnectionTimings
from protos import common_pb2, scheduler_pb2
from protos.block_hash import hash_full_blocks, pack, root_hash
from tests.fakes import (
    EOS,
    FakeCluster,
    FakeWorker,
    collect,
    expected_tokens,
    model_card,
    read,
    token_request,
    tokens_of,
    until,
)

QUICK = ConnectionTimings(silence_timeout_s=0.3)
IMPATIENT = RoutingLimits(first_window_s=0.2, resume_window_s=0.4, retry_pause_s=0.02)


async def complete(cluster: FakeCluster, request: TokenRequest) -> list[int]:
    return tokens_of(await collect(await cluster.router.start(request)))


def undisturbed(request: TokenRequest) -> list[int]:
    sampling = request.sampling
    return expected_tokens(request.prompt_token_ids, sampling.seed, sampling.max_tokens)


def requests(count: int, max_tokens: int) -> list[TokenRequest]:
    return [
        token_request(f"req-{i}", [i % 7, 3, i], seed=i, max_tokens=max_tokens)
        for i in range(count)
    ]


async def assert_nothing_left(cluster: FakeCluster) -> None:
    assert cluster.router.num_live == 0
    assert cluster.pool.num_live == 0
    assert cluster.client.num_pending == 0
    await until(lambda: all(worker.num_live == 0 for worker in cluster.workers))
    await until(lambda: not cluster.router._routings)


async def start_and_step(
    cluster: FakeCluster, many: list[TokenRequest], num_steps: int
) -> list[RoutedStream]:
    """All streams have exactly `num_steps` tokens, and the workers stand still."""
    for worker in cluster.workers:
        worker.hang()
    streams = [await cluster.router.start(r) for r in many]
    await until(lambda: sum(worker.num_live for worker in cluster.workers) == len(many))
    for worker in cluster.workers:
        for _ in range(num_steps):
            worker.step()
    await until(lambda: all(len(s.emitted) == num_steps for s in streams))
    return streams


async def test_request_streams_its_tokens_and_ends() -> None:
    async with FakeCluster() as cluster:
        deltas = await collect(await cluster.router.start(token_request(max_tokens=12)))
        assert tokens_of(deltas) == expected_tokens([5, 6, 7], 0, 12)
        assert [d.finish_reason for d in deltas if d.finish_reason] == ["length"]
        await assert_nothing_left(cluster)


async def test_timing_carries_the_placement_queue() -> None:
    async with FakeCluster() as cluster:
        deltas = await collect(await cluster.router.start(token_request()))
        assert deltas[0].timing is not None
        assert deltas[0].timing.placement_s == 0.25
        assert deltas[0].timing.queue_s == 0.001
        assert deltas[-1].timing is not None


async def test_scheduler_is_asked_with_the_salted_block_hashes() -> None:
    prompt = list(range(3, 3 + 40))
    async with FakeCluster() as cluster:
        request = token_request(prompt=prompt, cache_salt="s", priority=-1, tenant="acme")
        await complete(cluster, request)
        query = cluster.scheduler.queries[0]
        assert query.block_hashes == pack(hash_full_blocks(prompt, 16, root_hash("s")))
        assert (query.num_prompt_tokens, query.max_tokens) == (40, 8)
        assert (query.priority, query.tenant, query.model) == (-1, "acme", "tiny")


async def test_hashing_off_the_loop_gives_the_same() -> None:
    async with FakeCluster(limits=RoutingLimits(inline_hash_tokens=32)) as cluster:
        for salt in ("", "s"):
            await complete(cluster, token_request(prompt=[4] * 64, cache_salt=salt))
            expected = pack(hash_full_blocks([4] * 64, 16, root_hash(salt)))
            assert cluster.scheduler.queries[-1].block_hashes == expected


async def test_logprobs_arrive_with_their_tokens() -> None:
    async with FakeCluster() as cluster:
        request = token_request(max_tokens=3, logprobs=2, prompt_logprobs=1)
        deltas = await collect(await cluster.router.start(request))
        logprobs = [entry for d in deltas for entry in d.logprobs or []]
        assert [entry.token_id for entry in logprobs] == tokens_of(deltas)
        assert [token for token, _ in logprobs[0].top] == [
            logprobs[0].token_id,
            logprobs[0].token_id + 1,
        ]
        prompt = [d.prompt_logprobs for d in deltas if d.prompt_logprobs]
        assert [[e.token_id for e in entries] for entries in prompt] == [[6, 7]]


async def test_two_hundred_streams_get_each_its_own_tokens() -> None:
    async with FakeCluster(num_workers=2) as cluster:
        many = requests(200, 20)
        results = await asyncio.gather(*(complete(cluster, r) for r in many))
        assert results == [undisturbed(r) for r in many]
        await assert_nothing_left(cluster)


async def test_streams_of_a_killed_replica_continue_elsewhere_token_for_token() -> None:
    async with FakeCluster(num_workers=2) as cluster:
        doomed, other = cluster.workers
        many = requests(200, 60)
        streams = await start_and_step(cluster, many, num_steps=5)
        num_doomed = doomed.num_live
        await doomed.kill()
        other.resume()
        results = await asyncio.gather(*(collect(s) for s in streams))
        assert [tokens_of(deltas) for deltas in results] == [undisturbed(r) for r in many]
        assert num_doomed == 100
        moved = [s for s in other.submits if s.emitted_token_ids]
        assert len(moved) == num_doomed
        assert all(q.exclude_replicas == ["r0"] for q in cluster.scheduler.queries[200:])
        await assert_nothing_left(cluster)


async def test_moved_request_keeps_seed_and_limits_and_first_cache_hit() -> None:
    async with FakeCluster(num_workers=2) as cluster:
        first, second = cluster.workers
        second.hang()
        first.hang()
        request = token_request(max_tokens=10, seed=99, min_tokens=4, prompt_logprobs=0)
        stream = await cluster.router.start(request)
        await until(lambda: first.num_live == 1)
        for _ in range(4):
            first.step()
        await until(lambda: len(stream.emitted) == 4)
        await first.kill()
        second.resume()
        deltas = await collect(stream)
        assert tokens_of(deltas) == expected_tokens([5, 6, 7], 99, 10)
        moved = second.submits[0]
        assert list(moved.emitted_token_ids) == expected_tokens([5, 6, 7], 99, 4)
        assert (moved.sampling.seed, moved.sampling.max_tokens) == (99, 10)
        assert moved.sampling.min_tokens == 4
        assert cluster.scheduler.queries[-1].max_tokens == 6
        assert cluster.scheduler.queries[-1].num_prompt_tokens == 7
        assert sum(d.prompt_logprobs is not None for d in deltas) == 1
        assert not moved.sampling.HasField("prompt_logprobs")
        assert deltas[-1].timing is not None
        assert deltas[-1].timing.num_cached_tokens == 0  # not the second leader's 4
        assert deltas[-1].timing.placement_s == 0.5


async def test_silent_replica_loses_its_streams_to_another() -> None:
    async with FakeCluster(2, connection=QUICK, heartbeat_interval_s=0.05) as cluster:
        cluster.workers[0].hang()
        streams = [await cluster.router.start(r) for r in requests(4, 10)]
        await until(lambda: cluster.workers[0].num_live == 2)
        cluster.workers[0].silence()
        results = await asyncio.gather(*(collect(s) for s in streams))
        assert [tokens_of(d) for d in results] == [undisturbed(r) for r in requests(4, 10)]
        assert cluster.router.num_live == 0


async def test_single_replica_that_returns_as_a_new_incarnation_finishes_the_stream() -> None:
    limits = RoutingLimits(retry_pause_s=0.02)
    async with FakeCluster(limits=limits) as cluster:
        worker = cluster.workers[0]
        request = token_request(max_tokens=40)
        (stream,) = await start_and_step(cluster, [request], num_steps=4)
        cluster.scheduler.list_worker(worker, scheduler_pb2.REPLICA_STATE_DEAD)
        await worker.kill()
        await until(lambda: len(cluster.scheduler.queries) > 2)  # refused, and asking again
        worker.epoch = 2
        await worker.start()
        worker.resume()
        cluster.scheduler.list_worker(worker)
        assert tokens_of(await collect(stream)) == expected_tokens([5, 6, 7], 0, 40)


async def test_placement_onto_an_unreachable_replica_is_made_again() -> None:
    async with FakeCluster(num_workers=2) as cluster:
        dead = cluster.workers[0]
        await dead.kill()
        await until(lambda: not is_usable(cluster, 0))
        for request in requests(4, 5):
            assert await complete(cluster, request) == undisturbed(request)


def is_usable(cluster: FakeCluster, index: int) -> bool:
    connection = cluster.pool.find(cluster.view.replicas("tiny")[index].leader)
    return connection is not None and connection.is_usable


async def test_replica_of_another_epoch_is_not_used() -> None:
    async with FakeCluster(num_workers=2) as cluster:
        fenced = cluster.workers[0]
        cluster.scheduler.list_worker(fenced, epoch=9)
        fenced_placements = FakeWorker("r0", epoch=9)
        fenced_placements.port = fenced.port
        cluster.scheduler.place_rule = lambda q: (
            None if "r0" in q.exclude_replicas else fenced_placements
        )
        assert await complete(cluster, token_request()) == undisturbed(token_request())
        assert fenced.submits == []
        assert len(cluster.workers[1].submits) == 1


async def test_request_that_fails_every_leader_without_progress_is_given_up() -> None:
    async with FakeCluster(num_workers=5) as cluster:
        for worker in cluster.workers:
            worker.refusal = common_pb2.Error(code=14, message="rank 1 failed")
        stream = await cluster.router.start(token_request())
        with pytest.raises(UnavailableError, match="rank 1 failed"):
            await collect(stream)
        assert sum(len(worker.submits) for worker in cluster.workers) == 3
        await assert_nothing_left(cluster)


async def test_progress_between_failures_does_not_use_up_the_attempts() -> None:
    async with FakeCluster(num_workers=2) as cluster:
        for worker in cluster.workers:
            worker.hang()
        stream = await cluster.router.start(token_request(max_tokens=7))
        for _ in range(6):
            await until(lambda: any(worker.num_live for worker in cluster.workers))
            running = next(worker for worker in cluster.workers if worker.num_live)
            num_emitted = len(stream.emitted)
            running.step()
            await until(lambda seen=num_emitted: len(stream.emitted) > seen)  # type: ignore[misc]
            await running.kill()
            await running.start()
            running.hang()
            await until(lambda: is_usable(cluster, 0) and is_usable(cluster, 1))
        for worker in cluster.workers:
            worker.resume()
        assert tokens_of(await collect(stream)) == expected_tokens([5, 6, 7], 0, 7)


async def test_stream_with_no_replica_left_fails_after_its_window() -> None:
    async with FakeCluster(limits=IMPATIENT) as cluster:
        worker = cluster.workers[0]
        worker.hang()
        stream = await cluster.router.start(token_request())
        await until(lambda: worker.num_live == 1)
        worker.step()
        await until(lambda: len(stream.emitted) == 1)
        await worker.kill()
        first = await read(stream)
        assert tokens_of(first) == expected_tokens([5, 6, 7], 0, 1)
        with pytest.raises(UnavailableError, match="replica r0 was lost"):
            await read(stream)
        await assert_nothing_left(cluster)


async def test_draining_replica_hands_new_requests_on() -> None:
    async with FakeCluster(num_workers=2) as cluster:
        cluster.workers[0].is_draining = True
        for request in requests(6, 5):
            assert await complete(cluster, request) == undisturbed(request)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (3, InvalidRequestError),
        (4, DeadlineError),
        (5, ModelNotFoundError),
        (8, OverloadedError),
        (13, EngineError),
        (14, UnavailableError),
    ],
)
async def test_schedulers_refusal_becomes_the_clients_answer(
    code: int, error: type[APIError]
) -> None:
    async with FakeCluster(limits=IMPATIENT) as cluster:
        cluster.scheduler.refusal = common_pb2.Error(
            code=code, message="because", field="model", retry_after_s=7.0
        )
        with pytest.raises(error) as caught:
            await cluster.router.start(token_request())
        if error in (OverloadedError, UnavailableError):
            assert caught.value.retry_after_s == 7.0
        if error is InvalidRequestError:
            assert caught.value.param == "model"
        await assert_nothing_left(cluster)


async def test_leaders_refusal_becomes_the_clients_answer() -> None:
    async with FakeCluster() as cluster:
        cluster.workers[0].refusal = common_pb2.Error(code=3, message="no", field="top_k")
        stream = await cluster.router.start(token_request())
        with pytest.raises(InvalidRequestError, match="no") as caught:
            await read(stream)
        assert caught.value.param == "top_k"
        await assert_nothing_left(cluster)


async def test_full_leader_without_an_alternative_is_an_overload() -> None:
    async with FakeCluster(limits=IMPATIENT) as cluster:
        cluster.workers[0].refusal = common_pb2.Error(code=8, message="queue full")
        stream = await cluster.router.start(token_request())
        with pytest.raises(OverloadedError, match="queue full"):
            await read(stream)


async def test_unknown_model_is_refused_without_asking_anyone() -> None:
    async with FakeCluster() as cluster:
        with pytest.raises(ModelNotFoundError):
            await cluster.router.start(token_request(model="other"))
        assert cluster.scheduler.queries == []


async def test_scheduler_down_at_start_is_unavailable_and_then_served() -> None:
    async with FakeCluster() as cluster:
        await cluster.scheduler.stop()
        client = SchedulerClient(cluster.scheduler.address, "gateway-2")
        pool = WorkerPool("gateway-2")
        view = LiveClusterView(client)
        router = Router(client, pool, view)
        await router.open()
        with pytest.raises(UnavailableError, match="no contact"):
            await router.start(token_request())
        await cluster.scheduler.start()
        await until(lambda: view.unhealthy_reason() is None)
        stream = await router.start(token_request())
        assert tokens_of(await collect(stream)) == undisturbed(token_request())
        await router.close()


async def test_streams_do_not_notice_the_schedulers_death_and_new_ones_spread() -> None:
    async with FakeCluster(num_workers=2) as cluster:
        running = await start_and_step(cluster, requests(32, 60), num_steps=3)
        await cluster.scheduler.stop()
        await until(lambda: not cluster.client.is_connected)
        before = [len(worker.submits) for worker in cluster.workers]
        late = [await cluster.router.start(r) for r in requests(20, 30)]
        for worker in cluster.workers:
            worker.resume()
        results = await asyncio.gather(*(collect(s) for s in [*running, *late]))
        expected = [undisturbed(r) for r in [*requests(32, 60), *requests(20, 30)]]
        assert [tokens_of(deltas) for deltas in results] == expected
        taken = [len(w.submits) - n for w, n in zip(cluster.workers, before, strict=True)]
        assert sum(taken) == 20
        assert min(taken) >= 8


async def test_replica_killed_while_the_scheduler_is_down_loses_nothing() -> None:
    async with FakeCluster(num_workers=2, step_interval_s=0.002) as cluster:
        await cluster.scheduler.stop()
        await until(lambda: not cluster.client.is_connected)
        cluster.workers[0].kill_at_step = 15
        many = requests(50, 40)
        results = await asyncio.gather(*(complete(cluster, r) for r in many))
        assert results == [undisturbed(r) for r in many]
        await assert_nothing_left(cluster)


async def test_queued_placement_survives_the_schedulers_death() -> None:
    async with FakeCluster() as cluster:
        cluster.scheduler.is_holding = True
        starting = asyncio.create_task(cluster.router.start(token_request()))
        await until(lambda: len(cluster.scheduler.held) == 1)
        await cluster.scheduler.stop()
        assert tokens_of(await collect(await starting)) == undisturbed(token_request())


async def test_restarted_scheduler_that_knows_nothing_yet_is_bridged() -> None:
    async with FakeCluster() as cluster:
        worker = cluster.workers[0]
        await cluster.scheduler.stop()
        await until(lambda: not cluster.client.is_connected)
        cluster.scheduler.listings.clear()
        await cluster.scheduler.start()
        await until(lambda: cluster.client.is_connected)
        assert await complete(cluster, token_request("a")) == undisturbed(token_request())
        assert cluster.scheduler.queries[-1].request_id == "a"  # asked, and knew no replica
        cluster.scheduler.list_worker(worker)
        assert await complete(cluster, token_request("b")) == undisturbed(token_request())


async def test_silent_scheduler_is_routed_around() -> None:
    scheduling = SchedulerTimings(silence_timeout_s=0.3)
    async with FakeCluster(scheduling=scheduling) as cluster:
        cluster.scheduler.silence()
        assert await complete(cluster, token_request()) == undisturbed(token_request())


async def test_abort_frees_everything_and_ends_the_reader() -> None:
    async with FakeCluster() as cluster:
        worker = cluster.workers[0]
        worker.hang()
        stream = await cluster.router.start(token_request())
        await until(lambda: worker.num_live == 1)
        reading = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
        stream.abort()
        stream.abort()
        assert await reading == [TokenDelta([], "abort")]
        await assert_nothing_left(cluster)
        assert worker.aborted == ["req"]


async def test_abort_after_the_end_changes_nothing() -> None:
    async with FakeCluster() as cluster:
        stream = await cluster.router.start(token_request())
        await collect(stream)
        stream.abort()
        assert stream.take() == []
        assert cluster.workers[0].aborted == []


async def test_two_hundred_vanished_clients_leave_nothing_behind() -> None:
    async with FakeCluster(num_workers=2) as cluster:
        streams = await start_and_step(cluster, requests(200, 1000), num_steps=3)
        for worker in cluster.workers:
            worker.resume()
        for stream in streams:
            stream.abort()
        await assert_nothing_left(cluster)
        assert sum(len(worker.aborted) for worker in cluster.workers) == 200
        assert await complete(cluster, token_request()) == undisturbed(token_request())


async def test_client_that_gives_up_while_queued_leaves_nothing_behind() -> None:
    async with FakeCluster() as cluster:
        cluster.scheduler.is_holding = True
        starting = asyncio.create_task(cluster.router.start(token_request()))
        await until(lambda: len(cluster.scheduler.held) == 1)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert cluster.router.num_live == 0
        await until(lambda: len(cluster.scheduler.cancelled) == 1)
        await assert_nothing_left(cluster)


async def test_abort_while_moving_leaves_nothing_behind() -> None:
    async with FakeCluster() as cluster:
        worker = cluster.workers[0]
        worker.hang()
        stream = await cluster.router.start(token_request())
        await until(lambda: worker.num_live == 1)
        cluster.scheduler.is_holding = True
        await worker.kill()
        await until(lambda: len(cluster.scheduler.held) == 1)
        stream.abort()
        await until(lambda: len(cluster.scheduler.cancelled) == 1)
        await assert_nothing_left(cluster)


async def test_tokens_that_nobody_takes_wait_as_one_delta() -> None:
    async with FakeCluster() as cluster:
        (stream,) = await start_and_step(cluster, [token_request(max_tokens=40)], num_steps=30)
        first, rest = await read(stream)  # the first token comes with its timing
        assert len(first.token_ids) == 1
        assert first.token_ids + rest.token_ids == expected_tokens([5, 6, 7], 0, 30)
        cluster.workers[0].resume()
        deltas = await collect(stream)
        assert [*first.token_ids, *rest.token_ids, *tokens_of(deltas)] == expected_tokens(
            [5, 6, 7], 0, 40
        )


async def test_scores_that_nobody_takes_are_bounded() -> None:
    ended: list[RoutedStream] = []
    async with FakeCluster() as cluster:
        model = cluster.view.model("tiny")
        assert model is not None
        stream = RoutedStream(token_request(logprobs=1), model, lambda *_: None, ended.append)
        scores = [TokenLogprobs(7, -0.5, 1, [])]
        for _ in range(MAX_PENDING_DELTAS + 1):
            assert not ended
            stream.on_output(TokenDelta([7], logprobs=scores))
        assert ended == [stream]
        assert len(stream.take()) == MAX_PENDING_DELTAS + 1
        with pytest.raises(EngineError, match="slowly"):
            stream.take()


async def test_cancelled_read_can_be_repeated() -> None:
    async with FakeCluster() as cluster:
        cluster.workers[0].hang()
        stream = await cluster.router.start(token_request())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await read(stream)
        cluster.workers[0].resume()
        assert tokens_of(await collect(stream)) == undisturbed(token_request())


async def test_deadline_in_the_placement_queue() -> None:
    async with FakeCluster() as cluster:
        cluster.scheduler.is_holding = True
        with pytest.raises(DeadlineError):
            await cluster.router.start(token_request(timeout_s=0.1))
        await until(lambda: len(cluster.scheduler.cancelled) == 1)
        await assert_nothing_left(cluster)


async def test_deadline_in_the_middle_gives_the_tokens_first() -> None:
    async with FakeCluster() as cluster:
        worker = cluster.workers[0]
        worker.hang()
        stream = await cluster.router.start(token_request(timeout_s=0.2))
        await until(lambda: worker.num_live == 1)
        assert 0 < worker.submits[0].timeout_s <= 0.2
        worker.step()
        await until(lambda: stream.is_ended)
        assert tokens_of(await read(stream)) == expected_tokens([5, 6, 7], 0, 1)
        with pytest.raises(DeadlineError):
            await read(stream)
        await assert_nothing_left(cluster)
        assert worker.aborted == ["req"]


async def test_stop_token_ends_the_request_and_is_included() -> None:
    async with FakeCluster(next_token=lambda sequence, num_prompt, seed: EOS) as cluster:
        deltas = await collect(await cluster.router.start(token_request()))
        assert (tokens_of(deltas), deltas[-1].finish_reason) == ([EOS], "stop")


async def test_close_ends_what_runs() -> None:
    async with FakeCluster() as cluster:
        cluster.workers[0].hang()
        stream = await cluster.router.start(token_request())
        await cluster.router.close()
        assert (await read(stream))[-1].finish_reason == "abort"
        await assert_nothing_left(cluster)


async def test_submit_carries_every_field_of_the_request() -> None:
    request = token_request(
        "req-1",
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.125,
        presence_penalty=0.25,
        frequency_penalty=-0.25,
        repetition_penalty=1.5,
        seed=-(2**40),
        min_tokens=2,
        stop_token_ids=(11, 12),
        ignore_eos=True,
        logit_bias=((4, -1.5),),
        allowed_token_ids=(4, 5),
        bad_words=((6,), (7, 8)),
        logprobs=0,
        prompt_logprobs=3,
        grammar=Grammar("lark", 'start: "a"'),
        priority=5,
        tenant="acme",
        cache_salt="salt",
        traceparent="00-ab-cd-01",
    )
    async with FakeCluster() as cluster:
        await complete(cluster, request)
        sent = cluster.workers[0].submits[0]
    assert list(sent.prompt_token_ids) == request.prompt_token_ids
    assert not sent.HasField("timeout_s")
    for name in ("request_id", "priority", "tenant", "cache_salt", "traceparent"):
        assert getattr(sent, name) == getattr(request, name), name
    for field in fields(request.sampling):
        wanted, got = getattr(request.sampling, field.name), getattr(sent.sampling, field.name)
        match field.name:
            case "logit_bias":
                assert dict(got) == dict(wanted)
            case "bad_words":
                assert [tuple(word.token_ids) for word in got] == list(wanted)
            case "stop_token_ids" | "allowed_token_ids":
                assert tuple(got) == wanted
            case "grammar":
                assert (got.kind, got.text) == (common_pb2.Grammar.KIND_LARK, 'start: "a"')
            case _:
                assert sent.sampling.HasField(field.name), field.name  # type: ignore[arg-type]
                assert got == wanted, field.name


async def test_fault_of_the_gateway_itself_is_an_answer_and_not_a_hang() -> None:
    async with FakeCluster(card=model_card(block_size=0)) as cluster:
        with pytest.raises(EngineError):
            await cluster.router.start(token_request())
        await assert_nothing_left(cluster)
