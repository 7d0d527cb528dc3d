"""ClusterRegistry: incarnations, reports, reservations, staleness and hangs, with a driven
clock.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.registry import ClusterRegistry, ReportOutcome
from cluster.replica_record import RESERVATION_TTL_S
from cluster.state import ReplicaState
from protos.block_hash import pack
from tests.cluster.worlds import FACTS, World, hashes, make_request, make_spec
from worker.report import EngineCounters


def state_of(world: World, replica_id: str = "r0") -> ReplicaState:
    record = world.registry.record(replica_id)
    assert record is not None
    return record.state


def test_replica_goes_from_starting_to_ready_with_facts() -> None:
    world = World()
    world.registry.begin("model", "r0", 5, tp_size=2)
    assert world.fleet.loads(world.clock()) == []
    world.registry.set_ready("r0", 5, "host:1", FACTS, world.load())
    (info,) = world.registry.snapshot().deployments[0].replicas
    assert (info.state, info.address, info.epoch) == (ReplicaState.READY, "host:1", 5)
    assert world.registry.snapshot().deployments[0].facts == FACTS


def test_epochs_must_grow() -> None:
    world = World(1)
    with pytest.raises(ValueError, match="not after"):
        world.registry.begin("model", "r0", 1, tp_size=1)


def test_news_of_an_older_incarnation_changes_nothing() -> None:
    world = World(1)
    world.add_replica("r0", epoch=2)
    world.registry.fail("r0", 1, "late news")
    world.registry.set_draining("r0", 1)
    assert world.report(epoch=1) is ReportOutcome.FENCED
    assert state_of(world) is ReplicaState.READY


def test_report_of_a_dead_incarnation_is_fenced() -> None:
    world = World(1)
    world.registry.fail("r0", 1, "killed")
    assert world.report() is ReportOutcome.FENCED
    assert world.fleet.loads(world.clock()) == []


def test_unknown_replica_is_told_so() -> None:
    assert World().report("stranger") is ReportOutcome.UNKNOWN


def test_first_report_must_be_full() -> None:
    world, chain = World(1), hashes(3)
    assert world.report(full=False, stored=chain) is ReportOutcome.NEED_FULL
    assert world.fleet.match(pack(chain), world.clock()) == {}
    assert world.report(full=True, stored=chain) is ReportOutcome.APPLIED
    assert world.fleet.match(pack(chain), world.clock()) == {"r0": 3}


def test_gap_asks_for_a_full_report_until_it_comes() -> None:
    world, chain = World(1), hashes(5)
    world.report(stored=chain[:2])
    assert world.report(sequence=3, stored=chain[2:3]) is ReportOutcome.NEED_FULL
    assert world.report(sequence=4, stored=chain[3:4]) is ReportOutcome.NEED_FULL
    assert world.fleet.match(pack(chain), world.clock()) == {"r0": 2}
    assert world.report(sequence=5, full=True, stored=chain) is ReportOutcome.APPLIED
    assert world.report(sequence=6, removed=chain[4:]) is ReportOutcome.APPLIED
    assert world.fleet.match(pack(chain), world.clock()) == {"r0": 4}


def test_load_counts_even_when_events_were_lost() -> None:
    world = World(1)
    world.report()
    world.report(sequence=9, load=world.load(num_running=3))
    assert world.fleet.loads(world.clock())[0].num_live == 3


def test_repeated_report_is_ignored() -> None:
    world = World(1)
    world.report(load=world.load(num_running=1))
    world.report(load=world.load(num_running=2))
    assert world.report(sequence=2, load=world.load(num_running=4)) is ReportOutcome.APPLIED
    assert world.fleet.loads(world.clock())[0].num_live == 2


def test_reservation_ends_with_its_admission() -> None:
    world = World(1)
    world.fleet.place(make_request("a", num_tokens=100), "r0", 0, world.clock())
    world.fleet.place(make_request("b", num_tokens=50), "r0", 2, world.clock())
    (load,) = world.fleet.loads(world.clock())
    assert (load.num_live, load.backlog_tokens) == (2, 100 + 50 - 32)
    world.report(admitted=["qa"], load=world.load(num_running=1))
    (load,) = world.fleet.loads(world.clock())
    assert (load.num_live, load.backlog_tokens) == (2, 18)


def test_each_admission_ends_one_reservation_of_a_repeated_id() -> None:
    world = World(1)
    for _ in range(3):
        world.fleet.place(make_request("a"), "r0", 0, world.clock())
    world.report(admitted=["qa", "qa"])
    assert world.fleet.loads(world.clock())[0].num_live == 1
    world.report(admitted=["qa", "qa", "unknown"])
    assert world.fleet.loads(world.clock())[0].num_live == 0


def test_reservation_of_a_gateway_that_never_submits_expires() -> None:
    world = World(1)
    world.fleet.place(make_request("a"), "r0", 0, world.clock())
    world.clock.advance(RESERVATION_TTL_S - 0.1)
    world.registry.tick()
    world.report()
    assert world.fleet.loads(world.clock())[0].num_live == 1
    world.clock.advance(0.2)
    world.registry.tick()
    (load,) = world.fleet.loads(world.clock())
    assert (load.num_live, load.backlog_tokens) == (0, 0)


def test_silent_replica_gets_no_requests_but_is_not_lost_yet() -> None:
    world = World(2)
    world.report("r0")
    world.clock.advance(2.9)
    world.report("r1")
    assert len(world.fleet.loads(world.clock())) == 2
    world.clock.advance(0.2)
    assert [load.replica_id for load in world.fleet.loads(world.clock())] == ["r1"]
    infos = world.registry.snapshot().deployments[0].replicas
    assert [(i.state, i.is_suspect) for i in infos] == [
        (ReplicaState.READY, True),
        (ReplicaState.READY, False),
    ]
    world.report("r0")
    assert len(world.fleet.loads(world.clock())) == 2


def test_work_without_steps_is_a_hang() -> None:
    world = World(1)
    busy = world.load(num_running=1, steps=7)
    for _ in range(60):
        world.report(load=busy)
        assert world.registry.tick() == []
        world.clock.advance(1.0)
    world.report(load=busy)
    assert world.registry.tick() == [("r0", 1)]
    assert state_of(world) is ReplicaState.HUNG
    assert world.registry.tick() == []
    assert world.report(load=busy) is ReportOutcome.FENCED


@pytest.mark.parametrize("progress", ["steps", "idle"])
def test_steps_or_idleness_are_no_hang(progress: str) -> None:
    world = World(1)
    for second in range(200):
        is_idle = progress == "idle"
        steps = 7 if is_idle else second
        world.report(load=world.load(num_running=int(not is_idle), steps=steps))
        assert world.registry.tick() == []
        world.clock.advance(1.0)


def test_work_after_a_long_idle_time_has_its_whole_time() -> None:
    world = World(1)
    for _ in range(100):
        world.report(load=world.load(steps=7))
        world.clock.advance(1.0)
    world.report(load=world.load(num_waiting=1, steps=7))
    world.clock.advance(59.0)
    assert world.registry.tick() == []
    world.clock.advance(1.1)
    assert world.registry.tick() == [("r0", 1)]


def test_draining_report_takes_the_replica_out() -> None:
    world = World(1)
    world.report(draining=True)
    assert state_of(world) is ReplicaState.DRAINING
    assert world.fleet.loads(world.clock()) == []


def test_restart_is_counted_and_starts_clean() -> None:
    world, chain = World(1), hashes(3)
    world.report(stored=chain, load=world.load(num_running=2))
    world.fleet.place(make_request("a"), "r0", 0, world.clock())
    world.registry.fail("r0", 1, "shard 1 died")
    world.add_replica("r0", epoch=2)
    (load,) = world.fleet.loads(world.clock())
    assert load.num_live == 0
    assert world.fleet.match(pack(chain), world.clock()) == {}
    info = world.registry.snapshot().deployments[0].replicas[0]
    assert (info.num_restarts, info.reason) == (1, "shard 1 died")


def test_served_names_belong_to_one_deployment() -> None:
    world = World()
    assert world.registry.resolve("model-alias") == "model"
    with pytest.raises(ValueError, match="model-alias"):
        world.registry.add_deployment(make_spec("other", served_names=("other", "model-alias")))
    world.registry.remove_deployment("model")
    assert world.registry.resolve("model-alias") is None
    assert world.registry.resolve("model") is None


def test_removed_deployment_forgets_its_replicas() -> None:
    world = World(2)
    world.registry.remove_deployment("model")
    assert world.registry.record("r0") is None
    assert world.report("r1") is ReportOutcome.UNKNOWN
    assert world.registry.num_shards() == 0


def test_version_grows_with_structure_and_not_with_reports() -> None:
    world = World(1)
    version = world.registry.version
    world.report()
    assert world.registry.version == version
    world.registry.set_draining("r0", 1)
    assert world.registry.version > version


def test_prefill_rate_is_learnt_while_prompts_wait() -> None:
    world = World(1)
    guess = world.fleet.loads(world.clock())[0].prefill_tokens_per_s
    busy = world.load(num_running=1, backlog_tokens=5000)
    for second in range(1, 30):
        counters = EngineCounters(prompt_tokens=1200 * second, prefix_cache_hits=200 * second)
        world.report(load=busy, counters=_with_seconds(counters, float(second)))
    learnt = world.fleet.loads(world.clock())[0].prefill_tokens_per_s
    assert guess > 1500
    assert learnt == pytest.approx(1000, rel=0.01)


def _with_seconds(counters: EngineCounters, seconds: float) -> EngineCounters:
    return EngineCounters(
        prompt_tokens=counters.prompt_tokens,
        prefix_cache_hits=counters.prefix_cache_hits,
        step_seconds=seconds,
    )


@given(
    st.lists(
        st.tuples(st.sampled_from(["place", "admit", "advance", "tick"]), st.integers(0, 4)),
        max_size=60,
    )
)
def test_reservations_never_leak(actions: list[tuple[str, int]]) -> None:
    world = World(1)
    registry: ClusterRegistry = world.registry
    for action, number in actions:
        if action == "place":
            world.fleet.place(make_request(number, num_tokens=10 + number), "r0", 0, world.clock())
        elif action == "admit":
            world.report(admitted=[f"q{number}"])
        elif action == "advance":
            world.clock.advance(float(number))
        else:
            registry.tick()
        record = registry.record("r0")
        assert record is not None
        held = [r for waiting in record._reservations.values() for r in waiting]
        assert record.num_reserved == len(held)
        assert record.reserved_tokens == sum(r.uncached_tokens for r in held)
    world.clock.advance(RESERVATION_TTL_S)
    registry.tick()
    record = registry.record("r0")
    assert record is not None and (record.num_reserved, record.reserved_tokens) == (0, 0)
