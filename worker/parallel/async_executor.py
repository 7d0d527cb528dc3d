"""The executors of a runner whose device computes beside the host: they also take a plan while the
one before still runs.

Followers launch what they are sent and wait for nothing, so they run as far ahead as the leader.
Built by the shard, called from the engine thread.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from worker.engine.executor import StepHandle
from worker.engine.step import StepPlan, StepResult
from worker.errors import ShardError
from worker.parallel.group import TPGroup
from worker.parallel.step_channel import PlanSender
from worker.parallel.tp_executor import LocalExecutor, StepRunner, TPExecutor


class AsyncStepRunner(StepRunner, Protocol):
    """What begins a plan on one rank (`worker.runner.model_runner`)."""

    def submit(self, plan: StepPlan) -> StepHandle: ...


class AsyncLocalExecutor(LocalExecutor):
    """One rank, no followers. An AsyncExecutor."""

    def __init__(self, runner: AsyncStepRunner) -> None:
        super().__init__(runner)
        self._async_runner = runner

    def submit(self, plan: StepPlan) -> StepHandle:
        try:
            handle = self._async_runner.submit(replace(plan, keeps_samples=True))
        except Exception as error:
            raise ShardError(f"rank 0 failed: {error!r}") from error
        return _Guarded(handle, _explained)


class AsyncTPExecutor(TPExecutor):
    """The leader of several ranks. An AsyncExecutor; failures are told as by TPExecutor."""

    def __init__(
        self,
        runner: AsyncStepRunner,
        channel: PlanSender,
        group: TPGroup | None = None,
        on_failure: Callable[[ShardError], None] | None = None,
    ) -> None:
        """Waits for the followers. Raises: ShardError unless all come in time."""
        super().__init__(runner, channel, group, on_failure)
        self._async_runner = runner

    def submit(self, plan: StepPlan) -> StepHandle:
        plan = replace(plan, keeps_samples=True)
        handle = self._run(plan, self._async_runner.submit)
        return _Guarded(handle, self._explain)


class _Guarded:
    """A handle whose failures are told as the executor tells them."""

    def __init__(self, handle: StepHandle, explain: Callable[[Exception], ShardError]) -> None:
        self._handle = handle
        self._explain = explain

    def result(self, timeout_s: float) -> StepResult:
        try:
            return self._handle.result(timeout_s)
        except Exception as error:
            raise self._explain(error) from error


def _explained(error: Exception) -> ShardError:
    return ShardError(f"rank 0 failed: {error!r}")
