"""`shoal status`: the table, and changes between two statuses."""

from typing import Any

import pytest

from cluster.replica_watch import ReplicaWatch
from cluster.status import COLUMNS, print_status, row, summary, table


def replica(replica_id: str = "r0", **changes: Any) -> dict[str, Any]:
    return {
        "replica_id": replica_id,
        "state": "ready",
        "address": "10.0.0.1:1234",
        "num_blocks": 2048,
        "num_free_blocks": 2000,
        "num_running": 3,
        "num_waiting": 1,
        "steps": 12345,
        "restarts": 0,
        "reason": "",
        **changes,
    }


def deployment(*replicas: dict[str, Any]) -> dict[str, Any]:
    return {"name": "demo", "num_queued": 5, "replicas": list(replicas)}


def test_row_shows_use_not_freedom() -> None:
    assert row(replica()) == [
        "r0", "ready", "10.0.0.1:1234", "48/2,048", "3", "1", "12,345", "0",
    ]  # fmt: skip


def test_replica_without_an_address_yet() -> None:
    assert row(replica(address="", state="starting"))[2] == "-"


def test_table_has_a_row_a_replica() -> None:
    built = table(deployment(replica("r0"), replica("r1", state="dead")))
    assert built.row_count == 2 and len(built.columns) == len(COLUMNS)


def test_summary_counts_ready_replicas_and_the_queue() -> None:
    text = summary(deployment(replica("r0"), replica("r1", state="hung")))
    assert text == "1 of 2 replicas ready; 5 requests wait for a replica"


def test_status_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_status({"deployments": [deployment(replica())]})
    text = capsys.readouterr().out
    assert "demo" in text and "48/2,048" in text and "1 of 1 replicas ready" in text


def test_first_status_is_no_change() -> None:
    watch = ReplicaWatch()
    assert watch.changes({"deployments": [deployment(replica())]}) == []
    assert watch.changes({"deployments": [deployment(replica(num_running=9))]}) == []


def test_removed_replica_is_told_once() -> None:
    watch = ReplicaWatch()
    watch.changes({"deployments": [deployment(replica("r0"), replica("r1"))]})
    assert watch.changes({"deployments": [deployment(replica("r0"))]}) == ["replica r1 was removed"]
    assert watch.changes({"deployments": [deployment(replica("r0"))]}) == []
