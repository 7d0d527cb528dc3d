"""What the machine allows a model: the formulas that `of limit` is quoted with."""

import math

import pytest

from benchmarks.limits import (
    Limits,
    best_limits,
    chunk_seconds,
    decode_seconds,
    measure_limits,
    num_layer_weights,
    output_tokens_per_s,
    prefill_seconds,
)
from benchmarks.models import random_weights
from benchmarks.shapes import LARGE_SHAPES, SHAPES
from benchmarks.tensor_shapes import tensor_shapes

LIMITS = Limits(read_gb_s=40.0, bf16_gflop_s=400.0, num_threads=2)


def test_counts_the_weights_that_a_checkpoint_has() -> None:
    for shape in (SHAPES | LARGE_SHAPES).values():
        of_layers = [
            math.prod(size)
            for size in tensor_shapes(shape).values()
            if len(size) == 2 and shape.vocab_size not in size
        ]
        assert sum(of_layers) == num_layer_weights(shape)


def test_one_stream_is_bound_by_reading() -> None:
    shape = SHAPES["135m"]
    num_bytes = 2 * sum(w.numel() for w in random_weights(shape).values() if w.dim() == 2)
    assert decode_seconds(shape, LIMITS, batch=1, context=0) == num_bytes / 40e9


def test_many_streams_are_bound_by_operations() -> None:
    shape = SHAPES["135m"]
    few, many = (decode_seconds(shape, LIMITS, n, context=0) for n in (1000, 2000))
    assert abs(many / few - 2) < 1e-9


def test_a_shared_prefix_is_charged_once_over_all_requests() -> None:
    shape = SHAPES["135m"]
    whole = output_tokens_per_s(shape, LIMITS, 1088, 32, 8)
    shared = output_tokens_per_s(shape, LIMITS, 1088, 32, 8, 1024, num_requests=32)
    assert shared > 3 * whole


def test_a_chunk_is_charged_for_what_came_before_it() -> None:
    shape = SHAPES["135m"]
    halves = (chunk_seconds(shape, LIMITS, start, 500) for start in (0, 500))
    assert sum(halves) == pytest.approx(prefill_seconds(shape, LIMITS, 1000))


def test_of_experts_only_the_chosen_are_read() -> None:
    shape = LARGE_SHAPES["30b-a3b"]
    few = decode_seconds(shape, LIMITS, batch=1, context=0) * LIMITS.read_gb_s * 1e9 / 2
    head = shape.vocab_size * shape.hidden_size
    assert few == pytest.approx(num_layer_weights(shape, num_experts=8) + head)


def test_the_better_of_two_measurements_counts() -> None:
    both = best_limits(LIMITS, Limits(read_gb_s=30.0, bf16_gflop_s=500.0, num_threads=2))
    assert (both.read_gb_s, both.bf16_gflop_s) == (40.0, 500.0)


def test_limits_are_measured() -> None:
    limits = measure_limits(1, seconds=0.0, num_bytes=1 << 20)
    assert limits.read_gb_s > 0 and limits.copy_gb_s > 0 and limits.bf16_gflop_s > 0
    assert (limits.num_threads, limits.device) == (1, "cpu")
