"""Decodes that begin with the same blocks: computed together, with the bits of each one alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worker.native.kernels import (
    VARIANT_NAMES,
    attend,
    count_units,
    kernels,
    make_step,
    row_of,
)
from tests.worker.native.libraries import library_of
from tests.worker.native.test_attention import check
from worker.attention.base import AttentionKind, BatchLayout, LayerKVCache
from worker.native.attention import NativeAttention
from worker.native.library import Team

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
ON_VARIANTS = pytest.mark.parametrize("variant", VARIANT_NAMES)
PLAIN = AttentionKind()

# Sequences, and how many of the first one's keys they begin with.
Prefix = tuple[Sequence[int], int]
Step = tuple[Tensor, LayerKVCache, BatchLayout]


def sharing(step: Step, *prefixes: Prefix) -> Step:
    """The step with the sequences' first keys in the same blocks."""
    q, cache, layout = step
    for (first, *others), num_keys in prefixes:
        num_blocks = num_keys // layout.block_size
        layout.block_tables[others, :num_blocks] = layout.block_tables[first, :num_blocks]
    return q, cache, layout


def check_alone(
    variant: str, step: Step, kind: AttentionKind = PLAIN, sinks: Tensor | None = None
) -> None:
    """On any number of threads each sequence's results are those of a batch of its own."""
    q, cache, layout = step
    library = kernels(variant)
    ends = np.cumsum(layout.query_lens).tolist()
    parts = [
        attend(library, q[end - count : end], cache, row_of(layout, row), kind, sinks)
        for row, (end, count) in enumerate(zip(ends, layout.query_lens.tolist(), strict=True))
    ]
    for num_threads in (1, 2, 5):
        together = attend(library, q, cache, layout, kind, sinks, num_threads, num_repeats=2)
        assert torch.equal(together, torch.cat(parts))


@dataclass(frozen=True)
class Case:
    """Sequences of (query, context) lengths, and the units that one thread's work is cut into."""

    lens: list[tuple[int, int]]
    prefixes: list[Prefix]
    num_units: int
    block_size: int = 16


CASES = {
    "one prefix": Case([(1, 1088)] * 8, [(range(8), 1024)], 2 + 8),
    "several groups": Case(
        [(1, 600), (1, 1100), (1, 900), (1, 1200), (1, 700)],
        [((0, 2), 512), ((1, 3), 1024)],
        (1 + 2) + (2 + 2) + 2,
    ),
    "nested": Case([(1, 1100)] * 3, [((0, 1), 1024), ((0, 2), 512)], 1 + 2 + 3),
    "ends inside a piece": Case([(1, 900)] * 3, [(range(3), 704)], 1 + 3),
    "shorter than a piece": Case([(1, 600)] * 3, [(range(3), 496)], 6),
    "more rows than a unit holds": Case([(1, 530)] * 80, [(range(80), 512)], 2 + 80),
    "several tokens": Case([(3, 700)] * 4, [(range(4), 512)], 1 + 4),
    "any number of tokens": Case([(1, 700), (4, 530), (2, 900)], [(range(3), 512)], 1 + 3),
    "tokens that do not see all of a piece": Case([(5, 1027)] * 2, [(range(2), 1008)], 1 + 4),
    "own tokens in the common blocks": Case([(1, 1024)] * 2, [(range(2), 1024)], 1 + 2),
    "beside prompts": Case(
        [(70, 730), (1, 700), (1, 600), (150, 150)], [(range(3), 512)], 2 * 2 + 2 * 3 + (1 + 2)
    ),
    "small blocks": Case([(1, 600)] * 3, [(range(3), 512)], 1 + 3, block_size=4),
    "blocks over the ends of pieces": Case([(1, 600)] * 3, [(range(3), 528)], 1 + 3, 48),
    "blocks that end before the piece": Case([(1, 600)] * 3, [(range(3), 480)], 6, 48),
    "a history with longer pieces": Case(
        [(1, 33000), (1, 1100), (1, 1100)], [(range(3), 1024)], 33 + (2 + 2)
    ),
}


@ON_VARIANTS
@DTYPES
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_sequence_is_as_it_is_alone(variant: str, dtype: torch.dtype, case: Case) -> None:
    step = make_step(case.lens, 6, 2, 16, case.block_size, dtype=dtype)
    check_alone(variant, sharing(step, *case.prefixes))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_common_pieces_are_computed_once(case: Case) -> None:
    step = sharing(make_step(case.lens, 6, 2, 16, case.block_size), *case.prefixes)
    assert count_units(kernels(VARIANT_NAMES[0]), *step, PLAIN) == case.num_units


KINDS = {
    "soft cap": AttentionKind(soft_cap=3.0),
    "alibi": AttentionKind(alibi_slopes=(0.5, 0.25, 0.01, 0.002)),
    "outgrown window": AttentionKind(window=600),
    "window that some outgrew": AttentionKind(window=1100),
}


@ON_VARIANTS
@DTYPES
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kinds_of_attention_share(variant: str, dtype: torch.dtype, kind: AttentionKind) -> None:
    step = make_step([(1, 1100), (3, 1200), (1, 1050)], 4, 2, 32, dtype=dtype)
    sinks = torch.tensor([0.5, -40.0, 30.0, 2.0])
    check_alone(variant, sharing(step, (range(3), 1024)), kind, sinks)


def test_only_within_the_window_is_anything_shared() -> None:
    step = sharing(make_step([(1, 1100)] * 3, 4, 2, 32), (range(3), 1024))
    library = kernels(VARIANT_NAMES[0])
    assert count_units(library, *step, AttentionKind(window=1099)) == 3 * 3
    assert count_units(library, *step, AttentionKind(window=1100)) == 2 + 3


def test_a_plan_for_several_groups_shares_what_all_of_them_do() -> None:
    lens = [(1, 1100)] * 3
    step = sharing(make_step(lens, 4, 2, 32), (range(3), 1024))
    *_, other = sharing(make_step(lens, 4, 2, 32), ((0, 1), 1024), ((0, 2), 512))
    *_, apart = make_step(lens, 4, 2, 32)
    library = kernels(VARIANT_NAMES[0])
    assert count_units(library, *step, PLAIN, step[2]) == 2 + 3
    assert count_units(library, *step, PLAIN, other) == 1 + 2 + 3
    assert count_units(library, *step, PLAIN, apart) == 3 * 3


@ON_VARIANTS
@DTYPES
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(16, 16), (8, 8), (16, 2), (70, 1)])
def test_any_heads_share(
    variant: str, dtype: torch.dtype, num_heads: int, num_kv_heads: int
) -> None:
    """Also where tiles are small for one sequence's rows, or a unit holds no second sequence's."""
    lens = [(1, 600), (1, 700), (5, 600), (5, 600), (2, 600)]
    step = make_step(lens, num_heads, num_kv_heads, 64, dtype=dtype)
    check_alone(variant, sharing(step, (range(5), 512)))


@ON_VARIANTS
@DTYPES
def test_latents_are_shared(variant: str, dtype: torch.dtype) -> None:
    step = make_step([(1, 560), (2, 600), (1, 700)], 16, 1, 576, dtype=dtype, is_shared=True)
    shared = sharing(step, (range(3), 512))
    assert count_units(kernels(variant), *shared, PLAIN) == 1 + 3
    check_alone(variant, shared, AttentionKind(scale=0.04))


@ON_VARIANTS
@DTYPES
def test_shared_prefix_matches_reference(variant: str, dtype: torch.dtype) -> None:
    step = make_step([(1, 1100), (3, 1200), (40, 1200), (1, 1050)], 6, 2, 64, dtype=dtype)
    check(variant, *sharing(step, (range(4), 1024)))


@ON_VARIANTS
def test_groups_of_layers_share_what_is_theirs(variant: str) -> None:
    """Their plans take turns in one object: what one group shares is not what another does."""
    lens = [(1, 600)] * 4
    first = sharing(make_step(lens, 4, 2, 32), ((0, 1), 512), ((2, 3), 512))
    second = sharing(make_step(lens, 4, 2, 32), ((0, 2), 512), ((1, 3), 512))
    library = library_of(variant)
    backend = NativeAttention(library, Team(library, 2))
    plans = [backend(layout, PLAIN) for _, _, layout in (first, second)]
    for (q, cache, layout), plan in [*zip((first, second), plans, strict=True)] * 2:
        wanted = attend(kernels(variant), q, cache, layout, PLAIN)
        assert torch.equal(plan.run(q, q, q, cache), wanted)
