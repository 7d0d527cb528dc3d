"""One tensor-parallel rank, put together: weights, KV cache and, on rank 0, the engine and its gRPC
face.

The composition root of the worker, without Ray: the actor calls it, tests and benchmarks build it
directly. What blocks (weights, collectives) runs in a thread; the asyncio loop only serves.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc
from torch.distributed import TCPStore

from protos.garbage import spare_garbage_collection
from worker.config import EngineConfig, ShardConfig
from worker.engine.executor import Executor
from worker.engine.lookahead_engine import engine_for
from worker.engine.loop import EngineLoop
from worker.identity import ModelIdentity, ReplicaIdentity
from worker.load_progress import LoadProgress
from worker.model_files import digest, read_model_files
from worker.parallel.async_executor import AsyncLocalExecutor, AsyncTPExecutor
from worker.parallel.group import TPGroup
from worker.parallel.rendezvous import connect_group, join_channel, open_channel, open_rendezvous
from worker.parallel.tp_executor import LocalExecutor, TPExecutor, follow
from worker.reporter import Reporter
from worker.runner.device import resolve_device
from worker.runner.model_runner import ModelRunner
from worker.servicer import WorkerServicer, create_server
from worker.startup_events import StartupEvents

logger = logging.getLogger(__name__)

GIB = 1 << 30
# A process whose engine or group broke ends this much later: the last outputs are on their way.
EXIT_AFTER_DEATH_S = 1.0
STOP_SERVER_S = 2.0


@dataclass(frozen=True, slots=True)
class LoadedRank:
    """A rank that can execute plans."""

    runner: ModelRunner
    group: TPGroup
    num_blocks: int


@dataclass(frozen=True, slots=True)
class LeaderFace:
    """What rank 0 has besides: the engine and everything that talks."""

    engine: EngineLoop
    server: grpc.aio.Server
    reporter: Reporter
    identity: ReplicaIdentity
    address: str


class Shard:
    """Owned by the asyncio loop of its process. Life: (`open_rendezvous`,) `start`, `drain`.

    Invariant: a rank whose engine or group has failed ends its process (through `exit_process`), so
    that the supervisor sees a death and never a shard that is half alive.
    """

    def __init__(self, exit_process: Callable[[int], None] = os._exit) -> None:
        self.events = StartupEvents()
        self.model_files: dict[str, bytes] = {}
        self._exit_process = exit_process
        self._store: TCPStore | None = None  # must live as long as the replica
        self._config: ShardConfig | None = None
        self._rank: LoadedRank | None = None
        self._face: LeaderFace | None = None

    def open_rendezvous(self, host: str) -> str:
        """On the leader: where all ranks of the replica meet."""
        self._store, address = open_rendezvous(host)
        return address

    async def start(
        self, config: ShardConfig, scheduler_address: str, host: str = "127.0.0.1"
    ) -> dict[str, Any]:
        """Serves from here on. Returns the leader's `describe`, an empty dict on other ranks.

        Raises: CheckpointError, MemoryPlanError, ShardError.
        """
        self._config = config
        self._rank = await asyncio.to_thread(self._load, config)
        if config.rank > 0:
            await asyncio.to_thread(self._start_following, config, self._rank)
            return {}
        self.model_files = read_model_files(config.runner.model_path)
        executor = await asyncio.to_thread(self._executor, config, self._rank)
        self._face = await self._serve(config, self._rank, executor, scheduler_address, host)
        return self.describe()

    def describe(self) -> dict[str, Any]:
        """The leader's facts, as the registry keeps them. Only once it serves."""
        assert self._config is not None and self._face is not None, "not serving yet"
        face, model = self._face, self._face.identity.model
        return {
            "deployment": self._config.deployment,
            "deployment_json": self._config.deployment_json,
            "replica_id": self._config.replica_id,
            "epoch": self._config.epoch,
            "state": "draining" if face.engine.is_draining else "ready",
            "address": face.address,
            "tp_size": self._config.tp_size,
            "num_blocks": face.engine.load.num_blocks,
            "max_num_seqs": face.engine.load.max_num_seqs,
            "block_size": model.block_size,
            "max_model_len": model.max_model_len,
            "vocab_size": model.vocab_size,
            "eos_token_ids": model.eos_token_ids,
            "digest": model.digest,
            "pid": os.getpid(),
        }

    def attach(self, scheduler_address: str) -> None:
        """The scheduler is now at this address."""
        if self._face is not None:
            self._face.reporter.set_address(scheduler_address)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, finish what is live (for `timeout_s` at most), stop serving."""
        if self._face is None:
            return
        face = self._face
        await asyncio.to_thread(face.engine.stop, True, timeout_s)
        await face.reporter.close()
        await face.server.stop(STOP_SERVER_S)

    # --- loading, in a thread ---------------------------------------------------------------------

    def _load(self, config: ShardConfig) -> LoadedRank:
        device = resolve_device(config.runner.device)
        with self.events.phase("Group") as message:
            group = connect_group(config.rank, config.tp_size, config.rendezvous, device)
            message.append(f"{config.tp_size} ranks, {type(group).__name__}")
        runner = ModelRunner(config.runner, group, device)
        with self.events.phase("Weights") as message:
            progress = LoadProgress(self.events, "Weights")
            runner.load(progress)
            plan = runner.memory_plan
            size = (
                f"{plan.weight_bytes / GIB:.3f} GiB a rank read at {progress.gib_per_s:.2f} GiB/s"
            )
            message.append(f"{size}, {plan.dtype}, {device}")
        with self.events.phase("KV cache") as message:
            num_blocks = group.min_int(runner.plan_num_blocks())
            runner.allocate_kv_cache(num_blocks)
            message.append(f"{num_blocks} blocks of {config.runner.block_size} tokens")
            if (num_groups := runner.kv_groups.num_groups) > 1:
                message.append(f"for each of {num_groups} groups of layers")
            message += filter(None, [runner.memory_use])
        return LoadedRank(runner, group, num_blocks)

    def _executor(self, config: ShardConfig, rank: LoadedRank) -> Executor:
        runner = rank.runner
        if config.tp_size == 1:
            return AsyncLocalExecutor(runner) if runner.is_asynchronous else LocalExecutor(runner)
        channel = open_channel(config.tp_size, config.rendezvous)
        executor_class = AsyncTPExecutor if runner.is_asynchronous else TPExecutor
        return executor_class(runner, channel, rank.group, self._on_failure)

    def _start_following(self, config: ShardConfig, rank: LoadedRank) -> None:
        channel = join_channel(config.rank, config.rendezvous)

        def run() -> None:
            try:
                follow(rank.runner, channel, rank.group)
            except Exception:
                logger.exception("rank=%d replica_id=%s failed", config.rank, config.replica_id)
                self._exit_process(1)

        threading.Thread(target=run, name="follower", daemon=True).start()

    # --- serving, on the leader -------------------------------------------------------------------

    async def _serve(
        self,
        config: ShardConfig,
        rank: LoadedRank,
        executor: Executor,
        scheduler_address: str,
        host: str,
    ) -> LeaderFace:
        rank.runner.warm_up()
        engine = EngineLoop(engine_for(_engine_config(config, rank), executor))
        identity = _identity(config, rank, digest(self.model_files))
        servicer = WorkerServicer(engine, identity)
        spare_garbage_collection()
        engine.start(servicer.deliver, self._on_failure)
        server, port = await create_server(servicer, host)
        reporter = Reporter(scheduler_address, identity, engine)
        reporter.start()
        self.events.add("Engine", f"gRPC on {host}:{port}")
        return LeaderFace(engine, server, reporter, identity, f"{host}:{port}")

    def _on_failure(self, error: BaseException) -> None:
        """From the engine's or the channel's thread. Idle engines learn of a dead rank here."""
        logger.error("this rank ends: %s", error)
        timer = threading.Timer(EXIT_AFTER_DEATH_S, self._exit_process, (1,))
        timer.daemon = True
        timer.start()


def _engine_config(config: ShardConfig, rank: LoadedRank) -> EngineConfig:
    runner = config.runner
    return EngineConfig(
        num_blocks=rank.num_blocks,
        block_size=runner.block_size,
        max_num_seqs=runner.max_num_seqs,
        max_num_batched_tokens=runner.max_num_batched_tokens,
        max_model_len=rank.runner.max_model_len,
        vocab_size=rank.runner.model_config.vocab_size,
        eos_token_ids=tuple(rank.runner.model_config.eos_token_ids),
        windows=rank.runner.kv_groups.windows,
        enable_prefix_caching=config.enable_prefix_caching,
        max_logprobs=config.max_logprobs,
        target_itl_ms=config.target_itl_ms,
        speculation=config.speculation,
    )


def _identity(config: ShardConfig, rank: LoadedRank, files_digest: str) -> ReplicaIdentity:
    model = ModelIdentity(
        deployment=config.deployment,
        served_names=config.served_names,
        root=config.runner.model_path,
        digest=files_digest,
        max_model_len=rank.runner.max_model_len,
        block_size=config.runner.block_size,
        vocab_size=rank.runner.model_config.vocab_size,
        eos_token_ids=tuple(rank.runner.model_config.eos_token_ids),
        max_logprobs=config.max_logprobs,
    )
    return ReplicaIdentity(
        replica_id=config.replica_id,
        epoch=config.epoch,
        model=model,
        version=version("shoal"),
        tp_size=config.tp_size,
        device=str(rank.runner.device),
        dtype=rank.runner.memory_plan.dtype,
    )
