"""Keeps one replica alive: starts an incarnation, watches it, replaces it when a rank is lost or it
hangs.

A replica is replaced as a whole, under a new epoch, with growing pauses when it fails again and
again. The registry learns every change; how an incarnation is built is the incarnation's own
business.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from cluster.actor_names import IncarnationName
from cluster.config import DeploymentSpec, SchedulerConfig
from cluster.epochs import EpochClock
from cluster.errors import plain_reason
from cluster.incarnation import Incarnation, call
from cluster.registry import ClusterRegistry
from cluster.startup_log import StartupLog
from cluster.state import ModelFacts
from worker.report import ReplicaLoad

logger = logging.getLogger(__name__)

PING_TIMEOUT_S = 1.0
PING_INTERVAL_S = 0.5  # a dead rank is noticed within this
PING_COST_S = 0.005  # of the interval a shard adds, so that a large cluster's pings stay cheap
STABLE_S = 60.0  # ready for so long: earlier failures are forgiven
BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0


@dataclass(frozen=True, slots=True)
class SupervisorContext:
    """What all supervisors of a scheduler share."""

    config: SchedulerConfig
    registry: ClusterRegistry
    log: StartupLog
    epochs: EpochClock
    shard_class: type
    scheduler_address: str
    changed: Callable[[], None]  # the registry's structure did


class Supervisor:
    """Invariant: at most one incarnation exists, and none is left when `stop` returns.

    One task on the scheduler's event loop.
    """

    def __init__(self, context: SupervisorContext, spec: DeploymentSpec, replica_id: str) -> None:
        self.replica_id = replica_id
        self.incarnation: Incarnation | None = None
        self.first_failure: str | None = None  # why it did not come up, until it first does
        self._context = context
        self._spec = spec
        self._failures = 0
        self._verdict: str | None = None  # passed from outside: the incarnation has to go
        self._wake = asyncio.Event()
        self._was_ready = False
        self._is_retired = False
        self._task: asyncio.Task[None] | None = None

    def run(self, adopted: Incarnation | None = None) -> None:
        """Start supervising; an adopted incarnation is already registered as ready."""
        self.incarnation = adopted
        self._was_ready = adopted is not None
        self._task = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """End the replica for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._destroy()

    def retire(self) -> None:
        """The replica is being drained: when it ends, it is not replaced."""
        self._is_retired = True

    def look(self, epoch: int) -> None:
        """Something about this incarnation needs a look now."""
        if self._epoch == epoch:
            self._wake.set()

    def condemn(self, epoch: int, reason: str) -> None:
        """Replace this incarnation, however alive it seems."""
        if self._epoch == epoch:
            self._verdict = reason
            self._wake.set()

    @property
    def _epoch(self) -> int | None:
        return self.incarnation.name.epoch if self.incarnation is not None else None

    async def _supervise(self) -> None:
        while True:
            try:
                reason, lasted_s = await self._live_and_die()
            except Exception as e:  # a supervisor that ends leaves a replica dead for ever
                logger.exception("replica_id=%s failed", self.replica_id)
                reason, lasted_s = plain_reason(e), 0.0
            await self._bury(reason)
            if self._is_retired:
                return
            await asyncio.sleep(self._pause_s(lasted_s))

    async def _live_and_die(self) -> tuple[str, float]:
        """One incarnation from start to loss; returns why it was lost and how long it was ready."""
        if self.incarnation is None:
            await self._start()
        began = time.monotonic()
        incarnation = self.incarnation
        assert incarnation is not None
        reason = await self._watch(incarnation)
        return reason, time.monotonic() - began

    async def _start(self) -> None:
        context = self._context
        name = IncarnationName(self._spec.name, self.replica_id, context.epochs.next())
        incarnation = Incarnation(name, self._spec, context.shard_class)
        self._verdict = None
        self.incarnation = incarnation
        context.registry.begin(name.deployment, name.replica_id, name.epoch, self._spec.tp_size)
        context.changed()
        told = await incarnation.start(context.config, context.scheduler_address, context.log)
        facts, load = model_facts(told), initial_load(told, self._spec)
        context.registry.set_ready(name.replica_id, name.epoch, told["address"], facts, load)
        self._was_ready, self.first_failure = True, None
        logger.info("replica_id=%s epoch=%d ready", name.replica_id, name.epoch)
        context.changed()

    async def _watch(self, incarnation: Incarnation) -> str:
        """Returns the reason when a rank is dead, or alive and of no use any more."""
        heard_t = [time.monotonic()] * len(incarnation.shards)
        while True:
            answers = await asyncio.gather(*map(self._ping, incarnation.shards))
            now = time.monotonic()
            for rank, answer in enumerate(answers):
                if isinstance(answer, str):
                    return f"shard {rank} died: {answer}"
                if answer:
                    heard_t[rank] = now
            reason = self._verdict or self._silence(heard_t, now)
            if reason is not None:
                return reason
            await self._rest()

    async def _ping(self, shard: Any) -> bool | str:
        """True: it answered; False: not in time; a string: how it died."""
        try:
            await call(shard.ping.remote(), PING_TIMEOUT_S)
        except TimeoutError:
            return False
        except ray.exceptions.RayActorError as e:
            return plain_reason(e)
        except ray.exceptions.RayError:
            return False  # Ray itself is troubled; the replica may serve on
        return True

    def _silence(self, heard_t: list[float], now: float) -> str | None:
        """A busy machine may answer late, so only a long silence counts, and a leader has two
        voices.
        """
        if self._is_retired:
            return None  # it stops reporting when it has drained
        config = self._context.config
        record = self._context.registry.record(self.replica_id)
        report_age_s = record.report_age_s(self._context.registry.now()) if record else 0.0
        unheard_s = now - heard_t[0]
        if min(report_age_s, unheard_s) > config.lost_timeout_s:
            return f"the leader has been silent for {unheard_s:.0f} s"
        if report_age_s > config.hang_timeout_s:
            return f"the leader has not reported for {report_age_s:.0f} s"
        for rank, heard in enumerate(heard_t):
            if now - heard > config.hang_timeout_s:
                return f"shard {rank} has been silent for {now - heard:.0f} s"
        return None

    async def _rest(self) -> None:
        interval_s = max(PING_INTERVAL_S, PING_COST_S * self._context.registry.num_shards())
        try:
            async with asyncio.timeout(interval_s):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _bury(self, reason: str) -> None:
        if self.incarnation is not None:
            epoch = self.incarnation.name.epoch
            self._context.registry.fail(self.replica_id, epoch, reason)
        if not self._was_ready:
            self.first_failure = reason
        logger.warning("replica_id=%s lost: %s", self.replica_id, reason)
        self._context.log.add("Replica lost", f"{self.replica_id}: {reason}", self.replica_id)
        self._context.changed()
        await self._destroy()

    async def _destroy(self) -> None:
        if self.incarnation is not None:
            await self.incarnation.destroy()
            self.incarnation = None

    def _pause_s(self, lasted_s: float) -> float:
        """None after a single loss; doubling while incarnations do not last."""
        self._failures = 1 if lasted_s >= STABLE_S else self._failures + 1
        if self._failures == 1 and self._was_ready:
            return 0.0
        return min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(self._failures - 1, 10))


def model_facts(told: dict[str, Any]) -> ModelFacts:
    return ModelFacts(
        max_model_len=int(told["max_model_len"]),
        block_size=int(told["block_size"]),
        vocab_size=int(told["vocab_size"]),
        eos_token_ids=tuple(int(token_id) for token_id in told["eos_token_ids"]),
        digest=str(told["digest"]),
    )


def initial_load(told: dict[str, Any], spec: DeploymentSpec) -> ReplicaLoad:
    """Sizes only; the first report brings the rest."""
    blocks = int(told["num_blocks"])
    return ReplicaLoad(
        num_blocks=blocks, num_free_blocks=blocks, max_num_seqs=spec.runner.max_num_seqs
    )
