"""A whole replica without Ray or gateway: the leader in this process, other ranks in their own.

Requests go over the leader's real gRPC stream, as a gateway sends them.
"""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import torch
from tokenizers import Tokenizer, models
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from protos import common_pb2, worker_pb2, worker_pb2_grpc
from worker.config import RunnerConfig, ShardConfig
from worker.shard import Shard

NO_SCHEDULER = "127.0.0.1:1"  # nobody listens: the data plane does not need it
TIMEOUT_S = 100.0


_SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def make_model(folder: Path, seed: int = 0) -> Path:
    """A random Llama with spread-out logits, so that rounding never decides an argmax."""
    torch.manual_seed(seed)
    return _saved(LlamaForCausalLM(LlamaConfig(**_SIZES, num_hidden_layers=2)), folder)


def make_hybrid_model(folder: Path) -> Path:
    """A random Gemma 3: five layers see 16 tokens, the sixth all."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(**_SIZES, num_hidden_layers=6, head_dim=16, sliding_window=16)
    return _saved(Gemma3ForCausalLM(config), folder)


def _saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    vocab = {f"t{i}": i for i in range(512)}
    Tokenizer(models.WordLevel(vocab, unk_token="t0")).save(str(folder / "tokenizer.json"))
    return folder


def shard_config(
    model: Path, rank: int, tp_size: int, rendezvous: str, **runner: object
) -> ShardConfig:
    settings = {"dtype": "float32", "device": "cpu", "max_num_seqs": 64, "num_threads": 1, **runner}
    return ShardConfig(
        deployment="m",
        replica_id="r0",
        epoch=7,
        rank=rank,
        tp_size=tp_size,
        rendezvous=rendezvous,
        runner=RunnerConfig(model_path=str(model), **settings),  # type: ignore[arg-type]
        served_names=("m",),
    )


def run_follower(config: ShardConfig) -> None:
    """A process of its own; ends when the leader is gone."""

    async def serve() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        shard = Shard(exit_process=lambda code: loop.call_soon_threadsafe(ended.set))
        await shard.start(config, NO_SCHEDULER)
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), TIMEOUT_S)

    asyncio.run(serve())


@dataclass
class Client:
    """One gateway's stream to a leader."""

    call: grpc.aio.StreamStreamCall  # type: ignore[type-arg]
    stub: worker_pb2_grpc.WorkerStub
    next_handle: int = 0
    live: dict[int, asyncio.Future[worker_pb2.RequestOutput]] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    num_preemptions: int = 0
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)  # one write at a time, says gRPC

    async def read(self) -> None:
        async for event in self.call:
            for handle, token in zip(event.step.handles, event.step.token_ids, strict=True):
                self.tokens[handle].append(token)
            for output in event.step.outputs:
                self.tokens[output.handle].extend(output.token_ids)
                if output.finish_reason:
                    self.num_preemptions += output.timing.num_preemptions
                    self.live.pop(output.handle).set_result(output)

    async def generate(self, prompt: list[int], **sampling: object) -> list[int]:
        """Raises: AssertionError when the replica refuses."""
        self.next_handle += 1
        handle = self.next_handle
        self.tokens[handle] = []
        done = self.live[handle] = asyncio.get_running_loop().create_future()
        submit = worker_pb2.Submit(
            handle=handle,
            request_id=f"q{handle}",
            prompt_token_ids=prompt,
            sampling=common_pb2.SamplingParams(**sampling),  # type: ignore[arg-type]
        )
        async with self.writing:
            await self.call.write(worker_pb2.WorkerCommand(submit=submit))
        output = await asyncio.wait_for(done, TIMEOUT_S)
        assert output.finish_reason != common_pb2.FINISH_REASON_ERROR, output.error
        return self.tokens.pop(handle)

    async def generate_all(
        self, prompts: Sequence[list[int]], **sampling: object
    ) -> list[list[int]]:
        return list(await asyncio.gather(*(self.generate(p, **sampling) for p in prompts)))

    async def info(self) -> worker_pb2.WorkerInfo:
        return await self.stub.GetInfo(worker_pb2.GetInfoRequest(), timeout=5)

    async def info_when_idle(self) -> worker_pb2.WorkerInfo:
        """The load is published a moment after the last output."""
        async with asyncio.timeout(5):
            while (info := await self.info()).num_running + info.num_waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return info


@asynccontextmanager
async def replica(model: Path, tp_size: int = 1, **runner: object) -> AsyncIterator[Client]:
    exits: list[int] = []
    shard = Shard(exit_process=exits.append)
    rendezvous = shard.open_rendezvous("127.0.0.1") if tp_size > 1 else ""
    context = multiprocessing.get_context("spawn")
    followers = [
        context.Process(
            target=run_follower,
            args=(shard_config(model, rank, tp_size, rendezvous, **runner),),
            daemon=True,
        )
        for rank in range(1, tp_size)
    ]
    for follower in followers:
        follower.start()
    try:
        config = shard_config(model, 0, tp_size, rendezvous, **runner)
        told = await shard.start(config, NO_SCHEDULER)
        async with connect(told["address"]) as client:
            yield client
        await shard.drain(10.0)
    finally:
        for follower in followers:
            await asyncio.to_thread(follower.join, 10)
            follower.kill()


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        call = stub.Connect()
        hello = worker_pb2.Hello(gateway_id="test", epoch=7)
        await call.write(worker_pb2.WorkerCommand(hello=hello))
        client = Client(call, stub)
        reader = asyncio.create_task(client.read())
        try:
            yield client
        finally:
            reader.cancel()
            call.cancel()
            await asyncio.wait([reader])
