"""What the engine's scheduling is worth: rhythm of a stream beside prompts, guessed tokens.

    python -m benchmarks.scheduling [--model DIR] [--rounds 3] [--parts stream guesses]

In process: an engine over a model runner, no wire; everything is measured in turns and the median
round counts. `stream`: one request decodes while prompts arrive at once, with and without a target
for the time between its tokens. `guesses`: one request and several, whose text repeats itself
(greedy, of a few tokens) or does not (drawn at random), with and without guessing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks.in_process import engine_config, loaded_runner
from worker.config import RunnerConfig, SpeculationConfig
from worker.engine.engine import Engine
from worker.engine.request import NewRequest
from worker.engine.sampling_params import SamplingParams
from worker.parallel.tp_executor import LocalExecutor
from worker.runner.model_runner import ModelRunner

_DEMO = Path(__file__).resolve().parent.parent / "worker" / "demo" / "weights"
_NUM_BLOCKS = 2048
_WARM_TOKENS = 40  # of the stream, before anything is measured

Settings = dict[str, float | SpeculationConfig | None]


@dataclass
class Bench:
    """An engine whose model is loaded once; made anew for each measurement."""

    runner: ModelRunner
    config: RunnerConfig
    engine: Engine = field(init=False)
    times: dict[int, list[float]] = field(default_factory=dict)

    def start(self, settings: Settings) -> None:
        config = engine_config(
            self.runner,
            self.config,
            _NUM_BLOCKS,
            target_itl_ms=settings.get("target_itl_ms", 0.0),  # type: ignore[arg-type]
            speculation=settings.get("speculation"),  # type: ignore[arg-type]
        )
        self.engine = Engine(config, LocalExecutor(self.runner))
        self.times.clear()

    def add(self, handle: int, num_prompt: int, max_tokens: int, temperature: float = 0.0) -> None:
        vocab_size = self.runner.model_config.vocab_size
        prompt = [5 + (handle * 7919 + i * i * 31) % (vocab_size - 5) for i in range(num_prompt)]
        sampling = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=handle,
            allowed_token_ids=() if temperature else (10, 11, 12),
        )
        now_s = time.monotonic()
        self.times[handle] = []
        self.engine.add(NewRequest("bench", handle, f"r{handle}", prompt, sampling, [], now_s))

    def step(self) -> None:
        outputs = self.engine.step()
        now_s = time.monotonic()
        for output in outputs:
            self.times[output.handle] += [now_s] * len(output.token_ids)

    def end(self) -> None:
        self.engine.abort_owner("bench")
        # So that the runner forgets the requests, whose slots the next engine gives out again.
        self.add(-1, 1, 1)
        while self.engine.has_work:
            self.step()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", type=Path, default=_DEMO)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=1500)
    parser.add_argument(
        "--parts", nargs="+", choices=("stream", "guesses"), default=["stream", "guesses"]
    )
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    config = RunnerConfig(
        str(args.model),
        device="cpu",
        max_num_seqs=64,
        num_blocks=_NUM_BLOCKS,
        num_threads=args.threads,
    )
    runner = loaded_runner(ModelRunner, str(args.model), config)
    runner.allocate_kv_cache(_NUM_BLOCKS)
    bench = Bench(runner, config)
    if "stream" in args.parts:
        _compare(
            "stream beside prompts: ITL p50, p99, most (ms), last first token (s)",
            {"no target": {"target_itl_ms": 0.0}, "auto": {"target_itl_ms": None}},
            lambda: _stream(bench, args.prompts, args.prompt_tokens),
            bench,
            args.rounds,
        )
    if "guesses" in args.parts:
        _compare_guesses(bench, args.rounds)
    return 0


def _compare_guesses(bench: Bench, rounds: int) -> None:
    variants: dict[str, Settings] = {"off": {}, "auto": {"speculation": SpeculationConfig()}}
    for num_requests in (1, 8):
        for name, temperature in (("repetitive", 0.0), ("random", 1.0)):
            measure = partial(_decode, bench, num_requests, temperature)
            title = f"{num_requests} x {name}: tokens/s, steps, guesses, right"
            _compare(title, variants, measure, bench, rounds)


def _compare(
    title: str,
    variants: dict[str, Settings],
    measure: Callable[[], list[float]],
    bench: Bench,
    rounds: int,
) -> None:
    figures: dict[str, list[list[float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, settings in variants.items():
            bench.start(settings)
            figures[name].append(measure())
            bench.end()
    print(title)
    for name, rows in figures.items():
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(f"  {name:10}", "  ".join(f"{value:9.2f}" for value in medians), flush=True)


def _stream(bench: Bench, num_prompts: int, num_tokens: int) -> list[float]:
    bench.add(0, 64, bench.runner.max_model_len - 100)
    while len(bench.times[0]) < _WARM_TOKENS:
        bench.step()
    arrived_s = bench.times[0][-1]
    for handle in range(1, num_prompts + 1):
        bench.add(handle, num_tokens, 16)
    while not all(bench.times[handle] for handle in range(1, num_prompts + 1)):
        bench.step()
    gaps = sorted(b - a for a, b in pairwise(t for t in bench.times[0] if t >= arrived_s))
    last_s = max(times[0] for handle, times in bench.times.items() if handle) - arrived_s
    places = (len(gaps) // 2, int(len(gaps) * 0.99), len(gaps) - 1)
    return [*(1000 * gaps[place] for place in places), last_s]


def _decode(bench: Bench, num_requests: int, temperature: float) -> list[float]:
    for handle in range(num_requests):
        bench.add(handle, 64, 400, temperature)
    while not all(bench.times[handle] for handle in range(num_requests)):
        bench.step()
    started_s, first_step = time.monotonic(), bench.engine.steps
    while bench.engine.has_work:
        bench.step()
    counters = bench.engine.counters()
    return [
        num_requests * 399 / (time.monotonic() - started_s),
        bench.engine.steps - first_step,
        counters.draft_tokens,
        counters.accepted_tokens,
    ]


if __name__ == "__main__":
    raise SystemExit(main())
