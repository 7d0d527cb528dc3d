"""`shoal serve`: starts a cluster for one model, watches over it and takes it down again.

The order of things and what the user sees of it; each thing itself lives in a module of its own.
Everything overlaps that can: the gateways import while Ray starts, and wait for their scheduler.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from cluster import examples, gateway_processes, model_source
from cluster.cli_errors import CommandError, ImmediateStop, StopRequested
from cluster.config import DeploymentSpec, SchedulerConfig
from cluster.display import Display, human_bytes
from cluster.gateway_processes import GatewayProcesses
from cluster.hardware import count_gpus
from cluster.memory import memory_plan
from cluster.model_source import ModelSource
from cluster.options import DEMO_TP_SIZE, ServeOptions
from cluster.ports import check_port, free_port
from cluster.probe import Endpoint, local_host
from cluster.ray_session import RayFacts, RaySession
from cluster.replica_watch import ReplicaWatch
from cluster.scheduler_handle import PendingCall, SchedulerHandle
from cluster.stop_signals import StopSignals

EXIT_INTERRUPTED = 130
LOCAL_HOST = "127.0.0.1"
POLL_S = 0.1
SUPERVISE_S = 0.5
GATEWAY_READY_TIMEOUT_S = 60.0
DRAIN_GRACE_S = 5.0  # beyond what the engines were given
ABORT_TIMEOUT_S = 3.0  # for the scheduler to remove what it started, after a second Ctrl-C


@dataclass(frozen=True, slots=True)
class Seams:
    """Where a launcher touches the world beyond Ray; tests put fakes here."""

    resolve_model: Callable[[ServeOptions], ModelSource] = model_source.resolve_model
    start_scheduler: Callable[[SchedulerConfig], SchedulerHandle] = SchedulerHandle.start
    find_scheduler: Callable[[], SchedulerHandle | None] = SchedulerHandle.find
    spawn: Callable[[ServeOptions, int, str], gateway_processes.Spawn] = (
        gateway_processes.default_spawn
    )
    endpoint: Callable[[str, int, str | None, str | None], Endpoint] = Endpoint
    count_gpus: Callable[[], int] = count_gpus
    memory_plan: Callable[[DeploymentSpec, bool], str] = memory_plan


class Launcher:
    """Lives on the main thread. `stop` may be called in any state: it undoes what was done."""

    def __init__(
        self,
        options: ServeOptions,
        display: Display,
        signals: StopSignals,
        ray_session: RaySession,
        seams: Seams,
    ) -> None:
        self._options = options
        self._display = display
        self._signals = signals
        self._ray = ray_session
        self._seams = seams
        self._gateways: GatewayProcesses | None = None
        self._scheduler: SchedulerHandle | None = None
        self._is_in_ray = False
        self._is_ready = False
        self._seen_events = 0

    def run(self) -> int:
        """Returns the exit code once the user, or `shoal down`, has ended it."""
        self._start()
        if self._options.detach:
            return 0
        return self._watch()

    def stop(self) -> None:
        """Refuse new requests, let the running ones end, then remove everything."""
        self._display.close()
        began = time.monotonic()
        stays = self._options.detach and self._is_ready
        if self._is_ready and not stays:
            self._display.text("stopping: no new requests, running ones may end")
        self._attempt(self._stop_gateways)
        if not stays:
            self._attempt(self._stop_scheduler)
        self._attempt(self._leave_ray)
        if self._is_ready and not stays:
            self._display.phase("Stopped", seconds=time.monotonic() - began)

    def abort(self) -> None:
        """At once: requests are cut off. A joined cluster still gets its shards removed."""
        self._display.close()
        if self._gateways is not None:
            self._gateways.kill()
        if self._scheduler is not None and self._options.address is not None:
            self._attempt(lambda: self._remove_scheduler(ABORT_TIMEOUT_S))
        self._ray.kill()

    # ---- start ----

    def _start(self) -> None:
        source = self._find_model()
        http_port = self._choose_http_port()
        config: SchedulerConfig | None = None
        spec: DeploymentSpec | None = None
        if self._options.address is None:
            # Here every address is known beforehand, so that the gateways need not wait for Ray.
            spec = self._specify(source, self._seams.count_gpus())
            config = self._scheduler_config(LOCAL_HOST)
            self._start_gateways(config, http_port)
        facts = self._enter_ray(spec)
        if spec is None or config is None:
            spec = self._specify(source, facts.num_gpus)
            config = self._scheduler_config(facts.node_ip)
            self._start_gateways(config, http_port)
        self._start_scheduler(config)
        self._deploy(spec)
        if self._options.num_gateways:
            self._first_token(spec, source, http_port)
        else:
            self._announce_scheduler(config, facts)
        self._is_ready = True

    def _find_model(self) -> ModelSource:
        began = time.monotonic()
        self._display.working(f"Looking for {self._options.model or 'the demo model'}")
        source = self._seams.resolve_model(self._options)
        detail = f"{source.path}, weights {human_bytes(source.num_bytes)}"
        self._display.phase("Model found", detail, time.monotonic() - began)
        return source

    def _choose_http_port(self) -> int:
        options = self._options
        if options.num_gateways == 0:
            return 0
        if options.port == 0:
            return free_port(options.host)
        check_port(options.host, options.port, "--port")
        return options.port

    def _specify(self, source: ModelSource, num_gpus: int) -> DeploymentSpec:
        options = self._options
        device = options.runner.device
        if device == "auto":
            device = "cuda" if num_gpus else "cpu"
        tp_size = options.tp_size
        if tp_size is None:
            fits = num_gpus if device == "cuda" else DEMO_TP_SIZE
            tp_size = max(1, min(DEMO_TP_SIZE, fits)) if source.is_demo else 1
        spec = options.deployment(source.path, source.names, device, tp_size)
        self._display.text(self._seams.memory_plan(spec, options.address is None))
        return spec

    def _scheduler_config(self, host: str) -> SchedulerConfig:
        options = self._options
        for flag, port in (("--scheduler-port", options.scheduler_port), *self._metrics_flag()):
            if port:
                check_port("", port, flag)
        metrics_port = 0 if options.metrics_port is None else options.metrics_port or free_port()
        return SchedulerConfig(host, options.scheduler_port or free_port(), metrics_port)

    def _metrics_flag(self) -> list[tuple[str, int]]:
        port = self._options.metrics_port
        return [("--metrics-port", port)] if port else []

    def _start_gateways(self, config: SchedulerConfig, http_port: int) -> None:
        if self._options.num_gateways == 0:
            return
        address = f"{config.host}:{config.port}"
        spawn = self._seams.spawn(self._options, http_port, address)
        self._gateways = GatewayProcesses(spawn, self._options.num_gateways)
        self._gateways.start()

    def _enter_ray(self, spec: DeploymentSpec | None) -> RayFacts:
        began = time.monotonic()
        address = self._options.address
        self._display.working("Starting Ray" if address is None else f"Joining Ray at {address}")
        self._is_in_ray = True
        if address is None:
            assert spec is not None
            ranks = spec.num_replicas * spec.tp_size
            num_cpus = max(os.cpu_count() or 1, round(ranks * spec.cpus_per_rank))
            facts = self._ray.start(num_cpus)
        else:
            facts = self._ray.join(address)
        self._signals.install()
        self._signals.check()
        detail = f"{facts.address}, {facts.num_cpus} CPUs, {facts.num_gpus} GPUs"
        name = "Ray started" if facts.is_local else "Ray joined"
        self._display.phase(name, detail, time.monotonic() - began)
        return facts

    def _start_scheduler(self, config: SchedulerConfig) -> None:
        began = time.monotonic()
        self._display.working("Starting the scheduler")
        self._scheduler = self._seams.start_scheduler(config)
        self._wait(self._scheduler.ask_status(), self._options.start_timeout_s).result()
        detail = f"{config.host}:{config.port}"
        self._display.phase("Scheduler started", detail, time.monotonic() - began)

    def _deploy(self, spec: DeploymentSpec) -> None:
        assert self._scheduler is not None
        timeout_s = self._options.start_timeout_s
        began = time.monotonic()
        self._wait(self._scheduler.deploy(spec), timeout_s, self._show_events).result()
        ready = self._scheduler.wait_ready(timeout_s)
        self._wait(ready, timeout_s, self._show_events).result()
        self._show_events()
        what = f"{spec.num_replicas} x {spec.tp_size} shards on {spec.runner.device}"
        self._display.phase("Replicas ready", what, time.monotonic() - began)

    def _wait(
        self, call: PendingCall, timeout_s: float, meanwhile: Callable[[], None] | None = None
    ) -> PendingCall:
        """Until the call is done, a process is lost, or the user has had enough."""
        deadline = time.monotonic() + timeout_s + DRAIN_GRACE_S
        while not call.is_done(POLL_S):
            self._check()
            if meanwhile is not None:
                meanwhile()
            if time.monotonic() > deadline:
                raise CommandError(f"not ready within {timeout_s:g} s")
        return call

    def _check(self) -> None:
        """Raises: StopRequested; CommandError when a gateway ended before all was ready."""
        self._signals.check()
        for death in self._gateways.supervise() if self._gateways else []:
            raise CommandError(
                f"the gateway ended with exit code {death.exit_code}: {last_line(death.output)}"
            )

    def _show_events(self) -> None:
        assert self._scheduler is not None
        for event in self._scheduler.startup_events(self._seen_events):
            self._seen_events = max(self._seen_events, int(event["seq"]))
            if event["done"]:
                self._display.phase(event["phase"], event["message"], event["seconds"])
            elif event.get("fraction") is not None:
                self._display.progress(event["phase"], event["message"], event["fraction"])
            else:
                self._display.working(event["message"])

    def _first_token(self, spec: DeploymentSpec, source: ModelSource, http_port: int) -> None:
        options = self._options
        if options.edge.needs_client_certificate:  # which the launcher has none of
            self._announce(spec, source, http_port)
            return
        endpoint = self._seams.endpoint(
            options.host, http_port, options.probe_key or None, options.edge.ssl_certfile
        )
        began = time.monotonic()
        self._display.working("Waiting for the gateway")
        endpoint.wait_ready(GATEWAY_READY_TIMEOUT_S, self._check)
        self._display.phase("Gateway ready", seconds=time.monotonic() - began)
        began = time.monotonic()
        endpoint.first_token(spec.name)
        self._display.phase("First token", seconds=time.monotonic() - began)
        self._announce(spec, source, http_port)

    def _announce(self, spec: DeploymentSpec, source: ModelSource, http_port: int) -> None:
        key = self._options.probe_key or None  # only whether there are keys; none is shown
        scheme = "http" if self._options.edge.ssl_certfile is None else "https"
        host = local_host(self._options.host).replace(LOCAL_HOST, "localhost")
        base_url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{http_port}/v1"
        total_s = self._display.elapsed_s
        self._display.close()
        self._display.text(
            f"\nfirst token after {total_s:.1f} s\n"
            f"serving {', '.join(spec.served_names)} at {base_url}\n\n"
            f"{examples.curl(base_url, spec.name, key, source.is_demo)}\n\n"
            f"{examples.langchain(base_url, spec.name, key, source.is_demo)}\n"
        )

    def _announce_scheduler(self, config: SchedulerConfig, facts: RayFacts) -> None:
        self._display.close()
        self._display.text(
            f"\nready after {self._display.elapsed_s:.1f} s; a gateway joins with\n\n"
            f"python -m gateway --scheduler {config.host}:{config.port} --port 8000\n"
        )
        if self._options.detach:
            self._display.text(f"`shoal down --address {facts.address}` removes the deployment")

    # ---- watch ----

    def _watch(self) -> int:
        watch = ReplicaWatch()
        call: PendingCall | None = None
        while not self._signals.wait(SUPERVISE_S):
            for death in self._gateways.supervise() if self._gateways else []:
                self._display.warn(
                    f"gateway {death.pid} ended with exit code {death.exit_code}; "
                    f"another one starts in {death.retry_in_s:g} s"
                )
            assert self._scheduler is not None
            call = call or self._scheduler.ask_status()
            if call.is_done(0.0):
                if not self._note_changes(watch, call):
                    return 0
                call = None
        return 0

    def _note_changes(self, watch: ReplicaWatch, call: PendingCall) -> bool:
        """False: somebody else removed the deployment."""
        try:
            status: dict[str, Any] = call.result()
        except CommandError:
            if self._seams.find_scheduler() is None:
                self._display.text("the deployment was removed")
                return False
            return True  # it is being restarted; requests do not need it meanwhile
        for line in watch.changes(status):
            self._display.text(line)
        return True

    # ---- stop ----

    def _stop_gateways(self) -> None:
        if self._gateways is not None:
            gateways, self._gateways = self._gateways, None
            gateways.stop(self._options.shutdown_timeout_s)

    def _stop_scheduler(self) -> None:
        if self._scheduler is None:
            return
        if self._is_ready:
            timeout_s = self._options.shutdown_timeout_s
            self._attempt(lambda: self._drain(timeout_s))
        if self._ray.is_alive:
            self._remove_scheduler(DRAIN_GRACE_S + self._options.shutdown_timeout_s)

    def _drain(self, timeout_s: float) -> None:
        assert self._scheduler is not None
        self._finish(self._scheduler.drain(timeout_s), timeout_s + DRAIN_GRACE_S)

    def _remove_scheduler(self, timeout_s: float) -> None:
        if self._scheduler is not None:
            scheduler, self._scheduler = self._scheduler, None
            try:
                self._finish(scheduler.shutdown(), timeout_s)
            finally:
                if self._ray.is_alive:
                    scheduler.kill()

    def _finish(self, call: PendingCall, timeout_s: float) -> None:
        """Raises: CommandError, at once when Ray's core is gone: nobody would answer."""
        deadline = time.monotonic() + timeout_s
        while not call.is_done(POLL_S) and time.monotonic() < deadline:
            if not self._ray.is_alive:
                raise CommandError("Ray ended before the engines and the scheduler did")
        call.result(POLL_S)

    def _leave_ray(self) -> None:
        if not self._is_in_ray:
            return
        self._is_in_ray = False
        killed = self._ray.close()
        if killed:
            self._display.warn(f"processes {killed} outlived Ray and were killed")

    def _attempt(self, step: Callable[[], None]) -> None:
        """The steps after a failed one are still due: what is left running costs more."""
        try:
            step()
        except (CommandError, OSError, subprocess.SubprocessError) as e:
            self._display.warn(str(e))


def serve(options: ServeOptions, seconds_before: float = 0.0, seams: Seams | None = None) -> int:
    """Returns the exit code. `seconds_before`: how long this process had run already."""
    display = Display(started_at=time.monotonic() - seconds_before)
    signals = StopSignals()
    signals.install()
    session = RaySession()
    launcher = Launcher(options, display, signals, session, seams or Seams())
    try:
        code = _run(launcher, display)
        if session.was_lost:
            _exit_without_ray(code)
        return code
    except ImmediateStop:
        launcher.abort()
        _exit_without_ray(EXIT_INTERRUPTED)
    finally:
        signals.close()


def _exit_without_ray(code: int) -> NoReturn:
    """Ray's own exit handlers would wait for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(launcher: Launcher, display: Display) -> int:
    try:
        return launcher.run()
    except CommandError as e:
        display.fail(str(e))
        return 1
    except StopRequested:
        display.fail("stopped before it was ready")
        return EXIT_INTERRUPTED
    finally:
        launcher.stop()


def last_line(output: str) -> str:
    """The line of a traceback that says what happened; all of it was passed on before."""
    lines = output.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
