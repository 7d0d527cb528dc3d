"""Urgent requests take the place of less urgent ones that run, as far as that lets them in."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import Harness, prompt_of


def test_urgent_request_takes_the_slot_of_the_least_urgent() -> None:
    harness = Harness(max_num_seqs=2)
    harness.add(1, prompt_of(6), max_tokens=12)
    harness.add(2, prompt_of(6, start=1), max_tokens=12, priority=3)
    harness.step()
    harness.add(3, prompt_of(6, start=2), max_tokens=2, priority=-1)
    assert {output.handle for output in harness.step()} == {1, 3}
    harness.run()
    assert list(harness.ends) == [3, 1, 2]
    assert [harness.ends[i].timing.num_preemptions for i in (1, 2, 3)] == [0, 1, 0]  # type: ignore[union-attr]
    for handle in (1, 2, 3):
        assert harness.tokens[handle] == harness.expected_tokens(handle)


def test_urgent_request_takes_blocks_where_they_are_short() -> None:
    harness = Harness(num_blocks=12, block_size=4)
    harness.add(1, prompt_of(15), max_tokens=10, priority=1)
    harness.add(2, prompt_of(15, start=1), max_tokens=10, priority=2)
    harness.step()
    harness.add(3, prompt_of(18, start=2), max_tokens=2)
    assert {output.handle for output in harness.step()} == {1, 3}
    harness.run()
    assert harness.ends[2].timing is not None and harness.ends[2].timing.num_preemptions == 1


def test_nobody_is_set_back_in_vain() -> None:
    harness = Harness(num_blocks=16, block_size=4)
    harness.add(1, prompt_of(30), max_tokens=10)
    harness.add(2, prompt_of(4, start=1), max_tokens=10, priority=5)
    harness.step()
    harness.add(3, prompt_of(40, start=2), max_tokens=2)  # what the second holds is not enough
    assert {output.handle for output in harness.step()} == {1, 2}
    harness.run()
    assert harness.engine.counters().preemptions == 0


def test_equal_urgency_waits_its_turn() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add(1, prompt_of(6), max_tokens=12, priority=-2)
    harness.step()
    harness.add(2, prompt_of(6, start=1), max_tokens=2, priority=-2)
    harness.run()
    assert list(harness.ends) == [1, 2]


def test_urgent_request_that_waits_for_a_prefix_sets_nobody_back() -> None:
    harness = Harness(max_num_seqs=2, max_num_batched_tokens=8)
    harness.add(1, prompt_of(40), max_tokens=2)
    harness.add(2, prompt_of(6, start=3), max_tokens=30, priority=4)
    harness.step()
    harness.add(3, prompt_of(40), max_tokens=2, priority=0)
    while not harness.tokens[1]:
        harness.step()
    harness.run()
    computed = sum(len(plan.token_ids) for plan in harness.executor.plans)
    assert computed < 40 + 40 + 40  # the common prefix was computed once


@settings(max_examples=100, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(1, 30),  # prompt
            st.integers(1, 12),  # tokens
            st.integers(-1, 2),  # priority
            st.integers(0, 4),  # steps until the next
        ),
        min_size=1,
        max_size=12,
    ),
    num_blocks=st.integers(11, 24),
    max_num_seqs=st.integers(1, 4),
)
def test_every_request_ends_with_its_tokens_whoever_is_set_back(
    requests: list[tuple[int, int, int, int]], num_blocks: int, max_num_seqs: int
) -> None:
    harness = Harness(num_blocks=num_blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=16)
    for handle, (length, max_tokens, priority, num_steps) in enumerate(requests):
        harness.add(handle, prompt_of(length, start=handle), max_tokens, priority=priority)
        for _ in range(num_steps):
            harness.step()
            running = harness.engine._scheduler.running
            waiting = harness.engine._scheduler.waiting.head()
            if waiting is not None and running and harness.engine._scheduler._free_slots == []:
                assert waiting.priority >= min(r.priority for r in running)
    harness.run()
    for handle in range(len(requests)):
        assert harness.tokens[handle] == harness.expected_tokens(handle)
