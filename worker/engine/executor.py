"""The seam between planning and computing."""

from typing import Protocol

from worker.engine.step import StepPlan, StepResult


class Executor(Protocol):
    """Runs plans, one at a time, in order. Called from the engine thread only.

    Raises: ShardError when a rank fails; the engine then fails all its requests and ends.
    """

    def execute(self, plan: StepPlan) -> StepResult: ...

    def close(self) -> None: ...
