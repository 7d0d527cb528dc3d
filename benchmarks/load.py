"""A load generator for OpenAI-compatible servers: streamed completions, raw HTTP/1.1 over asyncio.

It shares its cores with the server it measures, so it uses no client library and looks for token
events only by their bytes. Times are of the client: TTFT from the request's first byte sent to the
first token's event, ITL between token events.
"""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
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
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    times = RequestTimes(time.perf_counter())
    writer.write(head.encode() + body)
    try:
        num_tokens = await _read_tokens(reader, times)
    finally:
        writer.close()
    if num_tokens != output_len:  # the servers compared must have done the same work
        raise RuntimeError(f"{num_tokens} tokens came instead of {output_len}")
    return times


async def _read_tokens(reader: asyncio.StreamReader, times: RequestTimes) -> int:
    """Returns the number of tokens that the server counted."""
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"the server answered {status!r} {await reader.read(2000)!r}")
    last = b""
    while line := await reader.readline():
        if line.startswith(b"data: [DONE]"):
            return int(json.loads(last[len("data: ") :])["usage"]["completion_tokens"])
        if line.startswith(b"data: {"):
            last = line
            if b'"choices":[]' not in line:  # that of the usage
                times.token_times.append(time.perf_counter())
    raise RuntimeError("the stream ended without [DONE]")


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
