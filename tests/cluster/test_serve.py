"""The launcher's order of things, with Ray, the scheduler, the gateways and HTTP replaced."""

import io
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from cluster.cli import parse
from cluster.cli_errors import CommandError, StopRequested
from cluster.config import DeploymentSpec, SchedulerConfig
from cluster.display import Display
from cluster.gateway_processes import OutputTail, Process, Spawn
from cluster.model_source import ModelSource
from cluster.options import ServeOptions, serve_options
from cluster.probe import Endpoint
from cluster.ray_session import RayFacts, RaySession
from cluster.scheduler_handle import PendingCall, SchedulerHandle
from cluster.serve import Launcher, Seams
from cluster.stop_signals import StopSignals


class FakeGateway:
    def __init__(self, world: "World", pid: int) -> None:
        self.world, self.pid = world, pid
        self.exit_code: int | None = None

    def poll(self) -> int | None:
        return self.exit_code

    def wait(self, timeout: float | None = None) -> int:
        if self.exit_code is None:
            raise subprocess.TimeoutExpired("gateway", timeout or 0.0)
        return self.exit_code

    def terminate(self) -> None:
        self.world.log.append("gateway term")
        self.exit_code = 0

    def kill(self) -> None:
        self.world.log.append("gateway kill")
        self.exit_code = -9


class FakeSpawn:
    def __init__(self, world: "World") -> None:
        self.world = world

    def __call__(self, index: int, /) -> tuple[Process, OutputTail]:
        self.world.log.append("gateway")
        gateway = FakeGateway(self.world, 500 + len(self.world.gateways))
        self.world.gateways.append(gateway)
        return gateway, OutputTail(io.StringIO("bad flag\n"), io.StringIO())

    def bury(self, pid: int) -> None:
        """A fake leaves nothing behind."""


class FakeCall:
    """Done after some polls; then an answer or an error."""

    def __init__(self, answer: Any, polls: int = 0, on_poll: Callable[[], None] | None = None):
        self.answer, self.polls, self.on_poll = answer, polls, on_poll

    def is_done(self, wait_s: float) -> bool:
        self.polls -= 1
        if self.on_poll is not None:
            self.on_poll()
        return self.polls < 0

    def result(self, timeout_s: float = 0.0) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FakeScheduler:
    def __init__(self, world: "World") -> None:
        self.world = world

    def deploy(self, spec: DeploymentSpec) -> FakeCall:
        self.world.log.append("deploy")
        self.world.spec = spec
        return FakeCall(None)

    def wait_ready(self, timeout_s: float) -> FakeCall:
        return FakeCall(self.world.ready, polls=3, on_poll=self.world.while_loading)

    def startup_events(self, since: int) -> list[dict[str, Any]]:
        return [event for event in self.world.events if event["seq"] > since]

    def ask_status(self) -> FakeCall:
        return FakeCall(self.world.next_status())

    def drain(self, timeout_s: float) -> FakeCall:
        self.world.log.append("drain")
        return FakeCall(self.world.drained)

    def shutdown(self) -> FakeCall:
        self.world.log.append("shutdown")
        return FakeCall(self.world.shutdown_error)

    def kill(self) -> None:
        self.world.is_scheduler_killed = True


class FakeRay:
    is_alive = True

    def __init__(self, world: "World") -> None:
        self.world = world

    def start(self, num_cpus: int) -> RayFacts:
        self.world.log.append("ray start")
        self.world.num_cpus = num_cpus
        return RayFacts("127.0.0.1:6379", "10.0.0.5", num_cpus, self.world.num_gpus, True)

    def join(self, address: str) -> RayFacts:
        self.world.log.append(f"ray join {address}")
        return RayFacts("10.0.0.9:6379", "10.0.0.5", 64, self.world.num_gpus, False)

    def close(self) -> list[int]:
        self.world.log.append("ray close")
        return []

    def kill(self) -> None:
        self.world.log.append("ray kill")


class FakeEndpoint:
    def __init__(self, world: "World") -> None:
        self.world = world

    def wait_ready(self, timeout_s: float, check: Callable[[], None]) -> None:
        check()
        self.world.log.append("endpoint ready")

    def first_token(self, model: str) -> str:
        self.world.log.append(f"token from {model}")
        if isinstance(self.world.token, Exception):
            raise self.world.token
        return self.world.token


class FakeSignals:
    """The user ends `shoal serve` after a number of rounds of watching."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.requested = False

    def install(self) -> None:
        self.world.log.append("handlers")

    def check(self) -> None:
        if self.requested:
            raise StopRequested

    def wait(self, timeout_s: float) -> bool:
        self.world.rounds -= 1
        self.world.while_watching()
        return self.world.rounds < 0


def replica(state: str = "ready", restarts: int = 0) -> dict[str, Any]:
    return {"replica_id": "r0", "state": state, "restarts": restarts, "reason": "shard died"}


class World:
    """Everything around one launcher, and the order in which it was touched."""

    def __init__(self, *argv: str) -> None:
        self.options: ServeOptions = serve_options(parse(["serve", *argv]), {})
        self.log: list[str] = []
        self.gateways: list[FakeGateway] = []
        self.events: list[dict[str, Any]] = []
        self.statuses: list[Any] = []
        self.spec: DeploymentSpec | None = None
        self.config: SchedulerConfig | None = None
        self.spawned_for: tuple[int, str] | None = None
        self.num_cpus = self.num_gpus = 0
        self.rounds = 0
        self.ready: Any = None
        self.drained: Any = None
        self.shutdown_error: Exception | None = None
        self.is_scheduler_killed = False
        self.token: Any = "!"
        self.is_demo = True
        self.found_scheduler = True
        self.while_loading: Callable[[], None] = lambda: None
        self.while_watching: Callable[[], None] = lambda: None
        self.out, self.err = io.StringIO(), io.StringIO()
        self.signals = FakeSignals(self)
        self.launcher = self._launcher()

    def next_status(self) -> Any:
        return self.statuses.pop(0) if self.statuses else {"deployments": []}

    def _launcher(self) -> Launcher:
        display = Display(self.out, self.err, started_at=0.0)
        seams = Seams(
            resolve_model=lambda options: ModelSource("/m", ("demo",), 1024, self.is_demo),
            start_scheduler=self._start_scheduler,
            find_scheduler=lambda: self._scheduler() if self.found_scheduler else None,
            spawn=self._spawn,
            endpoint=lambda host, port, key, certificate: cast(Endpoint, FakeEndpoint(self)),
            count_gpus=lambda: self.num_gpus,
            memory_plan=self._memory_plan,
        )
        signals, ray = cast(StopSignals, self.signals), cast(RaySession, FakeRay(self))
        return Launcher(self.options, display, signals, ray, seams)

    def _memory_plan(self, spec: DeploymentSpec, is_local: bool) -> str:
        self.log.append("plan")
        return "memory plan"

    def _scheduler(self) -> SchedulerHandle:
        return cast(SchedulerHandle, FakeScheduler(self))

    def _start_scheduler(self, config: SchedulerConfig) -> SchedulerHandle:
        self.log.append("scheduler")
        self.config = config
        return self._scheduler()

    def _spawn(self, options: ServeOptions, port: int, address: str) -> Spawn:
        self.spawned_for = (port, address)

        return FakeSpawn(self)

    def run(self) -> int:
        try:
            return self.launcher.run()
        finally:
            self.launcher.stop()


STARTED = ["plan", "gateway", "ray start", "handlers", "scheduler", "deploy", "endpoint ready"]
ENDED = ["gateway term", "drain", "shutdown", "ray close"]


@pytest.fixture(autouse=True)
def untouched_signal_handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def test_local_cluster_starts_and_ends_in_order() -> None:
    world = World("--port", "0")
    assert world.run() == 0
    assert world.log == [*STARTED, "token from demo", *ENDED]


def test_gateways_start_before_ray_and_know_the_scheduler() -> None:
    world = World("--port", "0", "--gateways", "2", "--scheduler-port", "0")
    world.run()
    assert world.config is not None and world.spawned_for is not None
    assert world.log.index("gateway") < world.log.index("ray start")
    assert world.spawned_for[1] == f"127.0.0.1:{world.config.port}"
    assert len(world.gateways) == 2


def test_demo_gets_two_shards_and_a_cpu_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    world = World("--port", "0", "--replicas", "3")
    world.run()
    assert world.spec is not None
    assert (world.spec.tp_size, world.spec.runner.device, world.num_cpus) == (2, "cpu", 6)


@pytest.mark.parametrize(
    ("argv", "num_gpus", "is_demo", "tp_size", "device"),
    [
        ((), 1, True, 1, "cuda"),
        ((), 8, True, 2, "cuda"),
        ((), 8, False, 1, "cuda"),
        (("-tp", "4"), 8, False, 4, "cuda"),
        (("--device", "cpu"), 8, True, 2, "cpu"),
    ],
)
def test_shards_follow_flags_and_hardware(
    argv: tuple[str, ...], num_gpus: int, is_demo: bool, tp_size: int, device: str
) -> None:
    world = World("--port", "0", *argv)
    world.num_gpus, world.is_demo = num_gpus, is_demo
    world.run()
    assert world.spec is not None
    assert (world.spec.tp_size, world.spec.runner.device) == (tp_size, device)


def test_each_event_is_shown_once_and_the_end_is_ready_to_paste() -> None:
    world = World("--port", "0")
    event = {"t": 0.0, "phase": "Weights", "message": "6.5 MiB", "seconds": 0.25}
    world.events = [
        {**event, "seq": 1, "done": False},
        {**event, "seq": 2, "done": True},
    ]
    world.run()
    text = world.out.getvalue()
    assert text.count("Weights") == 1 and "0.25 s  6.5 MiB" in text
    assert "memory plan" in text and text.index("memory plan") < text.index("Ray started")
    assert "first token after" in text
    assert "curl http://localhost:" in text and 'ChatOpenAI(model="demo"' in text


def test_joined_cluster_keeps_running_without_the_deployment() -> None:
    world = World("--port", "0", "--address", "auto")
    world.num_gpus = 4
    assert world.run() == 0
    assert world.log[:4] == ["ray join auto", "handlers", "plan", "gateway"]
    assert world.log[-4:] == ENDED
    assert world.config is not None and world.config.host == "10.0.0.5"


def test_detached_deployment_stays() -> None:
    world = World("--address", "auto", "--gateways", "0", "--detach", "--scheduler-port", "0")
    world.rounds = 100
    assert world.run() == 0
    assert world.log[-2:] == ["deploy", "ray close"]
    assert world.rounds == 100, "nothing is watched"
    assert "shoal down --address 10.0.0.9:6379" in world.out.getvalue()


def test_failed_detached_deployment_does_not_stay() -> None:
    world = World("--address", "auto", "--gateways", "0", "--detach")
    world.ready = CommandError("no placement: needs 2 GPUs")
    with pytest.raises(CommandError, match="2 GPUs"):
        world.run()
    assert world.log[-2:] == ["shutdown", "ray close"]


def test_failed_load_is_cleaned_up_without_draining() -> None:
    world = World("--port", "0")
    world.ready = CommandError("tensor lm_head.weight is missing")
    with pytest.raises(CommandError, match="lm_head"):
        world.run()
    assert world.log[-3:] == ["gateway term", "shutdown", "ray close"]


def test_gateway_that_ends_while_starting_gives_its_reason() -> None:
    world = World("--port", "0")

    def end() -> None:
        world.gateways[0].exit_code = 2

    world.while_loading = end
    with pytest.raises(CommandError, match="exit code 2: bad flag"):
        world.run()
    assert world.log[-2:] == ["shutdown", "ray close"]


def test_failed_probe_is_a_failed_start() -> None:
    world = World("--port", "0")
    world.token = CommandError("the endpoint answered 500")
    with pytest.raises(CommandError, match="500"):
        world.run()
    assert world.log[-3:] == ["gateway term", "shutdown", "ray close"]


def test_stop_while_loading_cleans_up() -> None:
    world = World("--port", "0")

    def interrupt() -> None:
        world.signals.requested = True

    world.while_loading = interrupt
    with pytest.raises(StopRequested):
        world.run()
    assert world.log[-3:] == ["gateway term", "shutdown", "ray close"]


def test_port_in_use_is_refused_before_anything_starts() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        world = World("--host", "127.0.0.1", "--port", str(port))
        with pytest.raises(CommandError, match=f"cannot listen on 127.0.0.1:{port}.*--port"):
            world.run()
    assert world.log == []


@pytest.mark.parametrize("failing", ["drained", "shutdown_error"])
def test_failed_step_of_the_end_does_not_stop_the_next(failing: str) -> None:
    world = World("--port", "0")
    setattr(world, failing, CommandError("no answer"))
    assert world.run() == 0
    assert world.log[-4:] == ENDED
    assert world.is_scheduler_killed
    assert "warning: no answer" in world.err.getvalue()


def test_end_asks_nothing_of_a_ray_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeRay, "is_alive", False)
    monkeypatch.setattr(FakeCall, "is_done", lambda call, wait_s: "drain" not in world.log)
    world = World("--port", "0")
    assert world.run() == 0
    assert "drain" in world.log and "shutdown" not in world.log
    assert world.log[-1] == "ray close"
    assert "Ray ended before" in world.err.getvalue()


def test_lost_gateway_is_reported_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.gateway_processes.FIRST_BACKOFF_S", 0.0)
    world = World("--port", "0")
    world.rounds = 3

    def die_once() -> None:
        if len(world.gateways) == 1:
            world.gateways[0].exit_code = -11

    world.while_watching = die_once
    assert world.run() == 0
    assert "gateway 500 ended with exit code -11" in world.err.getvalue()


def test_changes_of_replicas_are_told() -> None:
    world = World("--port", "0")
    world.rounds = 3
    states = [("ready", 0), ("dead", 0), ("ready", 1)]
    world.statuses = [{}] + [
        {"deployments": [{"name": "demo", "replicas": [replica(*state)]}]} for state in states
    ]
    assert world.run() == 0
    text = world.out.getvalue()
    assert "replica r0 was ready and is dead: shard died" in text
    assert "replica r0 was dead and is ready (restart 1)" in text


def test_removal_by_somebody_else_ends_the_launcher() -> None:
    world = World("--port", "0", "--address", "auto")
    world.rounds = 50
    world.found_scheduler = False
    world.statuses = [{}, CommandError("dead")]
    assert world.run() == 0
    assert "the deployment was removed" in world.out.getvalue()
    assert world.rounds > 40


def test_scheduler_being_restarted_is_waited_for() -> None:
    world = World("--port", "0")
    world.rounds = 2
    world.statuses = [{}, CommandError("unavailable")]
    assert world.run() == 0
    assert world.rounds == -1


def test_abort_kills_at_once_and_still_frees_a_joined_cluster() -> None:
    local, joined = World("--port", "0"), World("--port", "0", "--address", "auto")
    for world in (local, joined):
        world.launcher.run()
        world.launcher.abort()
    assert local.log[-2:] == ["gateway kill", "ray kill"]
    assert joined.log[-3:] == ["gateway kill", "shutdown", "ray kill"]


def test_pending_call_is_what_the_fake_imitates() -> None:
    assert {name for name in vars(FakeCall) if not name.startswith("_")} == {
        name for name in vars(PendingCall) if not name.startswith("_")
    }
