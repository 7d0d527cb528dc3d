import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from protos import scheduler_pb2, scheduler_pb2_grpc
from protos.block_hash import BlockHash, unpack
from protos.channel import SERVER_OPTIONS
from tests.worker.engine.harness import Harness, new_request, prompt_of
from worker.engine.loop import EngineLoop, EngineNews
from worker.engine.request import RequestOutput
from worker.identity import ModelIdentity, ReplicaIdentity
from worker.reporter import Reporter, ReporterTimings, ReportLog

WAIT_S = 10.0
IDENTITY = ReplicaIdentity("m-0", 7, ModelIdentity("m", ("m",), "/m", "d", 128, 4, 50))
TIMINGS = ReporterTimings(
    interval_s=0.005, idle_interval_s=0.05, min_backoff_s=0.01, max_backoff_s=0.05
)


class Scheduler(scheduler_pb2_grpc.SchedulerServicer):
    """Takes reports and keeps the index that they describe."""

    def __init__(self) -> None:
        self.streams: list[list[scheduler_pb2.ReplicaReport]] = []
        self.cached: set[bytes] = set()
        self.ask_full = False
        self.port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def reports(self) -> list[scheduler_pb2.ReplicaReport]:
        return [report for stream in self.streams for report in stream]

    async def Report(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[scheduler_pb2.ReplicaReport],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[scheduler_pb2.ReportAck]:
        stream: list[scheduler_pb2.ReplicaReport] = []
        self.streams.append(stream)
        async for report in request_iterator:
            if report.full:
                self.cached = set()
            self.cached -= set(unpack(report.removed_blocks))
            self.cached |= set(unpack(report.stored_blocks))
            stream.append(report)
            if self.ask_full:
                self.ask_full = False
                yield scheduler_pb2.ReportAck(sequence=report.sequence, need_full=True)

    async def start(self) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(0)

    async def has(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)


class Rig:
    def __init__(self) -> None:
        self.harness = Harness(num_blocks=16)
        self.engine = EngineLoop(self.harness.engine)
        self.scheduler = Scheduler()  # type: ignore[abstract]
        self.reporter: Reporter

    async def generate(self, handle: int) -> None:
        ended = asyncio.Event()
        self.waiters[handle] = ended
        self.engine.submit(new_request(handle, prompt_of(20, start=handle)))
        await asyncio.wait_for(ended.wait(), WAIT_S)

    def start_engine(self) -> None:
        self.waiters: dict[int, asyncio.Event] = {}
        event_loop = asyncio.get_running_loop()

        def on_outputs(outputs: list[RequestOutput]) -> None:
            for output in outputs:
                if output.finish_reason is not None:
                    event_loop.call_soon_threadsafe(self.waiters[output.handle].set)

        self.engine.start(on_outputs, lambda error: None)


@asynccontextmanager
async def rig(timings: ReporterTimings = TIMINGS) -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.scheduler.start()
    rig.start_engine()
    rig.reporter = Reporter(f"127.0.0.1:{rig.scheduler.port}", IDENTITY, rig.engine, timings)
    rig.reporter.start()
    try:
        yield rig
    finally:
        await rig.reporter.close()
        await rig.scheduler.stop()
        assert await asyncio.to_thread(rig.engine.stop, False, WAIT_S)


async def test_first_report_is_full_and_says_who_speaks() -> None:
    async with rig() as r:
        await r.scheduler.has(lambda: bool(r.scheduler.reports))
        report = r.scheduler.reports[0]
        assert (report.replica_id, report.epoch, report.full) == ("m-0", 7, True)
        assert report.load.num_free_blocks == 16


async def test_idle_replica_reports_at_the_idle_interval_without_gaps() -> None:
    async with rig() as r:
        await r.scheduler.has(lambda: len(r.scheduler.reports) >= 4)
        sequences = [report.sequence for report in r.scheduler.reports]
        assert sequences == list(range(1, len(sequences) + 1))
        assert [report.full for report in r.scheduler.reports[:4]] == [True, False, False, False]


async def test_reports_replay_to_the_prefix_cache_and_name_admitted_requests() -> None:
    async with rig() as r:
        await r.generate(0)
        await r.scheduler.has(lambda: bool(r.scheduler.cached))
        for handle in range(1, 8):  # more than the pool can keep
            await r.generate(handle)
        cached = set(r.harness.engine.cached_hashes())
        await r.scheduler.has(lambda: r.scheduler.cached == cached)
        admitted = [i for report in r.scheduler.reports for i in report.admitted_request_ids]
        assert admitted == [f"r{handle}" for handle in range(8)]
        assert any(report.removed_blocks for report in r.scheduler.reports)
        await r.scheduler.has(lambda: r.scheduler.reports[-1].counters.finished_length == 8)
        assert r.scheduler.reports[-1].counters.prompt_tokens == 160


async def test_acknowledgement_that_asks_gets_a_full_report() -> None:
    async with rig() as r:
        await r.generate(1)
        await r.scheduler.has(lambda: bool(r.scheduler.cached))
        before = len(r.scheduler.reports)
        r.scheduler.cached = set()
        r.scheduler.ask_full = True
        await r.scheduler.has(lambda: any(x.full for x in r.scheduler.reports[before:]))
        cached = set(r.harness.engine.cached_hashes())
        await r.scheduler.has(lambda: r.scheduler.cached == cached)


async def test_scheduler_that_comes_back_gets_a_full_report_on_a_new_stream() -> None:
    async with rig() as r:
        await r.generate(1)
        await r.scheduler.has(lambda: bool(r.scheduler.cached))
        await r.scheduler.stop()
        r.scheduler.cached = set()
        await r.generate(2)  # while nobody listens
        await r.scheduler.start()
        await r.scheduler.has(lambda: len(r.scheduler.streams) >= 2 and bool(r.scheduler.cached))
        assert r.scheduler.streams[-1][0].full
        cached = set(r.harness.engine.cached_hashes())
        await r.scheduler.has(lambda: r.scheduler.cached == cached)
        sequences = [report.sequence for report in r.scheduler.reports]
        assert sequences == sorted(set(sequences))


async def test_moved_scheduler_is_followed() -> None:
    async with rig() as r:
        await r.generate(1)
        other = Scheduler()  # type: ignore[abstract]
        await other.start()
        r.reporter.set_address(f"127.0.0.1:{other.port}")
        await other.has(lambda: bool(other.reports))
        assert other.reports[0].full
        cached = set(r.harness.engine.cached_hashes())
        await other.has(lambda: other.cached == cached)
        await r.reporter.close()
        await other.stop()


async def test_draining_is_reported_before_the_idle_interval() -> None:
    timings = ReporterTimings(interval_s=0.005, idle_interval_s=1000.0, min_backoff_s=0.01)
    async with rig(timings) as r:
        await r.scheduler.has(lambda: len(r.scheduler.reports) == 1)
        r.engine.begin_drain()
        await r.scheduler.has(lambda: len(r.scheduler.reports) == 2)
        assert r.scheduler.reports[1].draining


async def test_close_without_a_scheduler_is_quick_and_repeatable() -> None:
    engine = EngineLoop(Harness().engine)
    reporter = Reporter("127.0.0.1:1", IDENTITY, engine, TIMINGS)
    reporter.start()
    await asyncio.sleep(0.02)
    async with asyncio.timeout(2.0):
        await reporter.close()
        await reporter.close()


def h(i: int) -> BlockHash:
    return BlockHash(bytes([i]) * 16)


@pytest.mark.parametrize(
    ("news", "stored", "removed"),
    [
        ([EngineNews([h(1)]), EngineNews([], [h(1)])], [], []),
        ([EngineNews([h(1)]), EngineNews([h(2)], [h(1)])], [h(2)], []),
        ([EngineNews([], [h(9)]), EngineNews([h(9)])], [], []),
    ],
)
def test_events_that_undo_each_other_are_not_said(
    news: list[EngineNews], stored: list[BlockHash], removed: list[BlockHash]
) -> None:
    engine = EngineLoop(Harness().engine)
    log = ReportLog(IDENTITY)
    log.note(EngineNews([h(9)]))
    assert log.next_report(engine).full
    for entry in news:
        log.note(entry)
    report = log.next_report(engine)
    assert not report.full
    assert (report.stored_blocks, report.removed_blocks) == (stored, removed)
