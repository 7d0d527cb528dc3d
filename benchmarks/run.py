"""`make bench`: starts a real cluster, loads it, prints the table README quotes and writes it as
JSON.

    python -m benchmarks.run [--model DIR] [--tp 2] [--repeats 3] [--out FILE]

Every scenario runs `--repeats` times; the table shows medians. Machines differ and are noisy:
figures are to be compared within one run only.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.load import Load, LoadResult, measure_load
from benchmarks.machine import machine_facts
from tests.live import LiveCluster, serve

_PACKAGES = ("torch", "ray", "grpcio", "fastapi", "uvicorn")

SCENARIOS = {
    "one stream, 128 in / 128 out": Load(4, 1, 128, 128),
    "8 streams, 128 in / 128 out": Load(16, 8, 128, 128),
    "32 streams, 128 in / 128 out": Load(64, 32, 128, 128),
    "64 streams, 32 in / 64 out": Load(192, 64, 32, 64),
    "8 streams, 1024 shared + 64 in / 32 out": Load(32, 8, 1088, 32, shared_prefix_len=1024),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="a model directory; default: the demo model")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args(argv)
    flags = [*([args.model] if args.model else []), "--served-model-name", "bench"]
    flags += ["--tensor-parallel-size", str(args.tp)]
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), *flags) as live:
        results = measure(live, args.repeats)
        report = {
            "start_s": live.started_in_s,
            "machine": machine_facts(*_PACKAGES),
            "results": results,
        }
    print_table(results)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(live: LiveCluster, repeats: int) -> dict[str, dict[str, float]]:
    # first-use costs are not part of a scenario
    measure_load(live.url, "bench", Load(8, 8, 32, 8))
    results: dict[str, dict[str, float]] = {}
    for name, load in SCENARIOS.items():
        # Another seed each time, or the prefix cache would answer from the last repeat.
        runs = [measure_load(live.url, "bench", replace(load, seed=i)) for i in range(repeats)]
        results[name] = medians(runs)
    return results


def medians(runs: list[LoadResult]) -> dict[str, float]:
    rows = [asdict(r) for r in runs]
    result = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    result["tokens_per_s_least"] = min(r.tokens_per_s for r in runs)
    result["tokens_per_s_most"] = max(r.tokens_per_s for r in runs)
    return result


def print_table(results: dict[str, dict[str, float]]) -> None:
    print("| scenario | tokens/s (least-most) | TTFT p50 / p99 ms | ITL p50 / p99 ms |")
    print("|---|---|---|---|")
    for name, r in results.items():
        spread = f"{r['tokens_per_s_least']:.0f}-{r['tokens_per_s_most']:.0f}"
        ttft = f"{r['ttft_p50_s'] * 1e3:.0f} / {r['ttft_p99_s'] * 1e3:.0f}"
        itl = f"{r['itl_p50_s'] * 1e3:.1f} / {r['itl_p99_s'] * 1e3:.1f}"
        print(f"| {name} | {r['tokens_per_s']:.0f} ({spread}) | {ttft} | {itl} |")


if __name__ == "__main__":
    raise SystemExit(main())
