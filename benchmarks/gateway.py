"""What a streamed token and a request cost the gateway, in CPU time of its process.

    python -m benchmarks.gateway [--tokenizer FILE] [--streams 64] [--step-ms 4] [--repeats 3]

A real `python -m gateway` stands before a scheduler and a leader that speak real gRPC and compute
nothing; the leader makes a step every `--step-ms`, as an engine would. Long and short answers are
measured in turns: their difference is the cost of tokens, the rest that of requests.
"""

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.keep_alive_client import run_clients
from tests.fake_scheduler import FakeScheduler
from tests.fake_worker import FakeWorker, model_card
from tests.live import free_port

_DEMO_TOKENIZER = Path(__file__).parent.parent / "worker/demo/weights/tokenizer.json"
_START_TIMEOUT_S = _STOP_TIMEOUT_S = 30.0
_SHORT, _LONG = 16, 256  # tokens an answer
_PROMPT_LEN = 32


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU microseconds of the gateway's process."""

    token_us: float
    request_us: float

    def of_answer(self, num_tokens: int) -> float:
        """A token's cost with its share of the request's."""
        return self.token_us + self.request_us / num_tokens


@dataclass(frozen=True, slots=True)
class Gateway:
    pid: int
    port: int

    def cpu_s(self) -> float:
        """Of all its threads so far, by the scheduler's count of nanoseconds."""
        tasks = Path(f"/proc/{self.pid}/task")
        run_ns = [int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()]
        return sum(run_ns) / 1e9


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokenizer", type=Path, default=_DEMO_TOKENIZER)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=60_000, help="a measurement")
    args = parser.parse_args(argv)
    costs = asyncio.run(measure(args))
    for name in ("token_us", "request_us"):
        values = [getattr(cost, name) for cost in costs]
        spread = f"{min(values):.1f}-{max(values):.1f}"
        print(f"{name:12} {statistics.median(values):8.1f} ({spread})")
    print(f"with 64 tokens an answer: {statistics.median(c.of_answer(64) for c in costs):.1f} us")
    return 0


async def measure(args: argparse.Namespace) -> list[Costs]:
    async with (
        fake_cluster(args.tokenizer.read_bytes(), args.step_ms / 1e3) as scheduler,
        running_gateway(scheduler.address) as gateway,
    ):
        await _cpu_of(gateway, args, _SHORT)  # imports and caches
        return [await _measure_once(gateway, args) for _ in range(args.repeats)]


async def _measure_once(gateway: Gateway, args: argparse.Namespace) -> Costs:
    """Two equations: CPU = requests * (request cost + tokens an answer * token cost)."""
    short_us = await _cpu_of(gateway, args, _SHORT)
    long_us = await _cpu_of(gateway, args, _LONG)
    token_us = (long_us - short_us) / (_LONG - _SHORT)
    return Costs(token_us, short_us - _SHORT * token_us)


async def _cpu_of(gateway: Gateway, args: argparse.Namespace, answer_len: int) -> float:
    """CPU microseconds a request."""
    num_requests = max(args.streams, args.tokens // answer_len)
    before_s = gateway.cpu_s()
    await run_clients(gateway.port, args.streams, request_bytes(answer_len), num_requests)
    return (gateway.cpu_s() - before_s) / num_requests * 1e6


def request_bytes(answer_len: int) -> bytes:
    body = {
        "model": "tiny",
        "prompt": list(range(10, 10 + _PROMPT_LEN)),
        "max_tokens": answer_len,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    payload = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


def _next_token(sequence: Sequence[int], num_prompt: int, seed: int) -> int:
    """Of the ids behind those of single bytes: what a model writes are mostly whole words."""
    return 300 + (sequence[-1] * 31 + len(sequence)) % 1000


@asynccontextmanager
async def fake_cluster(tokenizer_json: bytes, step_s: float) -> AsyncIterator[FakeScheduler]:
    worker = FakeWorker(
        next_token=_next_token, step_interval_s=step_s, card=model_card(vocab_size=4096)
    )
    scheduler = FakeScheduler()
    scheduler.files[worker.card.digest] = {"tokenizer.json": tokenizer_json}
    await worker.start()
    await scheduler.start()
    scheduler.list_worker(worker)
    try:
        yield scheduler
    finally:
        await scheduler.stop()
        await worker.stop()


@asynccontextmanager
async def running_gateway(scheduler_address: str) -> AsyncIterator[Gateway]:
    port = free_port()
    command = [sys.executable, "-m", "gateway", "--scheduler", scheduler_address]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await _wait_ready(port)
        yield Gateway(process.pid, port)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)


async def _wait_ready(port: int) -> None:
    """Until the gateway can reach the leader. Raises: TimeoutError."""
    async with asyncio.timeout(_START_TIMEOUT_S):
        while not await _answers_ready(port):  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(0.1)


async def _answers_ready(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
    status = await reader.readline()
    writer.close()
    return b" 200 " in status


if __name__ == "__main__":
    raise SystemExit(main())
