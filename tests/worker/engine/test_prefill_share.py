import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.block_hash import root_hash
from tests.worker.engine.harness import new_request
from worker.engine.prefill_share import share_budget
from worker.engine.request import Request


def make(sequence: int, num_tokens: int, priority: int = 0) -> Request:
    new = new_request(sequence, [1] * num_tokens, priority=priority)
    return Request(new, 10_000, sequence, root_hash())


def share(requests: list[Request], budget: int, block_size: int = 1) -> dict[int, int]:
    shares = share_budget(requests, budget, block_size, lambda request: True)
    return {request.handle: num_tokens for request, num_tokens in shares.items()}


def test_short_prompts_pass_in_the_half_the_oldest_leaves() -> None:
    assert share([make(1, 1000), make(2, 10), make(3, 20)], 100) == {1: 70, 2: 10, 3: 20}


def test_shortest_remaining_goes_first_in_its_half() -> None:
    assert share([make(1, 1000), make(2, 200), make(3, 40)], 100) == {1: 50, 3: 40, 2: 10}


def test_equal_prompts_are_computed_one_after_another() -> None:
    assert share([make(1, 150), make(2, 150)], 100) == {1: 100}


def test_more_urgent_priority_gets_all_it_can_use() -> None:
    assert share([make(1, 1000), make(2, 1000, priority=-1)], 100) == {2: 100}


def test_refused_request_leaves_its_share_to_the_others() -> None:
    first, second = make(1, 1000), make(2, 1000)
    shares = share_budget([first, second], 100, 1, lambda request: request is second)
    assert shares == {second: 100}


def test_chunks_end_with_a_block_unless_they_end_a_prompt() -> None:
    assert share([make(1, 1000), make(2, 37)], 170, block_size=16) == {1: 128, 2: 37}
    begun = make(1, 1000)
    begun.num_computed_tokens = 10
    assert share([begun], 160, block_size=16) == {1: 150}


@pytest.mark.parametrize("budget", [7, 16, 31])
def test_budget_of_few_blocks_is_spent_all_the_same(budget: int) -> None:
    assert share([make(1, 1000)], budget, block_size=16) == {1: budget}


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(1, 256))
def test_budget_is_spent_and_the_oldest_gets_half(lengths: list[int], budget: int) -> None:
    requests = [make(i, length) for i, length in enumerate(lengths)]
    shares = share(requests, budget)
    assert sum(shares.values()) == min(budget, sum(lengths))
    assert all(0 < shares[i] <= lengths[i] for i in shares)
    assert shares.get(0, 0) >= min(lengths[0], (budget + 1) // 2)
