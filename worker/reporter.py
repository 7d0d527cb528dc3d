"""A leader's standing stream of reports to the ClusterScheduler.

Reads the EngineLoop's snapshots and owns a mirror of the prefix cache, so that a full report never
has to ask the engine, not even a hung one. Tokens never wait for it: without a scheduler it only
tries again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from protos import scheduler_pb2, scheduler_pb2_grpc
from protos.block_hash import BlockHash
from protos.channel import CLIENT_OPTIONS
from worker import wire
from worker.engine.loop import EngineLoop, EngineNews
from worker.identity import ReplicaIdentity
from worker.report import ReplicaLoad, ReplicaReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReporterTimings:
    interval_s: float = 0.2  # while there is work or something changed
    idle_interval_s: float = 1.0
    write_timeout_s: float = 5.0  # a scheduler that takes no report for so long is lost
    min_backoff_s: float = 0.1
    max_backoff_s: float = 2.0


class ReportLog:
    """What to say next: sequence numbers, the mirror of the prefix cache, news not yet said. Pure.

    Invariant: applying all reports since the last full one gives the engine's prefix cache.
    """

    def __init__(self, identity: ReplicaIdentity) -> None:
        self._identity = identity
        self._sequence = 0
        self._cached: dict[BlockHash, None] = {}
        self._stored: dict[BlockHash, None] = {}  # net, since the last report
        self._removed: dict[BlockHash, None] = {}
        self._admitted: list[str] = []
        self._last_load: ReplicaLoad | None = None
        self._was_draining = False
        self._needs_full = True

    def note(self, news: EngineNews) -> None:
        for block_hash in news.removed_blocks:
            self._cached.pop(block_hash, None)
            _move(block_hash, self._stored, self._removed)
        for block_hash in news.stored_blocks:
            self._cached[block_hash] = None
            _move(block_hash, self._removed, self._stored)
        self._admitted += news.admitted_request_ids

    def ask_full(self) -> None:
        """The scheduler, or a new one, knows nothing or has a gap."""
        self._needs_full = True

    def is_due(self, load: ReplicaLoad, is_draining: bool) -> bool:
        """Whether there is something to say before the idle interval has passed."""
        return (
            self._needs_full
            or load.has_work
            or load != self._last_load
            or is_draining != self._was_draining
            or bool(self._stored or self._removed or self._admitted)
        )

    def next_report(self, engine: EngineLoop) -> ReplicaReport:
        load, is_full = engine.load, self._needs_full
        self._sequence += 1
        report = ReplicaReport(
            replica_id=self._identity.replica_id,
            epoch=self._identity.epoch,
            sequence=self._sequence,
            full=is_full,
            load=load,
            stored_blocks=list(self._cached) if is_full else list(self._stored),
            removed_blocks=[] if is_full else list(self._removed),
            admitted_request_ids=self._admitted,
            draining=engine.is_draining,
            counters=engine.counters,
        )
        self._last_load, self._was_draining = load, engine.is_draining
        self._stored, self._removed, self._admitted = {}, {}, []
        self._needs_full = False
        return report


def _move(
    block_hash: BlockHash, undone: dict[BlockHash, None], done: dict[BlockHash, None]
) -> None:
    """An event that undoes an unsaid one leaves nothing to say."""
    if block_hash in undone:
        del undone[block_hash]
    else:
        done[block_hash] = None


class Reporter:
    """Lives on the leader's event loop, one task from `start` to `close`.

    Invariant: the first report on every new stream is full.
    """

    def __init__(
        self,
        address: str,
        identity: ReplicaIdentity,
        engine: EngineLoop,
        timings: ReporterTimings | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._address = address
        self._engine = engine
        self._timings = timings or ReporterTimings()
        self._log = ReportLog(identity)
        self._clock = clock or asyncio.get_running_loop().time
        self._woken = asyncio.Event()  # a full report was asked for, or a scheduler has shown up
        self._task: asyncio.Task[None] | None = None
        self._stream: asyncio.Task[None] | None = None

    def start(self) -> None:
        assert self._task is None
        self._task = asyncio.create_task(self._run(), name="reporter")

    def set_address(self, address: str) -> None:
        """The scheduler has moved; reports go there from now on, starting with a full one."""
        self._woken.set()  # also at the old address: a scheduler that says so is there again
        if address == self._address:
            return
        self._address = address
        if self._stream is not None:
            self._stream.cancel()

    async def close(self) -> None:
        """Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=self._timings.write_timeout_s)

    async def _run(self) -> None:
        backoff_s = self._timings.min_backoff_s
        while True:
            address, started_s = self._address, self._clock()
            self._stream = asyncio.create_task(self._report_to(address))
            try:
                await asyncio.wait((self._stream,))
            except asyncio.CancelledError:
                self._stream.cancel()
                await asyncio.wait((self._stream,), timeout=self._timings.write_timeout_s)
                raise
            if self._clock() - started_s > self._timings.max_backoff_s:
                backoff_s = self._timings.min_backoff_s  # it had worked
            self._note_end(self._stream, address)
            await self._sleep(backoff_s)
            backoff_s = min(2 * backoff_s, self._timings.max_backoff_s)

    def _note_end(self, stream: asyncio.Task[None], address: str) -> None:
        error = None if stream.cancelled() else stream.exception()
        if isinstance(error, grpc.aio.AioRpcError):
            logger.info("lost the scheduler at %s: %s", address, error.code().name)
        elif isinstance(error, TimeoutError):
            logger.info("the scheduler at %s takes no reports", address)
        elif error is not None:
            logger.error("reporting to %s failed", address, exc_info=error)

    async def _report_to(self, address: str) -> None:
        """Until the stream breaks or is cancelled."""
        async with grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS) as channel:
            call = scheduler_pb2_grpc.SchedulerStub(channel).Report()
            reader = asyncio.create_task(self._read_acks(call))
            self._log.ask_full()
            try:
                await self._write_reports(call, reader)
                reader.result()  # raises what ended the stream, if it was an error
            except asyncio.InvalidStateError:
                logger.debug("the stream ended under a write")
            finally:
                reader.cancel()
                call.cancel()
                await asyncio.wait((reader,), timeout=self._timings.write_timeout_s)

    async def _write_reports(self, call: "_ReportCall", reader: "asyncio.Task[None]") -> None:
        sent_s = -self._timings.idle_interval_s
        while not reader.done():
            news = self._engine.take_news()
            if news is not None:
                self._log.note(news)
            now_s = self._clock()
            is_overdue = now_s - sent_s >= self._timings.idle_interval_s
            if is_overdue or self._log.is_due(self._engine.load, self._engine.is_draining):
                message = wire.replica_report(self._log.next_report(self._engine))
                async with asyncio.timeout(self._timings.write_timeout_s):
                    await call.write(message)
                sent_s = now_s
            await self._sleep(self._timings.interval_s)

    async def _read_acks(self, call: "_ReportCall") -> None:
        async for ack in call:
            if ack.need_full:
                self._log.ask_full()
                self._woken.set()

    async def _sleep(self, timeout_s: float) -> None:
        """Until something cannot wait."""
        # Not wait_for: before Python 3.12 it can swallow a cancellation.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        self._woken.clear()


_ReportCall = grpc.aio.StreamStreamCall[scheduler_pb2.ReplicaReport, scheduler_pb2.ReportAck]
