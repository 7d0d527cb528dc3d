"""A plan together with whose it is: what the BatchScheduler decided for one step, and accounts for
when the step has ended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from worker.engine.request import Request, Status
from worker.engine.step import UNKNOWN_TOKEN, StepPlan
from worker.engine.step_time import StepLoad


@dataclass(slots=True)
class PlannedStep:
    """Filled by the BatchScheduler while it plans, read-only afterwards."""

    plan: StepPlan
    requests: list[Request] = field(default_factory=list)  # in the order of the plan's sequences
    sampled: list[Request] = field(default_factory=list)  # of these, in the same order
    load: StepLoad = field(default_factory=StepLoad)
    # Each sampled request gets exactly one token, and the host need not see it before the next
    # step: that one can be planned while this one runs.
    is_predictable: bool = False

    @contextmanager
    def assumed_ended(self) -> Iterator[set[Request]]:
        """Within, its requests are where the step will bring them, each sampled one with a token
        that is not known yet. Yields those that it will have ended by their length.

        Requests that have ended since it was planned are passed over.
        """
        running = Status.RUNNING  # an enumeration's members are slow to look up
        for request, sequence in zip(self.requests, self.plan.sequences, strict=True):
            if request.status is running:
                request.num_computed_tokens = sequence.start + sequence.num_tokens
        ending: set[Request] = set()
        for request in self.sampled:
            request.token_ids.append(UNKNOWN_TOKEN)
            is_full = len(request.token_ids) >= request.max_total_tokens
            if is_full and request.status is running:
                ending.add(request)
        try:
            yield ending
        finally:
            for request in self.sampled:
                del request.token_ids[-1]
