from protos.block_hash import root_hash
from tests.worker.engine.harness import new_request, prompt_of
from worker.engine.block_pool import BlockPool
from worker.engine.kv_cache_manager import KVCacheManager
from worker.engine.preemption import in_the_way, least_costly
from worker.engine.request import Request


def make(sequence: int, priority: int = 0, num_output: int = 0, num_prompt: int = 8) -> Request:
    new = new_request(sequence, prompt_of(num_prompt, start=sequence), priority=priority)
    request = Request(new, 1000, sequence, root_hash())
    request.token_ids += [1] * num_output
    return request


def cache_with(running: list[Request], num_blocks: int) -> KVCacheManager:
    cache = KVCacheManager(BlockPool(num_blocks, 4, enable_prefix_caching=False))
    for request in running:
        assert cache.admit(request, [], 0)
    return cache


def test_victim_is_least_urgent_then_has_fewest_outputs_then_came_last() -> None:
    running = [make(1), make(2, 1, 2), make(3, 1, 1), make(4, 1, 1), make(5, 0)]
    victims: list[int] = []
    while running:
        victim = least_costly(running)
        victims.append(victim.handle)
        running.remove(victim)
    assert victims == [4, 3, 2, 5, 1]


def test_as_few_go_as_make_room() -> None:
    running = [make(1, 1), make(2, 2), make(3, 3)]  # two blocks each
    cache = cache_with(running, num_blocks=6)
    urgent = make(9, num_prompt=12)
    assert [r.handle for r in in_the_way(urgent, running, cache, True, 0)] == [3, 2]
    small = make(10, num_prompt=4)
    assert [r.handle for r in in_the_way(small, running, cache, True, 0)] == [3]


def test_a_slot_alone_costs_one() -> None:
    running = [make(1, 1), make(2, 2)]
    cache = cache_with(running, num_blocks=100)
    assert in_the_way(make(9), running, cache, True, 1) == []
    assert [r.handle for r in in_the_way(make(9), running, cache, False, 1)] == [2]


def test_nobody_goes_for_equal_urgency_or_in_vain() -> None:
    running = [make(1, -5), make(2, 1)]
    cache = cache_with(running, num_blocks=4)
    assert in_the_way(make(9, priority=1), running, cache, False, 0) == []
    assert in_the_way(make(9, num_prompt=12), running, cache, True, 0) == []
    assert [r.handle for r in in_the_way(make(9), running, cache, True, 0)] == [2]


def test_shared_blocks_do_not_count_as_room() -> None:
    cache = KVCacheManager(BlockPool(4, 4, enable_prefix_caching=True))
    first, second = make(1, 0, num_prompt=9), make(2, 1, num_prompt=9)
    second.token_ids = list(first.token_ids)
    for request in (first, second):
        cache.hash_prompt(request)
    assert cache.admit(first, [], 0)
    first.num_computed_tokens = 9
    cache.store_computed(first)
    assert cache.admit(second, cache.find_cached(second), 0)
    urgent = make(9, priority=-1, num_prompt=8)
    # The second alone would free one block; only both together free enough.
    assert cache.num_own(second) == 1
    assert [r.handle for r in in_the_way(urgent, [first, second], cache, True, 0)] == [2, 1]
