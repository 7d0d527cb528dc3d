"""What the gateway knows of the cluster: the last snapshot, model files by digest, and whether it
is healthy.

Answers from memory; only model_files and engine_metrics ask the scheduler. Keeps its knowledge when
the scheduler is gone: stale, but used. The router and the HTTP edge read it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

import grpc

from gateway.cluster_snapshot import ClusterSnapshot, Deployment, Replica, fill_gaps
from gateway.errors import UnavailableError
from gateway.scheduler_client import SchedulerClient
from gateway.tokens import ModelInfo
from gateway.worker_client import WorkerPool

log = logging.getLogger(__name__)

Clock = Callable[[], float]


class LiveClusterView:
    """Invariant: a snapshot is replaced, never changed; a digest is fetched by at most one task at
    a time. Owned by the event loop."""

    def __init__(
        self,
        scheduler: SchedulerClient,
        *,
        hang_after_s: float = 30.0,
        rebuild_grace_s: float = 10.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._hang_after_s = hang_after_s
        self._rebuild_grace_s = rebuild_grace_s
        self._clock = clock
        self._snapshot: ClusterSnapshot | None = None
        self._pool: WorkerPool | None = None
        self._rebuilding_until = clock()
        self._files: dict[str, dict[str, bytes]] = {}
        self._fetches: dict[str, asyncio.Task[dict[str, bytes]]] = {}
        scheduler.on_snapshot(self.apply)

    def attach(self, pool: WorkerPool) -> None:
        """From now on `pool` follows the snapshots, and its streams are evidence of health."""
        self._pool = pool
        if self._snapshot is not None:
            pool.follow(self._snapshot)

    async def start(self) -> None:
        """Starts the scheduler client, which feeds the view."""
        await self._scheduler.start()

    async def close(self) -> None:
        fetches = list(self._fetches.values())
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)
        await self._scheduler.close()

    def apply(self, snapshot: ClusterSnapshot) -> None:
        """Takes the scheduler's newest word."""
        earlier = self._snapshot
        if earlier is not None and earlier.scheduler_id != snapshot.scheduler_id:
            log.info("scheduler_id=%s replaces %s", snapshot.scheduler_id, earlier.scheduler_id)
            self._rebuilding_until = self._clock() + self._rebuild_grace_s
        if earlier is not None and self.is_rebuilding:
            snapshot = fill_gaps(snapshot, earlier)
        self._snapshot = snapshot
        if self._pool is not None:
            self._pool.follow(snapshot)

    @property
    def has_snapshot(self) -> bool:
        return self._snapshot is not None

    @property
    def is_rebuilding(self) -> bool:
        """A new scheduler is relearning the cluster: that it does not know something means
        little."""
        return self._clock() < self._rebuilding_until

    def models(self) -> list[ModelInfo]:
        return [deployment.model for deployment in self._deployments()]

    def model(self, served_name: str) -> ModelInfo | None:
        deployment = self._deployment(served_name)
        return None if deployment is None else deployment.model

    def replicas(self, served_name: str) -> tuple[Replica, ...]:
        deployment = self._deployment(served_name)
        return () if deployment is None else deployment.replicas

    def replica_ids(self) -> frozenset[str] | None:
        if self._snapshot is None:
            return None
        return frozenset(
            replica.replica_id
            for deployment in self._snapshot.deployments
            for replica in deployment.replicas
        )

    async def engine_metrics(self) -> bytes:
        """Empty while the scheduler is away: an old figure would mislead whoever scales by it."""
        if not self._scheduler.is_connected:
            return b""
        try:
            return await self._scheduler.metrics()
        except grpc.aio.AioRpcError as error:
            log.warning("no metrics from scheduler=%s: %s", self._scheduler.address, error.code())
            return b""

    async def model_files(self, digest: str) -> dict[str, bytes]:
        """Raises: UnavailableError when the scheduler cannot give them."""
        files = self._files.get(digest)
        if files is not None:
            return files
        fetch = self._fetches.get(digest)
        if fetch is None:
            fetch = asyncio.create_task(self._fetch(digest))
            self._fetches[digest] = fetch
            fetch.add_done_callback(lambda task: self._end_fetch(digest, task))
        return await asyncio.shield(fetch)  # one waiter's cancellation is not the others'

    async def _fetch(self, digest: str) -> dict[str, bytes]:
        try:
            files = await self._scheduler.model_files(digest)
        except (grpc.aio.AioRpcError, EOFError) as error:
            detail = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            raise UnavailableError(
                f"The model's tokenizer cannot be fetched from the cluster: {detail}",
                retry_after_s=1.0,
            ) from error
        current = {model.digest for model in self.models()}
        self._files = {d: kept for d, kept in self._files.items() if d in current}
        self._files[digest] = files
        return files

    def _end_fetch(self, digest: str, task: asyncio.Task[dict[str, bytes]]) -> None:
        self._fetches.pop(digest, None)
        if not task.cancelled():
            task.exception()  # seen here, should every waiter have gone

    def unhealthy_reason(self) -> str | None:
        if self._snapshot is None:
            return f"no contact yet with the cluster scheduler at {self._scheduler.address}"
        if not self._snapshot.deployments:
            return "no model is deployed"
        reasons = (self._deployment_fault(d) for d in self._snapshot.deployments)
        return next((reason for reason in reasons if reason is not None), None)

    def _deployment_fault(self, deployment: Deployment) -> str | None:
        faults = [self._replica_fault(replica) for replica in deployment.replicas]
        if None in faults:
            return None
        listed = "; ".join(
            f"{replica.replica_id} {fault}"
            for replica, fault in zip(deployment.replicas, faults, strict=True)
        )
        return f"model {deployment.model.deployment} has no replica that can serve: " + (
            listed or f"0 of {deployment.num_desired_replicas} exist"
        )

    def _replica_fault(self, replica: Replica) -> str | None:
        """None: it makes progress, or has nothing to do."""
        if replica.state != "ready":
            return f"is {replica.state}"
        if self._pool is None:
            return None
        status = self._pool.status(replica.leader)
        if status is None or status.phase == "connecting":
            return "is being connected"
        if status.phase == "lost":
            return f"has been out of reach for {status.silent_s:.0f} s"
        if status.stalled_s >= self._hang_after_s:
            return (
                f"is hung: {status.num_running} running and {status.num_waiting} waiting requests, "
                f"no step for {status.stalled_s:.0f} s"
            )
        return None

    def _deployment(self, served_name: str) -> Deployment | None:
        return None if self._snapshot is None else self._snapshot.deployment(served_name)

    def _deployments(self) -> Iterable[Deployment]:
        return () if self._snapshot is None else self._snapshot.deployments
