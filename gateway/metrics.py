"""What the gateway counts, for Prometheus: HTTP requests, and tokens' timing as clients see it.

A value whose truth lies in the gateway is kept once, under our name, and also shown under the name
vLLM's dashboards know. With PROMETHEUS_MULTIPROC_DIR set, a scrape of any process shows the sum
over all gateway processes that share the directory.
"""

import dataclasses
import os
from collections.abc import Iterator
from time import perf_counter
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

_LATENCY_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5)
_LONG_S = (0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_TTFT_BUCKETS = (*_LATENCY_S, *_LONG_S)
_INTER_TOKEN_BUCKETS = (
    0.0005,
    *_LATENCY_S,
    0.025,
    0.05,
    0.075,
    0.2,
    0.3,
    0.4,
    0.75,
    1.0,
    2.5,
    5.0,
    10.0,
)
_E2E_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, *_LONG_S[4:])

_VLLM_NAMES = {
    "shoal_gateway_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "shoal_gateway_inter_token_latency_seconds": "vllm:inter_token_latency_seconds",
    "shoal_gateway_e2e_request_latency_seconds": "vllm:e2e_request_latency_seconds",
    "shoal_gateway_request_success": "vllm:request_success",
    "shoal_gateway_prompt_tokens": "vllm:prompt_tokens",
    "shoal_gateway_generation_tokens": "vllm:generation_tokens",
}


class GatewayMetrics:
    """Owned by the event loop. One per application, with a registry of its own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.http_requests = Counter(
            "shoal_gateway_http_requests",
            "Answered HTTP requests.",
            ["route", "method", "status"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "shoal_gateway_in_flight_requests",
            "HTTP requests being answered, streams included.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._ttft = _histogram(
            registry, "time_to_first_token_seconds", "Arrival to first token.", _TTFT_BUCKETS
        )
        self._inter_token = _histogram(
            registry, "inter_token_latency_seconds", "Token to token.", _INTER_TOKEN_BUCKETS
        )
        self._e2e = _histogram(
            registry, "e2e_request_latency_seconds", "Arrival to last token.", _E2E_BUCKETS
        )
        self._prompt_tokens = _counter(registry, "prompt_tokens", "Prompt tokens taken in.")
        self._generation_tokens = _counter(registry, "generation_tokens", "Tokens generated.")
        self._finished = _counter(
            registry, "request_success", "Ended choices by reason.", "finished_reason"
        )
        self._of_model: dict[str, ModelMetrics] = {}
        self._http_children: dict[tuple[str, str, int], Counter] = {}

    def of_model(self, model_name: str) -> "ModelMetrics":
        """`model_name`: of a deployed model, so the number of label values is bounded."""
        found = self._of_model.get(model_name)
        if found is None:
            found = self._of_model[model_name] = ModelMetrics(
                ttft=self._ttft.labels(model_name),
                inter_token=self._inter_token.labels(model_name),
                e2e=self._e2e.labels(model_name),
                prompt_tokens=self._prompt_tokens.labels(model_name),
                generation_tokens=self._generation_tokens.labels(model_name),
                finished={
                    reason: self._finished.labels(model_name, reason)
                    for reason in ("stop", "length", "abort", "error")
                },
            )
        return found

    def count_http(self, route: str, method: str, status: int) -> None:
        key = (route, method, status)
        child = self._http_children.get(key)
        if child is None:
            child = self._http_children[key] = self.http_requests.labels(route, method, str(status))
        child.inc()

    def exposition(self) -> bytes:
        registry: CollectorRegistry = self._registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(_WithAliases(registry))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, slots=True)
class ModelMetrics:
    """One model's children, kept: to look labels up at each token would cost more than counting."""

    ttft: Histogram
    inter_token: Histogram
    e2e: Histogram
    prompt_tokens: Counter
    generation_tokens: Counter
    finished: dict[str, Counter]

    def start(self, arrival_s: float, num_prompt_tokens: int) -> "RequestTimer":
        self.prompt_tokens.inc(num_prompt_tokens)
        return RequestTimer(self, arrival_s)


class RequestTimer:
    """Tells one request's tokens to the metrics. Owned by the event loop."""

    __slots__ = ("_arrival_s", "_last_s", "_metrics", "_num_uncounted")

    _COUNTED_AT_ONCE = 32  # tokens: a counter's lock costs more than an addition

    def __init__(self, metrics: ModelMetrics, arrival_s: float) -> None:
        self._metrics = metrics
        self._arrival_s = arrival_s
        self._last_s: dict[int, float] = {}
        self._num_uncounted = 0

    def on_tokens(self, choice: int, num_tokens: int) -> None:
        now = perf_counter()
        last = self._last_s.get(choice)
        self._last_s[choice] = now
        self._num_uncounted += num_tokens
        if self._num_uncounted >= self._COUNTED_AT_ONCE:
            self._count_tokens()
        metrics = self._metrics
        if last is None:
            metrics.ttft.observe(now - self._arrival_s)
            return
        interval = (now - last) / num_tokens
        for _ in range(num_tokens):
            metrics.inter_token.observe(interval)

    def on_choice_end(self, reason: str) -> None:
        self._count_tokens()
        self._metrics.finished[reason].inc()

    def _count_tokens(self) -> None:
        self._metrics.generation_tokens.inc(self._num_uncounted)
        self._num_uncounted = 0

    def on_end(self) -> None:
        self._metrics.e2e.observe(perf_counter() - self._arrival_s)


class _Collects(Protocol):
    def collect(self) -> Iterator[Metric]: ...


class _WithAliases:
    """The metrics of a source, and those with a second name again under it."""

    def __init__(self, source: _Collects) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        for family in self._source.collect():
            yield family
            alias = _VLLM_NAMES.get(family.name)
            if alias is not None:
                yield _renamed(family, alias)


def _renamed(family: Metric, name: str) -> Metric:
    copy = Metric(name, family.documentation, family.type, family.unit)  # type: ignore[no-untyped-call]
    copy.samples = [
        sample._replace(name=name + sample.name[len(family.name) :]) for sample in family.samples
    ]
    return copy


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...]
) -> Histogram:
    return Histogram(
        f"shoal_gateway_{name}",
        text,
        ["model_name"],
        registry=registry,
        buckets=sorted(buckets),
    )


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(f"shoal_gateway_{name}", text, ["model_name", *labels], registry=registry)
