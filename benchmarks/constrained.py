"""What a grammar costs: constrained against free decoding in one batch, in turns.

    python -m benchmarks.constrained [--model DIR] [--batch 32] [--tokens 200] [--rounds 5]
    python -m benchmarks.constrained --url http://127.0.0.1:8000

In process: an engine over a model runner, no wire. With a URL: through a running server.
Every round decodes free, under a schema of objects (which forces much of its text) and under a
regular expression (which forces nothing); the median round counts.
"""

import argparse
import json
import statistics
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from worker.config import EngineConfig, RunnerConfig
from worker.engine.engine import Engine
from worker.engine.request import NewRequest
from worker.engine.sampling_params import Grammar, SamplingParams
from worker.parallel.group import SingleGroup
from worker.parallel.tp_executor import LocalExecutor
from worker.runner.model_runner import ModelRunner

_DEMO = Path(__file__).resolve().parent.parent / "worker" / "demo" / "weights"
# Neither ends before its max_tokens.
_SCHEMA = {
    "type": "array",
    "minItems": 10_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "kind": {"enum": ["fish", "fowl", "flesh"]},
            "weight": {"type": "integer", "minimum": 0, "maximum": 10_000},
        },
        "required": ["name", "kind", "weight"],
        "additionalProperties": False,
    },
}
_PATTERN = "[a-zA-Z ,.]*☃"
_STYLE = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
KINDS: dict[str, Grammar | None] = {
    "free": None,
    "objects": Grammar("json_schema", json.dumps({**_SCHEMA, "x-guidance": _STYLE})),
    "pattern": Grammar("regex", _PATTERN),
}


class InProcess:
    """One engine that all rounds use."""

    def __init__(self, model: Path, batch: int, num_threads: int | None) -> None:
        config = RunnerConfig(
            str(model), device="cpu", max_num_seqs=batch, num_blocks=4096, num_threads=num_threads
        )
        self._runner = ModelRunner(config, SingleGroup())
        self._runner.load()
        self._runner.allocate_kv_cache(4096)
        engine_config = EngineConfig(
            num_blocks=4096,
            block_size=config.block_size,
            max_num_seqs=batch,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=self._runner.max_model_len,
            vocab_size=self._runner.spec.vocab_size,
            eos_token_ids=(),
        )
        self._engine = Engine(engine_config, LocalExecutor(self._runner))
        self._batch = batch

    def decode(self, kind: str, num_tokens: int, temperature: float) -> tuple[float, float]:
        """Tokens a second of the whole batch, and the median step in seconds."""
        for i in range(self._batch):
            sampling = SamplingParams(
                max_tokens=num_tokens, temperature=temperature, seed=i, grammar=KINDS[kind]
            )
            prompt = [10 + i, *range(20, 40)]
            self._engine.add(NewRequest("", i, f"{kind}-{i}", prompt, sampling, [], 0.0))
        steps: list[float] = []
        started = time.perf_counter()
        while self._engine.has_work:
            before = time.perf_counter()
            for output in self._engine.step():
                assert output.error is None, output.error
            steps.append(time.perf_counter() - before)
        wall = time.perf_counter() - started
        return self._batch * num_tokens / wall, statistics.median(steps)


class ThroughServer:
    """Completions, all at once."""

    def __init__(self, url: str, batch: int) -> None:
        self._url = url.rstrip("/")
        self._batch = batch
        self._pool = ThreadPoolExecutor(batch)  # one waits for each answer

    def decode(self, kind: str, num_tokens: int, temperature: float) -> tuple[float, float]:
        """Tokens a second of the whole batch, and a batch's seconds a token."""
        bodies = [self._body(kind, num_tokens, temperature, i) for i in range(self._batch)]
        started = time.perf_counter()
        list(self._pool.map(self._post, bodies))
        wall = time.perf_counter() - started
        return self._batch * num_tokens / wall, wall / num_tokens

    def _body(self, kind: str, num_tokens: int, temperature: float, i: int) -> bytes:
        body = {
            "prompt": [10 + i, *range(20, 40)],
            "max_tokens": num_tokens,
            "temperature": temperature,
            "seed": i,
            "ignore_eos": True,
        }
        asked = {"objects": {"json": _SCHEMA}, "pattern": {"regex": _PATTERN}}.get(kind)
        if asked is not None:
            body["structured_outputs"] = asked
        return json.dumps(body).encode()

    def _post(self, body: bytes) -> None:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self._url}/v1/completions", body, headers)
        with urllib.request.urlopen(request, timeout=300) as answer:
            json.load(answer)


def compare(
    decode: Callable[[str, int, float], tuple[float, float]], num_tokens: int, num_rounds: int
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for temperature in (0.0, 1.0):
        for kind in KINDS:  # compiled, and caches warm
            decode(kind, 16, temperature)
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for _ in range(num_rounds):
            for kind in KINDS:
                found[kind].append(decode(kind, num_tokens, temperature))
        for kind, rounds in found.items():
            ratios = [a[0] / b[0] for a, b in zip(rounds, found["free"], strict=True)]
            rows.append(
                {
                    "temperature": temperature,
                    "kind": kind,
                    "tokens_per_s": round(statistics.median(r[0] for r in rounds), 1),
                    "step_ms": round(1e3 * statistics.median(r[1] for r in rounds), 3),
                    "of_free": round(statistics.median(ratios), 3),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=_DEMO)
    parser.add_argument("--url")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    source: InProcess | ThroughServer
    if options.url:
        source = ThroughServer(options.url, options.batch)
    else:
        source = InProcess(options.model, options.batch, options.threads)
    for row in compare(source.decode, options.tokens, options.rounds):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
