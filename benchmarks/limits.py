"""What this machine allows: read bandwidth and matrix rate, and what they make of a model's shape.

Measured in the same run as whatever is compared with them, since virtual machines change from hour
to hour. Best of several passes, as a limit is meant.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.models import Shape

_READ_BYTES = 1 << 30
# Large enough for oneDNN's best rate, small enough for a second.
_GEMM_SHAPES = [(2048, 2048, 2048), (1500, 4864, 896)]


@dataclass(frozen=True, slots=True)
class Limits:
    read_gb_s: float
    bf16_gflop_s: float
    num_threads: int


def measure_limits(num_threads: int, seconds: float = 2.0) -> Limits:
    torch.set_num_threads(num_threads)
    data = torch.ones(_READ_BYTES // 4)
    read = _READ_BYTES / best_seconds(data.sum, seconds) / 1e9
    rates = []
    for m, n, k in _GEMM_SHAPES:
        rates.append(2 * m * n * k / _product_seconds(m, n, k, seconds) / 1e9)
    return Limits(read, max(rates), num_threads)


def _product_seconds(m: int, n: int, k: int, seconds: float) -> float:
    x, w = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
    return best_seconds(lambda: F.linear(x, w), seconds)


def best_seconds(run: Callable[[], object], seconds: float) -> float:
    """The fastest of the calls that fit into `seconds`, at least three."""
    run()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def num_layer_weights(shape: Shape) -> int:
    """Of all layers' matrices."""
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention = shape.hidden_size * (2 * q_size + 2 * kv_size)
    return shape.num_layers * (attention + 3 * shape.hidden_size * shape.intermediate_size)


def prefill_seconds(shape: Shape, limits: Limits, num_tokens: int) -> float:
    """Two operations per weight and token, and causal attention's two products."""
    weights = 2 * num_layer_weights(shape) * num_tokens
    attention = 2 * num_tokens**2 * shape.num_layers * shape.num_heads * shape.head_dim
    return (weights + attention) / (limits.bf16_gflop_s * 1e9)


def decode_seconds(shape: Shape, limits: Limits, batch: int, context: int) -> float:
    """One step: weights read once, every sequence's keys and values read once, or the products'
    operations where those take longer.
    """
    weights = num_layer_weights(shape) + shape.vocab_size * shape.hidden_size
    kv_per_token = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    read = 2 * (weights + batch * context * kv_per_token) / (limits.read_gb_s * 1e9)
    return max(read, 2 * weights * batch / (limits.bf16_gflop_s * 1e9))


def output_tokens_per_s(
    shape: Shape,
    limits: Limits,
    input_len: int,
    output_len: int,
    concurrency: int,
    shared_prefix_len: int = 0,
    num_requests: int = 1,
) -> float:
    """Of perfectly batched requests: their prompts one after the other, then their answers
    together. A shared prefix is computed once over all requests.
    """
    own = prefill_seconds(shape, limits, input_len - shared_prefix_len)
    shared = prefill_seconds(shape, limits, shared_prefix_len) * concurrency / num_requests
    context = input_len + output_len // 2
    # The first token comes of the prompt.
    steps = (output_len - 1) * decode_seconds(shape, limits, concurrency, context)
    return concurrency * output_len / (concurrency * own + shared + steps)
