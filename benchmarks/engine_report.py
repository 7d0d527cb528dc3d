"""What a scenario of the engine's benchmark came to, and how it is printed.

Pure but for `print`; `engine.py` fills it in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.limits import Limits
from benchmarks.load import Load, LoadResult
from benchmarks.step_summary import StepSummary


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario."""

    load: Load
    total: LoadResult
    between_share: float  # of the time, between steps: the clients of this benchmark
    of_limit: float | None
    steps: list[StepSummary]
    idle_share: float | None  # of the card, while it decodes; None: on no card


def print_results(title: str, results: Sequence[Result], limits: Limits | None) -> None:
    print(f"\n{title}")
    if limits is not None:
        print(
            f"reads {limits.read_gb_s:.1f} GB/s, copies {limits.copy_gb_s:.1f} GB/s,"
            f" multiplies {limits.bf16_gflop_s:.0f} GFLOP/s in bf16, {limits.num_threads} threads"
        )
    for result in results:
        _print_result(result)


def _print_result(result: Result) -> None:
    load, total = result.load, result.total
    shared = f" ({load.shared_prefix_len} shared)" if load.shared_prefix_len else ""
    print(
        f"{load.input_len}{shared} in, {load.output_len} out, {load.concurrency} at once,"
        f" {load.num_requests} requests: {total.tokens_per_s:.1f} tokens/s"
        f"{_of_limit(result.of_limit)};"
        f" TTFT {total.ttft_p50_s * 1e3:.1f} / {total.ttft_p99_s * 1e3:.1f} ms,"
        f" ITL {total.itl_p50_s * 1e3:.2f} / {total.itl_p99_s * 1e3:.2f} ms;"
        f" between steps {result.between_share:.1%}"
    )
    for steps in result.steps:
        shares = steps.shares
        parts = ", ".join(
            f"{part.replace('_', '-')} {seconds * 1e3:.3f} ({shares[part]:.1%})"
            for part, seconds in steps.parts_s.items()
        )
        card = f"; card {steps.device_s * 1e3:.3f}" if steps.device_s is not None else ""
        print(
            f"  {steps.num_steps:5} {steps.kind:6} steps, p50 {steps.p50_s * 1e3:.2f} ms"
            f"{_of_limit(steps.of_limit)}: {parts}{card}",
            flush=True,
        )
    if result.idle_share is not None:
        print(f"  card idle while it decodes: {result.idle_share:.1%} at most", flush=True)


def _of_limit(share: float | None) -> str:
    return "" if share is None else f", {share:.0%} of limit"
