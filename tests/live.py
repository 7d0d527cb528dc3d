"""A real cluster for tests: `shoal serve` in a process of its own, as a user starts it.

Ray, the scheduler actor, two shard actors and the gateway are real; so is the demo model. The
process is stopped with SIGTERM at the end and must leave nothing behind.
"""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class LiveCluster:
    """Where a running `shoal serve` answers, and the process that does it."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    started_in_s: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ray_address(self) -> str:
        """As the log tells it: other clusters of this user may run beside this one."""
        found = re.search(r"Ray started\s+\S+ s\s+(\S+:\d+)", self.log.read_text())
        assert found is not None, self.log.read_text()
        return found.group(1)

    @property
    def api(self) -> str:
        return self.url + "/v1"

    def get(self, path: str, timeout_s: float = 10.0) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def status(self) -> dict[str, Any]:
        """What `shoal status --json` prints."""
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "cluster.cli",
                "status",
                "--json",
                "--address",
                self.ray_address,
            ],
            capture_output=True,
            timeout=60,
            check=True,
        )
        status: dict[str, Any] = json.loads(run.stdout)
        return status


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def serve(folder: Path, *flags: str) -> Iterator[LiveCluster]:
    """`shoal serve FLAGS` until the block ends; fails with the log if it does not come up."""
    port, log = free_port(), folder / "serve.log"
    command = [
        sys.executable,
        "-m",
        "cluster.cli",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    started = time.monotonic()
    with log.open("wb") as out:
        # In a session of its own, so that a test can signal the whole group.
        process = subprocess.Popen(
            [*command, *flags], stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_ready(process, port, log)
        yield LiveCluster(process, port, log, time.monotonic() - started)
    finally:
        _stop(process, log)


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"serve ended early:\n{log.read_text()[-4000:]}"
        if b"curl" in log.read_bytes():
            return
        time.sleep(0.05)
    raise AssertionError(f"serve was not ready in {START_TIMEOUT_S} s:\n{log.read_text()[-4000:]}")


def _stop(process: subprocess.Popen[bytes], log: Path) -> None:
    """SIGTERM, then nothing of it may be alive: neither children nor Ray's daemons."""
    family = _descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"serve did not stop:\n{log.read_text()[-4000:]}") from None
    _, alive = psutil.wait_procs(family, timeout=10)
    left = [f"{p.pid} {' '.join(p.cmdline())[:120]}" for p in alive if p.is_running()]
    for p in alive:
        p.kill()
    assert not left, f"left behind: {left}"


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
