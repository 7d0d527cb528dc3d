"""Our metrics under the names, labels and buckets that dashboards and autoscalers for vLLM know.

Pure translation of a scrape: what has its truth in the gateway is kept once, under our name and
with buckets that hold vLLM's, and shown again here. Histograms are cumulative, so leaving buckets
out gives exactly the histogram that vLLM would have.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client.metrics_core import Metric

TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
          10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
               10.0, 20.0, 40.0, 80.0)  # fmt: skip
REQUEST_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
             120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
# 1-2-5 up to the model's window; the largest windows there are fit in.
TOKENS = tuple(float(digit * 10**power) for power in range(8) for digit in (1, 2, 5))
HTTP_S = (0.1, 0.5, 1.0)

# By our family's name: vLLM's, and its buckets where they are a histogram's.
_ALIASES: dict[str, tuple[str, tuple[float, ...] | None]] = {
    "time_to_first_token_seconds": ("time_to_first_token_seconds", TTFT_S),
    "inter_token_latency_seconds": ("inter_token_latency_seconds", PER_TOKEN_S),
    "time_per_output_token_seconds": ("request_time_per_output_token_seconds", PER_TOKEN_S),
    "e2e_request_latency_seconds": ("e2e_request_latency_seconds", REQUEST_S),
    "queue_time_seconds": ("request_queue_time_seconds", REQUEST_S),
    "prefill_time_seconds": ("request_prefill_time_seconds", REQUEST_S),
    "decode_time_seconds": ("request_decode_time_seconds", REQUEST_S),
    "inference_time_seconds": ("request_inference_time_seconds", REQUEST_S),
    "request_prompt_tokens": ("request_prompt_tokens", TOKENS),
    "request_generation_tokens": ("request_generation_tokens", TOKENS),
    "request_max_generation_tokens": ("request_max_num_generation_tokens", TOKENS),
    "request_params_max_tokens": ("request_params_max_tokens", TOKENS),
    "request_prefill_computed_tokens": ("request_prefill_kv_computed_tokens", TOKENS),
    "request_params_n": ("request_params_n", CHOICES),
    "request_preemptions": ("request_num_preemptions", PREEMPTIONS),
    "prompt_tokens": ("prompt_tokens", None),
    "prompt_tokens_by_source": ("prompt_tokens_by_source", None),
    "prompt_tokens_cached": ("prompt_tokens_cached", None),
    "generation_tokens": ("generation_tokens", None),
    "request_success": ("request_success", None),
    "admission_rejections": ("admission_rejections", None),
}
_OURS = "shoal_gateway_"


class Collects(Protocol):
    def collect(self) -> Iterable[Metric]: ...


class WithVllmNames:
    """The metrics of a source, and those with a second name again under it."""

    def __init__(
        self,
        source: Collects,
        windows: Mapping[str, int],
        has_engine: Callable[[str], bool] = lambda engine: True,
    ) -> None:
        """`windows`: tokens of each model's, where vLLM's token buckets end. `has_engine`: whether
        a replica's samples are shown."""
        self._source = source
        self._windows = windows
        self._has_engine = has_engine

    def collect(self) -> Iterator[Metric]:
        for family in self._source.collect():
            family.samples = [
                sample
                for sample in family.samples
                if self._has_engine(sample.labels.get("engine", ""))
            ]
            yield family
            if family.name.startswith(_OURS + "http_request"):
                yield _http_family(family)
            alias = _ALIASES.get(family.name.removeprefix(_OURS))
            if alias is not None:
                yield self._renamed(family, *alias)

    def _renamed(self, family: Metric, name: str, buckets: tuple[float, ...] | None) -> Metric:
        name = f"vllm:{name}"
        copy = Metric(name, family.documentation, family.type, family.unit)  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if buckets is None or self._is_shown(sample.labels, buckets):
                suffix = sample.name[len(family.name) :]
                copy.samples.append(sample._replace(name=name + suffix))
        return copy

    def _is_shown(self, labels: Mapping[str, str], buckets: tuple[float, ...]) -> bool:
        """Only buckets have the label `le`."""
        bound = float(labels.get("le", "inf"))
        if bound == float("inf"):
            return True
        if bound not in buckets:
            return False
        window = self._windows.get(labels.get("model_name", ""))
        return buckets is not TOKENS or window is None or bound <= window


def _http_family(family: Metric) -> Metric:
    """As prometheus-fastapi-instrumentator has it: statuses by hundreds, the route as handler."""
    name = family.name.removeprefix(_OURS)
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in family.samples:
        labels = {"handler" if key == "route" else key: one for key, one in sample.labels.items()}
        if "status" in labels:
            labels["status"] = labels["status"][0] + "xx"
        if "le" in labels and float(labels["le"]) not in (*HTTP_S, float("inf")):
            continue
        key = sample.name.removeprefix(_OURS), tuple(labels.items())
        sums[key] = sums.get(key, 0.0) + sample.value
    copy = Metric(name, family.documentation, family.type, family.unit)  # type: ignore[no-untyped-call]
    for (sample_name, pairs), value in sums.items():
        copy.add_sample(sample_name, dict(pairs), value)  # type: ignore[no-untyped-call]
    return copy
