"""The native attention backend in place of torch's, as layers call it."""

import ctypes

import pytest
import torch

from tests.worker.native.kernels import VARIANT_NAMES, kernels, make_step
from tests.worker.native.test_attention import TOLERANCES, expected
from worker.attention.base import AttentionKind
from worker.native.attention import NativeAttention
from worker.native.library import Team

ON_VARIANTS = pytest.mark.parametrize("variant", VARIANT_NAMES)
KIND = AttentionKind(window=60, soft_cap=4.0, alibi_slopes=(0.1, 0.2, 0.3, 0.4))


def backend(library: ctypes.CDLL, num_threads: int = 2) -> NativeAttention:
    return NativeAttention(library, Team(library, num_threads))


@ON_VARIANTS
@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16"])
def test_steps_of_several_kinds_match_reference(variant: str, dtype: torch.dtype) -> None:
    attention = backend(kernels(variant))
    sinks = torch.tensor([0.5, -4.0, 3.0, 2.0], dtype=dtype)
    for seed in range(2):  # a plan takes the former step's place
        lens = [(1, 700), (30, 90)] if seed else [(40, 40)]
        q, cache, layout = make_step(lens, 4, 2, 24, dtype=dtype, seed=seed)
        plans = {kind: attention(layout, kind) for kind in (KIND, AttentionKind())}
        for kind, plan in plans.items():
            for own_sinks in (None, sinks):
                out = plan.run(q, q, q, cache, own_sinks)
                wide = None if own_sinks is None else own_sinks.float()
                difference = (out.float() - expected(q, cache, layout, kind, wide)).abs().max()
                assert out.dtype == dtype
                assert difference < TOLERANCES[dtype]


@ON_VARIANTS
def test_queries_may_be_part_of_wider_rows(variant: str) -> None:
    q, cache, layout = make_step([(5, 50)], 4, 2, 32)
    rows = torch.full((5, 6, 32), torch.nan)
    rows[:, :4] = q
    turned = q.transpose(1, 2).contiguous().transpose(1, 2)  # not side by side
    plan = backend(kernels(variant))(layout, AttentionKind())
    wanted = plan.run(q, q, q, cache)
    assert torch.equal(plan.run(rows[:, :4], q, q, cache), wanted)
    assert torch.equal(plan.run(turned, q, q, cache), wanted)
