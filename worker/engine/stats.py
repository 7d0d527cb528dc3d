"""What the engine counts. Monotonic since its start; copied out as the frozen EngineCounters."""

from worker.engine.request import FinishReason
from worker.report import EngineCounters


class EngineStats:
    """Owned by the engine thread."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.prefix_cache_queries = 0  # tokens
        self.prefix_cache_hits = 0  # tokens
        self.preemptions = 0
        self.step_seconds = 0.0
        self._finished: dict[FinishReason, int] = dict.fromkeys(
            ("stop", "length", "abort", "error"), 0
        )

    def count_admission(self, num_prompt_tokens: int, num_queried: int, num_hit: int) -> None:
        """A request enters the batch for the first time."""
        self.prompt_tokens += num_prompt_tokens
        self.prefix_cache_queries += num_queried
        self.prefix_cache_hits += num_hit

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
        )
