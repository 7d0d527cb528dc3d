from protos.block_hash import hash_full_blocks, root_hash
from tests.worker.engine.harness import new_request, prompt_of
from worker.engine.block_pool import BlockPool
from worker.engine.kv_cache_manager import KVCacheManager
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
