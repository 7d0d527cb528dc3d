"""Two real gateway processes on one port before a fake cluster: what they must know together."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.fake_scheduler import FakeScheduler
from tests.fake_worker import FakeWorker, model_card
from tests.gateway.small_tokenizer import model_files
from tests.gateway.test_metrics import parse

NUM_PROCESSES = 2
ASK = {"model": "tiny", "prompt": "hello the cat", "max_tokens": 5}
NUM_PROMPT = 4  # tokens of it


def held_port() -> socket.socket:
    """A free port that is nobody else's until the gateways listen on it."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


class Gateways:
    def __init__(self, url: str, folder: Path, processes: list[asyncio.subprocess.Process]) -> None:
        self.url = url
        self.folder = folder
        self.processes = processes

    async def request(self, method: str, path: str, **fields: object) -> httpx.Response:
        """On a connection of its own: the system gives it to either process."""
        headers = {"authorization": "Bearer sk-a"}
        async with httpx.AsyncClient(base_url=self.url, timeout=20) as client:
            return await client.request(method, path, headers=headers, **fields)

    async def ask(self) -> httpx.Response:
        return await self.request("POST", "/v1/completions", json=ASK)

    async def everywhere(
        self, path: str, is_right: Callable[[httpx.Response], bool]
    ) -> list[httpx.Response]:
        """Answers of so many new connections in a row that each process gave some, all of them
        right."""
        found: list[httpx.Response] = []
        async with asyncio.timeout(60):
            while len(found) < 4 * NUM_PROCESSES:
                try:
                    response = await self.request("GET", path)
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                found = [*found, response] if is_right(response) else []
        return found

    def usage(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "usage.jsonl").open()]


@asynccontextmanager
async def gateways(folder: Path, entry: dict) -> AsyncIterator[Gateways]:
    scheduler, worker = FakeScheduler(), FakeWorker(next_token=lambda *_: 40)
    worker.card = model_card(vocab_size=400)
    scheduler.files[worker.card.digest] = model_files()
    scheduler.exposition = b"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc 0.25\n"
    await worker.start()
    await scheduler.start()
    scheduler.list_worker(worker)
    keys = folder / "keys.json"
    keys.write_text(json.dumps({"keys": [{"name": "a", "key": "sk-a", **entry}]}))
    (folder / "metrics").mkdir()
    port = held_port()
    command = [
        *(sys.executable, "-m", "gateway", "--scheduler", scheduler.address),
        *("--host", "127.0.0.1", "--port", str(port.getsockname()[1]), "--reuse-port"),
        *("--api-keys-file", str(keys), "--usage-log", str(folder / "usage.jsonl")),
        *("--shared-folder", str(folder / "tenants"), "--log-level", "warning"),
    ]
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics")}
    processes = [
        await asyncio.create_subprocess_exec(*command, env=env) for _ in range(NUM_PROCESSES)
    ]
    found = Gateways(f"http://127.0.0.1:{port.getsockname()[1]}", folder, processes)
    try:
        await found.everywhere("/readyz", lambda response: response.status_code == 200)
        yield found
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
        port.close()
        await scheduler.stop()
        await worker.kill()


async def test_two_processes_keep_one_limit_one_set_of_books_and_the_same_keys(tmp_path):
    async with gateways(tmp_path, {"requests_per_minute": 6}) as running:
        answers = [await running.ask() for _ in range(9)]
        statuses = [answer.status_code for answer in answers]
        assert statuses == [200] * 6 + [429] * 3
        assert [a.headers["x-ratelimit-remaining-requests"] for a in answers[:6]] == list("543210")
        scrapes = await running.everywhere("/metrics", lambda response: response.status_code == 200)
        for scrape in scrapes:
            found = parse(scrape.text)
            assert found["vllm:kv_cache_usage_perc", frozenset()] == 0.25  # the engines', behind
            tokens = {
                dict(labels)["kind"]: count
                for (name, labels), count in found.items()
                if name == "shoal_usage_tokens_total"
            }
            expected = {"prompt": 6 * NUM_PROMPT, "completion": 6 * 5}
            expected |= {"cached": 0, "reasoning": 0, "abandoned": 0}
            assert tokens == expected
            labels = frozenset({"model_name": "tiny", "engine": "r0"}.items())
            assert found["vllm:prompt_tokens_total", labels] == 6 * NUM_PROMPT
            assert found["vllm:generation_tokens_total", labels] == 6 * 5
        fresh = tmp_path / "fresh.json"
        fresh.write_text('{"keys": [{"name": "a", "key": "sk-other"}]}')
        os.replace(fresh, tmp_path / "keys.json")
        for process in running.processes:
            process.send_signal(signal.SIGHUP)
        await running.everywhere("/v1/models", lambda response: response.status_code == 401)
    lines = running.usage()  # complete, now that the processes have ended
    assert len(lines) == 6
    assert sum(line["completion_tokens"] for line in lines) == 6 * 5
    assert len({line["request_id"] for line in lines}) == 6
