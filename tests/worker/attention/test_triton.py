"""The Triton backend equals the reference: mixtures, head sizes, and every family's options.

On a machine without a GPU the kernels run in Triton's interpreter; on one with a card the same
grid runs compiled, under the `gpu` marker.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worker.attention.test_backends import MIXTURES, make_step
from tests.worker.interpreted import DEVICE, HAS_GPU, TOLERANCE, runs_kernels
from worker.attention.base import AttentionBackend, AttentionKind, BatchLayout, LayerKVCache
from worker.attention.reference import ReferencePlan
from worker.attention.registry import attention_backend

pytestmark = runs_kernels

# Long enough that histories are cut into pieces, and that chunks have keys which all tokens see.
LONG_MIXTURES = {
    "long decodes": [(1, 700), (1, 3), (1, 390)],
    "a chunk of a long history": [(40, 400)],
    "chunks and decodes": [(1, 300), (36, 36), (3, 150), (34, 200), (1, 1)],
}
ALL_MIXTURES = MIXTURES | LONG_MIXTURES
# heads, kv heads, head_dim: groups of 1 to 24, sizes that are powers of two and that are not
HEADS = [(4, 2, 16), (3, 3, 24), (24, 1, 8)]
SHAPES = [(HEADS[0], None), (HEADS[1], 1), (HEADS[2], 40), (HEADS[0], 170)]  # and windows

Step = tuple[BatchLayout, Tensor, LayerKVCache]


def triton_backend() -> AttentionBackend:
    return attention_backend("triton", DEVICE)


def step_of(
    mixture: list[tuple[int, int]],
    heads: tuple[int, int, int],
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    is_shared: bool = False,
) -> Step:
    """On the device under test. Values of slots that no token was written to are NaN."""
    layout, q, _, _, cache = make_step(mixture, heads, block_size)
    is_used = torch.zeros(cache.k.shape[:2], dtype=torch.bool)
    for table, context_len in zip(layout.block_tables, layout.context_lens.tolist(), strict=True):
        for position in range(context_len):
            is_used[int(table[position // block_size]), position % block_size] = True
    cache.k[~is_used], cache.v[~is_used] = torch.nan, torch.nan
    k, v = cache.k.to(DEVICE, dtype), cache.v.to(DEVICE, dtype)
    layout = dataclasses.replace(layout, device=DEVICE, dtype=dtype)
    return layout, q.to(DEVICE, dtype), LayerKVCache(k, k if is_shared else v)


def check(
    step: Step, kind: AttentionKind, sinks: Tensor | None = None, tolerance: float = TOLERANCE
) -> None:
    layout, q, cache = step
    empty = q[:0]  # this backend reads the step's keys and values from the cache
    found = triton_backend()(layout, kind).run(q, empty, empty, cache, sinks)
    expected = ReferencePlan(layout, kind).run(q, empty, empty, cache, sinks)
    expected = expected[..., : kind.value_dim]
    message = f"{kind} {tuple(q.shape)} {tuple(cache.k.shape)}"
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=message)


@pytest.mark.parametrize("mixture", ALL_MIXTURES)
def test_equals_reference(mixture: str) -> None:
    for heads, window in SHAPES:
        check(step_of(ALL_MIXTURES[mixture], heads), AttentionKind(window))


@pytest.mark.parametrize("block_size", [1, 4, 48])
def test_blocks_may_have_any_size(block_size: int) -> None:
    check(step_of([(1, 140), (30, 50), (3, 3)], HEADS[0], block_size), AttentionKind())


OPTIONS = {
    "scale": (AttentionKind(scale=0.7), False),
    "alibi": (AttentionKind(alibi_slopes=(0.5, 0.25, 0.01, 0.002)), False),
    "soft cap": (AttentionKind(soft_cap=0.7), False),
    "sinks": (AttentionKind(), True),
    "sinks and window": (AttentionKind(40), True),
    "all": (AttentionKind(130, 0.3, 2.0, (0.5, 0.25, 0.01, 0.002)), True),
}


@pytest.mark.parametrize("mixture", ["long decodes", "chunks and decodes"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_equal_reference(mixture: str, option: str) -> None:
    kind, has_sinks = OPTIONS[option]
    sinks = torch.tensor([-1.0, 0.5, 4.0, 2.0], device=DEVICE) if has_sinks else None
    check(step_of(ALL_MIXTURES[mixture], HEADS[0]), kind, sinks)


# Sizes that stand in models: powers of two, those that are not, the largest of each kind.
@pytest.mark.parametrize("head_dim", [64, 72, 80, 96, 112, 120, 128, 160, 192, 256])
def test_head_sizes_of_models(head_dim: int) -> None:
    check(step_of([(1, 150), (3, 3)], (4, 2, head_dim)), AttentionKind(), tolerance=1e-5)


@pytest.mark.parametrize(
    ("latent", "rotated", "heads"), [(512, 64, 16), (512, 64, 128), (12, 4, 3), (40, 8, 2)]
)
def test_latents_are_keys_and_values(latent: int, rotated: int, heads: int) -> None:
    """Of the latent attention: the values are the leading numbers of the keys."""
    mixtures = [[(1, 170), (1, 7)], [(20, 50), (2, 2)]]
    for mixture in mixtures if heads < 100 else mixtures[:1]:
        step = step_of(mixture, (heads, 1, latent + rotated), is_shared=True)
        check(step, AttentionKind(scale=0.1, value_dim=latent), tolerance=1e-5)


def test_more_query_heads_than_a_tile_has_rows() -> None:
    check(step_of([(1, 200), (2, 9), (10, 10)], (71, 1, 16)), AttentionKind())


# The interpreter cannot multiply bfloat16.
@pytest.mark.parametrize("dtype", [torch.float16] + [torch.bfloat16] * HAS_GPU)
def test_short_types_keep_their_precision(dtype: torch.dtype) -> None:
    check(step_of([(1, 300), (36, 100)], HEADS[0], dtype=dtype), AttentionKind(150), None, 2e-2)


@pytest.mark.parametrize("mixture", ["decodes around prompts", *LONG_MIXTURES])
def test_nothing_before_the_window_is_read(mixture: str) -> None:
    for window in (7, 170):
        layout, q, cache = step_of(ALL_MIXTURES[mixture], HEADS[0])
        kind = AttentionKind(window)
        expected = ReferencePlan(layout, kind).run(q, q[:0], q[:0], cache)
        for row, table in enumerate(layout.block_tables):
            first_query = int(layout.context_lens[row] - layout.query_lens[row])
            for block_id in table[: max(0, first_query - window + 1) // layout.block_size]:
                cache.k[int(block_id)] = cache.v[int(block_id)] = torch.nan
        found = triton_backend()(layout, kind).run(q, q[:0], q[:0], cache)
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_queries_may_be_a_part_of_wider_rows() -> None:
    layout, q, cache = step_of(MIXTURES["decodes around prompts"], HEADS[0])
    wide = torch.cat((q, torch.full_like(q, torch.nan)), dim=1)
    check((layout, wide[:, : q.shape[1]], cache), AttentionKind())


def test_keys_may_stand_in_wider_rows() -> None:
    """A cache whose layers share memory: strides are the tensor's own."""
    layout, q, cache = step_of(MIXTURES["decodes around prompts"], HEADS[0])
    wide = torch.stack((cache.k, cache.v), dim=2)
    check((layout, q, LayerKVCacheViews(wide[:, :, 0], wide[:, :, 1])), AttentionKind())


class LayerKVCacheViews(LayerKVCache):
    """Of tensors that are not contiguous, which only reading can do with."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v, self.group = k, v, 0


def test_one_plan_serves_layers_of_different_heads() -> None:
    plan = None
    for heads in HEADS[:2]:
        layout, q, cache = step_of([(1, 40), (5, 9)], heads)
        plan = plan or triton_backend()(layout, AttentionKind())
        expected = ReferencePlan(layout, AttentionKind()).run(q, q[:0], q[:0], cache)
        found = plan.run(q, q[:0], q[:0], cache)
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_sequence_is_computed_alike_in_any_company() -> None:
    """Whatever the batch, but for how its history is cut: here it is not."""
    mixture = [(1, 90), (1, 100), (1, 7)]
    layout, q, cache = step_of(mixture, HEADS[0])
    together = triton_backend()(layout, AttentionKind()).run(q, q[:0], q[:0], cache)
    for row in range(3):
        part = slice(row, row + 1)
        alone = BatchLayout(
            layout.query_lens[part], layout.context_lens[part], layout.block_tables[part],
            layout.block_size, layout.dtype, layout.device,
        )  # fmt: skip
        found = triton_backend()(alone, AttentionKind()).run(q[part], q[:0], q[:0], cache)
        assert np.array_equal(found.cpu().numpy(), together[part].cpu().numpy())
