"""Decode plans in fixed memory: other steps, groups and batch sizes, the same plans."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worker.attention.test_triton import HEADS, Step, step_of
from tests.worker.interpreted import DEVICE, HAS_GPU, TOLERANCE, runs_kernels
from worker.attention.base import AttentionKind, BatchLayout, LayerKVCache
from worker.attention.reference import ReferencePlan
from worker.attention.triton_paged import heads_of
from worker.attention.triton_static import PlanKey, StaticDecode, StaticPlan
from worker.attention.upload import Field, StepBuffer, upload

pytestmark = runs_kernels

KINDS = (AttentionKind(), AttentionKind(window=40, soft_cap=2.0))


def static_decode(step: Step, keys: list[PlanKey], max_rows: int = 4) -> StaticDecode:
    _, q, cache = step
    heads = {key: heads_of(q, cache, key[0]) for key in keys}
    extra = {"positions": Field((max_rows,), np.int64)}
    return StaticDecode(heads, max_rows, max_blocks=200, device=DEVICE, extra=extra)


def run(plan: StaticPlan, q: Tensor, cache: LayerKVCache, num_rows: int) -> Tensor:
    """With rows of padding behind the step's."""
    padding = q.new_full((num_rows - len(q), *q.shape[1:]), 7.0)
    padded = torch.cat((q, padding))
    return plan.run(padded, padded[:0], padded[:0], cache)


def expected(layout: BatchLayout, kind: AttentionKind, q: Tensor, cache: LayerKVCache) -> Tensor:
    return ReferencePlan(layout, kind).run(q, q[:0], q[:0], cache)


def test_plans_follow_what_is_filled_in() -> None:
    steps = [step_of([(1, n) for n in lens], HEADS[0]) for lens in ((700, 3), (9,), (40, 41, 300))]
    keys: list[PlanKey] = [(kind, 0) for kind in KINDS]
    static = static_decode(steps[0], keys)
    plans = {num_rows: static.plans(num_rows) for num_rows in (3, 4)}
    for num_rows, (layout, q, cache) in zip((3, 4, 3), steps, strict=True):
        static.fill([layout], num_rows)
        for kind in KINDS:
            found = run(plans[num_rows][kind, 0], q, cache, num_rows)
            rows = len(q)
            wanted = expected(layout, kind, q, cache)
            torch.testing.assert_close(found[:rows], wanted, rtol=TOLERANCE, atol=TOLERANCE)
            assert not found[rows:].any()  # and no NaN


def test_groups_have_tables_of_their_own() -> None:
    layout, q, cache = step_of([(1, 100), (1, 60)], HEADS[0])
    other = dataclasses.replace(layout, block_tables=layout.block_tables[::-1].copy())
    other.block_tables[other.block_tables == other.block_tables[0, -1]] = 0
    keys: list[PlanKey] = [(KINDS[0], 0), (KINDS[0], 1)]
    cache.k.nan_to_num_(), cache.v.nan_to_num_()
    static = static_decode((layout, q, cache), keys)
    plans = static.plans(2)
    static.fill([layout, other], 2)
    for group, its_layout in enumerate((layout, other)):
        found = run(plans[KINDS[0], group], q, cache, 2)
        wanted = expected(its_layout, KINDS[0], q, cache)
        torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_extra_fields_travel_with_the_work() -> None:
    step = step_of([(1, 30)], HEADS[0])
    static = static_decode(step, [(KINDS[0], 0)])
    positions = static.buffer.device["positions"]
    for value in (5, 6, 7, 8):
        static.buffer.host("positions")[:2] = (value, -value)
        static.fill([step[0]], 1)
        assert positions[:2].tolist() == [value, -value]


def test_a_step_of_chunks_is_not_for_decode_plans() -> None:
    step = step_of([(2, 30)], HEADS[0])
    static = static_decode(step, [(KINDS[0], 0)])
    with pytest.raises(AssertionError):
        static.fill([step[0]], 2)


def test_a_buffer_copies_what_was_written_before_the_commit() -> None:
    buffer = StepBuffer({"a": Field((3,)), "b": Field((2, 2), np.int64), "c": Field((5,))}, DEVICE)
    buffer.host("a")[:] = (1, 2, 3)
    buffer.host("b")[:] = ((4, 5), (6, 7))
    buffer.host("c")[:] = 9
    buffer.commit("c", 2)
    assert buffer.device["a"].tolist() == [1, 2, 3]
    assert buffer.device["b"].tolist() == [[4, 5], [6, 7]]
    assert buffer.device["c"].tolist() == [9, 9, 0, 0, 0]
    buffer.host("c")[:] = 8
    buffer.commit()
    assert buffer.device["c"].tolist() == [8] * 5


def test_uploaded_arrays_keep_shape_and_type() -> None:
    arrays = [np.arange(5, dtype=np.int32), np.ones((2, 3), np.float32), np.zeros(0, np.int64)]
    for array, tensor in zip(arrays, upload(arrays, DEVICE), strict=True):
        assert tensor.device.type == DEVICE.type
        assert np.array_equal(tensor.cpu().numpy(), array) and tensor.shape == array.shape


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_a_captured_graph_computes_other_steps() -> None:
    steps = [step_of([(1, n) for n in lens], HEADS[0]) for lens in ((700, 3), (40, 500))]
    static = static_decode(steps[0], [(KINDS[0], 0)])
    plan = static.plans(2)[KINDS[0], 0]
    q, cache = (
        steps[0][1].clone(),
        LayerKVCache(torch.zeros_like(steps[1][2].k), torch.zeros_like(steps[1][2].v)),
    )
    static.fill([steps[0][0]], 2)
    plan.run(q, q[:0], q[:0], steps[0][2])  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = plan.run(q, q[:0], q[:0], cache)
    layout, other_q, other_cache = steps[1]
    q.copy_(other_q), cache.k.copy_(other_cache.k), cache.v.copy_(other_cache.v)
    static.fill([layout], 2)
    graph.replay()
    wanted = expected(layout, KINDS[0], other_q, other_cache)
    torch.testing.assert_close(out, wanted, rtol=TOLERANCE, atol=TOLERANCE)
