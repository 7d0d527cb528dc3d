"""The Ray face of a shard: a plain class whose methods the cluster calls; `ray.remote` is applied
over there.

Thin on purpose: everything heavy (torch, grpc) is imported inside the calls, so creating the actor
is quick, and all work is done by `worker.shard.Shard`, which runs without Ray in tests and
benchmarks.
"""

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

from worker.config import ShardConfig
from worker.main_thread import yield_main_thread

if TYPE_CHECKING:
    from worker.shard import Shard


class ShardActor:
    """One tensor-parallel rank. Async actor: calls interleave on one event loop, none of them
    blocks it.
    """

    def __init__(self) -> None:
        self._shard: Shard | None = None

    async def prepare(self) -> dict[str, Any]:
        """Imports what is heavy, all ranks at the same time; tells where this rank lives."""
        import ray

        self._shard = await asyncio.to_thread(_make_shard)
        return {
            "host": ray.util.get_node_ip_address(),
            "hostname": socket.gethostname(),
            "node_id": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
        }

    async def open_rendezvous(self) -> str:
        """Leader only: host:port where the ranks of this replica meet."""
        import ray

        return await asyncio.to_thread(self.shard.open_rendezvous, ray.util.get_node_ip_address())

    async def start(self, config: ShardConfig, scheduler_address: str) -> dict[str, Any]:
        """Loads and serves. The leader returns what the registry must know, followers an empty
        dict.
        """
        import ray

        host = ray.util.get_node_ip_address()
        facts = await self.shard.start(config, scheduler_address, host)
        yield_main_thread()
        return facts

    async def describe(self) -> dict[str, Any]:
        """Leader only: all that a restarted scheduler needs to take this replica back."""
        return self.shard.describe()

    async def attach(self, scheduler_address: str) -> None:
        self.shard.attach(scheduler_address)

    async def model_files(self) -> dict[str, bytes]:
        return self.shard.model_files

    async def startup_events(self, since: int) -> list[dict[str, Any]]:
        return [] if self._shard is None else self._shard.events.since(since)

    async def drain(self, timeout_s: float) -> None:
        await self.shard.drain(timeout_s)

    async def ping(self) -> int:
        """The process id: proof of life of the process, not of its engine (steps are judged from
        reports).
        """
        return os.getpid()

    @property
    def shard(self) -> "Shard":
        assert self._shard is not None, "prepare() comes first"
        return self._shard


def _make_shard() -> "Shard":
    from worker.shard import Shard

    return Shard()
