"""This process's connection to Ray: a cluster started here for its own lifetime, or one to join.

Owns Ray's start and end and the processes that belong to it; knows nothing of models. Used by the
commands of `shoal` on their main thread.
"""

import contextlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.cli_errors import CommandError
from cluster.config import RAY_NAMESPACE
from cluster.ray_address import LocalClusters, resolve

if TYPE_CHECKING:
    import psutil

# Only ids and small answers travel through Ray: tokens and tensors have channels of their own.
OBJECT_STORE_BYTES = 100 * 2**20
EXIT_GRACE_S = 5.0
CORE_PROCESSES = ("gcs_server", "raylet")
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # a cluster that somebody starts here reports to nobody
    # Ray runs its workers at nice 15: the engines would yield to whatever else wants a core.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave CUDA_VISIBLE_DEVICES of CPU actors alone
}


@dataclass(frozen=True, slots=True)
class RayFacts:
    address: str  # for `--address` of other commands
    node_ip: str  # this machine's, as the cluster sees it
    num_cpus: int
    num_gpus: int
    is_local: bool  # started here: it ends with this process


class RaySession:
    """At most one connection per process. `close` may be called at any time and more than once."""

    def __init__(self, clusters: LocalClusters | None = None) -> None:
        self._clusters = clusters or LocalClusters()
        self.was_lost = False  # closed without Ray: its exit handlers would wait for the dead core
        self._is_local = False
        self._family: list[psutil.Process] = []
        self._core: list[psutil.Process] = []

    def start(self, num_cpus: int) -> RayFacts:
        """A cluster on this machine. More CPUs than there are only means that shards share them."""
        self._is_local = True
        facts = self._init(
            address="local",
            num_cpus=num_cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
        )
        self._clusters.note(facts.address, os.environ.get("RAY_AUTH_MODE"))
        self.remember_processes()
        self._core = [p for p in self._family if _name(p) in CORE_PROCESSES]
        return facts

    @property
    def is_alive(self) -> bool:
        """False: a cluster started here has lost its core, as by a signal to the whole process
        group. Calls into Ray would then hang for a minute.
        """
        return all(_is_running(process) for process in self._core)

    def join(self, address: str) -> RayFacts:
        """Raises: CommandError when there is no cluster, or this machine is not part of it."""
        return self._init(address=resolve(address, os.environ, self._clusters))

    def remember_processes(self) -> None:
        """Notes what belongs to this session while the family tree still shows it."""
        import psutil

        known = {process.pid for process in self._family}
        for process in psutil.Process().children(recursive=True):
            if process.pid not in known:
                self._family.append(process)

    def close(self) -> list[int]:
        """Leaves Ray; a cluster started here ends. Returns the ids of processes that had to be
        killed because they outlived it.
        """
        import ray

        if not self._is_local:
            ray.shutdown()
            return []
        if not self.is_alive:
            self.kill()
            self.was_lost = True
            return []
        self._clusters.forget()
        self.remember_processes()
        ray.shutdown()
        return self._kill_family()

    def kill(self) -> None:
        """At once and without a word to Ray."""
        if self._is_local:
            self._clusters.forget()
            self.remember_processes()
            _kill(self._family)

    def _kill_family(self) -> list[int]:
        import psutil

        _, alive = psutil.wait_procs(self._family, timeout=EXIT_GRACE_S)
        _kill(alive)
        self._family = []
        return [process.pid for process in alive]

    def _init(self, address: str, **settings: Any) -> RayFacts:
        os.environ.update(ENVIRONMENT)
        import ray

        try:
            ray.init(
                address=address,
                namespace=RAY_NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **settings,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError) as e:
            raise CommandError(_refusal(address, e)) from e
        _leave_reports_to_us()
        resources = ray.cluster_resources()
        return RayFacts(
            address=ray.get_runtime_context().gcs_address,
            node_ip=ray.util.get_node_ip_address(),
            num_cpus=int(resources.get("CPU", 0)),
            num_gpus=int(resources.get("GPU", 0)),
            is_local=self._is_local,
        )


def _name(process: "psutil.Process") -> str:
    import psutil

    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""


def _is_running(process: "psutil.Process") -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _leave_reports_to_us() -> None:
    """Ray prints a page about every process that died, on stdout and also when it was meant to die;
    the commands tell of lost replicas themselves. The handler is an internal of Ray: with another
    version, the page is printed.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")


def _refusal(address: str, error: Exception) -> str:
    if address == "local":
        return f"Ray did not start: {error}"
    return (
        f"cannot join the Ray cluster at {address}: {error}; "
        "a cluster that asks for a token is joined with RAY_AUTH_MODE=token"
    )


def _kill(processes: "Iterable[psutil.Process]") -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(list(processes), timeout=EXIT_GRACE_S)
