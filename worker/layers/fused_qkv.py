"""From a QKV projection to rotated queries and a written cache, in one kernel on GPUs.

Clipping, the norm of query and key heads, the rotation and the cache write each read and write all
of it in torch; here a head stays in registers. One program takes some heads of one token. The torch
steps beside which it is tested are in `layers/attention.py`, which calls this.
"""

import triton
import triton.language as tl
from torch import Tensor

from worker.attention.base import LayerKVCache
from worker.layers.norm import HeadNorm
from worker.layers.rotary import Rotation

_NUMBERS = 2048  # of a program


@triton.jit
def _columns_of(base, is_head, first, step, size, PADDED: tl.constexpr):
    """`size` numbers of each head, `step` apart: fp32 [heads, PADDED], and their mask."""
    columns = first + step * tl.arange(0, PADDED)
    mask = is_head[:, None] & (tl.arange(0, PADDED) < size)[None, :]
    return tl.load(base + columns[None, :], mask=mask, other=0.0).to(tl.float32), columns, mask


@triton.jit
def _scaled(
    x, mean, scale, columns, mask, is_query, is_key,
    q_weight_ptr, k_weight_ptr, q_bias_ptr, k_bias_ptr, weight_rows, offset, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """(x - mean) * scale * (weight + offset) + bias; queries and keys have weights of their own."""
    places = weight_rows[:, None] + columns[None, :]
    q_mask, k_mask = mask & is_query[:, None], mask & is_key[:, None]
    weight = tl.load(q_weight_ptr + places, mask=q_mask, other=0.0).to(tl.float32)
    weight += tl.load(k_weight_ptr + places, mask=k_mask, other=0.0).to(tl.float32)
    x = (x - mean[:, None]) * scale[:, None] * (weight + offset)
    if HAS_BIAS:
        x += tl.load(q_bias_ptr + places, mask=q_mask, other=0.0).to(tl.float32)
        x += tl.load(k_bias_ptr + places, mask=k_mask, other=0.0).to(tl.float32)
    return x


@triton.jit
def _store(x, base, k_base, v_base, columns, mask, is_key, is_value, is_written, is_changed):
    """Back to its place where it is another than before, and into the cache."""
    tl.store(base + columns[None, :], x.to(base.dtype.element_ty), mask=mask & is_changed[:, None])
    x = x.to(k_base.dtype.element_ty)
    tl.store(k_base + columns[None, :], x, mask=mask & (is_key & is_written)[:, None])
    tl.store(v_base + columns[None, :], x, mask=mask & (is_value & is_written)[:, None])


@triton.jit
def _qkv_kernel(
    qkv_ptr,  # [T, NUM_HEADS + 2 * NUM_KV_HEADS, DIM]
    k_cache_ptr, v_cache_ptr, slots_ptr,  # [blocks, PAGE, NUM_KV_HEADS, DIM] twice; [T] int64
    cos_ptr, sin_ptr,  # [T, ROTARY]
    q_weight_ptr, k_weight_ptr, q_bias_ptr, k_bias_ptr,
    k_stride_block, k_stride_token, k_stride_head,
    v_stride_block, v_stride_token, v_stride_head,
    eps, offset, clip,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr,
    ROTARY: tl.constexpr,  # leading numbers of a head that are rotated; 0: none
    PADDED_HALF: tl.constexpr, PADDED_REST: tl.constexpr,  # 0: nothing of it
    BLOCK_HEADS: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr, NORM: tl.constexpr,  # 0: none, 1: RMS, 2: layer
    HAS_WEIGHT_PER_HEAD: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CLIP: tl.constexpr,
):  # fmt: skip
    NUM_TOTAL: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    NUM_PARTS: tl.constexpr = (NUM_TOTAL + BLOCK_HEADS - 1) // BLOCK_HEADS
    HALF: tl.constexpr = ROTARY // 2
    token = (tl.program_id(0) // NUM_PARTS).to(tl.int64)
    heads = tl.program_id(0) % NUM_PARTS * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    is_head = heads < NUM_TOTAL
    is_query = heads < NUM_HEADS
    is_value = heads >= NUM_HEADS + NUM_KV_HEADS
    is_key = (heads >= NUM_HEADS) & (heads < NUM_HEADS + NUM_KV_HEADS)
    is_turned = heads < NUM_HEADS + NUM_KV_HEADS
    base = qkv_ptr + (token * NUM_TOTAL + heads)[:, None] * DIM
    slot = tl.load(slots_ptr + token)
    is_written = heads < tl.where(slot >= 0, NUM_TOTAL, 0)
    block, place = slot // PAGE, slot % PAGE
    k_heads, v_heads = heads - NUM_HEADS, heads - NUM_HEADS - NUM_KV_HEADS
    k_base = k_cache_ptr + block * k_stride_block + place * k_stride_token
    k_base += (k_heads * k_stride_head)[:, None]
    v_base = v_cache_ptr + block * v_stride_block + place * v_stride_token
    v_base += (v_heads * v_stride_head)[:, None]
    # A head's parts: the first and the second numbers of its pairs, and what is not rotated.
    step: tl.constexpr = 2 if IS_INTERLEAVED else 1
    second: tl.constexpr = 1 if IS_INTERLEAVED else HALF
    sums = tl.zeros([BLOCK_HEADS], dtype=tl.float32)
    if ROTARY > 0:
        a, a_columns, a_mask = _columns_of(base, is_head, 0, step, HALF, PADDED_HALF)
        b, b_columns, b_mask = _columns_of(base, is_head, second, step, HALF, PADDED_HALF)
        if HAS_CLIP:
            a = tl.minimum(tl.maximum(a, -clip), clip)
            b = tl.minimum(tl.maximum(b, -clip), clip)
        sums += tl.sum(a, 1) + tl.sum(b, 1)
    if PADDED_REST > 0:
        c, c_columns, c_mask = _columns_of(base, is_head, ROTARY, 1, DIM - ROTARY, PADDED_REST)
        if HAS_CLIP:
            c = tl.minimum(tl.maximum(c, -clip), clip)
        sums += tl.sum(c, 1)
    if NORM > 0:
        mean = sums / DIM if NORM == 2 else tl.zeros_like(sums)
        squares = tl.zeros_like(sums)
        if ROTARY > 0:
            squares += tl.sum(tl.where(a_mask, (a - mean[:, None]) * (a - mean[:, None]), 0.0), 1)
            squares += tl.sum(tl.where(b_mask, (b - mean[:, None]) * (b - mean[:, None]), 0.0), 1)
        if PADDED_REST > 0:
            squares += tl.sum(tl.where(c_mask, (c - mean[:, None]) * (c - mean[:, None]), 0.0), 1)
        scale = tl.rsqrt(squares / DIM + eps)
        rows = tl.where(is_query, heads, k_heads) * DIM if HAS_WEIGHT_PER_HEAD else heads * 0
        if ROTARY > 0:
            normed = _scaled(
                a, mean, scale, a_columns, a_mask, is_query, is_key, q_weight_ptr,
                k_weight_ptr, q_bias_ptr, k_bias_ptr, rows, offset, HAS_BIAS,
            )  # fmt: skip
            a = tl.where(is_turned[:, None], normed, a)
            normed = _scaled(
                b, mean, scale, b_columns, b_mask, is_query, is_key, q_weight_ptr,
                k_weight_ptr, q_bias_ptr, k_bias_ptr, rows, offset, HAS_BIAS,
            )  # fmt: skip
            b = tl.where(is_turned[:, None], normed, b)
        if PADDED_REST > 0:
            normed = _scaled(
                c, mean, scale, c_columns, c_mask, is_query, is_key, q_weight_ptr,
                k_weight_ptr, q_bias_ptr, k_bias_ptr, rows, offset, HAS_BIAS,
            )  # fmt: skip
            c = tl.where(is_turned[:, None], normed, c)
    is_changed = is_head if HAS_CLIP else is_turned
    if ROTARY > 0:
        is_half = tl.arange(0, PADDED_HALF) < HALF
        cos_a = tl.load(cos_ptr + token * ROTARY + a_columns, mask=is_half, other=0.0)
        cos_b = tl.load(cos_ptr + token * ROTARY + b_columns, mask=is_half, other=0.0)
        sin_a = tl.load(sin_ptr + token * ROTARY + a_columns, mask=is_half, other=0.0)
        sin_b = tl.load(sin_ptr + token * ROTARY + b_columns, mask=is_half, other=0.0)
        turned_a = a * cos_a.to(tl.float32)[None, :] + b * sin_a.to(tl.float32)[None, :]
        turned_b = b * cos_b.to(tl.float32)[None, :] + a * sin_b.to(tl.float32)[None, :]
        a = tl.where(is_turned[:, None], turned_a, a)
        b = tl.where(is_turned[:, None], turned_b, b)
        _store(a, base, k_base, v_base, a_columns, a_mask, is_key, is_value, is_written, is_changed)
        _store(b, base, k_base, v_base, b_columns, b_mask, is_key, is_value, is_written, is_changed)
    if PADDED_REST > 0:
        if NORM == 0 and not HAS_CLIP:
            is_changed = heads < 0
        _store(c, base, k_base, v_base, c_columns, c_mask, is_key, is_value, is_written, is_changed)


def rotate_and_cache(
    qkv: Tensor,
    num_heads: int,
    norm: HeadNorm | None,
    clip: float | None,
    rotation: Rotation | None,
    cache: LayerKVCache,
    slots: Tensor,
) -> None:
    """In place. qkv: [T, heads + 2 * kv_heads, head_dim], contiguous; slots: [T] int64, where in
    the cache each token goes, negative: nowhere.
    """
    num_tokens, num_total, dim = qkv.shape
    if num_tokens == 0:
        return
    assert qkv.is_contiguous() and cache.v is not cache.k
    rotary = 0 if rotation is None else rotation.cos.shape[-1]
    half, rest = triton.next_power_of_2(max(rotary // 2, 1)), dim - rotary
    padded_rest = triton.next_power_of_2(rest) if rest else 0
    width = max(2 * half if rotary else 0, padded_rest)
    block_heads = min(max(_NUMBERS // width, 1), triton.next_power_of_2(num_total))
    _qkv_kernel[(num_tokens * triton.cdiv(num_total, block_heads),)](
        qkv,
        cache.k,
        cache.v,
        slots,
        qkv if rotation is None else rotation.cos,
        qkv if rotation is None else rotation.signed_sin,
        qkv if norm is None else norm.q_weight,
        qkv if norm is None else norm.k_weight,
        qkv if norm is None or norm.q_bias is None else norm.q_bias,
        qkv if norm is None or norm.k_bias is None else norm.k_bias,
        *cache.k.stride()[:3],
        *cache.v.stride()[:3],
        0.0 if norm is None else float(norm.eps),
        0.0 if norm is None else float(norm.offset),
        0.0 if clip is None else float(clip),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=(num_total - num_heads) // 2,
        DIM=dim,
        PAGE=cache.k.shape[1],
        ROTARY=rotary,
        PADDED_HALF=half if rotary else 1,
        PADDED_REST=padded_rest,
        BLOCK_HEADS=block_heads,
        IS_INTERLEAVED=rotation is not None and rotation.is_interleaved,
        NORM=0 if norm is None else 1 if norm.is_rms else 2,
        HAS_WEIGHT_PER_HEAD=norm is not None and norm.has_weight_per_head,
        HAS_BIAS=norm is not None and norm.q_bias is not None,
        HAS_CLIP=clip is not None,
        num_warps=4,
    )
