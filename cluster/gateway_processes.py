"""The HTTP processes beside a launcher: started early, replaced when they die, drained at the end.

Each is `python -m gateway`; several share one port. Knows their command line and nothing of HTTP.
Owned by `cluster.serve`, on its thread.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from prometheus_client.multiprocess import mark_process_dead

from cluster.options import ServeOptions

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
STABLE_S = 30.0  # alive for longer: the next death starts with the first back-off again
KILL_GRACE_S = 5.0  # beyond the time the gateways give their own requests
PR_SET_PDEATHSIG = 1

# Resolved before any fork: the child of a process with threads may not take the loader's lock.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class Process(Protocol):
    """What of `subprocess.Popen` is used here."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Spawn(Protocol):
    """Starts gateways, each for a slot."""

    def __call__(self, index: int, /) -> tuple[Process, "OutputTail"]: ...

    def bury(self, pid: int) -> None:
        """One of them has ended, and was waited for: nothing of it may go on counting."""
        ...


def gateway_command(options: ServeOptions, port: int, scheduler_address: str) -> list[str]:
    """The command line of every gateway of these options. Keys travel in the environment, where
    `ps` does not show them.
    """
    command = [sys.executable, "-m", "gateway", "--scheduler", scheduler_address]
    command += ["--host", options.host, "--port", str(port)]
    command += ["--shutdown-timeout", f"{options.shutdown_timeout_s:g}"]
    command += ["--max-logprobs", str(options.max_logprobs)]
    command += ["--log-level", options.uvicorn_log_level]
    if options.uvicorn_log_level in ("info", "debug"):
        command.append("--access-log")
    command += options.edge.gateway_flags()
    if options.root_path:
        command += ["--root-path", options.root_path]
    if options.num_gateways > 1:
        command.append("--reuse-port")
    return command


def gateway_environment(options: ServeOptions, base: Mapping[str, str]) -> dict[str, str]:
    env = {name: value for name, value in base.items() if name != "VLLM_API_KEY"}
    env.pop("SHOAL_API_KEY", None)
    if options.api_keys:
        env["SHOAL_API_KEY"] = ",".join(options.api_keys)
    if options.probe_key:
        env["SHOAL_PROBE_KEY"] = options.probe_key
    return env


class OutputTail:
    """Passes a process's stderr on, and keeps its last lines: the reason of an early death.

    One reader thread of its own, which ends with the stream.
    """

    def __init__(self, stream: IO[str], sink: IO[str]) -> None:
        self._lines: deque[str] = deque(maxlen=20)
        self._stream = stream
        self._sink = sink
        self._thread = threading.Thread(target=self._read, name="gateway-output", daemon=True)
        self._thread.start()

    def text(self, wait_s: float = 1.0) -> str:
        self._thread.join(wait_s)
        return "".join(self._lines).strip()

    def _read(self) -> None:
        with self._stream:
            for line in self._stream:
                self._lines.append(line)
                self._sink.write(line)
                self._sink.flush()


def popen(command: Sequence[str], env: Mapping[str, str]) -> tuple[Process, OutputTail]:
    """A child in a session of its own: Ctrl-C in the terminal reaches the launcher alone, which
    then drains. If the launcher is killed, the kernel sends the child SIGTERM.
    """
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno() if _has_fd(sys.stderr) else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_die_with_parent if _PRCTL is not None else None,
    )
    assert process.stderr is not None
    return process, OutputTail(process.stderr, sys.stderr)


def _has_fd(stream: IO[str]) -> bool:
    try:
        return stream.fileno() >= 0
    except (OSError, ValueError):
        return False


def _die_with_parent() -> None:
    assert _PRCTL is not None
    _PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@dataclass(slots=True)
class _Slot:
    """One place for a gateway: the process in it, or when the next one may start."""

    process: Process | None = None
    output: OutputTail | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    backoff_s: float = FIRST_BACKOFF_S


@dataclass(frozen=True, slots=True)
class GatewayDeath:
    pid: int
    exit_code: int
    retry_in_s: float
    output: str


class GatewayProcesses:
    """Keeps `count` gateways alive; used from one thread. A slot's process is waited for exactly
    once: when it died, or at the end.
    """

    def __init__(
        self, spawn: Spawn, count: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._spawn = spawn
        self._clock = clock
        self._slots = [_Slot() for _ in range(count)]

    @property
    def pids(self) -> list[int]:
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    def start(self) -> None:
        for index in range(len(self._slots)):
            self._start_slot(index)

    def supervise(self) -> list[GatewayDeath]:
        """Collects the dead and starts those whose back-off is over; never waits."""
        deaths = []
        for index, slot in enumerate(self._slots):
            if slot.process is not None:
                if death := self._bury(slot):
                    deaths.append(death)
            elif self._clock() >= slot.start_at:
                self._start_slot(index)
        return deaths

    def stop(self, timeout_s: float) -> None:
        """SIGTERM to all, then `timeout_s` and a little for their requests, then SIGKILL."""
        running = [slot.process for slot in self._slots if slot.process is not None]
        for process in running:
            process.terminate()
        deadline = self._clock() + timeout_s + KILL_GRACE_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - self._clock()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(KILL_GRACE_S)
        self._forget()

    def kill(self) -> None:
        for slot in self._slots:
            if slot.process is not None:
                slot.process.kill()
                slot.process.wait(KILL_GRACE_S)
        self._forget()

    def _forget(self) -> None:
        for slot in self._slots:
            slot.process = None

    def _start_slot(self, index: int) -> None:
        slot = self._slots[index]
        slot.process, slot.output = self._spawn(index)
        slot.started_at = self._clock()

    def _bury(self, slot: _Slot) -> GatewayDeath | None:
        assert slot.process is not None and slot.output is not None
        exit_code = slot.process.poll()
        if exit_code is None:
            return None
        now = self._clock()
        if now - slot.started_at >= STABLE_S:
            slot.backoff_s = FIRST_BACKOFF_S
        slot.start_at = now + slot.backoff_s
        death = GatewayDeath(slot.process.pid, exit_code, slot.backoff_s, slot.output.text())
        slot.backoff_s = min(MAX_BACKOFF_S, 2 * slot.backoff_s)
        self._spawn.bury(slot.process.pid)
        slot.process = None
        return death


class SharedFolder:
    """The folder through which gateways on one port add up their metrics, as a scrape reaches any
    one of them and must tell of all, and what tenants with limits have used. Ends with this object.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="shoal-gateways-")

    @property
    def flags(self) -> list[str]:
        return ["--shared-folder", str(Path(self._folder.name, "tenants"))]

    @property
    def environment(self) -> dict[str, str]:
        return {"PROMETHEUS_MULTIPROC_DIR": self._folder.name}

    def bury(self, pid: int) -> None:
        """What a dead gateway had counted stays; what it had in flight does not."""
        mark_process_dead(pid, self._folder.name)  # type: ignore[no-untyped-call]


class GatewaySpawn:
    """Starts gateways of one kind, with a folder in common where there are several."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], shared: SharedFolder | None
    ) -> None:
        self._command = command
        self._env = env
        self._shared = shared

    def __call__(self, index: int, /) -> tuple[Process, OutputTail]:
        return popen(self._command, self._env)

    def bury(self, pid: int) -> None:
        if self._shared is not None:
            self._shared.bury(pid)


def default_spawn(options: ServeOptions, port: int, scheduler_address: str) -> Spawn:
    command = gateway_command(options, port, scheduler_address)
    env = gateway_environment(options, os.environ)
    if options.num_gateways < 2:
        return GatewaySpawn(command, env, None)
    shared = SharedFolder()
    return GatewaySpawn([*command, *shared.flags], {**env, **shared.environment}, shared)
