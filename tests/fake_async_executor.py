"""A FakeExecutor that takes a step while the one before still runs, and keeps its results back.

Like a device's queue: steps do what they do in the order of submission, the ids of unknown tokens
are what the slot's last step has sampled, and the host learns of nothing before it asks.
"""

from dataclasses import dataclass, replace

from tests.fake_executor import FakeExecutor
from worker.engine.step import UNKNOWN_TOKEN, StepPlan, StepResult


@dataclass
class FakeHandle:
    """Distrusts its user: results are taken once, in order."""

    executor: "FakeAsyncExecutor"
    value: StepResult

    def result(self, timeout_s: float) -> StepResult:
        assert timeout_s > 0
        assert self.executor.queue.pop(0) is self, "results out of order"
        return self.value


class FakeAsyncExecutor(FakeExecutor):
    """Implements worker.engine.executor.AsyncExecutor."""

    def __init__(self, *args: int, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.queue: list[FakeHandle] = []
        self.num_ahead = 0  # plans that came while another step was under way
        self.num_waited = 0  # plans that were executed at once

    def submit(self, plan: StepPlan) -> FakeHandle:
        assert len(self.queue) < 2, "more than one step ahead"
        assert not any(s.num_drafts for s in plan.sequences), "guesses that nobody verifies"
        self.num_ahead += bool(self.queue)
        handle = FakeHandle(self, super().execute(self._known(plan)))
        assert handle.value.num_tokens is None, "a sequence without its one token"
        assert not handle.value.logprobs and not handle.value.prompt_logprobs
        self.queue.append(handle)
        return handle

    def execute(self, plan: StepPlan) -> StepResult:
        assert not self.queue, "a step that is waited for, behind one whose results are not known"
        self.num_waited += 1
        return super().execute(self._known(plan))

    def _known(self, plan: StepPlan) -> StepPlan:
        """As the device sees it."""
        if not self._is_checking:
            return plan
        token_ids = list(plan.token_ids)
        end = 0
        for sequence in plan.sequences:
            end += sequence.num_tokens
            if token_ids[end - 1] == UNKNOWN_TOKEN:
                assert sequence.num_tokens == 1, "unknown tokens come one by one"
                token_ids[end - 1] = self._slots[sequence.slot].tokens[-1]
        assert UNKNOWN_TOKEN not in token_ids
        return replace(plan, token_ids=token_ids)
