"""`shoal down`: removes a deployment from a Ray cluster; the cluster itself stays."""

from cluster.cli_errors import CommandError
from cluster.display import Display
from cluster.ray_session import RaySession
from cluster.scheduler_handle import SchedulerHandle

GRACE_S = 10.0


def down(address: str, timeout_s: float) -> int:
    """Lets running requests end for up to `timeout_s`, then kills shards and scheduler."""
    display = Display()
    session = RaySession()
    session.join(address)
    try:
        scheduler = SchedulerHandle.find()
        if scheduler is None:
            display.text("nothing is deployed in this Ray cluster")
            return 0
        remove(scheduler, timeout_s, display)
        return 0
    finally:
        session.close()


def remove(scheduler: SchedulerHandle, timeout_s: float, display: Display) -> None:
    display.working("Waiting for running requests")
    try:
        scheduler.drain(timeout_s).result(timeout_s + GRACE_S)
    except CommandError as e:
        display.warn(f"not drained: {e}")
    try:
        scheduler.shutdown().result()
    finally:
        scheduler.kill()
    display.close()
    display.text("the deployment was removed")
