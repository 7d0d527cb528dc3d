"""PlacementQueue: late binding, order, holding, refusals; and that nobody is lost or answered
twice.
"""

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.placement_queue import PlacementQueue
from cluster.placement_request import Decision, Placed, RefusalReason, Refused
from cluster.policies import POLICIES
from cluster.queue_settings import QueueSettings
from tests.cluster.worlds import BLOCK_SIZE, World, hashes, make_request, placed_keys

# Backlog limits by tokens alone, so that tables need no rate.
STRICT = QueueSettings(max_queued=100, max_batched_tokens=256, backlog_s=0.0)


class Desk:
    """A queue over a world, with time taken from the world's clock."""

    def __init__(
        self,
        num_replicas: int = 1,
        policy: str = "prefix_aware",
        settings: QueueSettings = STRICT,
    ) -> None:
        self.world = World(num_replicas)
        self.clock = self.world.clock
        self.queue = PlacementQueue(self.world.fleet, POLICIES[policy], settings)

    def offer(self, key: object, num_tokens: int = 32, **fields: Any) -> list[Decision]:
        return self.queue.offer(make_request(key, num_tokens, **fields), self.clock())

    def pump(self) -> list[Decision]:
        return self.queue.pump(self.clock())

    def send(self, key: object, num_tokens: int = 32, **fields: object) -> list[Decision]:
        return self.offer(key, num_tokens, **fields) + self.pump()

    def fill(self, replica_id: str = "r0") -> None:
        """All slots of the replica are taken."""
        self.world.report(replica_id, load=self.world.load(num_running=4))

    def free(self, replica_id: str = "r0") -> list[Decision]:
        self.world.report(replica_id, load=self.world.load())
        return self.pump()


def where(decisions: list[Decision]) -> list[str]:
    return [d.replica_id for d in decisions if isinstance(d, Placed)]


def reasons(decisions: list[Decision]) -> list[RefusalReason]:
    return [d.reason for d in decisions if isinstance(d, Refused)]


def test_idle_cluster_places_at_once() -> None:
    desk = Desk()
    (decision,) = desk.send("a")
    assert decision == Placed("a", "r0", 0, 0.0)


def test_equal_replicas_take_turns() -> None:
    desk = Desk(3)
    first = [where(desk.send(key))[0] for key in range(3)]
    assert sorted(first) == ["r0", "r1", "r2"]


def test_request_waits_while_no_slot_is_free() -> None:
    desk = Desk()
    assert len(where([d for key in range(6) for d in desk.send(key)])) == 4
    assert len(desk.queue) == 2
    desk.world.report(admitted=["q0", "q1", "q2", "q3"], load=desk.world.load(num_running=3))
    assert placed_keys(desk.pump()) == [4]
    desk.clock.advance(1.0)
    (decision,) = desk.free()
    assert isinstance(decision, Placed) and decision.queue_s == pytest.approx(1.0)


def test_large_replicas_take_a_few_more_for_the_slots_that_come_free() -> None:
    desk = Desk()
    desk.world.report(load=desk.world.load(num_running=64, max_num_seqs=64))
    assert len(where([d for key in range(9) for d in desk.send(key, 1)])) == 4


def test_request_waits_while_the_backlog_is_large() -> None:
    desk = Desk()
    assert where(desk.send("big", 300)) == ["r0"]
    assert where(desk.send("next", 10)) == []
    desk.world.report(admitted=["qbig"], load=desk.world.load(num_running=1, backlog_tokens=200))
    assert placed_keys(desk.pump()) == ["next"]


def test_request_waits_while_the_kv_cache_is_full() -> None:
    desk = Desk()
    desk.world.report(load=desk.world.load(num_running=1, num_free_blocks=0))
    assert desk.send("a") == []
    assert where(desk.free()) == ["r0"]


def test_prefix_decides_between_idle_replicas() -> None:
    desk, chain = Desk(3), hashes(10)
    desk.world.cached("r1", chain[:8])
    desk.world.cached("r2", chain[:3])
    (decision,) = desk.send("a", 170, chain=chain)
    assert decision == Placed("a", "r1", 8, 0.0)


def test_sibling_follows_a_placement_before_any_report() -> None:
    desk, chain = Desk(3), hashes(12)
    (first,) = where(desk.send("a", 200, chain=chain))
    (second,) = desk.send("b", 200, chain=chain)
    # 12 of 13 blocks will be there, but its 200 tokens of backlog stand before them.
    assert isinstance(second, Placed) and second.replica_id != first
    desk.world.report(first, admitted=["qa"], load=desk.world.load(num_running=1))
    (third,) = desk.send("c", 200, chain=chain)
    assert isinstance(third, Placed) and third.num_cached_blocks == 12


def test_least_loaded_does_not_look_at_prefixes() -> None:
    desk, chain = Desk(2, policy="least_loaded"), hashes(10)
    desk.world.report("r1", full=True, stored=chain, load=desk.world.load(num_running=1))
    (decision,) = desk.send("a", 160, chain=chain)
    assert decision == Placed("a", "r0", 0, 0.0)


def test_request_is_held_for_a_busy_replica_that_would_be_done_sooner() -> None:
    desk, chain = Desk(2), hashes(100)
    busy = desk.world.load(num_running=1, backlog_tokens=300)
    desk.world.report("r0", full=True, stored=chain, load=busy)
    assert desk.send("held", 100 * BLOCK_SIZE, chain=chain) == []
    # Others pass it by.
    assert where(desk.send("other", 64)) == ["r1"]
    desk.world.report("r0", load=desk.world.load(num_running=1, backlog_tokens=100))
    assert desk.pump() == [Placed("held", "r0", 100, 0.0)]


def test_hold_ends_when_it_has_lasted_too_long() -> None:
    desk, chain = Desk(2), hashes(100)
    busy = desk.world.load(num_running=1, backlog_tokens=300)
    desk.world.report("r0", full=True, stored=chain, load=busy)
    desk.world.report("r1")
    assert desk.send("held", 1600, chain=chain) == []
    desk.clock.advance(STRICT.max_hold_s)
    assert where(desk.pump()) == ["r1"]


def test_nobody_waits_for_a_replica_whose_slots_are_full() -> None:
    desk, chain = Desk(2), hashes(100)
    full = desk.world.load(num_running=4)
    desk.world.report("r0", full=True, stored=chain, load=full)
    assert where(desk.send("a", 1600, chain=chain)) == ["r1"]


def test_short_work_goes_first_until_waiting_makes_up_for_it() -> None:
    desk = Desk()
    desk.fill()
    desk.offer("long", 250)
    desk.clock.advance(1.0)
    desk.offer("short", 10)
    desk.world.report(load=desk.world.load(num_running=3))
    assert placed_keys(desk.pump()) == ["short"]
    desk.fill()
    desk.clock.advance(2.5)  # 3.5 s at 5 % of 2048 tokens a second make up for 358 tokens
    desk.offer("short again", 10)
    desk.world.report(admitted=["qshort"], load=desk.world.load(num_running=3))
    assert placed_keys(desk.pump()) == ["long"]


def test_overdue_requests_go_first_come_first_served() -> None:
    desk = Desk()
    desk.fill()
    desk.offer("huge", 1_000_000)
    desk.clock.advance(1.0)
    desk.offer("older small", 20)
    desk.clock.advance(STRICT.overdue_s)
    desk.offer("small", 10)
    desk.world.report(load=desk.world.load(num_running=3))
    assert placed_keys(desk.pump()) == ["huge"]


def test_priority_goes_before_shortness_and_age() -> None:
    desk = Desk()
    desk.fill()
    desk.offer("old", 10)
    desk.clock.advance(60.0)
    desk.offer("urgent", 200, priority=-1)
    desk.world.report(load=desk.world.load(num_running=3))
    assert placed_keys(desk.pump()) == ["urgent"]


def test_tenants_share_what_comes_free() -> None:
    desk = Desk(settings=STRICT)
    desk.fill()
    for number in range(60):
        desk.offer(("noisy", number), 50, tenant="noisy")
    for number in range(10):
        desk.offer(("calm", number), 50, tenant="calm")
    served: Counter[str] = Counter()
    for _ in range(5):
        for decision in desk.free():
            assert isinstance(decision, Placed) and isinstance(decision.key, tuple)
            served[decision.key[0]] += 1
        desk.clock.advance(6.0)  # reservations of this test's silent gateways end
        desk.world.registry.tick()
    assert served["calm"] == served["noisy"] == 10


def test_excluded_replica_is_avoided_and_better_than_none_later() -> None:
    desk = Desk(2)
    assert where(desk.send("a", excluded=["r0"])) == ["r1"]
    assert where(desk.send("b", excluded=["r0", "r1"])) == []
    desk.clock.advance(STRICT.exclusion_s)
    assert len(where(desk.pump())) == 1


def test_new_incarnation_is_not_the_one_that_failed_the_request() -> None:
    desk = Desk()
    assert desk.send("a", excluded=["r0"]) == []
    desk.world.registry.fail("r0", 1, "killed")
    assert desk.pump() == []
    desk.clock.advance(1.0)
    desk.world.add_replica("r0", epoch=2)
    assert where(desk.pump()) == ["r0"]


def test_expired_request_is_refused() -> None:
    desk = Desk()
    desk.fill()
    desk.offer("a", timeout_s=1.0)
    desk.offer("b", timeout_s=5.0)
    desk.clock.advance(0.9)
    assert desk.pump() == []
    desk.clock.advance(0.2)
    (refused,) = desk.pump()
    assert (refused.key, reasons([refused])) == ("a", [RefusalReason.EXPIRED])
    assert len(desk.queue) == 1


def test_deadline_of_an_earlier_request_under_the_same_key_is_forgotten() -> None:
    desk = Desk()
    desk.fill()
    desk.offer("a", timeout_s=1.0)
    assert desk.queue.cancel("a")
    desk.offer("a", timeout_s=9.0)
    desk.clock.advance(1.5)
    assert desk.pump() == [] and len(desk.queue) == 1


def test_deadline_in_the_past_is_refused_at_once() -> None:
    assert reasons(Desk().offer("a", timeout_s=0.0)) == [RefusalReason.HOPELESS]


def test_hopeless_deadline_is_refused_at_once_with_advice() -> None:
    desk = Desk()
    desk.fill()
    for number in range(60):
        desk.offer(("fill", number), 1)
    for _ in range(20):  # one placement a second
        desk.clock.advance(1.0)
        desk.world.report(admitted=[f"q{('fill', n)}" for n in range(60)])
        desk.world.report(load=desk.world.load(num_running=3))
        assert len(desk.pump()) == 1
        desk.fill()
    (refused,) = desk.offer("hasty", timeout_s=10.0)
    assert isinstance(refused, Refused) and refused.reason is RefusalReason.HOPELESS
    assert 25 <= refused.retry_after_s <= 60
    assert desk.offer("patient", timeout_s=60.0) == []


def test_full_queue_refuses_and_displaces_fairly() -> None:
    desk = Desk(settings=QueueSettings(max_queued=3, max_batched_tokens=256, backlog_s=0.0))
    desk.fill()
    for number in range(3):
        assert desk.offer(number, tenant="noisy") == []
    (refused,) = desk.offer(3, tenant="noisy")
    assert isinstance(refused, Refused) and refused.retry_after_s >= 1
    assert (refused.key, refused.reason) == (3, RefusalReason.FULL)
    (displaced,) = desk.offer("calm", tenant="calm")
    assert (displaced.key, reasons([displaced])) == (2, [RefusalReason.FULL])
    assert len(desk.queue) == 3


def test_requests_wait_for_a_replica_to_come_back_but_not_for_ever() -> None:
    desk = Desk()
    desk.world.registry.fail("r0", 1, "killed")
    assert desk.send("a") == []
    desk.clock.advance(20.0)
    assert desk.send("b") == []
    desk.clock.advance(10.1)
    (refused,) = desk.pump()
    assert isinstance(refused, Refused) and refused.reason is RefusalReason.UNAVAILABLE
    assert refused.key == "a" and "model" in refused.message
    desk.world.add_replica("r0", epoch=2)
    assert placed_keys(desk.pump()) == ["b"]


def test_long_waiting_requests_survive_a_short_loss_of_all_replicas() -> None:
    desk = Desk()
    desk.fill()
    desk.offer("a")
    for _ in range(20):
        desk.clock.advance(2.0)
        desk.fill()
        assert desk.pump() == []
    desk.world.registry.fail("r0", 1, "killed")
    desk.clock.advance(5.0)
    assert desk.pump() == []


def test_refuse_all_answers_everyone_once() -> None:
    desk = Desk()
    desk.fill()
    for number in range(5):
        desk.offer(number, tenant=str(number % 2))
    decisions = desk.queue.refuse_all("going down")
    assert sorted(d.key for d in decisions) == list(range(5))  # type: ignore[type-var]
    assert len(desk.queue) == 0 and desk.free() == []


class QueueMachine(RuleBasedStateMachine):
    """Random traffic over replicas that come, go, run and report."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(
            2, settings=QueueSettings(max_queued=8, max_batched_tokens=256, backlog_s=0.0)
        )
        self.epoch = 1
        self.num_offered = 0
        self.waiting: set[object] = set()
        self.on_replica: dict[str, set[str]] = {"r0": set(), "r1": set()}

    def settle(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self.waiting.remove(decision.key)  # KeyError: answered twice, or never asked
            if isinstance(decision, Placed):
                on_replica = self.on_replica[decision.replica_id]
                on_replica.add(f"q{decision.key}")
                assert len(on_replica) <= 4, "more than its slots"

    @rule(
        tokens=st.integers(1, 600),
        depth=st.integers(0, 20),
        chain=st.integers(0, 2),
        tenant=st.sampled_from("abc"),
        priority=st.integers(-1, 1),
        timeout_s=st.sampled_from([None, None, 0.5, 5.0]),
        excluded=st.sets(st.sampled_from(["r0", "r1"])),
    )
    def offer(
        self,
        tokens: int,
        depth: int,
        chain: int,
        tenant: str,
        priority: int,
        timeout_s: float | None,
        excluded: set[str],
    ) -> None:
        self.num_offered += 1
        key = self.num_offered
        self.waiting.add(key)
        self.settle(
            self.desk.send(
                key,
                max(tokens, depth * BLOCK_SIZE),
                chain=hashes(depth, chain),
                tenant=tenant,
                priority=priority,
                timeout_s=timeout_s,
                excluded=excluded,
            )
        )

    @rule(back=st.integers(0, 10))
    def cancel(self, back: int) -> None:
        key = self.num_offered - back
        assert self.desk.queue.cancel(key) == (key in self.waiting)
        self.waiting.discard(key)

    @rule(
        replica=st.sampled_from(["r0", "r1"]), done=st.integers(0, 4), backlog=st.integers(0, 400)
    )
    def report(self, replica: str, done: int, backlog: int) -> None:
        """It has taken in all that was placed there, and ended some of it."""
        world, running = self.desk.world, self.on_replica[replica]
        record = world.registry.record(replica)
        assert record is not None
        admitted = list(record._reservations)
        for request_id in sorted(running)[:done]:
            running.remove(request_id)
        load = world.load(num_running=len(running), backlog_tokens=backlog if running else 0)
        world.report(replica, epoch=record.epoch, admitted=admitted, load=load)
        self.settle(self.desk.pump())

    @rule(replica=st.sampled_from(["r0", "r1"]))
    def replace(self, replica: str) -> None:
        self.epoch += 1
        record = self.desk.world.registry.record(replica)
        assert record is not None
        self.desk.world.registry.fail(replica, record.epoch, "killed")
        self.settle(self.desk.pump())
        self.on_replica[replica].clear()
        self.desk.world.add_replica(replica, self.epoch)
        self.settle(self.desk.pump())

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.0]))
    def wait(self, seconds: float) -> None:
        self.desk.clock.advance(seconds)
        self.settle(self.desk.pump())

    @invariant()
    def queue_holds_exactly_the_unanswered(self) -> None:
        assert len(self.desk.queue) == len(self.waiting) <= 8

    def teardown(self) -> None:
        """With room everywhere, everyone left is answered."""
        for _ in range(40):
            self.desk.clock.advance(3.0)
            for replica in ("r0", "r1"):
                self.report(replica, done=4, backlog=0)
        assert not self.waiting


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
