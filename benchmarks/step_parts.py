"""Where a step's time goes: a runner and an executor that note when each part of a step ends.

Plan and hand-over are what the engine does around the executor; inputs, forward and sampling are
the runner's. On a card `forward` is launching, and sampling waits for what was launched: what the
card itself took lies between two of its events. Used by one thread, as the engine is.
"""

from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from worker.engine.engine import Engine
from worker.engine.request import RequestOutput
from worker.engine.step import StepPlan, StepResult
from worker.parallel.tp_executor import LocalExecutor
from worker.runner.input_batch import StepInputs
from worker.runner.model_runner import ModelRunner

PARTS = ("plan", "inputs", "forward", "sample", "hand_over")

_Events = tuple[torch.cuda.Event, torch.cuda.Event]


@dataclass(slots=True)
class StepMarks:
    """One step, as it goes on; seconds on `perf_counter`."""

    plan: StepPlan
    executing_s: float
    inputs_s: float = 0.0
    forward_s: float = 0.0
    executed_s: float = 0.0
    on_device: _Events | None = None


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

    marks: StepMarks | None = None  # of the step under way

    def _inputs(self, plan: StepPlan) -> StepInputs:
        inputs = super()._inputs(plan)
        if self.marks is not None:
            self.marks.inputs_s = perf_counter()
        return inputs

    def _forward(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        if self.marks is None:
            return super()._forward(inputs)
        first = self._event()
        out = super()._forward(inputs)
        last = self._event()
        self.marks.forward_s = perf_counter()
        if first is not None and last is not None:
            self.marks.on_device = first, last
        return out

    def _event(self) -> torch.cuda.Event | None:
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass
class TimedExecutor:
    """A LocalExecutor whose last step's marks can be taken. Invariant: a step without a forward
    pass, which only releases slots, leaves none.
    """

    runner: TimedRunner
    last: StepMarks | None = None
    _local: LocalExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._local = LocalExecutor(self.runner)

    def execute(self, plan: StepPlan) -> StepResult:
        marks = self.runner.marks = StepMarks(plan, perf_counter())
        result = self._local.execute(plan)
        marks.executed_s = perf_counter()
        self.last = marks if plan.sequences else None
        return result

    def close(self) -> None:
        self._local.close()


def timed_step(
    engine: Engine, executor: TimedExecutor
) -> tuple[list[RequestOutput], StepTimes | None]:
    """One step of the engine and its times; None where there was nothing to compute."""
    executor.last = None
    start_s = perf_counter()
    outputs = engine.step()
    end_s = perf_counter()
    marks = executor.last
    if marks is None:
        return outputs, None
    ends = (marks.executing_s, marks.inputs_s, marks.forward_s, marks.executed_s, end_s)
    starts = (start_s, *ends)
    parts = tuple(end - begin for begin, end in zip(starts, ends, strict=False))
    return outputs, StepTimes(marks.plan, end_s - start_s, parts, marks.on_device)
