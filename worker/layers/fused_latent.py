"""Latent attention's small operations on GPUs in one kernel: norm, rotation, cache write.

torch takes a dozen launches for them, most of them copies. One program takes a token's key or some
of its query heads. The torch steps beside which it is tested are in `mla.py`, which calls this.
"""

import triton
import triton.language as tl
from torch import Tensor

from worker.attention.base import LayerKVCache
from worker.layers.rotary import Rotation

_NUMBERS = 2048  # of a program


@triton.jit
def _turned(
    base, cos_ptr, sin_ptr, is_row,
    HALF: tl.constexpr, PADDED: tl.constexpr, IS_INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Each row's rotated pairs, [rows, PADDED] fp32 twice, where they stand, and their mask."""
    pairs = tl.arange(0, PADDED)
    first = 2 * pairs if IS_INTERLEAVED else pairs
    second = first + 1 if IS_INTERLEAVED else first + HALF
    is_pair = pairs < HALF
    mask = is_row[:, None] & is_pair[None, :]
    a = tl.load(base + first[None, :], mask=mask, other=0.0).to(tl.float32)
    b = tl.load(base + second[None, :], mask=mask, other=0.0).to(tl.float32)
    cos_a = tl.load(cos_ptr + first, mask=is_pair, other=0.0).to(tl.float32)[None, :]
    cos_b = tl.load(cos_ptr + second, mask=is_pair, other=0.0).to(tl.float32)[None, :]
    sin_a = tl.load(sin_ptr + first, mask=is_pair, other=0.0).to(tl.float32)[None, :]
    sin_b = tl.load(sin_ptr + second, mask=is_pair, other=0.0).to(tl.float32)[None, :]
    return a * cos_a + b * sin_a, b * cos_b + a * sin_b, first, second, mask


@triton.jit
def _latent_kernel(
    q_ptr, kv_ptr,  # [T, NUM_HEADS, ROPE], [T, RANK + ROPE]
    query_ptr, key_ptr, cache_ptr,  # [T, NUM_HEADS, ROPE], [T, RANK + ROPE], [blocks, PAGE, ...]
    weight_ptr, cos_ptr, sin_ptr, slots_ptr,  # [RANK], [T, ROPE] twice, [T] int64
    q_stride_token, q_stride_head, kv_stride, query_stride_token, query_stride_head,
    cache_stride_block, cache_stride_token, eps,
    NUM_HEADS: tl.constexpr, RANK: tl.constexpr, PADDED_RANK: tl.constexpr, ROPE: tl.constexpr,
    PADDED_HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, PAGE: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """The first program of a token makes its key, each further one rotates BLOCK_HEADS queries."""
    NUM_PARTS: tl.constexpr = 1 + (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    token = (tl.program_id(0) // NUM_PARTS).to(tl.int64)
    part = tl.program_id(0) % NUM_PARTS
    cos_ptr += token * ROPE
    sin_ptr += token * ROPE
    if part > 0:
        heads = (part - 1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        base = q_ptr + token * q_stride_token + (heads * q_stride_head)[:, None]
        a, b, first, second, mask = _turned(
            base, cos_ptr, sin_ptr, heads < NUM_HEADS, ROPE // 2, PADDED_HALF, IS_INTERLEAVED
        )
        base = query_ptr + token * query_stride_token + (heads * query_stride_head)[:, None]
        out_type = query_ptr.dtype.element_ty
        tl.store(base + first[None, :], a.to(out_type), mask=mask)
        tl.store(base + second[None, :], b.to(out_type), mask=mask)
        return
    kv_ptr += token * kv_stride
    key_ptr += token * (RANK + ROPE)
    slot = tl.load(slots_ptr + token)
    cache_ptr += slot // PAGE * cache_stride_block + slot % PAGE * cache_stride_token
    out_type = key_ptr.dtype.element_ty
    columns = tl.arange(0, PADDED_RANK)
    x = tl.load(kv_ptr + columns, mask=columns < RANK, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / RANK + eps)
    weight = tl.load(weight_ptr + columns, mask=columns < RANK, other=0.0)
    x = (x * weight.to(tl.float32)).to(out_type)
    num_cached = tl.where(slot >= 0, RANK, 0)
    tl.store(key_ptr + columns, x, mask=columns < RANK)
    tl.store(cache_ptr + columns, x, mask=columns < num_cached)
    rows = tl.arange(0, 1)
    a, b, first, second, mask = _turned(
        kv_ptr + RANK + rows[:, None], cos_ptr, sin_ptr, rows == 0, ROPE // 2, PADDED_HALF,
        IS_INTERLEAVED,
    )  # fmt: skip
    is_cached = mask & (first[None, :] < tl.where(slot >= 0, ROPE, 0))
    key_ptr += RANK + rows[:, None]
    cache_ptr += RANK + rows[:, None]
    tl.store(key_ptr + first[None, :], a.to(out_type), mask=mask)
    tl.store(key_ptr + second[None, :], b.to(out_type), mask=mask)
    tl.store(cache_ptr + first[None, :], a.to(out_type), mask=is_cached)
    tl.store(cache_ptr + second[None, :], b.to(out_type), mask=is_cached)


def rotate_and_cache_latent(
    q: Tensor,
    kv: Tensor,
    query: Tensor,
    weight: Tensor,
    eps: float,
    rotation: Rotation,
    cache: LayerKVCache,
    slots: Tensor,
) -> Tensor:
    """q: [T, heads, rope], what of the queries is rotated; query: of the same shape, where it goes.

    kv: [T, rank + rope], the latent before its norm, of `weight`, and the key before its rotation.
    Returns the key as it is cached, [T, 1, rank + rope]; slots: [T] int64, negative: not cached.
    """
    num_tokens, num_heads, rope = q.shape
    rank = len(weight)
    key = kv.new_empty((num_tokens, 1, rank + rope))
    if num_tokens == 0:
        return key
    assert q.stride(2) == kv.stride(1) == query.stride(2) == cache.k.stride(3) == 1
    half = triton.next_power_of_2(rope // 2)
    block_heads = min(max(_NUMBERS // (2 * half), 1), triton.next_power_of_2(num_heads))
    num_parts = 1 + triton.cdiv(num_heads, block_heads)
    _latent_kernel[(num_tokens * num_parts,)](
        q,
        kv,
        query,
        key,
        cache.k,
        weight,
        rotation.cos,
        rotation.signed_sin,
        slots,
        q.stride(0),
        q.stride(1),
        kv.stride(0),
        query.stride(0),
        query.stride(1),
        cache.k.stride(0),
        cache.k.stride(1),
        float(eps),
        NUM_HEADS=num_heads,
        RANK=rank,
        PADDED_RANK=triton.next_power_of_2(rank),
        ROPE=rope,
        PADDED_HALF=half,
        BLOCK_HEADS=block_heads,
        PAGE=cache.k.shape[1],
        IS_INTERLEAVED=rotation.is_interleaved,
        num_warps=4,
    )
    return key
