"""One incarnation of one replica in Ray: its placement group and its shard actors, from creation to
removal.

All of Ray's blocking calls are made in threads. Decides nothing about restarts; the supervisor
does.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.actor_names import IncarnationName
from cluster.config import RAY_NAMESPACE, DeploymentSpec, SchedulerConfig
from cluster.errors import ResourcesMissing
from cluster.rank_progress import RankProgress
from cluster.ray_resources import explain_missing, remove_groups
from cluster.startup_log import StartupLog
from worker.config import ShardConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")

PREPARE_TIMEOUT_S = 180.0  # a cold disk imports torch slowly
CALL_TIMEOUT_S = 30.0
DEATH_TIMEOUT_S = 10.0
EVENT_POLL_S = 0.1
EVENT_ANSWER_S = 1.0
GROUP_POLL_S = 1.0
MIN_BUNDLE_CPU = 0.001  # Ray refuses an empty bundle


class Incarnation:
    """Invariant: after `destroy`, no actor and no placement group of this name is left.

    Used by one supervisor task at a time. An incarnation that is found alive instead of started has
    its handles set by `adopt`.
    """

    def __init__(self, name: IncarnationName, spec: DeploymentSpec, shard_class: type) -> None:
        self.name = name
        self.spec = spec
        self.shards: list[Any] = []  # Ray actor handles, by rank
        self.processes: list[dict[str, Any]] = []  # host, pid and node of each rank
        self._shard_class = shard_class
        self._group: PlacementGroup | None = None
        self._blocking: asyncio.Future[Any] | None = None

    @classmethod
    def adopt(
        cls,
        name: IncarnationName,
        spec: DeploymentSpec,
        shard_class: type,
        shards: list[Any],
        processes: list[dict[str, Any]],
    ) -> "Incarnation":
        incarnation = cls(name, spec, shard_class)
        incarnation.shards = shards
        incarnation.processes = processes
        return incarnation

    @property
    def leader(self) -> Any:
        return self.shards[0]

    async def start(
        self, config: SchedulerConfig, scheduler_address: str, log: StartupLog
    ) -> dict[str, Any]:
        """Returns what the leader tells of itself. Raises: StartFailed, or a shard's own
        exception.
        """
        phases = _Phases(log, self.name.replica_id, self.spec.tp_size, self.spec.num_replicas > 1)
        await phases.run("Resources", self._describe_bundles(), self._reserve(config, phases))
        await phases.run("Shard actors", f"{self.spec.tp_size} processes", self._create())
        await phases.run("Shards prepared", "importing libraries", self._prepare())
        rendezvous = ""
        if self.spec.tp_size > 1:
            rendezvous = await call(self.leader.open_rendezvous.remote(), CALL_TIMEOUT_S)
        starting = asyncio.create_task(
            self._start_shards(rendezvous, scheduler_address, config.start_timeout_s)
        )
        try:
            await phases.forward(self.shards, starting)
            return await starting
        finally:
            await stop_task(starting)

    def _describe_bundles(self) -> str:
        needs = ", ".join(f"{amount:g} {name}" for name, amount in self._bundle().items())
        return f"{self.spec.tp_size} x ({needs}) on one node"

    def _bundle(self) -> dict[str, float]:
        bundle = {"CPU": max(self.spec.cpus_per_rank, MIN_BUNDLE_CPU)}
        if self.spec.gpus_per_rank:
            bundle["GPU"] = self.spec.gpus_per_rank
        return bundle

    async def _reserve(self, config: SchedulerConfig, phases: "_Phases") -> None:
        bundles = [self._bundle() for _ in range(self.spec.tp_size)]
        self._group = await self._in_thread(
            lambda: placement_group(
                bundles, strategy="STRICT_PACK", name=self.name.group, lifetime="detached"
            )
        )
        deadline = time.monotonic() + config.placement_timeout_s
        while not await self._in_thread(lambda: self._granted(GROUP_POLL_S)):
            missing = await self._in_thread(lambda: explain_missing(bundles))
            phases.say("Resources", f"waiting for resources: {missing}")
            if time.monotonic() >= deadline:
                raise ResourcesMissing(
                    f"no room for replica {self.name.replica_id} after "
                    f"{config.placement_timeout_s:g} s: {missing}"
                )

    def _granted(self, timeout_s: float) -> bool:
        assert self._group is not None
        # Asked of Ray's store directly: `ready()` would start a worker process just to answer.
        return self._group.wait(timeout_s)

    async def _create(self) -> None:
        self.shards = await self._in_thread(
            lambda: [self._create_shard(rank) for rank in range(self.spec.tp_size)]
        )

    def _create_shard(self, rank: int) -> Any:
        assert self._group is not None
        strategy = PlacementGroupSchedulingStrategy(
            self._group,
            placement_group_bundle_index=rank,
            placement_group_capture_child_tasks=False,
        )
        options = {
            "name": self.name.actor(rank),
            "namespace": RAY_NAMESPACE,
            "lifetime": "detached",  # the data plane outlives the scheduler
            "num_cpus": self._bundle()["CPU"],
            "num_gpus": self.spec.gpus_per_rank,
            "max_restarts": 0,  # a lone restarted rank would hang its group
            "max_task_retries": 0,
            "scheduling_strategy": strategy,
        }
        return ray.remote(self._shard_class).options(**options).remote()

    async def _prepare(self) -> None:
        self.processes = await gather_all(
            call(shard.prepare.remote(), PREPARE_TIMEOUT_S) for shard in self.shards
        )

    async def _start_shards(
        self, rendezvous: str, scheduler_address: str, timeout_s: float
    ) -> dict[str, Any]:
        answers = await gather_all(
            call(shard.start.remote(self._config(rank, rendezvous), scheduler_address), timeout_s)
            for rank, shard in enumerate(self.shards)
        )
        return dict(answers[0])

    def _config(self, rank: int, rendezvous: str) -> ShardConfig:
        return ShardConfig(
            deployment=self.spec.name,
            replica_id=self.name.replica_id,
            epoch=self.name.epoch,
            rank=rank,
            tp_size=self.spec.tp_size,
            rendezvous=rendezvous,
            runner=self.spec.runner,
            served_names=self.spec.served_names,
            enable_prefix_caching=self.spec.enable_prefix_caching,
            max_logprobs=self.spec.max_logprobs,
            target_itl_ms=self.spec.target_itl_ms,
            speculation=self.spec.speculation,
            deployment_json=self.spec.to_json(),
        )

    async def destroy(self) -> None:
        """Kill what is alive and give the resources back. May be called again, and after any
        failure.
        """
        if self._blocking is not None and not self._blocking.done():
            await asyncio.wait([self._blocking], timeout=CALL_TIMEOUT_S)
        await asyncio.to_thread(self._kill)
        deaths = [asyncio.ensure_future(_death(shard)) for shard in self.shards]
        if deaths:
            # The next incarnation wants the memory: wait until the processes are gone.
            _, alive = await asyncio.wait(deaths, timeout=DEATH_TIMEOUT_S)
            for waiter in alive:
                await stop_task(waiter)
            if alive:
                logger.warning("replica_id=%s: %d shards linger", self.name.replica_id, len(alive))

    def _kill(self) -> None:
        for rank in range(self.spec.tp_size):
            try:
                # By name: an actor may exist whose handle was lost to a cancellation.
                shard = ray.get_actor(self.name.actor(rank), namespace=RAY_NAMESPACE)
            except ValueError:
                continue
            ray.kill(shard, no_restart=True)
        remove_groups({self.name.group})

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """A cancelled caller leaves the thread running: `destroy` waits for it before it cleans
        up.
        """
        self._blocking = asyncio.ensure_future(asyncio.to_thread(function))
        return await asyncio.shield(self._blocking)


class _Phases:
    """Writes an incarnation's start to the log: its own phases, those that the leader tells, and
    the progress of all ranks.
    """

    def __init__(
        self, log: StartupLog, replica_id: str, num_ranks: int, is_one_of_many: bool
    ) -> None:
        self._log = log
        self._replica_id = replica_id
        self._prefix = f"{replica_id}: " if is_one_of_many else ""
        self._seen = [0] * num_ranks
        self._progress = RankProgress(num_ranks)

    def say(
        self,
        phase: str,
        message: str,
        seconds: float | None = None,
        fraction: float | None = None,
    ) -> None:
        self._log.add(phase, self._prefix + message, self._replica_id, seconds, fraction)

    async def run(self, phase: str, message: str, work: Awaitable[None]) -> None:
        began = time.monotonic()
        self.say(phase, message)
        await work
        self.say(phase, message, time.monotonic() - began)

    async def forward(self, shards: list[Any], start: "asyncio.Task[Any]") -> None:
        """Copies the shards' events until the start is over; how it ended is the caller's
        business.
        """
        while not start.done():
            await asyncio.wait([start], timeout=EVENT_POLL_S)
            if start.done() and start.exception() is not None:
                return  # a dead leader tells no more
            asking = [
                asyncio.ensure_future(call(shard.startup_events.remote(seen), CALL_TIMEOUT_S))
                for shard, seen in zip(shards, self._seen, strict=True)
            ]
            try:
                # A shard that is busy loading may not answer soon; it is asked again then.
                await asyncio.wait(asking, timeout=EVENT_ANSWER_S)
                for rank, answer in enumerate(asking):
                    if answer.done() and answer.exception() is None:
                        self._copy(rank, answer.result())
            finally:
                for answer in asking:
                    await stop_task(answer)

    def _copy(self, rank: int, events: list[dict[str, Any]]) -> None:
        """The phases of other ranks than the leader are the same; of them the progress counts."""
        for event in events:
            self._seen[rank] = max(self._seen[rank], int(event["seq"]))
            fraction = event.get("fraction")
            if fraction is not None:
                self._progress.update(rank, event["message"], fraction)
                self.say(event["phase"], self._progress.message, None, self._progress.fraction)
            elif rank == 0:
                seconds = event["seconds"] if event["done"] else None
                self.say(event["phase"], event["message"], seconds)


async def call(ref: Any, timeout_s: float) -> Any:
    """An actor call's answer. Raises: TimeoutError, and what the call raised."""
    async with asyncio.timeout(timeout_s):
        return await ref


async def gather_all(calls: Any) -> list[Any]:
    """All answers; the first failure cancels the other waits and is raised."""
    tasks = [asyncio.ensure_future(c) for c in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def stop_task(task: "asyncio.Future[Any]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _death(shard: Any) -> None:
    """Returns when the actor's process is gone."""
    while True:
        try:
            await shard.ping.remote()
        except ray.exceptions.RayActorError:
            return
        await asyncio.sleep(0.02)
