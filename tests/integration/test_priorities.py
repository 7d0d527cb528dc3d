"""Which threads of a real cluster stand back for steps: the main threads of actors, and none that
serves.
"""

import os
from pathlib import Path

import pytest

from tests.live import LiveCluster

pytestmark = pytest.mark.ray


def niceness_of_threads(pid: int) -> dict[int, int]:
    threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    return {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}


def test_only_main_threads_of_actors_yield(cluster: LiveCluster) -> None:
    status = cluster.status()
    assert os.getpriority(os.PRIO_PROCESS, status["pid"]) == 19
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    for pid in status["deployments"][0]["replicas"][0]["pids"]:
        niceness = niceness_of_threads(pid)
        assert niceness.pop(pid) == 19
        assert set(niceness.values()) == {usual}, pid
