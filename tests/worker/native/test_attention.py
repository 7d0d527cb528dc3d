"""Native attention equals the definition, over shapes, kinds, mixtures of lengths and variants."""

import pytest
import torch
from torch import Tensor

from tests.worker.native.kernels import VARIANT_NAMES, attend, kernels, make_step, row_of
from worker.attention.base import AttentionKind, BatchLayout, LayerKVCache

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
MIXED = [(1, 1), (1, 40), (5, 200), (8, 129), (33, 33), (50, 170), (1, 700)]
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16"])
ON_VARIANTS = pytest.mark.parametrize("variant", VARIANT_NAMES)


def expected(
    q: Tensor, cache: LayerKVCache, layout: BatchLayout, kind: AttentionKind, sinks: Tensor | None
) -> Tensor:
    """The definition, one sequence at a time, in fp32."""
    parts, start = [], 0
    for row, (query_len, context_len) in enumerate(
        zip(layout.query_lens.tolist(), layout.context_lens.tolist(), strict=True)
    ):
        blocks = torch.from_numpy(layout.block_tables[row])
        k, v = (
            x[blocks].flatten(0, 1)[:context_len].transpose(0, 1).float()
            for x in (cache.k, cache.v)
        )
        queries = q[start : start + query_len].transpose(0, 1).float()
        parts.append(one_sequence(queries, k, v, kind, sinks).transpose(0, 1))
        start += query_len
    return torch.cat(parts)


def one_sequence(
    q: Tensor, k: Tensor, v: Tensor, kind: AttentionKind, sinks: Tensor | None
) -> Tensor:
    """q: [heads, n, head_dim]; k, v: [kv_heads, L, head_dim]; returns q's shape."""
    num_heads, num_queries, head_dim = q.shape
    k, v = (x.repeat_interleave(num_heads // len(x), dim=0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * (kind.scale or head_dim**-0.5)
    if kind.soft_cap is not None:
        scores = kind.soft_cap * torch.tanh(scores / kind.soft_cap)
    length = k.shape[1]
    positions = torch.arange(length - num_queries, length)[:, None]
    distances = positions - torch.arange(length)
    if kind.alibi_slopes:
        scores = scores - torch.tensor(kind.alibi_slopes)[:, None, None] * distances
    is_hidden = distances < 0
    if kind.window is not None:
        is_hidden |= distances >= kind.window
    scores = scores.masked_fill(is_hidden, -torch.inf)
    if sinks is not None:
        column = sinks[:, None, None].expand(num_heads, num_queries, 1)
        scores = torch.cat((scores, column), dim=2)
    return scores.softmax(dim=2)[:, :, :length] @ v


def check(
    variant: str,
    q: Tensor,
    cache: LayerKVCache,
    layout: BatchLayout,
    kind: AttentionKind | None = None,
    sinks: Tensor | None = None,
    num_threads: int = 2,
) -> None:
    kind = kind or AttentionKind()
    out = attend(kernels(variant), q, cache, layout, kind, sinks, num_threads)
    difference = (out.float() - expected(q, cache, layout, kind, sinks)).abs().max()
    assert difference < TOLERANCES[q.dtype]


@ON_VARIANTS
@DTYPES
@pytest.mark.parametrize("head_dim", [12, 32, 64, 80, 96, 128, 256])
def test_any_head_dim_matches_reference(variant: str, dtype: torch.dtype, head_dim: int) -> None:
    check(variant, *make_step(MIXED, 4, 2, head_dim, dtype=dtype))


@ON_VARIANTS
@DTYPES
@pytest.mark.parametrize("group", [1, 3, 4, 7, 8, 14])
def test_grouped_heads_match_reference(variant: str, dtype: torch.dtype, group: int) -> None:
    check(variant, *make_step(MIXED, 2 * group, 2, 32, dtype=dtype))


@ON_VARIANTS
@pytest.mark.parametrize("window", [5, 40, 100, 130])
def test_wide_rows_with_windows_match_reference(variant: str, window: int) -> None:
    step = make_step([(1, 333), (3, 200), (30, 190)], 16, 16, 64)  # tiles of the fewest keys
    check(variant, *step, AttentionKind(window=window))


@ON_VARIANTS
@pytest.mark.parametrize("block_size", [4, 16, 32, 48])
def test_any_block_size_matches_reference(variant: str, block_size: int) -> None:
    check(variant, *make_step(MIXED, 3, 3, 32, block_size))


KINDS = {
    "window within a tile": AttentionKind(window=7),
    "window over tiles": AttentionKind(window=150),
    "window over pieces": AttentionKind(window=600),
    "scale": AttentionKind(scale=0.05),
    "soft cap": AttentionKind(soft_cap=3.0),
    "alibi": AttentionKind(alibi_slopes=(0.5, 0.25, 0.01, 0.002)),
    "all": AttentionKind(90, 0.3, 2.0, (0.5, 0.25, 0.01, 0.002)),
}


@ON_VARIANTS
@DTYPES
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kinds_match_reference(
    variant: str, dtype: torch.dtype, kind: AttentionKind, has_sinks: bool
) -> None:
    sinks = torch.tensor([0.5, -40.0, 30.0, 2.0]) if has_sinks else None
    check(variant, *make_step(MIXED, 4, 2, 32, dtype=dtype), kind, sinks)


@ON_VARIANTS
@DTYPES
def test_shared_latents_match_reference(variant: str, dtype: torch.dtype) -> None:
    step = make_step([(1, 300), (20, 60)], 16, 1, 576, dtype=dtype, is_shared=True)
    check(variant, *step, AttentionKind(scale=0.04))


@ON_VARIANTS
@pytest.mark.parametrize("context_len", [1, 15, 16, 17, 127, 128, 129, 512, 513, 1025, 3000])
def test_decode_at_any_length_matches_reference(variant: str, context_len: int) -> None:
    check(variant, *make_step([(1, context_len)], 4, 2, 32))


@ON_VARIANTS
def test_result_does_not_depend_on_batch_or_threads(variant: str) -> None:
    lens = [(1, 1300), (40, 260), (3, 700)]
    q, cache, layout = make_step(lens, 6, 2, 32)
    kind = AttentionKind()
    together = attend(kernels(variant), q, cache, layout, kind, num_threads=2)
    start = 0
    for row, (query_len, _) in enumerate(lens):
        alone = row_of(layout, row)
        part = slice(start, start + query_len)
        for num_threads in (1, 3):
            out = attend(kernels(variant), q[part], cache, alone, kind, num_threads=num_threads)
            assert torch.equal(out, together[part])
        start += query_len


@ON_VARIANTS
def test_token_within_a_chunk_does_not_see_later_ones(variant: str) -> None:
    q, cache, layout = make_step([(60, 200)], 2, 1, 32)
    before = attend(kernels(variant), q, cache, layout, AttentionKind())
    table = layout.block_tables[0]
    cache.k[int(table[12]), 7] += 5  # position 199
    after = attend(kernels(variant), q, cache, layout, AttentionKind())
    assert torch.equal(before[:-1], after[:-1])
    assert not torch.equal(before[-1], after[-1])


@ON_VARIANTS
def test_nan_in_the_cache_reaches_the_result(variant: str) -> None:
    q, cache, layout = make_step([(1, 300)], 2, 1, 32)
    cache.v[int(layout.block_tables[0, 3]), 2, 0, 5] = torch.nan
    out = attend(kernels(variant), q, cache, layout, AttentionKind())
    assert out[:, :, 5].isnan().all()
    assert not out[:, :, 6].isnan().any()


@ON_VARIANTS
@pytest.mark.parametrize("lens", [(1, 700), (40, 700)], ids=["decode", "chunk"])
def test_blocks_before_the_window_are_not_read(variant: str, lens: tuple[int, int]) -> None:
    """They may be another sequence's by now."""
    q, cache, layout = make_step([lens], 4, 2, 32)
    kind = AttentionKind(window=150)
    wanted = attend(kernels(variant), q, cache, layout, kind)
    first_seen = lens[1] - lens[0] - 150 + 1
    for block in layout.block_tables[0, : first_seen // layout.block_size].tolist():
        cache.k[block] = cache.v[block] = torch.nan
    assert torch.equal(attend(kernels(variant), q, cache, layout, kind), wanted)
