"""The gateway's network side against real leaders: servicer, engine loop and engine; only the model
is fake."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import grpc
import pytest

from gateway.errors import ContextLengthError, InvalidRequestError
from gateway.tokens import Grammar, TokenRequest
from tests.fake_executor import FakeExecutor, generate_alone
from tests.fakes import (
    VOCAB_SIZE,
    FakeCluster,
    FakeWorker,
    collect,
    read,
    token_request,
    tokens_of,
    until,
)
from worker.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import StepPlan, StepResult
from worker.identity import ModelIdentity, ReplicaIdentity
from worker.servicer import WorkerServicer, create_server

BLOCK_SIZE = 16
NUM_BLOCKS = 2048
MAX_MODEL_LEN = 4096
Compute = Callable[[StepPlan], StepResult]


class RealWorker(FakeWorker):
    """Listed like a fake one; its tokens come from an engine."""

    async def start(self) -> None:
        self.executor = FakeExecutor(NUM_BLOCKS, BLOCK_SIZE, VOCAB_SIZE)
        config = EngineConfig(
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=256,
            max_num_batched_tokens=2048,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(),
        )
        self.loop = EngineLoop(Engine(config, self.executor))
        model = ModelIdentity(
            "tiny", ("tiny",), "/models/tiny", "d", MAX_MODEL_LEN, BLOCK_SIZE, VOCAB_SIZE
        )
        servicer = WorkerServicer(self.loop, ReplicaIdentity(self.replica_id, self.epoch, model))
        self.loop.start(servicer.deliver, lambda error: None)
        self.server, self.port = await create_server(servicer, "127.0.0.1")
        self.servicer = servicer

    @property
    def num_streams(self) -> int:
        return self.servicer.num_streams

    @property
    def num_live(self) -> int:
        return self.loop.load.num_running + self.loop.load.num_waiting

    async def kill(self) -> None:
        server: grpc.aio.Server = self.server
        await server.stop(grace=None)
        await asyncio.to_thread(self.loop.stop, False, 5.0)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    cluster = FakeCluster(num_workers=0)
    cluster.workers = [RealWorker("r0"), RealWorker("r1")]
    async with cluster:
        yield cluster


def undisturbed(request: TokenRequest) -> list[int]:
    sampling = SamplingParams(request.sampling.max_tokens, seed=request.sampling.seed)
    return generate_alone(request.prompt_token_ids, sampling, VOCAB_SIZE, MAX_MODEL_LEN)


def many() -> list[TokenRequest]:
    return [
        token_request(f"req-{i}", list(range(3 + i % 5, 40 + i)), seed=i, max_tokens=50)
        for i in range(64)
    ]


async def complete(cluster: FakeCluster, request: TokenRequest) -> list[int]:
    return tokens_of(await collect(await cluster.router.start(request)))


async def test_concurrent_requests_get_what_they_would_get_alone(cluster: FakeCluster) -> None:
    results = await asyncio.gather(*(complete(cluster, r) for r in many()))
    assert results == [undisturbed(r) for r in many()]


async def test_requests_of_a_broken_engine_continue_exactly(cluster: FakeCluster) -> None:
    broken = cluster.workers[0]
    assert isinstance(broken, RealWorker)

    def fail_at_step_20(plan: StepPlan) -> None:
        if plan.step >= 20:
            raise RuntimeError("the rank is gone")

    broken.executor.before_step = fail_at_step_20
    results = await asyncio.gather(*(complete(cluster, r) for r in many()))
    assert results == [undisturbed(r) for r in many()]
    assert any(q.exclude_replicas == ["r0"] for q in cluster.scheduler.queries)
    assert cluster.router.num_live == cluster.pool.num_live == 0


async def test_constrained_requests_of_a_broken_engine_continue_exactly(
    cluster: FakeCluster,
) -> None:
    """Their tokens come several at once, and now and then a step brings none."""
    broken = cluster.workers[0]
    assert isinstance(broken, RealWorker)

    def fail_at_step_8(plan: StepPlan) -> None:
        if plan.step >= 8:
            raise RuntimeError("the rank is gone")

    broken.executor.before_step = fail_at_step_8
    results = await asyncio.gather(*(complete(cluster, constrained(r)) for r in many()))
    assert results == [undisturbed(r) for r in many()]
    assert any(q.exclude_replicas == ["r0"] for q in cluster.scheduler.queries)


async def test_a_failed_grammar_is_the_clients_own_field(cluster: FakeCluster) -> None:
    for worker in cluster.workers:
        assert isinstance(worker, RealWorker)
        compute = worker.executor.execute

        def failing(plan: StepPlan, compute: Compute = compute) -> StepResult:
            slots = [sequence.slot for sequence in plan.sequences]
            return replace(compute(plan), failed=dict.fromkeys(slots, "it is too hard"))

        worker.executor.execute = failing  # type: ignore[method-assign]
    with pytest.raises(InvalidRequestError, match="too hard") as refused:
        await complete(cluster, constrained(token_request()))
    assert refused.value.param == "response_format"


def constrained(request: TokenRequest) -> TokenRequest:
    grammar = Grammar("regex", ".*", "response_format")
    return replace(request, sampling=replace(request.sampling, grammar=grammar))


async def test_aborted_requests_free_the_engine(cluster: FakeCluster) -> None:
    streams = [await cluster.router.start(token_request(max_tokens=4000)) for _ in range(20)]
    await asyncio.gather(*(read(stream) for stream in streams))
    for stream in streams:
        stream.abort()
    await until(lambda: all(worker.num_live == 0 for worker in cluster.workers))


async def test_leaders_validation_reaches_the_client(cluster: FakeCluster) -> None:
    stream = await cluster.router.start(token_request(prompt=[VOCAB_SIZE + 1]))
    with pytest.raises(InvalidRequestError) as caught:
        await read(stream)
    assert not isinstance(caught.value, ContextLengthError)
    assert caught.value.param
