"""Random work for an engine, and what must hold of it all along: for property tests."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.worker.engine.harness import VOCAB_SIZE, Harness
from worker.engine.kv_footprint import KVFootprint
from worker.engine.request import Status

# Prompts are cut from few sources, so that prefixes are often shared.
SOURCES = [[(7 * i + s) % VOCAB_SIZE for i in range(60)] for s in range(3)]


@dataclass(frozen=True)
class Add:
    source: int
    num_shared: int
    num_own: int
    max_tokens: int
    priority: int
    stops: bool
    num_emitted: int
    prompt_logprobs: bool
    salt: str


@dataclass(frozen=True)
class Abort:
    index: int


adds = st.builds(
    Add,
    source=st.integers(0, 2),
    num_shared=st.integers(0, 24),
    num_own=st.integers(1, 5),
    max_tokens=st.integers(1, 14),
    priority=st.integers(0, 1),
    stops=st.booleans(),
    num_emitted=st.integers(0, 3),
    prompt_logprobs=st.sampled_from([False, False, True]),
    salt=st.sampled_from(["", "", "", "other"]),
)
actions = st.lists(
    st.one_of(adds, adds, st.builds(Abort, st.integers(0, 30)), st.just("step")), max_size=40
)


def apply_add(harness: Harness, handle: int, add: Add) -> None:
    own = [(handle * 11 + i) % VOCAB_SIZE for i in range(add.num_own)]
    prompt = SOURCES[add.source][: add.num_shared] + own
    sampling: dict[str, object] = {
        "stop_token_ids": tuple(range(0, VOCAB_SIZE, 9)) if add.stops else (),
        "prompt_logprobs": 0 if add.prompt_logprobs else None,
        "seed": handle,
    }
    harness.add(handle, prompt, add.max_tokens, **sampling)
    if add.num_emitted == 0:
        return
    # The same request, resumed: it must continue with what it would have brought.
    emitted = harness.expected_tokens(handle)[: add.num_emitted]
    harness.engine.abort("gateway", [handle])
    harness.step()
    del harness.ends[handle], harness.added[handle]
    harness.tokens[handle].clear()
    harness.outputs[handle].clear()
    harness.add(
        handle,
        prompt,
        add.max_tokens,
        emitted=emitted,
        priority=add.priority,
        cache_salt=add.salt,
        **sampling,
    )


def check_books(harness: Harness) -> None:
    engine = harness.engine
    engine.check_integrity()
    scheduler, pool = engine._scheduler, engine._pool
    kv_cache, windows = scheduler._kv_cache, harness.config.windows
    footprint = KVFootprint(harness.config.block_size, windows)
    chunk = harness.config.max_num_batched_tokens * engine.max_steps_under_way
    users = Counter(b for request in scheduler.running for b in kv_cache.held(request))
    assert pool.num_free + len(users) == pool.num_blocks
    for request in scheduler.running:
        assert request.status is Status.RUNNING
        held = kv_cache.held(request)
        assert len(set(held)) == len(held)
        assert request.num_computed_tokens < request.num_tokens
        assert request.num_computed_tokens <= request.capacity
        num_held = len(request.reserved_block_ids)
        for group, window in enumerate(windows):
            table = request.block_ids[group :: len(windows)]
            first = footprint.num_unseen(request.released_at, window)
            num_held += len(table) - first
            if window is not None:
                assert len(table) - first <= -(-(window + chunk) // footprint.block_size) + 1
            for place, block_id in enumerate(table[first:], start=first):
                if users[block_id] > 1:  # shared, and only by those with the same tokens up to here
                    assert pool.lookup(request.block_hashes[place], group) == block_id
                    assert place < request.num_blocks_cached
        assert num_held == len(held)
    for request in scheduler.waiting:
        assert request.status is Status.WAITING and request.block_ids == []
    slots = [request.slot for request in scheduler.running]
    assert len(set(slots)) == len(slots)


def check_ends(harness: Harness, aborted: set[int]) -> None:
    assert set(harness.ends) == set(harness.added)
    for handle, new in harness.added.items():
        expected = harness.expected_tokens(handle)
        tokens, reason = harness.tokens[handle], harness.ends[handle].finish_reason
        if reason == "abort":
            assert handle in aborted
            assert tokens == expected[: len(tokens)]
            continue
        assert tokens == expected
        assert reason in ("stop", "length")
        if new.sampling.prompt_logprobs is not None and tokens:
            logprobs = harness.outputs[handle][0].prompt_logprobs
            assert logprobs is not None
            assert [entry.token_id for entry in logprobs] == new.prompt_token_ids[1:]


def run_actions(harness: Harness, actions: list[object]) -> None:
    """All of them, then what is left, with checks after each: every request must end once, with the
    tokens that it would bring alone.
    """
    aborted: set[int] = set()
    for action in actions:
        match action:
            case Add():
                apply_add(harness, len(harness.added), action)
            case Abort(index):
                harness.engine.abort("gateway", [index])
                aborted.add(index)
            case _:
                harness.step()
        check_books(harness)
    harness.run()
    check_ends(harness, aborted)
