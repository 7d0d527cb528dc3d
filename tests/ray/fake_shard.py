"""A shard actor without a model: the same methods, a real report stream, no torch.

What it shall do wrong is written in the model path: "fails" raises while loading, "hangs" reports
work without steps.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from protos import scheduler_pb2, scheduler_pb2_grpc
from protos.block_hash import pack
from worker.config import ShardConfig
from worker.errors import CheckpointError

NUM_BLOCKS = 100
BLOCK_SIZE = 16
FILES = {"tokenizer.json": b"x" * 1_500_000, "config.json": b"{}", "empty.txt": b""}
CACHED = pack([bytes([i]) * 16 for i in range(4)])  # type: ignore[list-item, misc]
REPORT_INTERVAL_S = 0.1


class FakeShardActor:
    """One rank. The leader reports to the scheduler until it is killed."""

    def __init__(self) -> None:
        self._config: ShardConfig | None = None
        self._address = ""
        self._task: asyncio.Task[None] | None = None
        self._draining = False
        self._events: list[dict[str, Any]] = []

    async def prepare(self) -> dict[str, Any]:
        return {"host": "127.0.0.1", "pid": os.getpid(), "node_id": "n"}

    async def open_rendezvous(self) -> str:
        return "127.0.0.1:1"

    async def start(self, config: ShardConfig, scheduler_address: str) -> dict[str, Any]:
        self._config = config
        assert (config.rendezvous != "") == (config.tp_size > 1)
        if "fails" in config.runner.model_path:
            raise CheckpointError("model.safetensors is missing")
        if config.rank:
            return {}
        event = {"seq": 1, "t": time.time(), "phase": "Weights", "message": "1 MB"}
        self._events.append({**event, "seconds": 0.5, "done": True})
        self._address = scheduler_address
        self._task = asyncio.create_task(self._report_forever())
        return self._told()

    def _told(self) -> dict[str, Any]:
        assert self._config is not None
        return {
            "address": f"127.0.0.1:{10_000 + os.getpid() % 50_000}",
            "num_blocks": NUM_BLOCKS,
            "block_size": BLOCK_SIZE,
            "max_model_len": 512,
            "vocab_size": 300,
            "eos_token_ids": [2],
            "digest": "d1",
            "weight_bytes": 1,
            "load_s": 0.1,
        }

    async def describe(self) -> dict[str, Any]:
        assert self._config is not None
        return {
            **self._told(),
            "deployment_json": self._config.deployment_json,
            "replica_id": self._config.replica_id,
            "epoch": self._config.epoch,
            "state": "draining" if self._draining else "ready",
        }

    async def attach(self, scheduler_address: str) -> None:
        self._address = scheduler_address

    async def model_files(self) -> dict[str, bytes]:
        return FILES

    async def startup_events(self, since: int) -> list[dict[str, Any]]:
        return [event for event in self._events if event["seq"] > since]

    async def drain(self, timeout_s: float) -> None:
        self._draining = True

    async def ping(self) -> int:
        return os.getpid()

    async def _report_forever(self) -> None:
        while True:
            try:
                async with grpc.aio.insecure_channel(self._address) as channel:
                    call = scheduler_pb2_grpc.SchedulerStub(channel).Report(self._reports())
                    async for _ in call:
                        pass
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)

    async def _reports(self) -> AsyncIterator[scheduler_pb2.ReplicaReport]:
        assert self._config is not None
        sequence = 0
        hangs = "hangs" in self._config.runner.model_path
        while True:
            sequence += 1
            load = scheduler_pb2.ReplicaLoad(
                num_blocks=NUM_BLOCKS,
                num_free_blocks=NUM_BLOCKS - 4,
                max_num_seqs=8,
                steps=0 if hangs else sequence,
                num_running=3,
            )
            yield scheduler_pb2.ReplicaReport(
                replica_id=self._config.replica_id,
                epoch=self._config.epoch,
                sequence=sequence,
                full=sequence == 1,
                load=load,
                stored_blocks=CACHED if sequence == 1 else b"",
                draining=self._draining,
            )
            await asyncio.sleep(REPORT_INTERVAL_S)
