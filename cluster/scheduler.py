"""The ClusterScheduler actor: hosts the control plane's gRPC face and the loop that keeps it true.

Composition root of the cluster package: registry, desk, supervisors and servicer are put together
here and decide elsewhere. The launcher talks to it through Ray, gateways and leaders through gRPC.
"""

import asyncio
import importlib
import logging
import os
import time
import uuid
from typing import Any

import grpc
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import wire
from cluster.config import RAY_NAMESPACE, SCHEDULER_ACTOR_NAME, DeploymentSpec, SchedulerConfig
from cluster.epochs import EpochClock
from cluster.metrics import ClusterCollector, MetricsServer
from cluster.placement_desk import PlacementDesk
from cluster.registry import ClusterRegistry
from cluster.replicas import ReplicaManager
from cluster.servicer import ReplicaNews, SchedulerServicer, start_server
from cluster.snapshot_feed import SnapshotFeed
from cluster.startup_log import StartupLog
from cluster.status_view import cluster_status
from cluster.supervisor import SupervisorContext
from worker.main_thread import yield_main_thread

logger = logging.getLogger(__name__)

SHARD_CLASS = "worker.actor:ShardActor"
TICK_S = 0.2
SNAPSHOT_INTERVAL_S = 0.8  # watchers are promised one a second
BIND_TIMEOUT_S = 10.0
STOP_GRACE_S = 0.5
CLOSING = "the cluster is shutting down"


def start_scheduler(config: SchedulerConfig, shard_class: str = SHARD_CLASS) -> Any:
    """The handle of the scheduler actor, started if there is none. Does not wait for it.

    `shard_class`: module:class of the shard actors, importable on every node.
    """
    options = {
        "name": SCHEDULER_ACTOR_NAME,
        "namespace": RAY_NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(_node_of(config.host), soft=False),
    }
    return ray.remote(ClusterScheduler).options(**options).remote(config, shard_class)


def _node_of(host: str) -> str:
    """Gateways look for it at this host, so it may run nowhere else."""
    for node in ray.nodes():
        if node["Alive"] and node["NodeManagerAddress"] == host:
            return str(node["NodeID"])
    return str(ray.get_runtime_context().get_node_id())


class ClusterScheduler:
    """Async actor: everything runs on its one event loop, blocking calls to Ray in threads.

    A restart runs the constructor again; its state then comes back from the leaders and from Ray's
    store.
    """

    async def __init__(  # type: ignore[misc]  # Ray awaits it, on the actor's own loop
        self, config: SchedulerConfig, shard_class: str = SHARD_CLASS
    ) -> None:
        self._config = config
        self._address = f"{config.host}:{config.port}"
        self._scheduler_id = uuid.uuid4().hex
        self._log = StartupLog(time.time)
        self._feed = SnapshotFeed()
        self._collector = ClusterCollector()
        self._snapshot_version = 0
        self._published_t = float("-inf")
        self._published_structure = -1
        self._registry = ClusterRegistry(
            time.monotonic, config.report_timeout_s, config.hang_timeout_s
        )
        self._desk = PlacementDesk(self._registry, time.monotonic)
        context = SupervisorContext(
            config=config,
            registry=self._registry,
            log=self._log,
            epochs=EpochClock(time.time),
            shard_class=_load_class(shard_class),
            scheduler_address=self._address,
            changed=self._on_change,
        )
        self._replicas = ReplicaManager(context, self._desk)
        news = ReplicaNews(report_stream_ended=self._replicas.look)
        self._servicer = SchedulerServicer(
            self._registry,
            self._desk,
            self._feed,
            self._replicas.model_files,
            news,
            self._collector.exposition,
        )
        await self._open()

    async def _open(self) -> None:
        # First the state, then the port: a gateway must not see an empty cluster and believe it.
        await self._replicas.recover()
        self._publish()
        self._server = await self._bind()
        port = self._config.metrics_port
        self._metrics = MetricsServer(self._collector, port) if port else None
        self._control = asyncio.create_task(self._control_loop())
        yield_main_thread()
        logger.info("scheduler_id=%s serves at %s", self._scheduler_id, self._address)

    async def _bind(self) -> grpc.aio.Server:
        """The port of a scheduler that was just killed may take a moment to come free."""
        deadline = time.monotonic() + BIND_TIMEOUT_S
        while True:
            try:
                return await start_server(self._servicer, self._config.host, self._config.port)
            except RuntimeError:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.1)

    async def _control_loop(self) -> None:
        while True:
            try:
                self._tick()
            except Exception:  # the loop must outlive any single fault
                logger.exception("control loop")
            await asyncio.sleep(TICK_S)

    def _tick(self) -> None:
        for replica_id, epoch in self._registry.tick():
            record = self._registry.record(replica_id)
            self._replicas.condemn(replica_id, epoch, record.reason if record else "hung")
        self._servicer.pump()
        is_due = time.monotonic() - self._published_t >= SNAPSHOT_INTERVAL_S
        if is_due or self._registry.version != self._published_structure:
            self._publish()

    def _on_change(self) -> None:
        """Replicas came or went: gateways and waiting requests want to know at once."""
        self._publish()
        self._servicer.pump()
        self._replicas.notify()

    def _publish(self) -> None:
        state = self._registry.snapshot()
        queued = {d.spec.name: self._desk.num_queued(d.spec.name) for d in state.deployments}
        self._snapshot_version += 1
        self._published_t = time.monotonic()
        self._published_structure = state.version
        version, scheduler_id = self._snapshot_version, self._scheduler_id
        self._feed.publish(wire.cluster_snapshot(state, version, scheduler_id, queued))
        self._collector.publish(state, queued)

    async def deploy(self, spec_json: str) -> None:
        """Starts the replicas in the background. Raises: DeploymentConflict."""
        await self._replicas.deploy(DeploymentSpec.from_json(spec_json))

    async def startup_events(self, since: int) -> list[dict[str, Any]]:
        """Events after number `since`: seq, t, phase, message, seconds, done, replica_id."""
        return self._log.since(since)

    async def status(self) -> dict[str, Any]:
        def queued(deployment: str) -> tuple[int, float]:
            return self._desk.num_queued(deployment), self._desk.oldest_wait_s(deployment)

        status = cluster_status(self._registry.snapshot(), queued, self._replicas.processes)
        own = {"scheduler_id": self._scheduler_id, "address": self._address, "pid": os.getpid()}
        return {**own, **status}

    async def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """The status once every replica is ready. Raises: StartFailed with the reason."""
        await self._replicas.wait_ready(timeout_s)
        return await self.status()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work everywhere and let running requests end for up to `timeout_s`."""
        self._servicer.deliver(self._desk.close(CLOSING))
        await self._replicas.drain(timeout_s)

    async def shutdown(self) -> None:
        """Refuse what comes, kill every shard, give all resources back. The actor itself is the
        caller's to kill afterwards.
        """
        self._servicer.deliver(self._desk.close(CLOSING))
        await self._replicas.shutdown()
        self._control.cancel()
        await asyncio.gather(self._control, return_exceptions=True)
        await self._server.stop(STOP_GRACE_S)
        if self._metrics is not None:
            metrics, self._metrics = self._metrics, None
            await asyncio.to_thread(metrics.close)


def _load_class(path: str) -> type:
    module, _, name = path.partition(":")
    loaded = getattr(importlib.import_module(module), name)
    assert isinstance(loaded, type)
    return loaded
