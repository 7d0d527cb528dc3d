"""One request's tokens, told to the metrics as vLLM would count them: choice by choice.

Knows the metrics only as what counts for a replica; Generation calls it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from gateway.tokens import FinishReason, Timing


class Counts(Protocol):
    def inc(self, amount: float = 1) -> None: ...


class ObservesMany(Protocol):
    def observe(self, value: float, times: int) -> None: ...
    def flush(self) -> None: ...


class CountsOfEngine(Protocol):
    """gateway.metrics.EngineMetrics."""

    @property
    def inter_token(self) -> ObservesMany: ...
    @property
    def prompt_tokens(self) -> Counts: ...
    @property
    def prompt_tokens_cached(self) -> Counts: ...
    @property
    def prompt_tokens_by_source(self) -> Mapping[str, Counts]: ...
    @property
    def generation_tokens(self) -> Counts: ...
    @property
    def finished(self) -> Mapping[str, Counts]: ...
    def observe(self, name: str, value: float) -> None: ...


@dataclass(frozen=True, slots=True)
class EndedChoice:
    choice: int
    reason: FinishReason
    num_prompt_tokens: int
    num_tokens: int
    max_tokens: int
    timing: Timing


class RequestTimer:
    """Owned by the event loop."""

    __slots__ = (
        *("_arrival_s", "_engine", "_first_s", "_last_s", "_num_choices", "_num_uncounted"),
        *("_of_engine", "first_token_s"),
    )

    _COUNTED_AT_ONCE = 32  # tokens: a counter's lock costs more than an addition

    def __init__(
        self, of_engine: Callable[[str], CountsOfEngine], arrival_s: float, num_choices: int
    ) -> None:
        self.first_token_s: float | None = None  # after arrival, of whichever choice came first
        self._of_engine = of_engine
        self._engine: CountsOfEngine | None = None  # known with the first token
        self._arrival_s = arrival_s
        self._num_choices = num_choices
        self._first_s: dict[int, float] = {}
        self._last_s: dict[int, float] = {}
        self._num_uncounted = 0

    def on_prompt(self, num_tokens: int, timing: Timing) -> None:
        """A choice's first tokens are here: its prompt has been computed."""
        engine = self._engine = self._of_engine(timing.engine)
        num_cached = min(timing.num_cached_tokens, num_tokens)
        engine.prompt_tokens.inc(num_tokens)
        engine.prompt_tokens_cached.inc(num_cached)
        engine.prompt_tokens_by_source["local_cache_hit"].inc(num_cached)
        engine.prompt_tokens_by_source["local_compute"].inc(num_tokens - num_cached)

    def on_tokens(self, choice: int, num_tokens: int) -> None:
        now = perf_counter()
        last = self._last_s.get(choice)
        self._last_s[choice] = now
        self._num_uncounted += num_tokens
        if self._num_uncounted >= self._COUNTED_AT_ONCE:
            self._count_tokens()
        if last is None:
            self._on_first(choice, now)
        else:
            self._counts().inter_token.observe((now - last) / num_tokens, num_tokens)

    def _on_first(self, choice: int, now: float) -> None:
        self._first_s[choice] = now
        seconds = now - self._arrival_s
        if self.first_token_s is None:
            self.first_token_s = seconds
        self._counts().observe("time_to_first_token_seconds", seconds)

    def on_choice_end(self, ended: EndedChoice) -> None:
        self._count_tokens()
        self._counts().inter_token.flush()
        if ended.reason in ("stop", "length"):
            if ended.choice not in self._first_s:  # no token was wanted
                self.on_prompt(ended.num_prompt_tokens, ended.timing)
            self._observe_end(ended)
        self._counts().finished[ended.reason].inc()

    def on_end(self, max_generated: int) -> None:
        """All choices ended by themselves."""
        engine = self._counts()
        engine.observe("request_params_n", self._num_choices)
        engine.observe("request_max_generation_tokens", max_generated)

    def _observe_end(self, ended: EndedChoice) -> None:
        now, timing, num_tokens = perf_counter(), ended.timing, ended.num_tokens
        decode_s = timing.decode_s or self._decode_s(ended.choice)
        values = {
            "e2e_request_latency_seconds": now - self._arrival_s,
            "queue_time_seconds": timing.placement_s + timing.queue_s,
            "prefill_time_seconds": timing.prefill_s,
            "decode_time_seconds": decode_s,
            "inference_time_seconds": timing.prefill_s + decode_s,
            "time_per_output_token_seconds": decode_s / (num_tokens - 1) if num_tokens > 1 else 0.0,
            "request_prompt_tokens": ended.num_prompt_tokens,
            "request_generation_tokens": num_tokens,
            "request_params_max_tokens": ended.max_tokens,
            "request_prefill_computed_tokens": max(
                0, ended.num_prompt_tokens - timing.num_cached_tokens
            ),
            "request_preemptions": timing.num_preemptions,
        }
        engine = self._counts()
        for name, value in values.items():
            engine.observe(name, value)

    def _decode_s(self, choice: int) -> float:
        """Of a choice that the gateway ended: the engine's own figure comes with its own end."""
        return self._last_s.get(choice, 0.0) - self._first_s.get(choice, 0.0)

    def _count_tokens(self) -> None:
        self._counts().generation_tokens.inc(self._num_uncounted)
        self._num_uncounted = 0

    def _counts(self) -> CountsOfEngine:
        """Who fails without a token is counted for no replica."""
        if self._engine is None:
            self._engine = self._of_engine("")
        return self._engine
