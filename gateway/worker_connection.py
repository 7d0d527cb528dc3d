"""One gateway-leader pair: a standing Connect stream, supervised by heartbeats and opened again
when lost.

Requests share the stream under handles. Tokens go straight from a step's message into the requests'
sinks; nothing here awaits per token. Knows nothing of placement: a lost request is its sink's
business.
"""

import asyncio
import itertools
import logging
import time
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import grpc

from gateway import wire
from gateway.cluster_snapshot import ReplicaAddress
from gateway.refusals import Refusal, unavailable
from gateway.standing_stream import OPTIONS, Backoff, Loss, keep_open, keep_writing, run_until_lost
from gateway.tokens import TokenDelta, TokenRequest
from protos import common_pb2, worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

ConnectCall: TypeAlias = (
    "grpc.aio.StreamStreamCall[worker_pb2.WorkerCommand, worker_pb2.WorkerEvent]"
)
Phase = Literal["connecting", "open", "lost"]

MAX_HANDLE = 2**32 - 1
_MAX_SUBMITS = 16  # in one message: long prompts should not wait for each other


class RequestSink(Protocol):
    """Where one request's events go, on the event loop. None of these may block or raise."""

    def on_token(self, token_id: int) -> None:
        """The plain case: one more token. `on_message_end` follows."""
        ...

    def on_message_end(self) -> None:
        """All that came for it in one message is there and may leave together."""
        ...

    def on_output(self, delta: TokenDelta) -> None:
        """Anything else. `on_message_end` follows, unless it has a finish_reason: then nothing."""
        ...

    def on_failure(self, refusal: Refusal) -> None:
        """The leader will not finish the request. Nothing follows."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectionTimings:
    connect_timeout_s: float = 3.0  # until Welcome
    silence_timeout_s: float = 3.0  # heartbeats come every second
    hang_timeout_s: float = 60.0  # work pending and no step for longer: the requests go elsewhere


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A leader as its stream shows it."""

    phase: Phase
    silent_s: float  # since the last event
    stalled_s: float  # since the last sign of progress while work is pending, else 0
    num_running: int
    num_waiting: int


class WorkerConnection:
    """Invariant: a handle is in the table exactly while its request's end is outstanding, and every
    sink hears one end unless it aborted. Owned by the event loop it was started on."""

    def __init__(self, leader: ReplicaAddress, gateway_id: str, timings: ConnectionTimings) -> None:
        self.leader = leader
        self._gateway_id = gateway_id
        self._timings = timings
        self._phase: Phase = "connecting"
        self._phase_changed = asyncio.Event()
        self._sinks: dict[int, RequestSink] = {}
        self._handles = itertools.count(1)
        self._unsent: dict[int, worker_pb2.Submit] = {}
        self._aborted: list[int] = []
        self._has_commands = asyncio.Event()
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None
        now = time.monotonic()
        self._heard_at = now
        self._lost_at = now
        self._progress_at = now
        self._steps = 0
        self._heartbeat = worker_pb2.Heartbeat()
        self._num_others = 0  # requests that were not ours at the last heartbeat

    @property
    def num_live(self) -> int:
        return len(self._sinks)

    @property
    def is_usable(self) -> bool:
        is_stalled = self.stalled_s() >= self._timings.hang_timeout_s
        return self._phase == "open" and not self._heartbeat.draining and not is_stalled

    @property
    def num_requests(self) -> int:
        """Estimate of all requests at the leader now: ours, and the others' as of the last
        heartbeat."""
        return len(self._sinks) + self._num_others

    def status(self) -> PeerStatus:
        beat = self._heartbeat
        silent_s = time.monotonic() - self._heard_at
        return PeerStatus(
            self._phase, silent_s, self.stalled_s(), beat.num_running, beat.num_waiting
        )

    def stalled_s(self) -> float:
        return time.monotonic() - self._progress_at if self._has_work() else 0.0

    def start(self) -> None:
        assert self._task is None
        self._task = asyncio.create_task(keep_open(self._session, self._lose, self._backoff))

    async def close(self) -> None:
        """Ends the stream; requests still on it fail over."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        # A task that is cancelled before its first step never reaches its own clean-up.
        self._lose("the connection was closed")

    async def is_ready(self, timeout_s: float) -> bool:
        """Waits while the first attempt is under way; a leader that was lost is not waited for."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._phase == "connecting":
                    self._phase_changed.clear()
                    await self._phase_changed.wait()
        except TimeoutError:
            return False
        return self.is_usable

    def try_submit(
        self, request: TokenRequest, emitted: list[int], timeout_s: float | None, sink: RequestSink
    ) -> int | None:
        """The request's handle, or None if the leader cannot be reached now."""
        if not self.is_usable:
            return None
        if not self._has_work():
            self._progress_at = time.monotonic()
        handle = self._new_handle()
        self._sinks[handle] = sink
        self._unsent[handle] = wire.submit(request, handle, emitted, timeout_s)
        self._has_commands.set()
        return handle

    def abort(self, handle: int) -> None:
        """Idempotent. The sink hears nothing more."""
        if self._sinks.pop(handle, None) is None:
            return
        if self._unsent.pop(handle, None) is None:
            self._aborted.append(handle)
            self._has_commands.set()

    def _new_handle(self) -> int:
        """Handles come back only after 2**32 others, long after the leader forgot them."""
        while True:
            handle = next(self._handles) & MAX_HANDLE
            if handle not in self._sinks:
                return handle

    def _has_work(self) -> bool:
        beat = self._heartbeat
        return bool(self._sinks) or beat.num_running + beat.num_waiting > 0

    async def _session(self) -> Loss:
        self._lost_at = time.monotonic() + self._timings.connect_timeout_s
        async with grpc.aio.insecure_channel(self.leader.address, options=OPTIONS) as channel:
            call = worker_pb2_grpc.WorkerStub(channel).Connect()
            parts = [self._read(call), self._write(call)]
            return await run_until_lost(parts, lambda: self._lost_at)

    def _lose(self, reason: str) -> None:
        if self._phase == "open" or self._sinks:
            log.log(
                logging.WARNING if self._sinks else logging.INFO,
                "replica_id=%s epoch=%d lost with %d requests: %s",
                self.leader.replica_id,
                self.leader.epoch,
                len(self._sinks),
                reason,
            )
        self._set_phase("lost")
        self._aborted.clear()
        self._heartbeat = worker_pb2.Heartbeat()
        self._num_others = 0
        self._fail_all(reason)

    def _fail_all(self, reason: str) -> None:
        sinks, self._sinks = self._sinks, {}
        self._unsent.clear()
        refusal = unavailable(f"replica {self.leader.replica_id} was lost: {reason}")
        for sink in sinks.values():
            sink.on_failure(refusal)

    def _set_phase(self, phase: Phase) -> None:
        self._phase = phase
        self._phase_changed.set()

    async def _write(self, call: ConnectCall) -> None:
        hello = worker_pb2.Hello(gateway_id=self._gateway_id, epoch=self.leader.epoch)
        await call.write(worker_pb2.WorkerCommand(hello=hello))
        await keep_writing(self._has_commands, lambda: self._write_queued(call))

    async def _write_queued(self, call: ConnectCall) -> None:
        # Submits first: only a request whose submit is out has its abort in the list.
        while self._unsent:
            submits = list(itertools.islice(self._unsent.items(), _MAX_SUBMITS))
            for handle, _ in submits:
                del self._unsent[handle]
            await call.write(wire.submit_command([submit for _, submit in submits]))
        if self._aborted:
            aborted, self._aborted = self._aborted, []
            abort = worker_pb2.Abort(handles=aborted)
            await call.write(worker_pb2.WorkerCommand(abort=abort))

    async def _read(self, call: ConnectCall) -> None:
        async for event in call:
            now = time.monotonic()
            self._heard_at = now
            self._lost_at = now + self._timings.silence_timeout_s
            match event.WhichOneof("event"):
                case "step":
                    self._on_step(event.step, now)
                case "heartbeat":
                    self._on_heartbeat(event.heartbeat, now)
                case "welcome":
                    self._on_welcome(event.welcome.info, now)

    def _on_welcome(self, info: worker_pb2.WorkerInfo, now: float) -> None:
        log.info("replica_id=%s epoch=%d connected", self.leader.replica_id, self.leader.epoch)
        self._backoff.reset()
        self._on_heartbeat(
            worker_pb2.Heartbeat(
                steps=info.steps, num_running=info.num_running, num_waiting=info.num_waiting
            ),
            now,
        )
        self._set_phase("open")

    def _on_heartbeat(self, beat: worker_pb2.Heartbeat, now: float) -> None:
        self._heartbeat = beat
        self._num_others = max(0, beat.num_running + beat.num_waiting - len(self._sinks))
        if beat.steps != self._steps or not self._has_work():
            self._steps = beat.steps
            self._progress_at = now
        if self._sinks and now - self._progress_at >= self._timings.hang_timeout_s:
            self._aborted.extend(self._sinks)
            self._has_commands.set()
            self._fail_all(f"its engine has made no step for {now - self._progress_at:.0f} s")

    def _on_step(self, step: worker_pb2.StepOutputs, now: float) -> None:
        self._progress_at = now
        sinks = self._sinks
        told: dict[RequestSink, None] = {}
        for handle, token_id in zip(step.handles, step.token_ids, strict=True):
            sink = sinks.get(handle)
            if sink is not None:  # else: aborted, and the abort is on its way
                sink.on_token(token_id)
                told[sink] = None
        for output in step.outputs:
            sink = self._on_output(output)
            if sink is not None:
                told[sink] = None
        for sink in told:
            sink.on_message_end()

    def _on_output(self, output: worker_pb2.RequestOutput) -> RequestSink | None:
        """Returns the sink if more may follow."""
        sink = self._sinks.get(output.handle)
        if sink is None:
            return None
        refusal = _failure(output)
        if refusal is not None:
            del self._sinks[output.handle]
            sink.on_failure(refusal)
            return None
        if output.finish_reason:
            del self._sinks[output.handle]
        sink.on_output(wire.token_delta(output))
        return None if output.finish_reason else sink


def _failure(output: worker_pb2.RequestOutput) -> Refusal | None:
    """An end that is not the request's own. Tokens beside it, if any, are made again elsewhere."""
    if output.finish_reason == common_pb2.FINISH_REASON_ERROR:
        return wire.refusal(output.error)
    if output.finish_reason == common_pb2.FINISH_REASON_ABORT:
        # Our own aborts leave the table first, so this one is the leader's, on its way down.
        return unavailable("the replica gave the request up")
    return None
