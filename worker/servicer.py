"""The leader's gRPC face: one standing stream per gateway, at most one message per step on each.

Bridges the engine thread to the event loop and knows nothing of what the engine computes. The shard
starts it with `create_server`.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Hashable
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos import worker_pb2, worker_pb2_grpc
from protos.channel import SEND_INTERVAL_S, SERVER_OPTIONS
from worker import wire
from worker.engine.loop import EngineLoop
from worker.engine.request import RequestOutput
from worker.health import HealthServicer
from worker.identity import ReplicaIdentity

logger = logging.getLogger(__name__)

_HELLO_TIMEOUT_S = 10.0
_HEARTBEAT_INTERVAL_S = 1.0
_WRITE_TIMEOUT_S = 10.0  # a gateway that takes no message for so long is cut
_MAX_QUEUED_EVENTS = 4096  # or lags so many behind
_CUT_TIMEOUT_S = 1.0

_Context: TypeAlias = "grpc.aio.ServicerContext[worker_pb2.WorkerCommand, worker_pb2.WorkerEvent]"


class GatewayStream:
    """One connected gateway: the owner of the requests it submitted, and its outgoing events.

    Owned by the event loop. Invariant: at most `max_queued` events wait; once one was lost the
    stream is stalled for good and must be cut.
    """

    def __init__(self, gateway_id: str, max_queued: int) -> None:
        self.gateway_id = gateway_id
        self.stalled = asyncio.Event()
        self.writing_since_s: float | None = None  # None: no write is pending
        self._max_queued = max_queued
        self._events: deque[worker_pb2.WorkerEvent] = deque()
        self._changed = asyncio.Event()

    def put(self, event: worker_pb2.WorkerEvent) -> None:
        if len(self._events) >= self._max_queued:
            self.stalled.set()
            return
        self._events.append(event)
        self._changed.set()

    async def get(self) -> worker_pb2.WorkerEvent:
        """The next event; heartbeats bound the wait."""
        while not self._events:
            self._changed.clear()
            await self._changed.wait()
        return self._events.popleft()


class WorkerServicer(worker_pb2_grpc.WorkerServicer):
    """Serves one engine. Lives on the event loop it was made on; only `deliver` is called from the
    engine's thread.

    Invariant: whatever a stream submitted is aborted when the stream ends, for whatever reason.
    """

    def __init__(
        self,
        engine: EngineLoop,
        identity: ReplicaIdentity,
        *,
        max_queued_events: int = _MAX_QUEUED_EVENTS,
        write_timeout_s: float = _WRITE_TIMEOUT_S,
        heartbeat_interval_s: float = _HEARTBEAT_INTERVAL_S,
        send_interval_s: float = SEND_INTERVAL_S,
    ) -> None:
        self.engine = engine
        self.identity = identity
        self._max_queued_events = max_queued_events
        self._write_timeout_s = write_timeout_s
        self._heartbeat_interval_s = heartbeat_interval_s
        self._send_interval_s = send_interval_s
        # From the engine's thread: steps and what they brought.
        self._arrived: deque[tuple[int, list[RequestOutput]]] = deque()
        self._is_collecting = False  # a call of `_collect` is on its way
        self._send_at_s = 0.0  # not before: the next message
        self._streams: set[GatewayStream] = set()
        self._event_loop = asyncio.get_running_loop()

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def deliver(self, outputs: list[RequestOutput]) -> None:
        """The engine's `on_outputs`. Wakes the event loop once, however many requests; not at all
        while it waits for more before the next message."""
        self._arrived.append((self.engine.steps, outputs))
        if self._is_collecting:
            return
        self._is_collecting = True
        try:
            self._event_loop.call_soon_threadsafe(self._collect)
        except RuntimeError:  # the event loop has been closed: nobody is left to tell
            logger.debug("dropped %d outputs of a closed server", len(outputs))

    async def GetInfo(  # type: ignore[override]
        self, request: worker_pb2.GetInfoRequest, context: grpc.aio.ServicerContext
    ) -> worker_pb2.WorkerInfo:
        return wire.worker_info(self.identity, self.engine.load)

    async def Connect(  # type: ignore[override]
        self, request_iterator: object, context: _Context
    ) -> None:
        stream = await self._welcome(context)
        logger.info("gateway_id=%s connected", stream.gateway_id)
        self._streams.add(stream)
        tasks: list[asyncio.Task[object]] = [
            asyncio.create_task(self._read(stream, context)),
            asyncio.create_task(self._write(stream, context)),
            asyncio.create_task(stream.stalled.wait()),
        ]
        beat = asyncio.create_task(self._beat(stream))
        try:
            # Unbounded on purpose: a stream stands for as long as its gateway does, and beats bound
            # it.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams.discard(stream)
            self.engine.abort_owner(stream)
            logger.info("gateway_id=%s disconnected", stream.gateway_id)
            for task in (beat, *tasks):
                task.cancel()
            await asyncio.wait((beat, *tasks), timeout=_CUT_TIMEOUT_S)
        await self._say_why(stream, done, context)

    async def _welcome(self, context: _Context) -> GatewayStream:
        """Reads Hello, refuses another epoch (fencing), answers Welcome."""
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                command = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no Hello")
        if command is grpc.aio.EOF or command.WhichOneof("command") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first command is Hello")
        hello = command.hello
        if hello.epoch not in (0, self.identity.epoch):
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this is epoch {self.identity.epoch} of {self.identity.replica_id}, "
                f"not {hello.epoch}",
            )
        info = wire.worker_info(self.identity, self.engine.load)
        stream = GatewayStream(hello.gateway_id, self._max_queued_events)
        stream.put(worker_pb2.WorkerEvent(welcome=worker_pb2.Welcome(info=info)))
        return stream

    async def _read(self, stream: GatewayStream, context: _Context) -> None:
        """Returns when the gateway closes its side."""
        while True:
            command = await context.read()
            if command is grpc.aio.EOF:
                return
            match command.WhichOneof("command"):
                case "submit":
                    self._submit(stream, command.submit)
                case "submits":
                    for submit in command.submits.submits:
                        self._submit(stream, submit)
                case "abort":
                    self.engine.abort(stream, command.abort.handles)
                case other:
                    raise _ProtocolError(f"a {other} command on a connected stream")

    def _submit(self, stream: GatewayStream, submit: worker_pb2.Submit) -> None:
        engine = self.engine
        new = wire.new_request(
            submit, stream, engine.now_s(), engine.max_model_len, engine.eos_token_ids
        )
        engine.submit(new)

    async def _write(self, stream: GatewayStream, context: _Context) -> None:
        while True:
            event = await stream.get()
            stream.writing_since_s = self._event_loop.time()
            await context.write(event)
            stream.writing_since_s = None

    async def _beat(self, stream: GatewayStream) -> None:
        """A heartbeat a second, and the watch over a reader that has stopped reading."""
        while True:
            beat = wire.heartbeat(self.engine.load, self.engine.is_draining)
            stream.put(worker_pb2.WorkerEvent(heartbeat=beat))
            await asyncio.sleep(self._heartbeat_interval_s)
            since_s = stream.writing_since_s
            if since_s is not None and self._event_loop.time() - since_s > self._write_timeout_s:
                stream.stalled.set()

    async def _say_why(
        self, stream: GatewayStream, done: set[asyncio.Task[object]], context: _Context
    ) -> None:
        """Ends the stream with a status that tells its reason; OK if the gateway closed it."""
        errors = [task.exception() for task in done if not task.cancelled()]
        error = next((error for error in errors if error is not None), None)
        if stream.stalled.is_set():
            status, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "the gateway reads too slowly"
        elif isinstance(error, _ProtocolError):
            status, reason = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        elif error is not None:
            logger.error("gateway_id=%s: the stream broke", stream.gateway_id, exc_info=error)
            status, reason = grpc.StatusCode.INTERNAL, "the stream broke"
        else:
            return
        logger.warning("gateway_id=%s is cut: %s", stream.gateway_id, reason)
        # Towards a reader that does not read, the status only gets queued; nobody waits for it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CUT_TIMEOUT_S):
                await context.abort(status, reason)

    def _collect(self) -> None:
        """Sends on what has arrived, an interval after the last message at the earliest."""
        now_s = self._event_loop.time()
        if now_s < self._send_at_s:
            self._event_loop.call_at(self._send_at_s, self._collect)
            return
        self._is_collecting = False  # before looking: what comes from here on calls again
        if not self._arrived:
            return
        self._send_at_s = now_s + self._send_interval_s
        step, outputs = self._arrived.popleft()
        while self._arrived:
            step, more = self._arrived.popleft()
            outputs += more
        self._dispatch(step, outputs)

    def _dispatch(self, step: int, outputs: list[RequestOutput]) -> None:
        by_stream: dict[Hashable, list[RequestOutput]] = {}
        for output in outputs:
            by_stream.setdefault(output.owner, []).append(output)
        for stream, own_outputs in by_stream.items():
            if stream in self._streams and isinstance(stream, GatewayStream):
                stream.put(wire.step_event(step, own_outputs))


class _ProtocolError(Exception):
    """The gateway broke the order of commands."""


async def create_server(
    servicer: WorkerServicer, host: str, port: int = 0, hang_timeout_s: float = 60.0
) -> tuple[grpc.aio.Server, int]:
    """A started server with Worker, health and reflection; with port 0 the system chooses the port.

    Raises: OSError if the address cannot be bound.
    """
    server = grpc.aio.server(options=SERVER_OPTIONS)
    worker_pb2_grpc.add_WorkerServicer_to_server(servicer, server)
    worker_name = worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    health = HealthServicer(servicer.engine, frozenset({worker_name, health_name}), hang_timeout_s)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection((worker_name, health_name, reflection.SERVICE_NAME), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot bind {host}:{port}: {error}") from error
    await server.start()
    return server, bound
