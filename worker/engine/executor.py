"""The seam between planning and computing."""

from typing import Protocol, runtime_checkable

from worker.engine.step import StepPlan, StepResult


class Executor(Protocol):
    """Runs plans, one at a time, in order. Called from the engine thread only.

    Raises: ShardError when a rank fails; the engine then fails all its requests and ends.
    """

    def execute(self, plan: StepPlan) -> StepResult: ...

    def close(self) -> None: ...


class StepHandle(Protocol):
    """A step that was submitted. Used by the engine thread."""

    def result(self, timeout_s: float) -> StepResult:
        """What came of it; waits for it. Called once, in the order of submission.

        Raises: ShardError when a rank fails, or has not ended the step within `timeout_s`.
        """
        ...


@runtime_checkable
class AsyncExecutor(Executor, Protocol):
    """Also takes a plan while the one before still runs; such a plan may have UNKNOWN_TOKENs.

    What one plan does to the device is done before the next one begins, as in a queue. `execute`
    takes a plan with unknown tokens as well.
    """

    def submit(self, plan: StepPlan) -> StepHandle:
        """Begins the step and returns. Each of its sampled sequences brings one token, of which
        nothing is asked for but its id (`SamplingParams.is_self_contained`).
        """
        ...
