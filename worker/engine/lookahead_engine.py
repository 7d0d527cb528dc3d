"""An engine over an executor that takes a step while the one before still runs.

The device then never waits for the host: while step N runs, step N+1 is planned and submitted with
the ids of N's tokens left open, and N's outputs are made while N+1 runs. A request that turns out
to have ended with N has one row too many in N+1, of which nothing is taken. Where the host must see
a token before the next step (`BatchScheduler.schedule_behind`), steps follow one after another.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from worker.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.executor import AsyncExecutor, Executor, StepHandle
from worker.engine.planned_step import PlannedStep
from worker.engine.request import RequestOutput
from worker.engine.step import StepResult

# Only bounds the wait: a step that hangs is noticed by its age long before.
_RESULT_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class _Submitted:
    step: PlannedStep
    handle: StepHandle
    started_s: float


@dataclass(frozen=True, slots=True)
class _Done:
    """The handle of a step that was waited for."""

    value: StepResult

    def result(self, timeout_s: float) -> StepResult:
        return self.value


class LookaheadEngine(Engine):
    """Used as the Engine is. Invariant: between calls at most one step is under way, and no request
    has an unknown token.
    """

    max_steps_under_way = 2

    def __init__(
        self,
        config: EngineConfig,
        executor: AsyncExecutor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config, executor, clock)
        self._async = executor
        self._under_way: _Submitted | None = None
        self._ended_s = 0.0  # when the last step did

    @property
    def has_work(self) -> bool:
        return self._num_requests > 0 or self._under_way is not None

    def step(self) -> list[RequestOutput]:
        """The outputs of one step; the next one may be under way then."""
        self._end_expired(self._clock())
        current = self._under_way or self._begin()
        if current is not None:
            self._under_way = self._begin_behind(current)
            self._end_step(current)
        return self.take_outputs()

    def _begin(self) -> _Submitted | None:
        now_s = self._clock()
        step = self._scheduler.schedule(self.steps, now_s)
        return None if step is None else self._submitted(step, now_s)

    def _begin_behind(self, current: _Submitted) -> _Submitted | None:
        now_s = self._clock()
        step = self._scheduler.schedule_behind(current.step, self.steps + 1, now_s)
        return None if step is None else self._submitted(step, now_s)

    def _submitted(self, step: PlannedStep, now_s: float) -> _Submitted:
        if step.is_predictable:
            return _Submitted(step, self._async.submit(step.plan), now_s)
        return _Submitted(step, _Done(self._async.execute(step.plan)), now_s)

    def _end_step(self, current: _Submitted) -> None:
        result = current.handle.result(_RESULT_TIMEOUT_S)
        self.steps += 1
        now_s = self._clock()
        seconds = now_s - max(current.started_s, self._ended_s)
        self._ended_s = now_s
        self._update(current.step, result, now_s, seconds)


def engine_for(
    config: EngineConfig, executor: Executor, clock: Callable[[], float] = time.monotonic
) -> Engine:
    """The engine that makes the most of what the executor can do."""
    if isinstance(executor, AsyncExecutor):
        return LookaheadEngine(config, executor, clock)
    return Engine(config, executor, clock)
