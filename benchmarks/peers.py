"""`make bench-peers`: Shoal beside other servers on the same models, in one run, as ratios.

    python -m benchmarks.peers --peers peers.json --models-dir DIR [--models 135m tiny]
        [--repeats 3] [--scenarios NAME ...] [--out FILE]

Machines differ and change from hour to hour, so only one run's figures are compared: its
servers take turns, round by round, and the machine's limits are measured in between. Peers start
once and are stopped (SIGSTOP) while another is measured; Shoal, whose Ray daemons do not survive a
pause, starts anew for each turn. What a peer needs (its environment, a converted checkpoint) is
made by hand; the file says how it is started:

    {"vllm": {"command": ["vllm", "serve", "{model}", "--port", "{port}", ...],
              "environment": {"VLLM_CPU_OMP_THREADS_BIND": "0-1"}}}
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.limits import Limits, load_limit, measure_limits
from benchmarks.load import Load, measure_load
from benchmarks.machine import machine_facts
from benchmarks.models import make_models
from benchmarks.shapes import SHAPES
from tests.live import free_port

START_TIMEOUT_S = 400.0
_SETTLE_S = 0.5  # after waking a server

SHOAL = "shoal"
SHOAL_COMMAND = [
    sys.executable,
    *("-m", "cluster.cli", "serve", "{model}", "--port", "{port}", "--host", "127.0.0.1"),
    *("--served-model-name", "m", "--dtype", "bfloat16", "--max-model-len", "4096"),
    # Random weights repeat themselves, so guesses would be accepted as no real text's are.
    *("--speculative-config", "off"),
]

SCENARIOS = {
    "1 stream": Load(3, 1, 128, 128),
    "8 streams": Load(32, 8, 128, 128),
    "32 streams": Load(64, 32, 128, 128),
    "long prompt": Load(3, 1, 1500, 16),
    "4 long prompts": Load(4, 4, 1500, 16),  # that arrive together
    # In a loop prompts wait for each other whatever the order: what streams gain, first tokens
    # lose.
    "4 long streams": Load(8, 4, 1500, 16),
    "shared prefix": Load(32, 8, 1088, 32, shared_prefix_len=1024),
    "overhead, 32 streams": Load(256, 32, 32, 64),
    "overhead, 64 streams": Load(256, 64, 32, 64),
}
_OVERHEAD_MODELS = {"tiny"}


@dataclass(slots=True)
class Server:
    """One server process tree. `start` and `stop` once each; `pause` and `wake` in between."""

    name: str
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, model: Path, log: Path) -> float:
        """Returns seconds from the command to the first token. Raises: RuntimeError."""
        self.port = free_port()
        values = {"model": str(model), "name": model.name, "port": str(self.port)}
        command = [part.format(**values) for part in self.command]
        started = time.perf_counter()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                env=os.environ | self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while time.perf_counter() - started < START_TIMEOUT_S:
            if self.process.poll() is not None:
                break
            if _answers(self.url):
                return time.perf_counter() - started
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not start: see {log}")

    def tree(self) -> list[psutil.Process]:
        assert self.process is not None
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def pause(self) -> None:
        for process in self.tree():
            process.suspend()

    def wake(self) -> None:
        for process in self.tree():
            process.resume()
        time.sleep(_SETTLE_S)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        tree = self.tree()
        for process in tree:
            process.resume()
        self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(tree, timeout=40)
        for process in alive:
            process.kill()

    def usage(self) -> dict[str, float]:
        """Of the whole tree: proportional memory in MB, CPU seconds so far."""
        memory = cpu = 0.0
        for process in self.tree():
            try:
                memory += process.memory_full_info().pss / 1e6
                times = process.cpu_times()
                cpu += times.user + times.system
            except psutil.Error:
                continue  # it ended meanwhile
        return {"pss_mb": memory, "cpu_s": cpu}


def _answers(url: str) -> bool:
    body = json.dumps({"model": "m", "prompt": "hello", "max_tokens": 1}).encode()
    request = urllib.request.Request(
        f"{url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=START_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measures Shoal beside other servers.")
    parser.add_argument("--peers", type=Path, help="JSON: name to command and environment")
    parser.add_argument("--only", nargs="*", help="names of the servers to run")
    parser.add_argument("--models-dir", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=["135m", "tiny"], choices=list(SHAPES))
    parser.add_argument("--scenarios", nargs="*", choices=list(SCENARIOS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"machine": machine_facts(), "models": {}}
    for name, folder in zip(args.models, make_models(args.models, args.models_dir), strict=True):
        servers = _servers(args.peers, args.only)
        scenarios = args.scenarios or _scenarios_of(name)
        result = measure_model(servers, folder, scenarios, args.repeats)
        report["models"][name] = result
        print_table(name, result)
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _scenarios_of(model: str) -> list[str]:
    is_overhead = model in _OVERHEAD_MODELS
    return [name for name in SCENARIOS if name.startswith("overhead") == is_overhead]


def _servers(path: Path | None, only: list[str] | None) -> list[Server]:
    specs: dict[str, dict[str, Any]] = {SHOAL: {"command": SHOAL_COMMAND}}
    if path is not None:
        specs |= json.loads(path.read_text(encoding="utf-8"))
    return [
        Server(name, spec["command"], {k: str(v) for k, v in spec.get("environment", {}).items()})
        for name, spec in specs.items()
        if not only or name in only
    ]


def measure_model(
    servers: list[Server], model: Path, scenarios: Sequence[str], repeats: int
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    starts: list[dict[str, Any]] = []
    limits: list[Limits] = []
    try:
        for server in servers:
            if server.name != SHOAL:
                starts.append(_started(server, model, scenarios))
                server.pause()
        for repeat in range(repeats):
            limits.append(measure_limits(os.cpu_count() or 1, seconds=0.5))
            for server in servers:
                if server.name == SHOAL:
                    starts.append(_started(server, model, scenarios))
                else:
                    server.wake()
                rows += [_measured(server, scenario, repeat) for scenario in scenarios]
                server.stop() if server.name == SHOAL else server.pause()
    finally:
        for server in servers:
            server.stop()
    best = Limits(
        max(x.read_gb_s for x in limits),
        max(x.bf16_gflop_s for x in limits),
        limits[0].num_threads,
    )
    return {"limits": asdict(best), "starts": starts, "runs": rows}


def _started(server: Server, model: Path, scenarios: Sequence[str]) -> dict[str, Any]:
    seconds = server.start(model, model.parent / f"{server.name}-{model.name}.log")
    used = server.usage()
    for scenario in scenarios:  # first-use costs are not part of a scenario
        load = SCENARIOS[scenario]
        warm = replace(load, num_requests=load.concurrency, output_len=8, seed=997)
        measure_load(server.url, "m", warm)
    print(f"{server.name} started in {seconds:.1f} s", flush=True)
    return {"server": server.name, "first_token_s": seconds, "pss_mb": used["pss_mb"]}


def _measured(server: Server, scenario: str, repeat: int) -> dict[str, Any]:
    # Another seed for each, or a prefix cache would answer from the last one.
    load = replace(SCENARIOS[scenario], seed=1000 * repeat + list(SCENARIOS).index(scenario))
    before = server.usage()
    result = measure_load(server.url, "m", load)
    after = server.usage()
    row = {
        "server": server.name,
        "scenario": scenario,
        **asdict(result),
        "cpu_us_per_token": (after["cpu_s"] - before["cpu_s"]) / result.num_tokens * 1e6,
        "pss_mb": after["pss_mb"],
    }
    print(json.dumps(row), flush=True)
    return row


def _median(rows: list[dict[str, Any]], server: str, scenario: str, key: str) -> float:
    values = [r[key] for r in rows if r["server"] == server and r["scenario"] == scenario]
    return statistics.median(values) if values else float("nan")


def print_table(model: str, result: dict[str, Any]) -> None:
    """Medians; the ratio is of Shoal's output tokens/s to the server's."""
    rows, limits = result["runs"], Limits(**result["limits"])
    print(f"\n{model}: reads {limits.read_gb_s:.1f} GB/s, bf16 {limits.bf16_gflop_s:.0f} GFLOP/s")
    for start in result["starts"]:
        seconds, memory = start["first_token_s"], start["pss_mb"]
        print(f"  {start['server']}: first token after {seconds:.1f} s, {memory:.0f} MB")
    print(
        "| scenario | server | tokens/s | of limit | Shoal's ratio "
        "| TTFT p50 / p99 ms | ITL p50 / p99 ms |"
    )
    print("|---|---|---|---|---|---|---|")
    for scenario in dict.fromkeys(r["scenario"] for r in rows):
        limit = load_limit(SHAPES[model], limits, SCENARIOS[scenario])
        for server in dict.fromkeys(r["server"] for r in rows):

            def value(key: str, who: str = server, what: str = scenario) -> float:
                return _median(rows, who, what, key)

            rate = value("tokens_per_s")
            ratio = value("tokens_per_s", SHOAL) / rate
            ttft = f"{value('ttft_p50_s') * 1e3:.0f} / {value('ttft_p99_s') * 1e3:.0f}"
            itl = f"{value('itl_p50_s') * 1e3:.1f} / {value('itl_p99_s') * 1e3:.1f}"
            share = f"{100 * rate / limit:.0f} %"
            print(
                f"| {scenario} | {server} | {rate:.1f} | {share} | {ratio:.2f} | {ttft} | {itl} |"
            )


if __name__ == "__main__":
    raise SystemExit(main())
