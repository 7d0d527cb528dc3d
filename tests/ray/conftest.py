"""One Ray for the whole session, and a scheduler actor per test that is gone afterwards."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray

from cluster.config import RAY_NAMESPACE, SchedulerConfig
from cluster.scheduler import start_scheduler

FAKE = "tests.ray.fake_shard:FakeShardActor"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=4,  # more than this machine may have: the fakes only wait
        include_dashboard=False,
        namespace=RAY_NAMESPACE,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=80 * 2**20,
    )
    yield
    ray.shutdown()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def scheduler(ray_session: None) -> Iterator[Callable[..., tuple[Any, SchedulerConfig]]]:
    """Starts a scheduler with settings of the test's choice."""
    handles: list[Any] = []

    def start(**settings: Any) -> tuple[Any, SchedulerConfig]:
        config = replace(SchedulerConfig("127.0.0.1", free_port()), **settings)
        handle = start_scheduler(config, FAKE)
        handles.append(handle)
        return handle, config

    yield start
    for handle in handles:
        ray.get(handle.shutdown.remote(), timeout=60)
        ray.kill(handle, no_restart=True)
        _wait_gone()


def _wait_gone() -> None:
    """The next test takes the same names."""
    deadline = time.monotonic() + 10
    while ray.util.list_named_actors() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not ray.util.list_named_actors()
