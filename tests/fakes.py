"""A whole cluster in one event loop: fake scheduler, fake workers, and a gateway's real network
side over gRPC.

For tests of the gateway: `async with FakeCluster(num_workers=2) as cluster:` gives a router that is
ready.
"""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from gateway.cluster_view import LiveClusterView
from gateway.router import Router, RoutingLimits
from gateway.scheduler_client import SchedulerClient, SchedulerTimings
from gateway.tokens import SamplingSettings, TokenDelta, TokenRequest, TokenStream
from gateway.worker_client import WorkerPool
from gateway.worker_connection import ConnectionTimings
from tests.fake_scheduler import FakeScheduler
from tests.fake_worker import EOS, VOCAB_SIZE, FakeWorker, expected_tokens, model_card

__all__ = [
    "EOS",
    "VOCAB_SIZE",
    "FakeCluster",
    "FakeScheduler",
    "FakeWorker",
    "collect",
    "expected_tokens",
    "model_card",
    "token_request",
    "tokens_of",
    "until",
]

WAIT_S = 10.0


async def until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Until what no event announces has come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.002)


def token_request(
    request_id: str = "req",
    prompt: list[int] | None = None,
    *,
    max_tokens: int = 8,
    seed: int = 0,
    model: str = "tiny",
    **fields: Any,
) -> TokenRequest:
    """Fields of SamplingSettings and of TokenRequest alike by name."""
    own = {k: fields.pop(k) for k in list(fields) if k in TokenRequest.__dataclass_fields__}
    sampling = SamplingSettings(max_tokens=max_tokens, seed=seed, **fields)
    return TokenRequest(request_id, model, prompt or [5, 6, 7], sampling, **own)


async def read(stream: TokenStream) -> list[TokenDelta]:
    """Waits for something to take, and takes it."""
    news = asyncio.Event()
    stream.listen(news.set)
    try:
        async with asyncio.timeout(WAIT_S):
            while not (deltas := stream.take()):
                await news.wait()
                news.clear()
        return deltas
    finally:
        stream.listen(None)


async def collect(stream: TokenStream) -> list[TokenDelta]:
    """All deltas to the end."""
    deltas: list[TokenDelta] = []
    while not deltas or deltas[-1].finish_reason is None:
        deltas += await read(stream)
    return deltas


def tokens_of(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


class FakeCluster:
    """The router is open and every worker connected inside the block; all is closed after it."""

    def __init__(
        self,
        num_workers: int = 1,
        *,
        connection: ConnectionTimings | None = None,
        scheduling: SchedulerTimings | None = None,
        limits: RoutingLimits | None = None,
        **worker_fields: Any,
    ) -> None:
        self.scheduler = FakeScheduler()
        self.workers = [FakeWorker(f"r{i}", **worker_fields) for i in range(num_workers)]
        self._connection = connection
        self._scheduling = scheduling
        self._limits = limits

    async def __aenter__(self) -> Self:
        await self.scheduler.start()
        for worker in self.workers:
            await worker.start()
            self.scheduler.list_worker(worker)
        self.client = SchedulerClient(self.scheduler.address, "gateway-1", self._scheduling)
        self.pool = WorkerPool("gateway-1", self._connection)
        self.view = LiveClusterView(self.client)
        self.router = Router(self.client, self.pool, self.view, self._limits)
        await self.router.open()
        await until(lambda: all(worker.num_streams for worker in self.workers))
        await until(lambda: not self.workers or self.view.unhealthy_reason() is None)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.router.close()
        for worker in self.workers:
            await worker.stop()
        await self.scheduler.stop()
