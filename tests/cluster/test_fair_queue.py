"""FairQueue: order, fair share and what a full queue gives up."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.fair_queue import EXPECTED_OUTPUT_TOKENS, MAX_IDLE_TENANTS, FairQueue, Waiting
from tests.cluster.worlds import make_request


def waiting(key: object, tenant: str = "", priority: int = 0, arrival_t: float = 0.0) -> Waiting:
    request = make_request(key, tenant=tenant, priority=priority)
    return Waiting(request, arrival_t, math.inf)


def lanes(queue: FairQueue, window: int = 100) -> list[list[object]]:
    return [[w.request.key for w in lane] for lane in queue.lanes(window)]


def take_next(queue: FairQueue, tokens: int, max_tokens: int = 0) -> str:
    """Serve the first request of the first lane, as a queue without other concerns would."""
    head = next(queue.lanes(1))[0]
    queue.charge(head.request.tenant, tokens, max_tokens)
    queue.remove(head.request.key)
    return head.request.tenant


def test_lower_priority_numbers_come_first() -> None:
    queue = FairQueue()
    for key, priority in enumerate([5, -3, 0, -3]):
        queue.add(waiting(key, priority=priority))
    assert lanes(queue) == [[1, 3], [2], [0]]


def test_window_is_the_oldest_of_a_lane() -> None:
    queue = FairQueue()
    for key in range(5):
        queue.add(waiting(key))
    assert lanes(queue, window=2) == [[0, 1]]


def test_busy_tenants_share_tokens_not_requests() -> None:
    queue = FairQueue()
    for key in range(300):
        queue.add(waiting(("big", key), "big"))
        queue.add(waiting(("small", key), "small"))
    served: Counter[str] = Counter()
    cost = {"big": 900, "small": 100}
    for _ in range(200):
        tenant = next(queue.lanes(1))[0].request.tenant
        served[take_next(queue, cost[tenant])] += cost[tenant]
        assert abs(served["big"] - served["small"]) <= 900


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 1000)), min_size=1, max_size=80))
def test_gap_between_backlogged_tenants_is_bounded(jobs: list[tuple[str, int]]) -> None:
    queue = FairQueue()
    costs = {}
    for key, (tenant, tokens) in enumerate(jobs):
        queue.add(waiting(key, tenant))
        costs[key] = tokens
    active = {tenant for tenant, _ in jobs}
    served = dict.fromkeys(active, 0)
    left = Counter(tenant for tenant, _ in jobs)
    while queue:
        head = next(queue.lanes(1))[0]
        tokens = costs[head.request.key]  # type: ignore[index]
        tenant = take_next(queue, tokens)
        served[tenant] += tokens
        left[tenant] -= 1
        backlogged = [served[t] for t in active if left[t]]
        if left[tenant] and len(backlogged) > 1:
            assert max(backlogged) - min(backlogged) <= 1000


def test_returning_tenant_gets_no_credit_for_its_absence() -> None:
    queue = FairQueue()
    for key in range(100):
        queue.add(waiting(key, "busy"))
    for _ in range(50):
        take_next(queue, 1000)
    for key in range(100, 150):
        queue.add(waiting(key, "back"))
    order = [take_next(queue, 1000) for _ in range(20)]
    assert 9 <= order.count("back") <= 11


def test_noisy_tenant_does_not_delay_the_first_request_of_another() -> None:
    queue = FairQueue()
    for key in range(1000):
        queue.add(waiting(key, "noisy"))
    take_next(queue, 100)
    queue.add(waiting("x", "calm"))
    assert "calm" in [take_next(queue, 100) for _ in range(2)]


def test_output_is_charged_as_an_estimate() -> None:
    queue = FairQueue()
    for key in range(4):
        queue.add(waiting(key, "writer"))
        queue.add(waiting(10 + key, "reader"))
    first = take_next(queue, 100, max_tokens=100_000)
    other = "reader" if first == "writer" else "writer"
    assert take_next(queue, 100 + EXPECTED_OUTPUT_TOKENS - 1) == other
    assert take_next(queue, 1) == other


def test_full_queue_gives_up_the_newest_of_the_greediest() -> None:
    queue = FairQueue()
    for key in range(4):
        queue.add(waiting(key, "greedy", priority=key % 2))
    queue.add(waiting("m", "modest"))
    victim = queue.displaced_by("new")
    assert victim is not None and victim.request.key == 3
    assert queue.displaced_by("greedy") is None
    assert FairQueue().displaced_by("new") is None


def test_num_ahead_is_a_fair_share_of_the_queue() -> None:
    queue = FairQueue()
    for key in range(100):
        queue.add(waiting(key, "noisy"))
    assert queue.num_ahead(0, "noisy") == 100
    assert queue.num_ahead(0, "calm") == 1
    assert queue.num_ahead(-1, "noisy") == 0


def test_counters_of_former_tenants_do_not_pile_up() -> None:
    queue = FairQueue()
    queue.add(waiting("stays", "stays"))
    for number in range(5 * MAX_IDLE_TENANTS):
        queue.add(waiting(number, f"t{number}"))
        queue.charge("stays", 2, 0)
        queue.remove(number)
    assert len(queue._served) <= 2 * MAX_IDLE_TENANTS


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab"), st.integers(0, 2))))
def test_every_request_is_in_exactly_one_lane(actions: list[tuple[int, str, int]]) -> None:
    queue, model = FairQueue(), dict[int, tuple[str, int]]()
    for key, tenant, priority in actions:
        if key in model:
            removed = queue.remove(key)
            assert removed is not None and removed.request.tenant == model.pop(key)[0]
        else:
            queue.add(waiting(key, tenant, priority))
            model[key] = (tenant, priority)
        assert queue.remove("absent") is None
        assert len(queue) == len(model)
        assert {key for lane in lanes(queue) for key in lane} == set(model)
        assert len(lanes(queue)) == len(set(model.values()))
