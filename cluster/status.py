"""`shoal status`: what the ClusterScheduler knows, as a table for people or JSON for programs.

Rendering is a pure function of the status; called by the `shoal` command.
"""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cluster.ray_session import RaySession
from cluster.scheduler_handle import SchedulerHandle

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 200
COLUMNS = ("replica", "state", "address", "blocks used", "run", "wait", "steps", "restarts")
STATE_COLOURS = {"ready": "green", "starting": "yellow", "draining": "yellow"}


def show_status(address: str, as_json: bool) -> int:
    session = RaySession()
    session.join(address)
    try:
        scheduler = SchedulerHandle.find()
        status = None if scheduler is None else scheduler.status()
    finally:
        session.close()
    if as_json:
        print(json.dumps(status if status is not None else {"deployments": []}, indent=2))
    elif status is None:
        print("nothing is deployed in this Ray cluster")
    else:
        print_status(status)
    return 0


def print_status(status: dict[str, Any]) -> None:
    from rich.console import Console

    # Into a file or a pipe, a row may be as long as it likes.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    for deployment in status["deployments"]:
        console.print(table(deployment))
        console.print(summary(deployment), markup=False)


def replicas_of(status: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(deployment, replica), one after another."""
    for deployment in status["deployments"]:
        for replica in deployment["replicas"]:
            yield deployment, replica


def table(deployment: dict[str, Any]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    result = Table(title=deployment["name"], title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        is_number = column not in COLUMNS[:3]
        result.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for replica in deployment["replicas"]:
        result.add_row(*row(replica), style=STATE_COLOURS.get(replica["state"], "red"))
    return result


def row(replica: dict[str, Any]) -> list[str]:
    used = replica["num_blocks"] - replica["num_free_blocks"]
    return [
        replica["replica_id"],
        replica["state"],
        replica["address"] or "-",
        f"{used:,}/{replica['num_blocks']:,}",
        str(replica["num_running"]),
        str(replica["num_waiting"]),
        f"{replica['steps']:,}",
        str(replica["restarts"]),
    ]


def summary(deployment: dict[str, Any]) -> str:
    ready = sum(replica["state"] == "ready" for replica in deployment["replicas"])
    return (
        f"{ready} of {len(deployment['replicas'])} replicas ready; "
        f"{deployment['num_queued']} requests wait for a replica"
    )
