"""A leader without an engine: the Worker service over real gRPC, its tokens a function of the
request.

Because a token depends only on the sequence so far, the seed and the position, any fake worker can
continue what another began, and a test can say exactly what a stream must contain. Faults are
switches.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TypeAlias

import grpc

from protos import common_pb2, worker_pb2, worker_pb2_grpc
from protos.channel import SERVER_OPTIONS

FinishReason: TypeAlias = "common_pb2.FinishReason.ValueType"
NextToken = Callable[[Sequence[int], int, int], int]  # sequence so far, its prompt's length, seed

EOS = 2
VOCAB_SIZE = 512
_WINDOW = 8


def hashed_token(sequence: Sequence[int], num_prompt: int, seed: int) -> int:
    """Depends on seed and position, and through the last tokens on all before; never an end of
    sequence."""
    key = (len(sequence), num_prompt, seed, *sequence[:2], *sequence[-_WINDOW:])
    digest = blake2b(repr(key).encode(), digest_size=4).digest()
    return 10 + int.from_bytes(digest, "big") % (VOCAB_SIZE - 10)


def expected_tokens(prompt: Sequence[int], seed: int, num_tokens: int) -> list[int]:
    """What an undisturbed request must give."""
    sequence = list(prompt)
    for _ in range(num_tokens):
        sequence.append(hashed_token(sequence, len(prompt), seed))
    return sequence[len(prompt) :]


def model_card(name: str = "tiny", **fields: object) -> common_pb2.ModelCard:
    defaults: dict[str, object] = {
        "deployment": name,
        "served_names": [name],
        "root": f"/models/{name}",
        "digest": f"digest-of-{name}",
        "max_model_len": 4096,
        "block_size": 16,
        "vocab_size": VOCAB_SIZE,
        "eos_token_ids": [EOS],
        "created_unix_s": 1_700_000_000,
        "max_logprobs": 20,
    }
    return common_pb2.ModelCard(**(defaults | fields))  # type: ignore[arg-type]


@dataclass(eq=False)
class Running:
    submit: worker_pb2.Submit
    stream: "Stream"
    sequence: list[int]
    num_output: int  # emitted elsewhere included
    is_first: bool = True

    @property
    def num_prompt(self) -> int:
        return len(self.submit.prompt_token_ids)


@dataclass(eq=False)
class Stream:
    """One gateway's Connect."""

    gateway_id: str
    outbox: asyncio.Queue[worker_pb2.WorkerEvent] = field(default_factory=asyncio.Queue)
    running: dict[int, Running] = field(default_factory=dict)


class FakeWorker(worker_pb2_grpc.WorkerServicer):
    """Invariant: one step gives every running request one token, like an engine with room for all.
    Runs on the loop that started it."""

    def __init__(
        self,
        replica_id: str = "r0",
        *,
        epoch: int = 1,
        card: common_pb2.ModelCard | None = None,
        next_token: NextToken = hashed_token,
        step_interval_s: float = 0.0,
        heartbeat_interval_s: float = 1.0,
    ) -> None:
        self.replica_id = replica_id
        self.epoch = epoch
        self.card = card or model_card()
        self.next_token = next_token
        self.step_interval_s = step_interval_s
        self.heartbeat_interval_s = heartbeat_interval_s
        self.steps = 0
        self.submits: list[worker_pb2.Submit] = []
        self.aborted: list[str] = []  # request ids, in order
        self.refusal: common_pb2.Error | None = None  # answers every submit
        self.is_draining = False
        self.kill_at_step: int | None = None
        self.port = 0
        self._streams: set[Stream] = set()
        self._is_silent = False
        self._may_step = asyncio.Event()
        self._may_step.set()
        self._has_work = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._engine: asyncio.Task[None] | None = None
        self._killing: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def num_live(self) -> int:
        return sum(len(stream.running) for stream in self._streams)

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    async def start(self) -> None:
        """On a new port, or on its old one after a kill."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        worker_pb2_grpc.add_WorkerServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(self.address)
        await self._server.start()
        self._engine = asyncio.create_task(self._run())

    async def kill(self) -> None:
        """Streams break off at once. Idempotent."""
        server, self._server = self._server, None
        if self._engine is not None:
            self._engine.cancel()
            await asyncio.gather(self._engine, return_exceptions=True)
            self._engine = None
        if server is not None:
            await server.stop(grace=None)

    async def stop(self) -> None:
        await self.kill()
        if self._killing is not None:
            await self._killing

    def hang(self) -> None:
        """Steps stand still, heartbeats go on."""
        self._may_step.clear()

    def resume(self) -> None:
        self._is_silent = False
        self._may_step.set()

    def silence(self) -> None:
        """Like a stopped process: the streams stay open and nothing comes, heartbeats included."""
        self._is_silent = True
        self.hang()

    def step(self) -> None:
        """One step by hand, for a worker that hangs."""
        self.steps += 1
        for stream in self._streams:
            outputs = worker_pb2.StepOutputs(step=self.steps)
            for handle, running in list(stream.running.items()):
                self._advance(handle, running, outputs)
            if outputs.handles or outputs.outputs:
                stream.outbox.put_nowait(worker_pb2.WorkerEvent(step=outputs))

    async def GetInfo(
        self, request: worker_pb2.GetInfoRequest, context: object
    ) -> worker_pb2.WorkerInfo:
        return self._info()

    async def Connect(
        self,
        request_iterator: AsyncIterator[worker_pb2.WorkerCommand],
        context: "grpc.aio.ServicerContext[worker_pb2.WorkerCommand, worker_pb2.WorkerEvent]",
    ) -> AsyncIterator[worker_pb2.WorkerEvent]:
        hello = (await anext(request_iterator)).hello
        if hello.epoch not in (0, self.epoch):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"epoch is {self.epoch}")
        stream = Stream(hello.gateway_id)
        self._streams.add(stream)
        reader = asyncio.create_task(self._read(request_iterator, stream))
        try:
            yield worker_pb2.WorkerEvent(welcome=worker_pb2.Welcome(info=self._info()))
            while True:
                event = await self._next_event(stream)
                if not self._is_silent:
                    yield event
        finally:
            reader.cancel()
            self._streams.discard(stream)
            self.aborted.extend(r.submit.request_id for r in stream.running.values())

    async def _next_event(self, stream: Stream) -> worker_pb2.WorkerEvent:
        try:
            async with asyncio.timeout(self.heartbeat_interval_s):
                return await stream.outbox.get()
        except TimeoutError:
            return worker_pb2.WorkerEvent(
                heartbeat=worker_pb2.Heartbeat(
                    steps=self.steps, num_running=self.num_live, draining=self.is_draining
                )
            )

    async def _read(
        self, commands: AsyncIterator[worker_pb2.WorkerCommand], stream: Stream
    ) -> None:
        async for command in commands:
            if command.HasField("submit"):
                self._on_submit(command.submit, stream)
            for submit in command.submits.submits:
                self._on_submit(submit, stream)
            for handle in command.abort.handles:
                running = stream.running.pop(handle, None)
                if running is not None:
                    self.aborted.append(running.submit.request_id)

    def _on_submit(self, submit: worker_pb2.Submit, stream: Stream) -> None:
        self.submits.append(submit)
        refusal = self.refusal
        if self.is_draining:
            refusal = common_pb2.Error(code=14, message="draining")
        if refusal is not None:
            output = worker_pb2.RequestOutput(
                handle=submit.handle,
                finish_reason=common_pb2.FINISH_REASON_ERROR,
                error=refusal,
            )
            outputs = worker_pb2.StepOutputs(step=self.steps, outputs=[output])
            stream.outbox.put_nowait(worker_pb2.WorkerEvent(step=outputs))
            return
        assert submit.handle not in stream.running, "handle reused while live"
        stream.running[submit.handle] = Running(
            submit,
            stream,
            [*submit.prompt_token_ids, *submit.emitted_token_ids],
            len(submit.emitted_token_ids),
        )
        self._has_work.set()

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            await self._may_step.wait()
            self.step()
            if self.steps == self.kill_at_step:
                self._killing = asyncio.create_task(self.kill())
            if not self.num_live:
                self._has_work.clear()
            await asyncio.sleep(self.step_interval_s)

    def _advance(self, handle: int, running: Running, outputs: worker_pb2.StepOutputs) -> None:
        submit = running.submit
        token = self.next_token(running.sequence, running.num_prompt, submit.sampling.seed)
        running.sequence.append(token)
        running.num_output += 1
        finish = self._finish_reason(token, running)
        wants_logprobs = submit.sampling.HasField("logprobs")
        if not (finish or running.is_first or wants_logprobs):
            outputs.handles.append(handle)
            outputs.token_ids.append(token)
            return
        output = outputs.outputs.add(handle=handle, token_ids=[token], finish_reason=finish)
        if wants_logprobs:
            output.logprobs.append(_logprobs(token, submit.sampling.logprobs))
        if running.is_first and submit.sampling.HasField("prompt_logprobs"):
            num_top = submit.sampling.prompt_logprobs
            output.prompt_logprobs.extend(
                _logprobs(t, num_top) for t in submit.prompt_token_ids[1:]
            )
        if finish or running.is_first:
            output.timing.num_cached_tokens = len(submit.emitted_token_ids)
            output.timing.queue_s = 0.001
        running.is_first = False
        if finish:
            del running.stream.running[handle]

    def _finish_reason(self, token: int, running: Running) -> FinishReason:
        sampling = running.submit.sampling
        stops = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stops.update(self.card.eos_token_ids)
        if token in stops and running.num_output > sampling.min_tokens:
            return common_pb2.FINISH_REASON_STOP
        is_full = len(running.sequence) >= self.card.max_model_len
        if is_full or running.num_output >= sampling.max_tokens:
            return common_pb2.FINISH_REASON_LENGTH
        return common_pb2.FINISH_REASON_UNSPECIFIED

    def _info(self) -> worker_pb2.WorkerInfo:
        return worker_pb2.WorkerInfo(
            replica_id=self.replica_id,
            epoch=self.epoch,
            version="fake",
            model=self.card,
            tp_size=1,
            device="cpu",
            steps=self.steps,
            num_running=self.num_live,
        )


def _logprobs(token: int, num_top: int) -> common_pb2.TokenLogprobs:
    return common_pb2.TokenLogprobs(
        token_id=token,
        logprob=-0.5,
        rank=1,
        top_ids=[(token + i) % VOCAB_SIZE for i in range(num_top)],
        top_logprobs=[-0.5 - i for i in range(num_top)],
    )
