"""What the engine counts. Monotonic since its start; copied out as the frozen EngineCounters."""

from bisect import bisect_left
from itertools import accumulate

from worker.engine.request import FinishReason
from worker.report import STEP_TOKEN_BOUNDS, EngineCounters


class EngineStats:
    """Owned by the engine thread."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.prefix_cache_queries = 0  # tokens
        self.prefix_cache_hits = 0  # tokens
        self.preemptions = 0
        self.step_seconds = 0.0
        self._step_tokens = 0
        self._steps_by_tokens = [0] * (len(STEP_TOKEN_BOUNDS) + 1)
        self.drafts = 0  # sequences in steps that carried guesses
        self.draft_tokens = 0
        self.accepted_tokens = 0
        self._drafts_by_accepted: list[int] = []  # those of which 0, 1, ... guesses were right
        self._finished: dict[FinishReason, int] = dict.fromkeys(
            ("stop", "length", "abort", "error"), 0
        )

    def count_admission(self, num_prompt_tokens: int, num_queried: int, num_hit: int) -> None:
        """A request enters the batch for the first time."""
        self.prompt_tokens += num_prompt_tokens
        self.prefix_cache_queries += num_queried
        self.prefix_cache_hits += num_hit

    def count_drafts(self, num_drafted: int, num_accepted: int) -> None:
        """One sequence's guesses have been verified."""
        self.drafts += 1
        self.draft_tokens += num_drafted
        self.accepted_tokens += num_accepted
        missing = num_accepted + 1 - len(self._drafts_by_accepted)
        self._drafts_by_accepted += [0] * missing
        self._drafts_by_accepted[num_accepted] += 1

    def count_step(self, num_tokens: int, seconds: float) -> None:
        self.step_seconds += seconds
        self._step_tokens += num_tokens
        self._steps_by_tokens[bisect_left(STEP_TOKEN_BOUNDS, num_tokens)] += 1

    def count_finish(self, reason: FinishReason) -> None:
        self._finished[reason] += 1

    def counters(self) -> EngineCounters:
        return EngineCounters(
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            prefix_cache_queries=self.prefix_cache_queries,
            prefix_cache_hits=self.prefix_cache_hits,
            preemptions=self.preemptions,
            finished_stop=self._finished["stop"],
            finished_length=self._finished["length"],
            finished_abort=self._finished["abort"],
            finished_error=self._finished["error"],
            step_seconds=self.step_seconds,
            step_tokens=self._step_tokens,
            steps_by_tokens=tuple(self._steps_by_tokens),
            drafts=self.drafts,
            draft_tokens=self.draft_tokens,
            accepted_tokens=self.accepted_tokens,
            accepted_by_position=self._accepted_by_position(),
        )

    def _accepted_by_position(self) -> tuple[int, ...]:
        """A guess is right only behind right ones."""
        with_more = list(accumulate(reversed(self._drafts_by_accepted[1:])))
        return tuple(reversed(with_more))
