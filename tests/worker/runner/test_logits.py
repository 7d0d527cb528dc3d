"""Log-probabilities against log_softmax."""

import pytest
import torch

from worker.runner import logits as module
from worker.runner.largest import largest
from worker.runner.logits import LOGPROB_FLOOR, prompt_logprobs, token_logprobs


def make_logits(rows: int, vocab_size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows + vocab_size)
    return (torch.randn(rows, vocab_size, generator=generator) * 4).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [3, 50, 9000])
def test_logprobs_ranks_and_alternatives(vocab_size: int, dtype: torch.dtype) -> None:
    logits = make_logits(7, vocab_size, dtype)
    before = logits.clone()
    token_ids = torch.arange(7) % vocab_size
    num_top = [0, 1, 2, 3, 0, 3, 1]
    expected = logits.double().log_softmax(1)
    found = token_logprobs(logits, token_ids, num_top)
    assert torch.equal(logits, before)
    for row, entry in enumerate(found):
        token_id = int(token_ids[row])
        assert entry.token_id == token_id
        assert entry.logprob == pytest.approx(float(expected[row, token_id]), abs=1e-5)
        assert entry.rank == 1 + int((logits[row] > logits[row, token_id]).sum())
        order = sorted(range(vocab_size), key=lambda i: (-float(logits[row, i]), i))
        if dtype == torch.float32:  # elsewhere more may tie than the list holds
            assert entry.top_ids == order[: num_top[row]]
        top = [float(expected[row, i]) for i in entry.top_ids]
        assert entry.top_logprobs == pytest.approx(top, abs=1e-5)
        assert len(entry.top_ids) == len(entry.top_logprobs) == num_top[row]


def test_equal_logits_are_listed_by_id() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 2.0]])
    [entry] = token_logprobs(logits, torch.tensor([3]), [2])
    assert (entry.top_ids, entry.rank) == ([1, 3], 1)


def test_prompt_logprobs_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = make_logits(23, 40), torch.arange(23)
    whole = prompt_logprobs(logits, targets, 2)
    monkeypatch.setattr(module, "_PIECE_ELEMENTS", 200)  # 5 rows at a time
    assert prompt_logprobs(logits, targets, 2) == whole
    assert [entry.token_id for entry in whole] == list(range(23))


def test_no_rows_no_entries() -> None:
    assert prompt_logprobs(make_logits(0, 5), torch.empty(0, dtype=torch.int64), 2) == []


def test_impossible_tokens_stay_finite_numbers() -> None:
    logits = torch.tensor([[0.0, -torch.inf, torch.nan], [-torch.inf] * 3, [torch.nan] * 3])
    found = token_logprobs(logits, torch.tensor([1, 0, 2]), [3, 3, 3])
    assert found[0].logprob == LOGPROB_FLOOR
    assert found[0].top_logprobs == [0.0, LOGPROB_FLOOR, LOGPROB_FLOOR]
    assert [entry.logprob for entry in found[1:]] == [LOGPROB_FLOOR] * 2


@pytest.mark.parametrize(("vocab_size", "k"), [(5, 5), (64, 3), (4096, 10), (5001, 16), (9999, 39)])
def test_largest_equals_topk(vocab_size: int, k: int) -> None:
    x = make_logits(6, vocab_size).bfloat16().float()  # with many ties
    x[0] = -torch.inf
    x[1, -k:] += 100  # in the columns behind the last whole block too
    values, ids = largest(x, k)
    assert torch.equal(values, x.topk(k, dim=1).values)
    assert torch.equal(x.gather(1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())
