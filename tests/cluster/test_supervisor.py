"""Supervisor: its pauses and its patience, without Ray; tests/ray has it replace real actors."""

import pytest

from cluster.config import SchedulerConfig
from cluster.epochs import EpochClock
from cluster.startup_log import StartupLog
from cluster.supervisor import MAX_BACKOFF_S, STABLE_S, Supervisor, SupervisorContext
from tests.cluster.worlds import World

CONFIG = SchedulerConfig("127.0.0.1", 1)  # lost after 15 s, hung after 60 s


def supervise(world: World) -> Supervisor:
    context = SupervisorContext(
        config=CONFIG,
        registry=world.registry,
        log=StartupLog(world.clock),
        epochs=EpochClock(world.clock),
        shard_class=object,
        scheduler_address="127.0.0.1:1",
        changed=lambda: None,
    )
    return Supervisor(context, world.spec, "r0")


def test_crash_loop_pauses_grow_up_to_a_limit() -> None:
    supervisor = supervise(World(1))
    pauses = [supervisor._pause_s(0.0) for _ in range(12)]
    assert pauses[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert set(pauses[6:]) == {MAX_BACKOFF_S}


def test_loss_after_a_stable_time_is_replaced_at_once() -> None:
    supervisor = supervise(World(1))
    for _ in range(5):
        supervisor._pause_s(1.0)
    supervisor._was_ready = True
    assert supervisor._pause_s(STABLE_S) == 0.0
    assert supervisor._pause_s(1.0) == 2.0


@pytest.mark.parametrize(
    ("reported_s", "answered_s", "follower_s", "verdict"),
    [
        (0.1, 0.1, 0.1, None),
        (14.0, 14.0, 0.1, None),
        (16.0, 0.1, 0.1, None),  # reports are late, the process answers
        (0.1, 16.0, 0.1, None),  # the process is busy, the engine reports
        (16.0, 16.0, 0.1, "the leader has been silent"),
        (61.0, 0.1, 0.1, "has not reported"),
        (0.1, 0.1, 59.0, None),
        (0.1, 0.1, 61.0, "shard 1 has been silent"),
    ],
)
def test_only_a_long_silence_of_all_voices_counts(
    reported_s: float, answered_s: float, follower_s: float, verdict: str | None
) -> None:
    world = World(1)
    supervisor = supervise(world)
    world.report()
    world.clock.advance(reported_s)
    reason = supervisor._silence([1000.0 - answered_s, 1000.0 - follower_s], now=1000.0)
    assert (reason is None) == (verdict is None)
    assert verdict is None or (reason is not None and verdict in reason)


def test_retired_replica_may_be_silent() -> None:
    world = World(1)
    supervisor = supervise(world)
    world.clock.advance(1000.0)
    supervisor.retire()
    assert supervisor._silence([0.0], now=1000.0) is None
