"""All replicas of all deployments: who supervises them, and what is asked of them together.

The scheduler actor calls it; supervisors and incarnations do the work. Registry and desk hold what
gateways see.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import ray

from cluster import deployment_store
from cluster.actor_names import replica_id
from cluster.config import DeploymentSpec
from cluster.errors import DeploymentConflict, StartFailed, plain_reason
from cluster.incarnation import Incarnation, call
from cluster.placement_desk import PlacementDesk
from cluster.recovery import Found, find_live
from cluster.state import ReplicaState
from cluster.supervisor import Supervisor, SupervisorContext, initial_load, model_facts

logger = logging.getLogger(__name__)

MODEL_FILES_TIMEOUT_S = 30.0
ATTACH_TIMEOUT_S = 2.0
DRAIN_GRACE_S = 5.0


class ReplicaManager:
    """Invariant: every replica of the registry has exactly one supervisor. Owned by the scheduler's
    event loop.
    """

    def __init__(self, context: SupervisorContext, desk: PlacementDesk) -> None:
        self._context = context
        self._registry = context.registry
        self._desk = desk
        self._supervisors: dict[str, Supervisor] = {}
        self._files: dict[str, Mapping[str, bytes]] = {}  # by digest
        self._fetching: dict[str, asyncio.Task[Mapping[str, bytes]]] = {}
        self._progress = asyncio.Event()

    def notify(self) -> None:
        """The registry's structure changed: whoever waits for readiness looks again."""
        self._progress.set()
        self._progress = asyncio.Event()

    async def deploy(self, spec: DeploymentSpec) -> None:
        """Start a deployment's replicas in the background. The same deployment again changes
        nothing.

        Raises: DeploymentConflict.
        """
        existing = next((f.spec for f in self._registry.fleets() if f.spec.name == spec.name), None)
        if existing == spec:
            return
        if existing is not None:
            raise DeploymentConflict(f"{spec.name} is deployed already with other settings")
        self._register(spec)
        await asyncio.to_thread(deployment_store.save, spec)
        for index in range(spec.num_replicas):
            self._supervise(spec, replica_id(spec.name, index), None)

    def _register(self, spec: DeploymentSpec) -> None:
        try:
            self._registry.add_deployment(spec)
        except ValueError as e:
            raise DeploymentConflict(str(e)) from e
        self._desk.open_queue(spec)

    def _supervise(self, spec: DeploymentSpec, name: str, adopted: Incarnation | None) -> None:
        supervisor = Supervisor(self._context, spec, name)
        self._supervisors[name] = supervisor
        supervisor.run(adopted)

    async def recover(self) -> None:
        """Take back what a former scheduler left: live replicas as they are, missing ones anew."""
        specs = {spec.name: spec for spec in await asyncio.to_thread(deployment_store.load_all)}
        live = await find_live(self._context.shard_class)
        for found in live:
            specs.setdefault(found.incarnation.spec.name, found.incarnation.spec)
        for spec in specs.values():
            self._register(spec)
        for found in live:
            self._take_back(found)
        await asyncio.gather(*(self._attach(found.incarnation) for found in live))
        for spec in specs.values():
            for index in range(spec.num_replicas):
                name = replica_id(spec.name, index)
                if name not in self._supervisors:
                    self._supervise(spec, name, None)
        if specs:
            logger.info("recovered %d deployments, %d live replicas", len(specs), len(live))

    def _take_back(self, found: Found) -> None:
        incarnation, told = found.incarnation, found.told
        name, spec = incarnation.name, incarnation.spec
        self._context.epochs.observe(name.epoch)
        self._registry.begin(spec.name, name.replica_id, name.epoch, spec.tp_size)
        facts, load = model_facts(told), initial_load(told, spec)
        self._registry.set_ready(name.replica_id, name.epoch, told["address"], facts, load)
        if told.get("state") == "draining":
            self._registry.set_draining(name.replica_id, name.epoch)
        self._supervise(spec, name.replica_id, incarnation)

    async def _attach(self, incarnation: Incarnation) -> None:
        try:
            address = self._context.scheduler_address
            await call(incarnation.leader.attach.remote(address), ATTACH_TIMEOUT_S)
        except (TimeoutError, ray.exceptions.RayError) as e:
            # It goes on reporting to the address it knows; if it cannot, the supervisor finds out.
            reason = plain_reason(e)
            logger.warning("replica_id=%s not attached: %s", incarnation.name.replica_id, reason)

    def look(self, name: str, epoch: int) -> None:
        supervisor = self._supervisors.get(name)
        if supervisor is not None:
            supervisor.look(epoch)

    def condemn(self, name: str, epoch: int, reason: str) -> None:
        supervisor = self._supervisors.get(name)
        if supervisor is not None:
            supervisor.condemn(epoch, reason)

    def processes(self, name: str) -> list[dict[str, Any]]:
        supervisor = self._supervisors.get(name)
        if supervisor is None or supervisor.incarnation is None:
            return []
        return supervisor.incarnation.processes

    async def wait_ready(self, timeout_s: float) -> None:
        """Returns when every replica is ready. Raises: StartFailed with the reason of the first
        replica that did not come up, or with what is still missing at the deadline.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self._are_all_ready():
                    await self._progress.wait()
        except TimeoutError:
            what = self._context.log.last_message
            raise StartFailed(f"not ready within {timeout_s:g} s; last: {what}") from None

    def _are_all_ready(self) -> bool:
        for name, supervisor in self._supervisors.items():
            if supervisor.first_failure is not None:
                raise StartFailed(f"replica {name} did not start: {supervisor.first_failure}")
        records = [self._registry.record(name) for name in self._supervisors]
        return all(r is not None and r.state is ReplicaState.READY for r in records)

    async def model_files(self, digest: str) -> Mapping[str, bytes]:
        """Fetched once from any ready leader. Raises: KeyError when nobody has them,
        TimeoutError.
        """
        files = self._files.get(digest)
        if files is not None:
            return files
        task = self._fetching.get(digest)
        if task is None:
            task = asyncio.create_task(self._fetch_files(digest))
            self._fetching[digest] = task
            task.add_done_callback(lambda _: self._fetching.pop(digest, None))
        return await asyncio.shield(task)

    async def _fetch_files(self, digest: str) -> Mapping[str, bytes]:
        leaders = self._leaders_with(digest)
        if not leaders:
            raise KeyError(digest)
        for leader in leaders:
            try:
                files = await call(leader.model_files.remote(), MODEL_FILES_TIMEOUT_S)
            except (TimeoutError, ray.exceptions.RayError) as e:
                logger.warning("model files not handed out: %s", plain_reason(e))
                continue
            self._files[digest] = files
            return dict(files)
        raise TimeoutError(digest)

    def _leaders_with(self, digest: str) -> list[Any]:
        leaders = []
        for fleet in self._registry.fleets():
            if fleet.facts is None or fleet.facts.digest != digest:
                continue
            for record in fleet.records.values():
                incarnation = self._supervisors[record.replica_id].incarnation
                if record.state is ReplicaState.READY and incarnation is not None:
                    leaders.append(incarnation.leader)
        return leaders

    async def drain(self, timeout_s: float) -> None:
        """Every leader refuses new work and ends what it has; what is left after the time is cut
        off later, by `shutdown`.
        """
        draining = []
        for name, supervisor in self._supervisors.items():
            supervisor.retire()
            record, incarnation = self._registry.record(name), supervisor.incarnation
            if record is None or incarnation is None or record.state is not ReplicaState.READY:
                continue
            self._registry.set_draining(name, record.epoch)
            draining.append(self._drain_one(incarnation, timeout_s))
        self._context.changed()
        await asyncio.gather(*draining)

    async def _drain_one(self, incarnation: Incarnation, timeout_s: float) -> None:
        try:
            await call(incarnation.leader.drain.remote(timeout_s), timeout_s + DRAIN_GRACE_S)
        except (TimeoutError, ray.exceptions.RayError) as e:
            reason = plain_reason(e)
            logger.warning("replica_id=%s not drained: %s", incarnation.name.replica_id, reason)

    async def shutdown(self) -> None:
        """End every replica and forget every deployment."""
        for task in list(self._fetching.values()):
            task.cancel()
        names = [fleet.spec.name for fleet in self._registry.fleets()]
        for name in names:
            await asyncio.to_thread(deployment_store.delete, name)
        await asyncio.gather(*(supervisor.stop() for supervisor in self._supervisors.values()))
        self._supervisors.clear()
        for name in names:
            self._registry.remove_deployment(name)
            self._desk.close_queue(name)
        self._context.changed()
