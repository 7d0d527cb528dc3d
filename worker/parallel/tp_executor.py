"""Runs plans on one rank or on all of them: the two executors of the engine, and a follower's loop.

Knows the step channel and that a rank can fail; nothing of scheduling or of what a runner computes.
Built by the shard, called from the engine thread.
"""

import logging
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from worker.engine.step import StepPlan, StepResult
from worker.errors import ShardError
from worker.parallel.group import TPGroup
from worker.parallel.step_channel import PlanReceiver, PlanSender

logger = logging.getLogger(__name__)

T = TypeVar("T")

_REASON_WAIT_S = 0.5  # a follower's own words may arrive after the group has noticed


class StepRunner(Protocol):
    """What executes a plan on one rank (`worker.runner.model_runner`)."""

    def execute(self, plan: StepPlan) -> StepResult: ...


class LocalExecutor:
    """One rank, no followers. Used by the engine thread."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner

    def execute(self, plan: StepPlan) -> StepResult:
        try:
            return self._runner.execute(plan)
        except Exception as error:
            raise ShardError(f"rank 0 failed: {error!r}") from error

    def close(self) -> None:
        return None


class TPExecutor:
    """The leader of several ranks: sends the plan, runs its own rank. Used by the engine thread.

    Once a rank has failed every `execute` raises. A follower's death is noticed at once, also
    between steps: `failure` says so and `on_failure` is called, once, from another thread. Pass the
    `group` that the runner computes with, so that a collective under way ends as well.
    """

    def __init__(
        self,
        runner: StepRunner,
        channel: PlanSender,
        group: TPGroup | None = None,
        on_failure: Callable[[ShardError], None] | None = None,
    ) -> None:
        """Waits for the followers. Raises: ShardError unless all come in time."""
        self._runner = runner
        self._channel = channel
        self._group = group
        self._on_failure = on_failure
        self._failure: ShardError | None = None
        self._has_failed = threading.Event()
        channel.wait_connected()
        channel.watch(self._note_failure)

    @property
    def failure(self) -> ShardError | None:
        return self._failure

    def execute(self, plan: StepPlan) -> StepResult:
        return self._run(plan, self._runner.execute)

    def _run(self, plan: StepPlan, begin: Callable[[StepPlan], T]) -> T:
        """On all ranks; `begin` on this one."""
        if self._failure is not None:
            raise ShardError(str(self._failure))
        try:
            self._channel.send(plan)
            return begin(plan)
        except Exception as error:
            raise self._explain(error) from error

    def close(self) -> None:
        self._channel.close()

    def _explain(self, error: Exception) -> ShardError:
        """The followers may be in mid-step: none of them can go on. Their reason comes first."""
        if isinstance(error, ShardError):
            self._has_failed.wait(_REASON_WAIT_S)
        if self._failure is None:
            self._failure = ShardError(f"rank 0 failed: {error!r}")
        if self._group is not None:
            self._group.abort()
        return ShardError(str(self._failure))

    def _note_failure(self, reason: str) -> None:
        logger.error("tensor-parallel group broken: %s", reason)
        failure = ShardError(reason)
        self._failure = self._failure or failure
        self._has_failed.set()
        if self._group is not None:
            self._group.abort()
        if self._on_failure is not None:
            self._on_failure(failure)


def follow(runner: StepRunner, channel: PlanReceiver, group: TPGroup | None = None) -> None:
    """A follower's loop: runs the leader's plans until the leader ends the channel.

    Raises: ShardError when this rank or the leader fails; the process should then end.
    """
    try:
        while (plan := channel.receive()) is not None:
            runner.execute(plan)
    except Exception as error:
        channel.fail(repr(error))
        if group is not None:
            group.abort()
        raise ShardError(f"follower failed: {error!r}") from error
    finally:
        channel.close()
