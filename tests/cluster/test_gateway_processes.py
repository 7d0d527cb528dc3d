"""Gateways beside the launcher: command line, environment, replacement with back-off, the end."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.cli import parse
from cluster.gateway_processes import (
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    STABLE_S,
    GatewayProcesses,
    OutputTail,
    Process,
    SharedFolder,
    gateway_command,
    gateway_environment,
    popen,
)
from cluster.options import ServeOptions, serve_options


def options(*argv: str) -> ServeOptions:
    return serve_options(parse(["serve", *argv]), {})


class FakeProcess:
    def __init__(self, pid: int, ends_on_term: bool = True) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self.ends_on_term = ends_on_term
        self.signals: list[str] = []
        self.waits = 0

    def poll(self) -> int | None:
        return self.exit_code

    def wait(self, timeout: float | None = None) -> int:
        assert timeout is not None, "every wait has a deadline"
        self.waits += 1
        if self.exit_code is None:
            raise subprocess.TimeoutExpired("gateway", timeout)
        return self.exit_code

    def terminate(self) -> None:
        self.signals.append("term")
        if self.ends_on_term:
            self.exit_code = 0

    def kill(self) -> None:
        self.signals.append("kill")
        self.exit_code = -9


class World:
    """A clock and the processes that were started."""

    def __init__(self, ends_on_term: bool = True) -> None:
        self.now = 100.0
        self.started: list[FakeProcess] = []
        self.ends_on_term = ends_on_term
        self.buried: list[int] = []

    def clock(self) -> float:
        return self.now

    def __call__(self, index: int, /) -> tuple[Process, OutputTail]:
        process = FakeProcess(1000 + len(self.started), self.ends_on_term)
        self.started.append(process)
        return process, OutputTail(io.StringIO(f"reason of {process.pid}\n"), io.StringIO())

    def bury(self, pid: int) -> None:
        self.buried.append(pid)


def gateways(world: World, count: int = 2) -> GatewayProcesses:
    result = GatewayProcesses(world, count, world.clock)
    result.start()
    return result


def test_command_line_carries_the_flags() -> None:
    chosen = options("--host", "::1", "--root-path", "/llm", "--shutdown-timeout", "7")
    command = gateway_command(chosen, 8123, "10.0.0.1:7400")
    assert command[:3] == [sys.executable, "-m", "gateway"]
    text = " ".join(command)
    assert "--scheduler 10.0.0.1:7400 --host ::1 --port 8123" in text
    assert "--root-path /llm" in text and "--shutdown-timeout 7" in text
    assert "--reuse-port" not in text


def test_only_several_gateways_share_the_port() -> None:
    assert "--reuse-port" in gateway_command(options("--gateways", "2"), 1, "h:1")


def test_keys_travel_in_the_environment_only() -> None:
    chosen = options("--api-key", "secret-1", "secret-2")
    env = gateway_environment(chosen, {"PATH": "/bin", "VLLM_API_KEY": "other"})
    assert env == {
        "PATH": "/bin",
        "SHOAL_API_KEY": "secret-1,secret-2",
        "SHOAL_PROBE_KEY": chosen.probe_key,
    }
    assert "secret" not in " ".join(gateway_command(chosen, 1, "h:1"))


def test_dead_gateway_is_replaced_after_its_backoff_and_the_other_stays() -> None:
    world = World()
    processes = gateways(world)
    world.started[0].exit_code = 3
    [death] = processes.supervise()
    assert (death.pid, death.exit_code, death.output) == (1000, 3, "reason of 1000")
    assert processes.pids == [1001] and world.buried == [1000]  # before the next one starts
    assert processes.supervise() == [] and len(world.started) == 2
    world.now += FIRST_BACKOFF_S
    assert processes.supervise() == []
    assert sorted(processes.pids) == [1001, 1002]


def test_backoff_grows_to_its_limit_and_starts_anew_after_a_stable_time() -> None:
    world = World()
    processes = gateways(world, count=1)
    waits = []
    for _ in range(9):
        world.started[-1].exit_code = 1
        [death] = processes.supervise()
        waits.append(death.retry_in_s)
        world.now += death.retry_in_s
        processes.supervise()
    assert waits[:3] == [FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S, 4 * FIRST_BACKOFF_S]
    assert waits[-1] == MAX_BACKOFF_S
    world.now += STABLE_S
    world.started[-1].exit_code = 1
    assert processes.supervise()[0].retry_in_s == FIRST_BACKOFF_S


def test_stop_terminates_all_and_waits_for_each_once() -> None:
    world = World()
    processes = gateways(world)
    processes.stop(timeout_s=1.0)
    processes.stop(timeout_s=1.0)
    assert [(p.signals, p.waits) for p in world.started] == [(["term"], 1)] * 2
    assert processes.pids == []


def test_gateway_that_ignores_the_end_is_killed() -> None:
    world = World(ends_on_term=False)
    processes = gateways(world, count=1)
    processes.stop(timeout_s=0.0)
    assert world.started[0].signals == ["term", "kill"]


def test_stopped_gateway_in_backoff_does_not_come_back() -> None:
    world = World()
    processes = gateways(world, count=1)
    world.started[0].exit_code = 1
    processes.supervise()
    processes.stop(timeout_s=0.0)
    assert len(world.started) == 1 and world.started[0].signals == []


def test_output_of_a_real_process_is_passed_on_and_kept(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('first', file=sys.stderr); sys.exit('cannot listen')"
    process, output = popen([sys.executable, "-c", code], dict(os.environ))
    assert process.wait(timeout=30) == 1
    assert output.text(wait_s=10) == "first\ncannot listen"


def has_ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_gateway_does_not_outlive_a_killed_launcher() -> None:
    code = (
        "import os, sys, time; from cluster.gateway_processes import popen; "
        "p, _ = popen([sys.executable, '-c', 'import time; time.sleep(60)'], dict(os.environ)); "
        "print(p.pid, flush=True); time.sleep(60)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    child = psutil.Process(int(launcher.stdout.readline()))
    launcher.send_signal(signal.SIGKILL)
    launcher.wait(timeout=30)
    launcher.stdout.close()
    deadline = time.monotonic() + 30
    while not has_ended(child):
        assert time.monotonic() < deadline, "the gateway lives on"
        os.sched_yield()


def test_dead_gateways_leave_no_requests_in_flight() -> None:
    metrics = SharedFolder()
    folder = Path(metrics.environment["PROMETHEUS_MULTIPROC_DIR"])
    other, dead = (folder / f"gauge_livesum_{pid}.db" for pid in (41, 1041))
    counted = folder / "counter_1041.db"
    for file in (other, dead, counted):
        file.touch()
    metrics.bury(1041)
    assert sorted(folder.iterdir()) == sorted([other, counted])
