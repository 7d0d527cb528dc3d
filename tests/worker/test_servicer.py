import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import common_pb2, worker_pb2, worker_pb2_grpc
from protos.channel import CLIENT_OPTIONS
from tests.worker.engine.harness import Harness, prompt_of
from worker.engine.loop import EngineLoop
from worker.identity import ModelIdentity, ReplicaIdentity
from worker.servicer import WorkerServicer, create_server

WAIT_S = 10.0
MODEL = ModelIdentity("m", ("m",), "/m", "digest", 128, 4, 50)
IDENTITY = ReplicaIdentity("m-0", 7, MODEL)


class Leader:
    """A real server over a real engine thread and a fake executor."""

    def __init__(self, harness: Harness, loop: EngineLoop, servicer: WorkerServicer) -> None:
        self.harness = harness
        self.loop = loop
        self.servicer = servicer
        self.address = ""
        self.channel: grpc.aio.Channel

    def connect(self, channel: grpc.aio.Channel | None = None) -> "Gateway":
        return Gateway(worker_pb2_grpc.WorkerStub(channel or self.channel).Connect())

    async def eventually(self, condition: Callable[[], bool]) -> None:
        """For what other threads do: there is no event to wait for."""
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def has_received(self, num_requests: int) -> None:
        """Counts those in the inbox and those in a held step."""

        def is_all() -> bool:
            load = self.loop.load
            taken = load.num_running + load.num_waiting
            return taken + self.loop._inbox.qsize() >= num_requests

        await self.eventually(is_all)


class Gateway:
    """The client side of one stream; collects what arrives."""

    def __init__(self, call: "grpc.aio.StreamStreamCall") -> None:
        self.call = call
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.ends: dict[int, worker_pb2.RequestOutput] = {}
        self.steps: list[worker_pb2.StepOutputs] = []
        self.heartbeats: list[worker_pb2.Heartbeat] = []

    async def hello(self, epoch: int = 7) -> worker_pb2.WorkerInfo:
        hello = worker_pb2.Hello(gateway_id="g", epoch=epoch)
        await self.call.write(worker_pb2.WorkerCommand(hello=hello))
        event = await self._event()
        assert event.WhichOneof("event") == "welcome"
        return event.welcome.info

    async def submit(
        self, handle: int, prompt: list[int], max_tokens: int = 4, **fields: object
    ) -> None:
        submit = worker_pb2.Submit(
            handle=handle,
            request_id=f"r{handle}",
            prompt_token_ids=prompt,
            sampling=common_pb2.SamplingParams(max_tokens=max_tokens),
            **fields,  # type: ignore[arg-type]
        )
        await self.call.write(worker_pb2.WorkerCommand(submit=submit))

    async def abort(self, *handles: int) -> None:
        await self.call.write(worker_pb2.WorkerCommand(abort=worker_pb2.Abort(handles=handles)))

    async def read_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._collect(await self._event())

    async def read_end(self, handle: int) -> worker_pb2.RequestOutput:
        await self.read_until(lambda: handle in self.ends)
        return self.ends[handle]

    async def _event(self) -> worker_pb2.WorkerEvent:
        event = await asyncio.wait_for(self.call.read(), WAIT_S)
        if event is grpc.aio.EOF:
            code = await self.call.code()
            raise AssertionError(f"the stream ended with {code}: {await self.call.details()}")
        assert isinstance(event, worker_pb2.WorkerEvent)
        return event

    def _collect(self, event: worker_pb2.WorkerEvent) -> None:
        if event.WhichOneof("event") == "heartbeat":
            self.heartbeats.append(event.heartbeat)
            return
        assert event.WhichOneof("event") == "step"
        step = event.step
        self.steps.append(step)
        for handle, token_id in zip(step.handles, step.token_ids, strict=True):
            self.tokens[handle].append(token_id)
        for output in step.outputs:
            assert output.handle not in self.ends
            self.tokens[output.handle] += output.token_ids
            if output.finish_reason:
                self.ends[output.handle] = output


@asynccontextmanager
async def leader(
    harness: Harness | None = None, hang_timeout_s: float = 60.0, **options: float
) -> AsyncIterator[Leader]:
    harness = harness or Harness(num_blocks=512, max_num_seqs=64, max_num_batched_tokens=512)
    loop = EngineLoop(harness.engine)
    servicer = WorkerServicer(loop, IDENTITY, **options)  # type: ignore[arg-type]
    loop.start(servicer.deliver, lambda error: None)
    server, port = await create_server(servicer, "127.0.0.1", hang_timeout_s=hang_timeout_s)
    leader = Leader(harness, loop, servicer)
    leader.address = f"127.0.0.1:{port}"
    try:
        async with grpc.aio.insecure_channel(leader.address, CLIENT_OPTIONS) as channel:
            leader.channel = channel
            yield leader
    finally:
        await server.stop(0)
        assert await asyncio.to_thread(loop.stop, False, WAIT_S)


async def expect_status(call: Awaitable[object], code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, WAIT_S)
    assert caught.value.code() is code
    return caught.value.details() or ""


async def test_hello_is_answered_with_who_the_worker_is() -> None:
    async with leader() as worker:
        info = await worker.connect().hello()
        assert (info.replica_id, info.epoch, info.model.digest) == ("m-0", 7, "digest")
        assert (info.num_blocks, info.num_free_blocks) == (512, 512)


async def test_request_is_streamed_to_its_end() -> None:
    async with leader() as worker:
        gateway = worker.connect()
        await gateway.hello()
        worker.harness.add(99, prompt_of(9), 5)  # only for its expectation
        worker.harness.engine.abort("gateway", [99])
        await gateway.submit(1, prompt_of(9), 5)
        end = await gateway.read_end(1)
        assert end.finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert gateway.tokens[1] == worker.harness.expected_tokens(99)
        assert end.timing.decode_s >= 0 and end.HasField("timing")


async def test_a_step_that_takes_its_time_leaves_at_once() -> None:
    async with leader(send_interval_s=0.0) as worker:
        step_now = threading.Semaphore(0)
        worker.harness.executor.before_step = lambda plan: _must(step_now.acquire(timeout=WAIT_S))
        gateway = worker.connect()
        await gateway.hello()
        await gateway.submit(1, prompt_of(9), 5)
        for num_steps in range(1, 6):
            step_now.release()
            await gateway.read_until(lambda num=num_steps: len(gateway.steps) == num)
        # First output and end say more than a token; what is between is plain.
        assert [len(step.handles) for step in gateway.steps] == [0, 1, 1, 1, 0]


async def test_steps_shorter_than_the_interval_leave_together() -> None:
    async with leader(send_interval_s=0.2) as worker:
        gateway = worker.connect()
        await gateway.hello()
        await gateway.submit(1, prompt_of(9), 60)
        await gateway.read_end(1)
        assert len(gateway.tokens[1]) == 60
        assert len(gateway.steps) < 20


async def test_one_message_a_step_carries_all_requests_of_a_gateway() -> None:
    async with leader() as worker:
        gate = threading.Event()
        worker.harness.executor.before_step = lambda plan: _must(gate.wait(WAIT_S))
        gateway = worker.connect()
        await gateway.hello()
        for handle in range(32):
            await gateway.submit(handle, prompt_of(6, start=handle), 6)
        # The submits reach the engine's inbox behind its first, held step.
        await gateway.submit(100, prompt_of(6), 1, priority=5)
        await worker.has_received(33)
        gate.set()
        await gateway.read_until(lambda: len(gateway.ends) == 33)
        assert max(len(_handles(step)) for step in gateway.steps) >= 32
        steps = [step.step for step in gateway.steps]
        assert len(set(steps)) == len(steps), "two messages for one step"


def _handles(step: worker_pb2.StepOutputs) -> set[int]:
    return {*step.handles, *(output.handle for output in step.outputs)}


def _must(value: bool) -> None:
    assert value


async def test_submits_of_one_message_are_all_taken() -> None:
    async with leader() as worker:
        gateway = worker.connect()
        await gateway.hello()
        submits = [
            worker_pb2.Submit(
                handle=handle,
                prompt_token_ids=prompt_of(5, start=handle),
                sampling=common_pb2.SamplingParams(max_tokens=3),
            )
            for handle in range(4)
        ]
        command = worker_pb2.WorkerCommand(submits=worker_pb2.Submits(submits=submits))
        await gateway.call.write(command)
        await gateway.read_until(lambda: len(gateway.ends) == 4)
        assert [len(gateway.tokens[handle]) for handle in range(4)] == [3] * 4


async def test_two_gateways_get_their_own_outputs_under_equal_handles() -> None:
    async with leader() as worker:
        first, second = worker.connect(), worker.connect()
        await first.hello()
        await second.hello(epoch=0)
        await first.submit(1, prompt_of(9), 5)
        await second.submit(1, prompt_of(9, start=2), 7)
        await first.read_end(1)
        await second.read_end(1)
        assert (len(first.tokens[1]), len(second.tokens[1])) == (5, 7)


async def test_other_epoch_is_fenced() -> None:
    async with leader() as worker:
        details = await expect_status(worker.connect().hello(epoch=6), _FAILED_PRECONDITION)
        assert "epoch 7" in details


_FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


async def test_command_before_hello_is_refused() -> None:
    async with leader() as worker:
        gateway = worker.connect()
        await gateway.submit(1, prompt_of(3))
        await expect_status(gateway.read_end(1), grpc.StatusCode.INVALID_ARGUMENT)


async def test_second_hello_ends_the_stream_and_its_requests() -> None:
    async with leader() as worker:
        worker.harness.executor.before_step = lambda plan: time.sleep(0.01)  # it is still running
        gateway = worker.connect()
        await gateway.hello()
        await gateway.submit(1, prompt_of(9), 100)
        await gateway.call.write(worker_pb2.WorkerCommand(hello=worker_pb2.Hello()))
        await expect_status(gateway.read_end(1), grpc.StatusCode.INVALID_ARGUMENT)
        await worker.eventually(lambda: worker.loop.load.num_free_blocks == 512)


async def test_invalid_submit_is_an_error_output_and_the_stream_stands() -> None:
    async with leader() as worker:
        gateway = worker.connect()
        await gateway.hello()
        await gateway.submit(1, [50])
        await gateway.submit(2, prompt_of(4))
        end = await gateway.read_end(1)
        assert end.finish_reason == common_pb2.FINISH_REASON_ERROR
        assert (end.error.code, end.error.field) == (3, "prompt")
        assert (await gateway.read_end(2)).finish_reason == common_pb2.FINISH_REASON_LENGTH


async def test_abort_is_confirmed() -> None:
    async with leader() as worker:
        gate = threading.Event()
        worker.harness.executor.before_step = lambda plan: _must(gate.wait(WAIT_S))
        gateway = worker.connect()
        await gateway.hello()
        await gateway.submit(1, prompt_of(9), 100)
        await worker.eventually(lambda: worker.loop.step_age_s() > 0)
        await gateway.abort(1, 55)
        await worker.has_received(2)  # the request in its step and, behind it, the abort
        gate.set()
        assert (await gateway.read_end(1)).finish_reason == common_pb2.FINISH_REASON_ABORT


@pytest.mark.parametrize("how", ["cancel", "half-close"])
async def test_stream_that_ends_frees_its_blocks_by_the_next_step(how: str) -> None:
    harness = Harness(num_blocks=512, max_num_seqs=64, max_num_batched_tokens=512)
    step_now = threading.Semaphore(0)
    harness.executor.before_step = lambda plan: _must(step_now.acquire(timeout=WAIT_S))
    async with leader(harness) as worker:
        gateway = worker.connect()
        await gateway.hello()
        for handle in range(20):
            await gateway.submit(handle, prompt_of(9, start=handle), 100)
        await worker.has_received(20)
        step_now.release(2)
        await gateway.read_until(lambda: len(gateway.tokens) == 20)
        if how == "cancel":
            gateway.call.cancel()
        else:
            await gateway.call.done_writing()
        await worker.eventually(lambda: worker.servicer.num_streams == 0)
        steps = worker.loop.steps
        step_now.release()
        await worker.eventually(lambda: worker.loop.load.num_free_blocks == 512)
        assert worker.loop.steps <= steps + 1


async def test_gateway_that_does_not_read_is_cut_and_its_requests_aborted() -> None:
    harness = Harness(
        num_blocks=4096, max_num_seqs=64, max_num_batched_tokens=4096, max_model_len=10**6
    )
    # A fixed small window: what the transport takes without a reader stays in the kilobytes.
    small = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
    async with (
        leader(harness, max_queued_events=8, heartbeat_interval_s=0.005) as worker,
        grpc.aio.insecure_channel(worker.address, small) as channel,
    ):
        gate = threading.Event()
        harness.executor.before_step = lambda plan: _must(gate.wait(WAIT_S))
        gateway = worker.connect(channel)
        await gateway.hello()
        # Prompt log-probabilities make messages of some 50 kB each.
        fat = common_pb2.SamplingParams(max_tokens=1, prompt_logprobs=0)
        for handle in range(64):
            submit = worker_pb2.Submit(
                handle=handle, prompt_token_ids=prompt_of(2000), sampling=fat
            )
            await gateway.call.write(worker_pb2.WorkerCommand(submit=submit))
        await worker.has_received(64)
        gate.set()
        await worker.eventually(lambda: worker.servicer.num_streams == 0)
        # What had been sent can still be read, and then the reason.
        await expect_status(gateway.read_until(lambda: False), grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert len(gateway.ends) < 64
        await worker.eventually(lambda: not worker.loop.load.has_work)
        assert worker.loop.load.num_free_blocks == 4096
        # Others are served as before.
        other = worker.connect()
        await other.hello()
        await other.submit(1, prompt_of(4))
        await other.read_end(1)


async def test_heartbeats_come_while_the_engine_hangs() -> None:
    async with leader(heartbeat_interval_s=0.01) as worker:
        gate, entered = threading.Event(), asyncio.Event()
        event_loop = asyncio.get_running_loop()

        def hang(plan: object) -> None:
            event_loop.call_soon_threadsafe(entered.set)
            assert gate.wait(WAIT_S)

        worker.harness.executor.before_step = hang
        gateway = worker.connect()
        await gateway.hello()
        await gateway.submit(1, prompt_of(4))
        await asyncio.wait_for(entered.wait(), WAIT_S)
        await gateway.read_until(lambda: any(b.num_running + b.num_waiting for b in _seen(gateway)))
        beat = gateway.heartbeats[-1]
        assert (beat.steps, beat.draining) == (0, False)
        gate.set()
        await gateway.read_end(1)


def _seen(gateway: Gateway) -> list[worker_pb2.Heartbeat]:
    return gateway.heartbeats


async def test_draining_is_told_and_submits_are_refused_for_a_retry() -> None:
    async with leader(heartbeat_interval_s=0.01) as worker:
        gateway = worker.connect()
        await gateway.hello()
        worker.loop.begin_drain()
        await gateway.submit(1, prompt_of(4))
        assert (await gateway.read_end(1)).error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        await gateway.read_until(lambda: any(beat.draining for beat in gateway.heartbeats))


async def test_get_info_shows_the_load() -> None:
    async with leader() as worker:
        stub = worker_pb2_grpc.WorkerStub(worker.channel)
        gateway = worker.connect()
        await gateway.hello()
        await gateway.submit(1, prompt_of(4), 3)
        await gateway.read_end(1)
        await worker.eventually(lambda: worker.loop.load.steps == 3)
        info = await stub.GetInfo(worker_pb2.GetInfoRequest(), timeout=WAIT_S)
        assert (info.steps, info.num_running, info.replica_id) == (3, 0, "m-0")


async def test_health_follows_the_engine_and_not_a_flag() -> None:
    async with leader(hang_timeout_s=0.05) as worker:
        stub = health_pb2_grpc.HealthStub(worker.channel)

        async def status(service: str = "") -> int:
            request = health_pb2.HealthCheckRequest(service=service)
            return (await stub.Check(request, timeout=WAIT_S)).status

        serving, not_serving = (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        assert await status() == await status("shoal.v1.Worker") == serving
        await expect_status(status("no.such.Service"), grpc.StatusCode.NOT_FOUND)
        gate = threading.Event()
        worker.harness.executor.before_step = lambda plan: _must(gate.wait(WAIT_S))
        gateway = worker.connect()
        await gateway.hello()
        await gateway.submit(1, prompt_of(4), 1)
        async with asyncio.timeout(WAIT_S):
            while await status() == serving:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        gate.set()
        await gateway.read_end(1)
        async with asyncio.timeout(WAIT_S):
            while await status() != serving:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        worker.loop.begin_drain()
        assert await status() == not_serving


async def test_health_watch_tells_the_status_and_its_change() -> None:
    async with leader() as worker:
        call = health_pb2_grpc.HealthStub(worker.channel).Watch(health_pb2.HealthCheckRequest())
        first = await asyncio.wait_for(call.read(), WAIT_S)
        assert first.status == health_pb2.HealthCheckResponse.SERVING
        worker.loop.begin_drain()
        second = await asyncio.wait_for(call.read(), WAIT_S)
        assert second.status == health_pb2.HealthCheckResponse.NOT_SERVING
        call.cancel()


async def test_reflection_lists_the_services() -> None:
    async with leader() as worker:
        stub = reflection_pb2_grpc.ServerReflectionStub(worker.channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await asyncio.wait_for(call.read(), WAIT_S)
        names = {service.name for service in answer.list_services_response.service}
        assert {"shoal.v1.Worker", "grpc.health.v1.Health"} <= names
        await call.done_writing()
