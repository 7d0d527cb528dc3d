"""The ClusterScheduler actor as the commands of `shoal` use it: plain calls, each with a deadline.

Turns Ray's exceptions into CommandErrors with the actor's own words. For serve, status and down.
"""

import json
from typing import Any

from cluster.cli_errors import CommandError
from cluster.config import (
    RAY_NAMESPACE,
    SCHEDULER_ACTOR_NAME,
    DeploymentSpec,
    SchedulerConfig,
)

CALL_TIMEOUT_S = 30.0
EVENTS_TIMEOUT_S = 10.0


class PendingCall:
    """A call on its way. `is_done` waits a little; `result` is for afterwards."""

    def __init__(self, ref: Any) -> None:
        self._ref = ref

    def is_done(self, wait_s: float) -> bool:
        import ray

        done, _ = ray.wait([self._ref], timeout=wait_s)
        return bool(done)

    def result(self, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Raises: CommandError with the reason in the actor's words."""
        import ray

        try:
            return ray.get(self._ref, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError as e:
            raise CommandError(f"the scheduler did not answer within {timeout_s:g} s") from e
        except ray.exceptions.RayTaskError as e:
            raise CommandError(str(e.cause) or type(e.cause).__name__) from e
        except ray.exceptions.RayError as e:
            raise CommandError(f"the scheduler cannot be reached: {_first_line(e)}") from e


class SchedulerHandle:
    """Stateless but for the actor's handle; safe to use from any one thread."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def start(cls, config: SchedulerConfig) -> "SchedulerHandle":
        from cluster.scheduler import start_scheduler

        if _find_actor() is not None:
            raise CommandError(
                "this Ray cluster runs a deployment already; `shoal status` shows it, "
                "`shoal down` removes it"
            )
        return cls(start_scheduler(config))

    @classmethod
    def find(cls) -> "SchedulerHandle | None":
        actor = _find_actor()
        return None if actor is None else cls(actor)

    def deploy(self, spec: DeploymentSpec) -> PendingCall:
        return PendingCall(self._actor.deploy.remote(spec.to_json()))

    def wait_ready(self, timeout_s: float) -> PendingCall:
        return PendingCall(self._actor.wait_ready.remote(timeout_s))

    def startup_events(self, since: int) -> list[dict[str, Any]]:
        call = PendingCall(self._actor.startup_events.remote(since))
        return list(call.result(EVENTS_TIMEOUT_S))

    def ask_status(self) -> PendingCall:
        return PendingCall(self._actor.status.remote())

    def status(self) -> dict[str, Any]:
        status = self.ask_status().result()
        # What the actor answers is shown as JSON: fail here rather than while printing it.
        return dict(json.loads(json.dumps(status)))

    def drain(self, timeout_s: float) -> PendingCall:
        return PendingCall(self._actor.drain.remote(timeout_s))

    def shutdown(self) -> PendingCall:
        """Kills shards and placement groups. The actor itself is left for `kill`."""
        return PendingCall(self._actor.shutdown.remote())

    def kill(self) -> None:
        import ray

        ray.kill(self._actor, no_restart=True)


def _find_actor() -> Any | None:
    import ray

    try:
        return ray.get_actor(SCHEDULER_ACTOR_NAME, namespace=RAY_NAMESPACE)
    except ValueError:
        return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
