"""The small pure parts that the Ray shells stand on: names, epochs, events, reasons, rates."""

import pytest

from cluster.actor_names import IncarnationName, parse_actor, parse_group, replica_id
from cluster.drain_rate import MIN_PLACED, DrainRate
from cluster.epochs import EpochClock
from cluster.errors import StartFailed, plain_reason
from cluster.startup_log import MAX_EVENTS, StartupLog
from cluster.status_view import cluster_status
from tests.cluster.worlds import World
from worker.errors import CheckpointError


@pytest.mark.parametrize("deployment", ["demo", "mosaicml/mpt-7b", "a/b/c", "1/2/3"])
def test_names_survive_the_round_trip(deployment: str) -> None:
    name = IncarnationName(deployment, replica_id(deployment, 3), 17)
    assert parse_group(name.group) == name
    assert parse_actor(name.actor(5)) == (name, 5)


@pytest.mark.parametrize(
    "name", ["cluster-scheduler", "shard/x", "shard/m/r/1/x", "", "other/m/r/1/0"]
)
def test_foreign_names_are_not_ours(name: str) -> None:
    assert parse_actor(name) is None


def test_replica_ids_are_readable_and_differ_between_deployments() -> None:
    assert replica_id("shoal-demo", 0) == "shoal-demo-0"
    assert "/" not in replica_id("a/b", 0)
    assert replica_id("a/b", 0) != replica_id("a-b", 0)


def test_epochs_grow_even_when_the_clock_does_not() -> None:
    times = iter([5.0, 5.0, 4.0, 6.0])
    clock = EpochClock(lambda: next(times))
    assert [clock.next() for _ in range(4)] == [5000, 5001, 5002, 6000]


def test_epochs_follow_what_was_found_alive() -> None:
    clock = EpochClock(lambda: 1.0)
    clock.observe(9000)
    clock.observe(10)
    assert clock.next() == 9001


def test_startup_log_numbers_its_events() -> None:
    log = StartupLog(lambda: 3.0)
    log.add("Weights", "loading")
    log.add("Weights", "1 GB", "r0", seconds=0.0)
    first, second = log.since(0)
    assert (first["seq"], first["done"], second["seq"], second["done"]) == (1, False, 2, True)
    assert second["t"] == 3.0 and second["replica_id"] == "r0"
    assert log.since(1) == [second] and log.since(2) == []
    for _ in range(2 * MAX_EVENTS):
        log.add("x", "y")
    assert len(log.since(0)) == MAX_EVENTS
    assert log.since(0)[-1]["seq"] == 2 + 2 * MAX_EVENTS


def test_reasons_are_plain() -> None:
    wrapped = RuntimeError("traceback\nand more")
    wrapped.cause = CheckpointError("config.json is missing")  # type: ignore[attr-defined]
    assert plain_reason(wrapped) == "config.json is missing"
    assert plain_reason(StartFailed("no room")) == "no room"
    assert plain_reason(KeyError("x")) == "KeyError: 'x'"
    assert plain_reason(TimeoutError()) == "TimeoutError"


def test_drain_rate_is_unknown_until_watched_and_after_idling() -> None:
    rate = DrainRate()
    rate.record(5, is_saturated=True, now=0.0)
    assert rate.per_s(0.0) is None
    for second in range(1, 40):
        rate.record(2, is_saturated=True, now=float(second))
        known = second * 2 >= MIN_PLACED and second >= 2
        assert (rate.per_s(float(second)) is not None) == known
    assert rate.per_s(39.0) == pytest.approx(2.0, rel=0.1)
    rate.record(1, is_saturated=False, now=40.0)
    assert rate.per_s(40.0) is None


def test_status_is_plain_json_types() -> None:
    import json

    world = World(1)
    world.report(load=world.load(num_running=2, steps=7))
    status = cluster_status(
        world.registry.snapshot(), lambda name: (3, 0.5), lambda name: [{"pid": 1}, {"pid": 2}]
    )
    (deployment,) = json.loads(json.dumps(status))["deployments"]
    assert (deployment["name"], deployment["num_queued"]) == ("model", 3)
    (replica,) = deployment["replicas"]
    assert (replica["state"], replica["pids"], replica["steps"]) == ("ready", [1, 2], 7)
    assert (replica["num_running"], replica["address"]) == (2, "r0:1")
