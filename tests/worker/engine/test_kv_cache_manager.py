from protos.block_hash import hash_full_blocks, root_hash
from tests.worker.engine.harness import new_request, prompt_of
from worker.engine.block_pool import BlockPool
from worker.engine.kv_cache_manager import KVCacheManager
from worker.engine.prefix_lookup import NULL_BLOCK
from worker.engine.request import Request


def make_request(prompt: list[int], cache_salt: str = "", **sampling: object) -> Request:
    new = new_request(1, prompt, cache_salt=cache_salt, **sampling)  # type: ignore[arg-type]
    return Request(new, 100, 1, root_hash(cache_salt))


def admit(manager: KVCacheManager, request: Request) -> list[int]:
    manager.hash_prompt(request)
    cached = manager.find_cached(request)
    assert manager.admit(request, cached, 0)
    return cached


def compute(manager: KVCacheManager, request: Request) -> None:
    request.num_computed_tokens = request.num_tokens
    manager.store_computed(request)


def test_prefix_is_found_while_in_use_and_after_release() -> None:
    manager = KVCacheManager(BlockPool(16, 4, True))
    first = make_request(prompt_of(10))
    admit(manager, first)
    compute(manager, first)
    second = make_request(prompt_of(10))
    assert admit(manager, second) == first.block_ids[:2]
    assert second.num_computed_tokens == 8
    manager.free(first)
    manager.free(second)
    assert manager.pool.is_all_free()
    assert len(admit(manager, make_request(prompt_of(10)))) == 2


def test_last_token_is_computed_even_if_all_blocks_are_cached() -> None:
    manager = KVCacheManager(BlockPool(16, 4, True))
    first = make_request(prompt_of(8))
    admit(manager, first)
    compute(manager, first)
    assert len(admit(manager, make_request(prompt_of(8)))) == 1


def test_blocks_are_offered_only_as_far_as_computed() -> None:
    manager = KVCacheManager(BlockPool(16, 4, True))
    first = make_request(prompt_of(12))
    admit(manager, first)
    first.num_computed_tokens = 7
    manager.store_computed(first)
    assert len(manager.find_cached(make_hashed(manager, prompt_of(12)))) == 1


def make_hashed(manager: KVCacheManager, prompt: list[int]) -> Request:
    request = make_request(prompt)
    manager.hash_prompt(request)
    return request


def test_other_cache_salt_shares_nothing() -> None:
    manager = KVCacheManager(BlockPool(16, 4, True))
    first = make_request(prompt_of(12), "tenant-a")
    admit(manager, first)
    compute(manager, first)
    assert admit(manager, make_request(prompt_of(12), "tenant-b")) == []


def test_request_for_prompt_logprobs_reads_no_cache() -> None:
    manager = KVCacheManager(BlockPool(16, 4, True))
    first = make_request(prompt_of(12))
    admit(manager, first)
    compute(manager, first)
    assert admit(manager, make_request(prompt_of(12), prompt_logprobs=0)) == []


def test_admission_counts_free_cached_blocks_once() -> None:
    # Four blocks, two of them cached and free: a prompt of four blocks that shares them just fits.
    manager = KVCacheManager(BlockPool(4, 4, True))
    first = make_request(prompt_of(8))
    admit(manager, first)
    compute(manager, first)
    manager.free(first)
    second = make_hashed(manager, prompt_of(16))
    cached = manager.find_cached(second)
    assert len(cached) == 2
    assert not manager.admit(second, cached, 1)
    assert manager.pool.is_all_free()
    assert manager.admit(second, cached, 0)
    assert manager.pool.num_free == 0
    manager.pool.check_integrity()


def test_hashes_of_generated_blocks_continue_the_prompts_chain() -> None:
    manager = KVCacheManager(BlockPool(16, 4, True))
    request = make_request(prompt_of(6))
    admit(manager, request)
    request.token_ids += prompt_of(7, start=3)
    manager.extend(request)
    manager.extend(request)
    compute(manager, request)
    assert request.block_hashes == hash_full_blocks(request.token_ids, 4, root_hash())


def test_cached_block_behind_a_hole_is_not_used() -> None:
    manager = KVCacheManager(BlockPool(16, 4, True))
    request = make_hashed(manager, prompt_of(12))
    (block_id,) = manager.pool.allocate(1) or []
    manager.pool.store(block_id, request.block_hashes[1])  # its predecessor has been evicted
    assert manager.find_cached(request) == []


def windowed(num_blocks: int = 16, chunk: int = 8) -> KVCacheManager:
    """A window of six tokens over blocks of four."""
    return KVCacheManager(BlockPool(num_blocks, 4, True), (6,), chunk)


def test_blocks_before_the_window_are_released_and_stay_cached() -> None:
    manager = windowed(chunk=32)
    first = make_request(prompt_of(16))
    admit(manager, first)
    compute(manager, first)
    assert manager.held(first) == first.block_ids[2:]  # token 16 sees 11 and later
    assert manager.pool.num_free == 14
    assert all(manager.pool.lookup(h) is not None for h in first.block_hashes)
    manager.free(first)
    assert manager.pool.is_all_free()
    manager.pool.check_integrity()


def test_hit_ends_where_a_seen_block_is_missing() -> None:
    manager = windowed()
    request = make_hashed(manager, prompt_of(24))
    block_ids = manager.pool.allocate(4) or []
    for place, block_id in zip((0, 2, 3, 5), block_ids, strict=True):
        manager.pool.store(block_id, request.block_hashes[place])
    # Of five blocks the last two are seen, and the last is missing; of four both are there.
    cached = manager.find_cached(request)
    assert cached == [NULL_BLOCK, NULL_BLOCK, block_ids[1], block_ids[2]]
    assert request.num_hit_tokens == 16


def test_long_prompt_is_admitted_with_the_blocks_of_a_window_and_a_chunk() -> None:
    manager = windowed(num_blocks=6, chunk=8)
    request = make_request(prompt_of(80))
    admit(manager, request)
    assert len(request.block_ids) == 5 and request.capacity == 20
    for end in (8, 16, 24, 32):
        request.num_computed_tokens = end
        manager.store_computed(request)
        assert request.capacity >= end + 8
        assert len(manager.held(request)) == 5
    manager.free(request)
    assert manager.pool.is_all_free()


def mixed(num_blocks: int = 64, chunk: int = 8) -> KVCacheManager:
    """One group that sees all, and two that see six tokens, over blocks of four."""
    return KVCacheManager(BlockPool(num_blocks, 4, True, 3), (None, 6, 6), chunk)


def test_windowed_groups_slide_while_the_others_blocks_are_reserved() -> None:
    manager = mixed(num_blocks=32)
    request = make_request(prompt_of(80))
    admit(manager, request)
    # Twenty blocks of the whole prompt, and twice those of a window, a chunk and one more.
    assert len(manager.held(request)) == 20 + 2 * 5
    assert request.capacity == 20
    for end in range(8, 80, 8):
        request.num_computed_tokens = end
        manager.store_computed(request)
        assert request.capacity >= min(80, end + 8)
        assert len(manager.held(request)) <= 20 + 2 * 5
        manager.pool.check_integrity()
    assert request.reserved_block_ids == [] and len(request.block_ids) == 3 * 20
    full = request.block_ids[::3]
    assert len(set(full)) == 20
    assert manager.held(request)[: len(full) - 3] == full[:17]  # 72 computed: 67 and later are seen
    manager.free(request)
    assert manager.pool.is_all_free()


def test_admission_of_groups_takes_what_it_said_it_would() -> None:
    manager = mixed(num_blocks=40, chunk=64)
    first = make_request(prompt_of(40))
    admit(manager, first)
    compute(manager, first)
    manager.free(first)
    second = make_hashed(manager, prompt_of(48))
    cached = manager.find_cached(second)
    assert len(cached) == 3 * 10
    missing = manager.num_missing(second, 0)
    num_free = manager.pool.num_free
    assert manager.admit(second, cached, -missing)
    assert num_free - manager.pool.num_free == num_free + missing
    assert not manager.admit(make_hashed(manager, prompt_of(48, start=5)), [], 1000)


def test_prefix_of_groups_needs_the_windows_end_and_all_of_the_rest() -> None:
    manager = mixed(chunk=64)
    first = make_request(prompt_of(40))
    admit(manager, first)
    compute(manager, first)
    request = make_hashed(manager, prompt_of(44))
    cached = manager.find_cached(request)
    assert request.num_hit_tokens == 40
    unseen = NULL_BLOCK
    assert cached[1::3][:8] == [unseen] * 8 and cached[2::3][:8] == [unseen] * 8
    assert cached[::3] == first.block_ids[::3]
    assert cached[1::3][8:] == first.block_ids[1::3][8:]


def test_more_places_than_the_pool_has_windows_for_are_not_filled() -> None:
    # Beside the twenty blocks that see all the pool holds three of each windowed group.
    manager = mixed(num_blocks=26, chunk=32)
    request = make_request(prompt_of(80))
    admit(manager, request)
    assert request.capacity == 12
    for end in range(4, 80, 4):
        request.num_computed_tokens = end
        manager.store_computed(request)
        assert end < request.capacity
    manager.free(request)
    assert manager.pool.is_all_free()


def test_long_prompt_leaves_older_prefixes_in_the_cache() -> None:
    manager = mixed(num_blocks=60, chunk=8)
    first = make_request(prompt_of(21))
    admit(manager, first)
    for end in (8, 16, 21):
        first.num_computed_tokens = end
        manager.store_computed(first)
    manager.free(first)
    # Its windows pass over more blocks than are free beside the first prefix.
    long = make_request([(5 * i + 1) % 47 for i in range(100)])
    admit(manager, long)
    for end in range(8, 101, 8):
        long.num_computed_tokens = end
        manager.store_computed(long)
    manager.free(long)
    again = make_hashed(manager, prompt_of(21))
    manager.find_cached(again)
    assert again.num_hit_tokens == 20
