"""What the machine allows a model: the formulas that `of limit` is quoted with."""

from benchmarks.limits import Limits, decode_seconds, num_layer_weights, output_tokens_per_s
from benchmarks.models import random_weights
from benchmarks.shapes import SHAPES

LIMITS = Limits(read_gb_s=40.0, bf16_gflop_s=400.0, num_threads=2)


def test_counts_the_weights_that_a_checkpoint_has() -> None:
    for name in ("tiny", "135m"):
        shape = SHAPES[name]
        matrices = [w for w in random_weights(shape).values() if w.dim() == 2]
        embedding = shape.vocab_size * shape.hidden_size
        assert sum(w.numel() for w in matrices) == num_layer_weights(shape) + embedding


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
