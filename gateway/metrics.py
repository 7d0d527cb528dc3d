"""What the gateway counts, for Prometheus: HTTP requests, tokens and their timing as clients see
them, and what each tenant used.

Each value is kept once, under our name; gateway/vllm_names.py shows it under vLLM's too. With
PROMETHEUS_MULTIPROC_DIR set, a scrape of any process shows the sum over all gateway processes that
share the directory. One request's side of it is gateway/request_timer.py.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from gateway import vllm_names
from gateway.living_engines import LivingEngines
from gateway.request_timer import RequestTimer
from gateway.usage import Bill
from gateway.vllm_names import WithVllmNames

# vLLM's buckets begin where small models have ended: ours go down to what they take.
_FINE_S = (0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.2)
_FLUSHED_AT = 256  # inter-token observations: adding to a shared histogram costs ten times as much

_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_ENGINE = ("model_name", "engine")
_SECONDS = {
    "time_to_first_token_seconds": ("Arrival to first token.", vllm_names.TTFT_S),
    "inter_token_latency_seconds": ("Token to token.", vllm_names.PER_TOKEN_S),
    "time_per_output_token_seconds": (
        "Mean of a choice's tokens after the first.",
        vllm_names.PER_TOKEN_S,
    ),
    "e2e_request_latency_seconds": ("Arrival to last token.", vllm_names.REQUEST_S),
    "queue_time_seconds": ("In the placement queue and the engine's.", vllm_names.REQUEST_S),
    "prefill_time_seconds": ("First scheduled to first token.", vllm_names.REQUEST_S),
    "decode_time_seconds": ("First token to last.", vllm_names.REQUEST_S),
    "inference_time_seconds": ("First scheduled to last token.", vllm_names.REQUEST_S),
}
_NUMBERS = {
    "request_prompt_tokens": ("Prompt tokens of a choice.", vllm_names.TOKENS),
    "request_generation_tokens": ("Generated tokens of a choice.", vllm_names.TOKENS),
    "request_max_generation_tokens": (
        "Generated tokens of a request's longest choice.",
        vllm_names.TOKENS,
    ),
    "request_params_max_tokens": ("Most tokens a choice might have had.", vllm_names.TOKENS),
    "request_prefill_computed_tokens": (
        "Prompt tokens that were not in the prefix cache.",
        vllm_names.TOKENS,
    ),
    "request_params_n": ("Choices of a request.", vllm_names.CHOICES),
    "request_preemptions": ("Times a choice lost its blocks.", vllm_names.PREEMPTIONS),
}
_FINISH_REASONS = ("stop", "length", "abort", "error")
_SOURCES = ("local_compute", "local_cache_hit")


class Intervals:
    """A histogram that is told of every token: it adds up here and passes on many at a time."""

    __slots__ = ("_bounds", "_counts", "_histogram", "_num_waiting", "_sum")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._bounds = list(histogram._upper_bounds)
        self._counts = [0] * len(self._bounds)
        self._num_waiting = 0
        self._sum = 0.0

    def observe(self, value: float, times: int) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times
        self._num_waiting += times
        if self._num_waiting >= _FLUSHED_AT:
            self.flush()

    def flush(self) -> None:
        if not self._num_waiting:
            return
        for place, count in enumerate(self._counts):
            if count:
                self._histogram._buckets[place].inc(count)
                self._counts[place] = 0
        self._histogram._sum.inc(self._sum)
        self._sum, self._num_waiting = 0.0, 0


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """The children of one model on one replica, kept: to look labels up at each token would cost
    more than counting."""

    inter_token: Intervals
    histograms: Mapping[str, Histogram]
    prompt_tokens: Counter
    prompt_tokens_cached: Counter
    prompt_tokens_by_source: Mapping[str, Counter]
    generation_tokens: Counter
    finished: Mapping[str, Counter]

    def observe(self, name: str, value: float) -> None:
        self.histograms[name].observe(value)


class GatewayMetrics:
    """Owned by the event loop. One per application, with a registry of its own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        registry = self._registry = CollectorRegistry()
        self.http_requests = _counter(
            registry, "http_requests", "Answered HTTP requests.", "route", "method", "status"
        )
        self._http_seconds = Histogram(
            "shoal_gateway_http_request_duration_seconds",
            "Arrival to the end of the answer.",
            ["route", "method"],
            registry=registry,
            buckets=sorted({*_FINE_S, *vllm_names.HTTP_S, *vllm_names.REQUEST_S}),
        )
        self.in_flight = _gauge(
            registry, "in_flight_requests", "HTTP requests being answered, streams included."
        )
        self._histograms = {
            name: _histogram(registry, name, text, (*_FINE_S, *buckets))
            for name, (text, buckets) in _SECONDS.items()
        } | {
            name: _histogram(registry, name, text, buckets)
            for name, (text, buckets) in _NUMBERS.items()
        }
        self._prompt_tokens = _counter(
            registry, "prompt_tokens", "Prompt tokens of choices that have begun.", *_ENGINE
        )
        self._prompt_cached = _counter(
            registry, "prompt_tokens_cached", "Those found in a prefix cache.", *_ENGINE
        )
        self._prompt_by_source = _counter(
            registry, "prompt_tokens_by_source", "Where they came from.", *_ENGINE, "source"
        )
        self._generation_tokens = _counter(
            registry, "generation_tokens", "Tokens generated.", *_ENGINE
        )
        self._finished = _counter(
            registry, "request_success", "Ended choices by reason.", *_ENGINE, "finished_reason"
        )
        self._rejections = _counter(
            registry, "admission_rejections", "Refused by a full cluster.", "model_name", "reason"
        )
        self._add_usage(registry)
        self._living = LivingEngines(clock)
        self._of_model: dict[str, ModelMetrics] = {}
        self._usage_children: dict[tuple[str, str], tuple[Counter, ...]] = {}
        self._http_children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def _add_usage(self, registry: CollectorRegistry) -> None:
        """By tenant: only configured names, and as many models as are deployed."""
        by_tenant = ("key", "model_name")
        self._usage_requests = Counter(
            "shoal_usage_requests", "Requests for answers.", by_tenant, registry=registry
        )
        self._usage_tokens = Counter(
            "shoal_usage_tokens",
            "Tokens to be paid; cached ones are prompt, reasoning ones completion tokens too. "
            "Abandoned ones, of prompts given up before their first token, are neither.",
            [*by_tenant, "kind"],
            registry=registry,
        )
        self._rate_limited = Counter(
            "shoal_rate_limited_requests",
            "Refused for what their key allows.",
            ["key", "limit"],
            registry=registry,
        )
        self.usage_records_lost = Counter(
            "shoal_usage_records_lost", "Lines that the usage log lacks.", registry=registry
        )

    def of_model(self, model_name: str) -> "ModelMetrics":
        """`model_name`: of a deployed model, so the number of label values is bounded."""
        found = self._of_model.get(model_name)
        if found is None:
            found = ModelMetrics(self, model_name, self._living.answered)
            self._of_model[model_name] = found
        return found

    def make_engine(self, *labels: str) -> EngineMetrics:
        histograms = {name: one.labels(*labels) for name, one in self._histograms.items()}
        return EngineMetrics(
            inter_token=Intervals(histograms["inter_token_latency_seconds"]),
            histograms=histograms,
            prompt_tokens=self._prompt_tokens.labels(*labels),
            prompt_tokens_cached=self._prompt_cached.labels(*labels),
            prompt_tokens_by_source={
                source: self._prompt_by_source.labels(*labels, source) for source in _SOURCES
            },
            generation_tokens=self._generation_tokens.labels(*labels),
            finished={reason: self._finished.labels(*labels, reason) for reason in _FINISH_REASONS},
        )

    def follow(self, replica_ids: Iterable[str]) -> None:
        """The replicas that the cluster has: of others, some time later, nothing is kept."""
        self._living.follow(replica_ids)
        for model in self._of_model.values():
            for engine in model.drop_unless(self._living.has):
                self._forget(model.name, engine)

    def _forget(self, *labels: str) -> None:
        if os.environ.get(_MULTIPROCESS):  # files cannot forget; a scrape leaves it out
            return
        families = (self._prompt_tokens, self._prompt_cached, self._generation_tokens)
        for family in (*families, *self._histograms.values()):
            family.remove(*labels)
        for source in _SOURCES:
            self._prompt_by_source.remove(*labels, source)
        for reason in _FINISH_REASONS:
            self._finished.remove(*labels, reason)

    def count_http(self, route: str, method: str, status: int, seconds: float) -> None:
        key = (route, method, status)
        children = self._http_children.get(key)
        if children is None:
            children = self._http_children[key] = (
                self.http_requests.labels(route, method, str(status)),
                self._http_seconds.labels(route, method),
            )
        children[0].inc()
        children[1].observe(seconds)

    def count_usage(self, key: str, model_name: str, bill: Bill) -> None:
        found = self._usage_children.get((key, model_name))
        if found is None:
            kinds = ("prompt", "cached", "completion", "reasoning", "abandoned")
            found = self._usage_children[key, model_name] = (
                self._usage_requests.labels(key, model_name),
                *(self._usage_tokens.labels(key, model_name, kind) for kind in kinds),
            )
        numbers = (
            *(1, bill.prompt_tokens, bill.cached_tokens),
            *(bill.completion_tokens, bill.reasoning_tokens, bill.abandoned_tokens),
        )
        for child, number in zip(found, numbers, strict=True):
            if number:
                child.inc(number)

    def count_refusal(self, key: str, limit: str) -> None:
        self._rate_limited.labels(key, limit).inc()

    def count_rejection(self, model_name: str) -> None:
        self._rejections.labels(model_name, "max_num_queued_reqs").inc()

    def exposition(self, windows: Mapping[str, int] | None = None) -> bytes:
        """`windows`: each model's, in tokens."""
        for model in self._of_model.values():
            model.flush()
        registry: CollectorRegistry = self._registry
        if os.environ.get(_MULTIPROCESS):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        shown = WithVllmNames(registry, windows or {}, self._living.has)
        return generate_latest(shown)  # type: ignore[arg-type]


class ModelMetrics:
    """One model's, by the replica that answers: "" until one has. Owned by the event loop."""

    def __init__(self, metrics: GatewayMetrics, name: str, answered: Callable[[str], None]) -> None:
        self.name = name
        self._metrics = metrics
        self._answered = answered
        self._of_engine: dict[str, EngineMetrics] = {}

    def of_engine(self, engine: str) -> EngineMetrics:
        found = self._of_engine.get(engine)
        if found is None:
            self._answered(engine)
            found = self._of_engine[engine] = self._metrics.make_engine(self.name, engine)
        return found

    def drop_unless(self, is_kept: Callable[[str], bool]) -> list[str]:
        """The replicas that were dropped."""
        dropped = [engine for engine in self._of_engine if not is_kept(engine)]
        for engine in dropped:
            del self._of_engine[engine]
        return dropped

    def flush(self) -> None:
        for engine in self._of_engine.values():
            engine.inter_token.flush()

    def start(self, arrival_s: float, num_choices: int = 1) -> RequestTimer:
        return RequestTimer(self.of_engine, arrival_s, num_choices)


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...]
) -> Histogram:
    return Histogram(
        f"shoal_gateway_{name}", text, _ENGINE, registry=registry, buckets=sorted(set(buckets))
    )


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(f"shoal_gateway_{name}", text, labels, registry=registry)


def _gauge(registry: CollectorRegistry, name: str, text: str) -> Gauge:
    return Gauge(f"shoal_gateway_{name}", text, registry=registry, multiprocess_mode="livesum")
