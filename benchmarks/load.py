"""A load generator for OpenAI-compatible servers: streamed completions, raw HTTP/1.1 over asyncio.

It shares its cores with the server it measures, so it uses no client library, looks for token
events only by their bytes, and takes what has arrived in one call. Times are of the client: TTFT
from the request's first byte sent to the first token's event, ITL between token events.
"""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Load:
    num_requests: int
    concurrency: int
    input_len: int  # tokens, random ids
    output_len: int  # tokens, forced by ignore_eos
    shared_prefix_len: int = 0  # of input_len, the same in all requests
    # Whole characters: the first ids of byte-level tokenizers are single bytes, of which a server
    # shows nothing before the character is complete.
    vocab: tuple[int, int] = (300, 1000)
    seed: int = 0
    timeout_s: float = 600.0


@dataclass(slots=True)
class RequestTimes:
    started: float
    token_times: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.token_times[0] - self.started

    @property
    def gaps_s(self) -> list[float]:
        return [b - a for a, b in zip(self.token_times, self.token_times[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Seconds; `tokens_per_s` counts output tokens over the whole run."""

    wall_s: float
    num_tokens: int
    tokens_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float


def percentile(values: list[float], q: float) -> float:
    """Nearest-rank; nan of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def prompts(load: Load) -> list[list[int]]:
    rng = random.Random(load.seed)
    low, high = load.vocab
    shared = [rng.randrange(low, high) for _ in range(load.shared_prefix_len)]
    own_len = load.input_len - load.shared_prefix_len
    return [
        shared + [rng.randrange(low, high) for _ in range(own_len)]
        for _ in range(load.num_requests)
    ]


async def stream_one(url: str, model: str, prompt: list[int], output_len: int) -> RequestTimes:
    parts = urlsplit(url)
    body = json.dumps(
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": output_len,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    stream = _TokenStream(head.encode() + body)
    transport, _ = await asyncio.get_running_loop().create_connection(
        lambda: stream, parts.hostname, parts.port
    )
    try:
        num_tokens = await stream.num_tokens
    finally:
        transport.close()
    if num_tokens != output_len:  # the servers compared must have done the same work
        raise RuntimeError(f"{num_tokens} tokens came instead of {output_len}")
    return stream.times


class _TokenStream(asyncio.Protocol):
    """Sends a request and notes when its tokens come. `num_tokens`: as the server counted them,
    once the stream has ended. An event lies within one chunk, as servers write them.
    """

    def __init__(self, request: bytes) -> None:
        self.num_tokens: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.times = RequestTimes(0.0)
        self._request = request
        self._rest = b""  # the beginning of a line
        self._last = b""  # event
        self._is_accepted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.times.started = time.perf_counter()
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if not self._is_accepted and lines:
            self._is_accepted = b" 200 " in lines[0]
        if not self._is_accepted:
            if lines:
                self._fail(f"the server answered {data[:2000]!r}")
            return
        for line in lines:
            if line.startswith(b"data: "):
                self._take(line, now_s)

    def _take(self, line: bytes, now_s: float) -> None:
        if line.startswith(b"data: {"):
            self._last = line
            if b'"choices":[]' not in line:  # that of the usage
                self.times.token_times.append(now_s)
        elif line.startswith(b"data: [DONE]") and not self.num_tokens.done():
            usage = json.loads(self._last[len("data: ") :])["usage"]
            self.num_tokens.set_result(int(usage["completion_tokens"]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the stream ended without [DONE]")

    def _fail(self, why: str) -> None:
        if not self.num_tokens.done():
            self.num_tokens.set_exception(RuntimeError(why))


async def run_load(url: str, model: str, load: Load) -> LoadResult:
    """Raises: RuntimeError when any request fails; TimeoutError past `timeout_s`."""
    waiting = iter(prompts(load))
    finished: list[RequestTimes] = []

    async def client() -> None:
        for prompt in waiting:
            finished.append(await stream_one(url, model, prompt, load.output_len))

    started = time.perf_counter()
    async with asyncio.timeout(load.timeout_s):
        await asyncio.gather(*(client() for _ in range(load.concurrency)))
    wall_s = time.perf_counter() - started
    return summarize(finished, wall_s, load)


def measure_load(url: str, model: str, load: Load) -> LoadResult:
    """`run_load` on the loop that takes least of the cores. Raises: as `run_load`."""
    import uvloop  # not on every platform

    return uvloop.run(run_load(url, model, load))


def summarize(finished: list[RequestTimes], wall_s: float, load: Load) -> LoadResult:
    ttft = [t.ttft_s for t in finished]
    gaps = [g for t in finished for g in t.gaps_s]
    num_tokens = load.output_len * len(finished)
    return LoadResult(
        wall_s=wall_s,
        num_tokens=num_tokens,
        tokens_per_s=num_tokens / wall_s,
        ttft_p50_s=percentile(ttft, 0.5),
        ttft_p99_s=percentile(ttft, 0.99),
        itl_p50_s=percentile(gaps, 0.5),
        itl_p99_s=percentile(gaps, 0.99),
    )
