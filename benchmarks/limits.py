"""What this machine allows: read bandwidth and matrix rate, and what they make of a model's shape.

Measured in the same run as whatever is compared with them, since virtual machines change from hour
to hour. Best of several passes, as a limit is meant.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from benchmarks.load import Load
from benchmarks.native_product import multiply
from benchmarks.shapes import Shape
from worker.native.library import Team, native_library
from worker.native.packing import Packer

# Large enough for oneDNN's best rate, small enough for a second.
_CPU_PRODUCTS = [(2048, 2048, 2048), (1500, 4864, 896)]
_CUDA_PRODUCTS = [(8192, 8192, 8192), (4096, 14336, 4096)]
_CPU_BYTES = 1 << 30
_CUDA_BYTES = 4 << 30  # a pass takes a millisecond, its launch a hundredth of that


@dataclass(frozen=True, slots=True)
class Limits:
    read_gb_s: float
    bf16_gflop_s: float
    num_threads: int
    copy_gb_s: float = 0.0  # read and written; 0: not measured
    device: str = "cpu"


def measure_limits(
    num_threads: int, seconds: float = 2.0, device: str = "cpu", num_bytes: int | None = None
) -> Limits:
    """`seconds`: of each of the measurements, at most. `device`: cpu or cuda. `num_bytes`: read and
    copied; None: far more than caches hold.
    """
    torch.set_num_threads(num_threads)
    is_cuda = torch.device(device).type == "cuda"
    num_bytes = num_bytes or (_CUDA_BYTES if is_cuda else _CPU_BYTES)
    read, copy = _memory_gb_s(num_bytes, device, seconds)
    rates = [
        2 * m * n * k / _product_seconds(m, n, k, seconds, device) / 1e9
        for m, n, k in (_CUDA_PRODUCTS if is_cuda else _CPU_PRODUCTS)
    ]
    return Limits(read, max(rates), num_threads, copy, device)


def best_limits(one: Limits, other: Limits) -> Limits:
    """Of two measurements around whatever is compared with them."""
    return replace(
        one,
        read_gb_s=max(one.read_gb_s, other.read_gb_s),
        bf16_gflop_s=max(one.bf16_gflop_s, other.bf16_gflop_s),
        copy_gb_s=max(one.copy_gb_s, other.copy_gb_s),
    )


def _memory_gb_s(num_bytes: int, device: str, seconds: float) -> tuple[float, float]:
    """Read by a sum, and copied half onto half."""
    data = torch.ones(num_bytes // 4, device=device)
    read = num_bytes / best_seconds(data.sum, seconds, device) / 1e9
    source, target = data.chunk(2)
    copy = num_bytes / best_seconds(lambda: target.copy_(source), seconds, device) / 1e9
    return read, copy


def _product_seconds(m: int, n: int, k: int, seconds: float, device: str) -> float:
    """The best of torch's product and, on a CPU, of our own kernels'."""
    x, w = (torch.randn(rows, k, device=device).bfloat16() for rows in (m, n))
    best = best_seconds(lambda: F.linear(x, w), seconds, device)
    library = native_library() if torch.device(device).type == "cpu" else None
    if library is None:
        return best
    team = Team(library, torch.get_num_threads())
    packed = Packer(library, team).pack(w)
    wide = torch.randn(m, packed.data.shape[1])
    return min(best, best_seconds(lambda: multiply(library, team, wide, packed), seconds))


def best_seconds(run: Callable[[], object], seconds: float, device: str = "cpu") -> float:
    """The fastest of the calls that fit into `seconds`, at least three; each to its end on the
    device.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else _nothing
    run()
    wait()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


def _nothing() -> None:
    """A CPU is done when the call returns."""


def num_layer_weights(shape: Shape, num_experts: float | None = None) -> float:
    """Of all layers' matrices; with so many experts in each, None: all there are."""
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention = shape.hidden_size * (2 * q_size + 2 * kv_size)
    mlp: float = (3 if shape.is_gated else 2) * shape.hidden_size * shape.intermediate_size
    if shape.num_experts:
        mlp *= shape.num_experts if num_experts is None else num_experts
        attention += shape.hidden_size * shape.num_experts  # the router
    return shape.num_layers * (attention + mlp)


def prefill_seconds(shape: Shape, limits: Limits, num_tokens: int) -> float:
    """A whole prompt of so many tokens."""
    return chunk_seconds(shape, limits, 0, num_tokens)


def chunk_seconds(shape: Shape, limits: Limits, start: int, num_tokens: int) -> float:
    """Of a prompt, `num_tokens` from `start` on: two operations per weight and token, and causal
    attention's two products.
    """
    weights = 2 * num_layer_weights(shape, shape.top_k) * num_tokens
    pairs = start * num_tokens + num_tokens**2 / 2
    attention = 4 * pairs * shape.num_layers * shape.num_heads * shape.head_dim
    return (weights + attention) / (limits.bf16_gflop_s * 1e9)


def decode_seconds(shape: Shape, limits: Limits, batch: int, context: float) -> float:
    """One step: weights read once, every sequence's keys and values read once, or the products'
    operations where those take longer. `context`: tokens, the mean over the batch.

    Of experts only those that some token chose are read, as many as an even choice leaves.
    """
    head = shape.vocab_size * shape.hidden_size
    chosen = 0.0
    if shape.num_experts:
        chosen = shape.num_experts * (1 - (1 - shape.top_k / shape.num_experts) ** batch)
    weights = num_layer_weights(shape, chosen) + head
    kv_per_token = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    read = 2 * (weights + batch * context * kv_per_token) / (limits.read_gb_s * 1e9)
    active = num_layer_weights(shape, shape.top_k) + head
    return max(read, 2 * active * batch / (limits.bf16_gflop_s * 1e9))


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


def load_limit(shape: Shape, limits: Limits, load: Load) -> float:
    """Output tokens/s of this load, perfectly batched."""
    return output_tokens_per_s(
        shape,
        limits,
        load.input_len,
        load.output_len,
        load.concurrency,
        load.shared_prefix_len,
        load.num_requests,
    )
