"""Where a step's time goes: a runner and executors that note how long each part of a step takes.

Plan and hand-over are what the engine does around the executor; inputs, forward and sampling are
the runner's. On a card `forward` is launching, and what the card itself took lies between two of
its events. Where steps are planned ahead, the parts before `wait` are those of the step that is
prepared while this one runs; `wait` is what the host has left to wait then. Used by one thread, as
the engine is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from worker.engine.engine import Engine
from worker.engine.executor import StepHandle
from worker.engine.request import RequestOutput
from worker.engine.step import StepPlan, StepResult
from worker.parallel.async_executor import AsyncLocalExecutor
from worker.parallel.tp_executor import LocalExecutor
from worker.runner.input_batch import StepInputs
from worker.runner.model_runner import ModelRunner

PARTS = ("plan", "inputs", "forward", "sample", "wait", "hand_over")

R = TypeVar("R")

_Events = tuple[torch.cuda.Event, torch.cuda.Event]


@dataclass(slots=True)
class Clock:
    """Seconds that one call of the engine spent in its executor, by part."""

    inputs_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    wait_s: float = 0.0
    executed_s: float = 0.0  # when the step's result was there, on `perf_counter`
    _last_s: float = 0.0

    def begin(self) -> None:
        self._last_s = perf_counter()

    def lap(self) -> float:
        """Since the last one."""
        now_s = perf_counter()
        lap_s, self._last_s = now_s - self._last_s, now_s
        return lap_s


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One step. The parts, in the order of `PARTS`, fill the whole of it."""

    plan: StepPlan
    seconds: float
    parts_s: tuple[float, ...]
    on_device: _Events | None

    @property
    def device_s(self) -> float | None:
        """The forward pass on the card; waits for it."""
        if self.on_device is None:
            return None
        first, last = self.on_device
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000

    @property
    def has_prompts(self) -> bool:
        return any(s.num_tokens - s.num_drafts > 1 for s in self.plan.sequences)

    @property
    def has_decodes(self) -> bool:
        return any(s.num_tokens - s.num_drafts == 1 for s in self.plan.sequences)


class TimedRunner(ModelRunner):
    """Computes as any runner does."""

    clock: Clock | None = None  # of the call under way
    on_device: _Events | None = None  # of the last forward pass

    def _inputs(self, plan: StepPlan) -> StepInputs:
        inputs = super()._inputs(plan)
        if self.clock is not None:
            self.clock.inputs_s += self.clock.lap()
        return inputs

    def _forward(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        return self._timed(super()._forward, inputs)

    def _forward_greedy(self, inputs: StepInputs) -> tuple[Tensor, list[int]]:
        return self._timed(super()._forward_greedy, inputs)

    def _timed(self, forward: Callable[[StepInputs], R], inputs: StepInputs) -> R:
        if self.clock is None:
            return forward(inputs)
        first = self._event()
        out = forward(inputs)
        last = self._event()
        self.clock.forward_s += self.clock.lap()
        self.on_device = None if first is None or last is None else (first, last)
        return out

    def _event(self) -> torch.cuda.Event | None:
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass
class TimedExecutor:
    """A LocalExecutor whose calls are timed. Invariant: a step without a forward pass, which only
    releases slots, has no times.
    """

    runner: TimedRunner
    ended: tuple[StepPlan, _Events | None] | None = None  # the step that ended last
    clock: Clock = field(default_factory=Clock)
    _local: AsyncLocalExecutor | LocalExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._local = self._executor()

    def _executor(self) -> AsyncLocalExecutor | LocalExecutor:
        return LocalExecutor(self.runner)

    def restart(self) -> None:
        """Before a call of the engine."""
        self.ended = None
        self.clock = self.runner.clock = Clock()

    def execute(self, plan: StepPlan) -> StepResult:
        self.clock.begin()
        result = self._local.execute(plan)
        self.clock.sample_s += self.clock.lap()
        self._end(plan, self.runner.on_device)
        return result

    def _end(self, plan: StepPlan, on_device: _Events | None) -> None:
        self.clock.executed_s = perf_counter()
        self.ended = (plan, on_device) if plan.sequences else None

    def close(self) -> None:
        self._local.close()


@dataclass
class TimedAsyncExecutor(TimedExecutor):
    """The same of an executor that takes a step while another runs."""

    def _executor(self) -> AsyncLocalExecutor:
        return AsyncLocalExecutor(self.runner)

    def submit(self, plan: StepPlan) -> StepHandle:
        assert isinstance(self._local, AsyncLocalExecutor)
        self.clock.begin()
        handle = self._local.submit(plan)
        self.clock.sample_s += self.clock.lap()
        return _TimedHandle(self, handle, plan, self.runner.on_device)

    def end(self, plan: StepPlan, on_device: _Events | None) -> None:
        self.clock.wait_s += self.clock.lap()
        self._end(plan, on_device)


@dataclass
class _TimedHandle:
    executor: TimedAsyncExecutor
    handle: StepHandle
    plan: StepPlan
    on_device: _Events | None

    def result(self, timeout_s: float) -> StepResult:
        self.executor.clock.begin()
        result = self.handle.result(timeout_s)
        self.executor.end(self.plan, self.on_device)
        return result


def timed_executor(runner: TimedRunner) -> TimedExecutor:
    return TimedAsyncExecutor(runner) if runner.is_asynchronous else TimedExecutor(runner)


def timed_step(
    engine: Engine, executor: TimedExecutor
) -> tuple[list[RequestOutput], StepTimes | None]:
    """One step of the engine and its times; None where there was nothing to compute."""
    executor.restart()
    start_s = perf_counter()
    outputs = engine.step()
    end_s = perf_counter()
    if executor.ended is None:
        return outputs, None
    plan, on_device = executor.ended
    clock = executor.clock
    in_executor = (clock.inputs_s, clock.forward_s, clock.sample_s, clock.wait_s)
    plan_s = clock.executed_s - start_s - sum(in_executor)
    parts = (plan_s, *in_executor, end_s - clock.executed_s)
    return outputs, StepTimes(plan, end_s - start_s, parts, on_device)
