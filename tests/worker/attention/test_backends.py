"""The gathered backend equals the reference over mixtures, head counts, windows and block sizes."""

import itertools

import numpy as np
import pytest
import torch

from worker.attention import registry
from worker.attention.base import AttentionBackend, AttentionKind, BatchLayout, LayerKVCache
from worker.attention.gathered import decode_batches, gathered_attention
from worker.attention.reference import ReferencePlan
from worker.attention.registry import attention_backend
from worker.errors import InvalidRequest

# (query_len, context_len) of each sequence in a step
MIXTURES = {
    "one decode": [(1, 1)],
    "one long decode": [(1, 130)],
    "decodes of one length": [(1, 32)] * 3,
    "decodes filling their blocks": [(1, 16), (1, 32)],
    "decodes of very different lengths": [(1, 700), (1, 3), (1, 5), (1, 690), (1, 2)],
    "a whole prompt": [(23, 23)],
    "a later chunk": [(7, 40)],
    "a chunk of two": [(2, 100)],
    "decodes around prompts": [(1, 9), (12, 12), (1, 50), (5, 31), (1, 1), (33, 64)],
}
HEADS = [(4, 4, 8), (4, 2, 16), (6, 1, 8)]  # heads, kv heads, head_dim
WINDOWS = [None, 1, 7, 40]


def make_step(
    mixture: list[tuple[int, int]], heads: tuple[int, int, int], block_size: int
) -> tuple[BatchLayout, torch.Tensor, torch.Tensor, torch.Tensor, LayerKVCache]:
    """Random history in scattered blocks; the step's own keys and values are in the cache."""
    generator = torch.Generator().manual_seed(7)
    num_heads, num_kv_heads, head_dim = heads
    counts = [-(-context // block_size) for _, context in mixture]
    block_ids = torch.randperm(sum(counts) + 3, generator=generator).tolist()
    shape = (len(block_ids), block_size, num_kv_heads, head_dim)
    cache = LayerKVCache(
        torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    )
    tables = np.full((len(mixture), max(counts)), block_ids.pop(), dtype=np.int32)
    keys, values = [], []
    for row, (query_len, context_len) in enumerate(mixture):
        tables[row, : counts[row]] = [block_ids.pop() for _ in range(counts[row])]
        for position in range(context_len - query_len, context_len):
            block, offset = int(tables[row, position // block_size]), position % block_size
            keys.append(cache.k[block, offset])
            values.append(cache.v[block, offset])
    lens = np.array(mixture, dtype=np.int32)
    layout = BatchLayout(
        lens[:, 0], lens[:, 1], tables, block_size, torch.float32, torch.device("cpu")
    )
    q = torch.randn(len(keys), num_heads, head_dim, generator=generator)
    return layout, q, torch.stack(keys), torch.stack(values), cache


@pytest.mark.parametrize("mixture", MIXTURES)
def test_gathered_equals_reference(mixture: str) -> None:
    for heads, window, block_size in itertools.product(HEADS, WINDOWS, (4, 16)):
        layout, q, k, v, cache = make_step(MIXTURES[mixture], heads, block_size)
        found = gathered_attention(layout, AttentionKind(window)).run(q, k, v, cache)
        expected = ReferencePlan(layout, AttentionKind(window)).run(q, k, v, cache)
        message = f"heads={heads} window={window} block_size={block_size}"
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=message)


@pytest.mark.parametrize("backend", [gathered_attention, ReferencePlan])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_nothing_before_the_window_is_read(mixture: str, backend: AttentionBackend) -> None:
    """Blocks wholly before it may hold another sequence by now; here they hold NaNs."""
    for window, block_size in itertools.product((1, 7, 40), (4, 16)):
        layout, q, k, v, cache = make_step(MIXTURES[mixture], HEADS[1], block_size)
        expected = ReferencePlan(layout, AttentionKind(window)).run(q, k, v, cache)
        for row, table in enumerate(layout.block_tables):
            first_query = int(layout.context_lens[row] - layout.query_lens[row])
            for block_id in table[: max(0, first_query - window + 1) // block_size]:
                cache.k[int(block_id)] = cache.v[int(block_id)] = torch.nan
        found = backend(layout, AttentionKind(window)).run(q, k, v, cache)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_gathered_equals_reference_with_alibi_and_scale(mixture: str) -> None:
    for heads, window, block_size in itertools.product(HEADS, (None, 7), (4, 16)):
        slopes = tuple(2.0 ** -(1 + head) for head in range(heads[0]))
        kind = AttentionKind(window, scale=0.7, alibi_slopes=slopes)
        layout, q, k, v, cache = make_step(MIXTURES[mixture], heads, block_size)
        found = gathered_attention(layout, kind).run(q, k, v, cache)
        expected = ReferencePlan(layout, kind).run(q, k, v, cache)
        message = f"heads={heads} window={window} block_size={block_size}"
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=message)


def test_written_keys_are_found_by_slot() -> None:
    cache = LayerKVCache(torch.zeros(3, 4, 2, 5), torch.zeros(3, 4, 2, 5))
    k, v = torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    cache.write(torch.tensor([9, 2]), k, v)
    assert torch.equal(cache.k[2, 1], k[0]) and torch.equal(cache.v[2, 1], v[0])
    assert torch.equal(cache.k[0, 2], k[1]) and torch.equal(cache.v[0, 2], v[1])
    assert cache.k.count_nonzero() == k.count_nonzero()


def test_similar_decodes_form_one_batch_in_step_order() -> None:
    lens = np.array([30, 28, 33, 31], dtype=np.int32)
    (batch,) = decode_batches(lens, np.arange(4), None)
    assert batch.tolist() == [0, 1, 2, 3]


def test_one_long_decode_does_not_pad_many_short_ones() -> None:
    lens = np.array([20, 9000, 24, 18, 22], dtype=np.int32)
    batches = [sorted(batch.tolist()) for batch in decode_batches(lens, np.arange(5), None)]
    assert batches == [[1], [0, 2, 3, 4]]


def test_window_makes_long_and_short_decodes_similar() -> None:
    lens = np.array([20, 9000, 24], dtype=np.int32)
    assert len(decode_batches(lens, np.arange(3), 32)) == 1


def test_gathered_history_of_one_batch_is_bounded() -> None:
    lens = np.full(64, 32768, dtype=np.int32)
    batches = decode_batches(lens, np.arange(64), None)
    assert sum(len(batch) for batch in batches) == 64
    assert max(len(batch) * 32768 for batch in batches) <= 1 << 18


def test_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="'turbo'; known: gathered, reference, triton"):
        attention_backend("turbo", torch.device("cpu"))


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(InvalidRequest, match=r"'triton' needs a CUDA device .* this is cpu"):
        attention_backend("triton", torch.device("cpu"))


def test_auto_on_a_cpu_gathers_also_where_kernels_are_interpreted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert attention_backend("auto", torch.device("cpu")) is gathered_attention


def test_a_gpu_without_a_c_compiler_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton compiles its launchers with one; images for serving often have none."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    registry._compiles_triton.cache_clear()
    assert attention_backend("auto", torch.device("cuda")) is gathered_attention
    registry._compiles_triton.cache_clear()
