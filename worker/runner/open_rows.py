"""Draws for rows whose short list of candidates was not enough, without the host looking which.

On a GPU the host would have to wait for the device to know whether a list of the largest logits
holds all that top-k and top-p let stay. So one Triton program a row finds out for itself: most
return at once, the others search the row's threshold by bisection over the floats' bits and choose
among all tokens above it. What comes out is what `drawing.py` finds on a CPU. Called by it.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.attention.upload import upload
from worker.runner.truncation import Candidates, TruncationParams, min_p_floor

_BLOCK = 4096


def decide_open_rows(
    tokens: Tensor,
    x: Tensor,
    row_max: Tensor,
    found: Candidates,
    keys: Tensor,
    rows: list[TruncationParams],
) -> None:
    """Replaces the tokens of incomplete rows. tokens: [R] int64; x: [R, V] float32, after the
    temperature; keys: [R, 2] int32, as `noise_keys` makes them.
    """
    top_k, top_p = upload(
        [
            np.array([row.top_k for row in rows], dtype=np.int32),
            np.array([row.top_p for row in rows], dtype=np.float64),
        ],
        x.device,
    )
    assert x.stride(1) == 1 and keys.is_contiguous(), "rows in memory order"
    _open_rows_kernel[(len(rows),)](
        tokens,
        x,
        x.stride(0),
        x.shape[1],
        keys,
        found.is_complete.to(torch.int32),
        found.is_known.to(torch.int32),
        found.threshold,
        row_max,
        min_p_floor(row_max, rows),
        top_k,
        top_p,
        BLOCK=min(_BLOCK, triton.next_power_of_2(x.shape[1])),
        num_warps=8,
    )


@triton.jit
def _open_rows_kernel(
    tokens,
    x,
    stride,
    vocab_size,
    keys,
    is_complete,
    is_known,
    thresholds,
    row_maxima,
    floors,
    top_ks,
    top_ps,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    if tl.load(is_complete + row) == 0:
        x += row.to(tl.int64) * stride
        threshold = tl.load(thresholds + row)
        if tl.load(is_known + row) == 0:
            row_max = tl.load(row_maxima + row)
            floor = tl.load(floors + row)
            top_k = tl.load(top_ks + row)
            if top_k > 0:
                floor = tl.maximum(floor, _kth_largest(x, vocab_size, row_max, top_k, BLOCK))
            threshold = floor
            top_p = tl.load(top_ps + row)
            if top_p < 1:
                threshold = _nucleus_end(x, vocab_size, row_max, floor, top_p, BLOCK)
        key_0 = tl.load(keys + 2 * row)
        key_1 = tl.load(keys + 2 * row + 1)
        token = _noisy_argmax(x, vocab_size, threshold, key_0, key_1, BLOCK)
        tl.store(tokens + row, token)


@triton.jit
def _kth_largest(x, vocab_size, row_max, k, BLOCK: tl.constexpr):
    """The largest value that k logits reach."""
    low = _order(row_max * 0 - float("inf"))
    high = _order(row_max)
    for _ in range(33):
        middle = (low + high + 1) >> 1
        value = _value(middle)
        count = 0
        for start in range(0, vocab_size, BLOCK):
            count += tl.sum((_part(x, start, vocab_size, BLOCK) >= value).to(tl.int32))
        low = tl.where(count >= k, middle, low)
        high = tl.where(count >= k, high, middle - 1)
    return _value(low)


@triton.jit
def _nucleus_end(x, vocab_size, row_max, floor, top_p, BLOCK: tl.constexpr):
    """The smallest value from `floor` on of which less than the nucleus lies above."""
    target = _mass(x, vocab_size, row_max, _order(floor) - 1, BLOCK) * top_p
    low = _order(floor)
    high = _order(row_max)
    for _ in range(33):
        middle = (low + high) >> 1
        is_end = _mass(x, vocab_size, row_max, middle, BLOCK) < target
        high = tl.where(is_end, middle, high)
        low = tl.where(is_end, low, tl.minimum(middle + 1, high))
    return _value(high)


@triton.jit
def _mass(x, vocab_size, row_max, above, BLOCK: tl.constexpr):
    """Of the logits whose place in the order is beyond `above`, in parts of the largest's."""
    mass = row_max.to(tl.float64) * 0
    for start in range(0, vocab_size, BLOCK):
        part = _part(x, start, vocab_size, BLOCK)
        weights = tl.where(_order(part) > above, tl.exp(part - row_max), 0.0)
        mass += tl.sum(weights).to(tl.float64)
    return mass


@triton.jit
def _noisy_argmax(x, vocab_size, threshold, key_0, key_1, BLOCK: tl.constexpr):
    """As `noise.noisy_argmax_above` for one row, all in float64."""
    best = threshold.to(tl.float64) * 0 - float("inf")
    token = (best * 0 == 0).to(tl.int64) * 0
    for start in range(0, vocab_size, BLOCK):
        part = _part(x, start, vocab_size, BLOCK)
        ids = start + tl.arange(0, BLOCK)
        scores = part.to(tl.float64) + _gumbel(ids, key_0, key_1)
        scores = tl.where((part >= threshold) & (ids < vocab_size), scores, -float("inf"))
        top = tl.max(scores, axis=0)
        place = tl.min(tl.where(scores == top, ids, vocab_size), axis=0)
        token = tl.where(top > best, place.to(tl.int64), token)
        best = tl.maximum(best, top)
    return token


@triton.jit
def _gumbel(token_ids, key_0, key_1):
    """As `noise.gumbel`."""
    h = (token_ids ^ key_0).to(tl.uint32, bitcast=True)
    h = h * tl.full((), 0x2C1B3C6D, tl.uint32)
    h = h ^ (h >> 16)
    h = h + key_1.to(tl.uint32, bitcast=True)
    h = h * tl.full((), 0x7FEB352D, tl.uint32)
    h = h ^ (h >> 15)
    h = h * tl.full((), 0x846CA68B, tl.uint32)
    h = h ^ (h >> 16)
    bits = (h & 0x7FFFFFFF).to(tl.float64)
    uniform = tl.minimum((bits + 0.5) * (1.0 / 2147483648.0), 1.0 - 1.0 / 1048576.0)
    # -log1p(-u): by its series where 1 - u would lose u's last digits.
    series = uniform * (1 + uniform * (0.5 + uniform * (1.0 / 3 + uniform * 0.25)))
    exponential = tl.where(uniform < 1.0 / 4096, series, -tl.log(1.0 - uniform))
    return -tl.log(exponential)


@triton.jit
def _part(x, start, vocab_size, BLOCK: tl.constexpr):
    places = start + tl.arange(0, BLOCK)
    return tl.load(x + places, mask=places < vocab_size, other=-float("inf"))


@triton.jit
def _order(value):
    """Integers, int64, in the order of the float32 values."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _value(order):
    bits = order.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
