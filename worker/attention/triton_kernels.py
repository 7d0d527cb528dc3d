"""Triton kernels of paged attention: one over pieces of work, one that merges the pieces of a tile.

Both read the cache in place, through block tables (PagedAttention, Kwon et al. 2023). A tile of
queries holds the query heads of one KV head beside its tokens, so keys are read once for all of
them; its history may be cut over several programs (Flash-Decoding, Dao et al. 2023) and is walked
with a running softmax (FlashAttention-2, Dao 2023). Launched by `triton_paged.py`; what the pieces
are, `triton_work.py` says.

BLOCK_M rows of a tile: row m is token m // HEADS and head m % HEADS of the tile's HEADS. BLOCK_N
keys at a time. Heads stand in parts of a power of two each, MAIN and REST (0: none): 576 numbers
are 512 + 64, not 1024. Scores are in base 2: multiplied by log2(e), for exp2 is what GPUs have.
"""

import triton
import triton.language as tl

ITEM_FIELDS = tl.constexpr(8)
TILE_FIELDS = tl.constexpr(4)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * _LOG2_E)) + 1.0)  # exp2 may overflow: then it is 1


@triton.jit
def _rows(base, offsets, is_row, FIRST: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr):
    """Columns FIRST .. FIRST + SIZE of the rows at base + offsets, zero beyond DIM: [rows, SIZE].

    is_row: [rows]; the others are zero.
    """
    columns = FIRST + tl.arange(0, SIZE)
    mask = is_row[:, None]
    if FIRST + SIZE > DIM:
        mask = mask & (columns < DIM)[None, :]
    return tl.load(base + offsets[:, None] + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _store_rows(
    base, offsets, is_row, x, FIRST: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr
):
    columns = FIRST + tl.arange(0, SIZE)
    mask = is_row[:, None]
    if FIRST + SIZE > DIM:
        mask = mask & (columns < DIM)[None, :]
    tl.store(base + offsets[:, None] + columns[None, :], x, mask=mask)


@triton.jit
def _attend(
    top, total,  # running maximum and sum of weights, [BLOCK_M]
    acc_main, acc_rest,  # weighted values, [BLOCK_M, MAIN or REST]
    q_main, q_rest, slopes, positions,
    k_ptr, v_ptr, table_ptr, first_key, end_key,
    k_stride_block, k_stride_token, v_stride_block, v_stride_token,
    score_scale, cap_scale,
    BLOCK_N: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, WINDOW: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr, V_IS_K: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Keys first_key .. end_key. Not masked: all rows see all of them, and BLOCK_N divides them."""
    for first in range(first_key, end_key, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        in_range = keys < end_key
        blocks = tl.load(table_ptr + keys // PAGE, mask=in_range, other=0).to(tl.int64)
        k_rows = blocks * k_stride_block + (keys % PAGE) * k_stride_token
        k_main = _rows(k_ptr, k_rows, in_range, 0, MAIN, DIM)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if REST > 0:
            k_rest = _rows(k_ptr, k_rows, in_range, MAIN, REST, DIM)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        scores = scores * score_scale
        if HAS_SOFT_CAP:
            scores = _tanh(scores) * cap_scale
        if HAS_ALIBI:
            distances = (positions[:, None] - keys[None, :]).to(tl.float32)
            scores = scores - slopes[:, None] * distances
        if IS_MASKED:
            is_seen = in_range[None, :] & (keys[None, :] <= positions[:, None])
            if WINDOW > 0:
                is_seen = is_seen & (keys[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(is_seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # Of a row that has seen nothing yet, exp2(-inf - -inf) would be NaN.
        base = tl.where(new_top == float("-inf"), 0.0, new_top) if IS_MASKED else new_top
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        top = new_top
        total = total * shrink + tl.sum(p, 1)
        if V_IS_K:
            v_main = k_main
        else:
            v_rows = blocks * v_stride_block + (keys % PAGE) * v_stride_token
            v_main = _rows(v_ptr, v_rows, in_range, 0, MAIN, VALUE_DIM)
        weights = p.to(v_main.dtype)
        acc_main = tl.dot(weights, v_main, acc_main * shrink[:, None], input_precision="ieee")
        if VALUE_DIM > MAIN:
            v_rest = k_rest if V_IS_K else _rows(v_ptr, v_rows, in_range, MAIN, REST, VALUE_DIM)
            acc_rest = tl.dot(weights, v_rest, acc_rest * shrink[:, None], input_precision="ieee")
    return top, total, acc_main, acc_rest


@triton.jit
def paged_attention_kernel(
    out_ptr,  # [T, heads, VALUE_DIM]
    part_ptr, lse_ptr,  # [pieces, LANES, BLOCK_M, VALUE_DIM] and [pieces, LANES, BLOCK_M]
    q_ptr, k_ptr, v_ptr,  # [T, heads, DIM], [blocks, PAGE, kv_heads, DIM] twice
    items_ptr, tables_ptr,  # [items, ITEM_FIELDS] int32; block ids, int32
    slopes_ptr, sinks_ptr,  # [heads] fp32, [heads]
    score_scale, cap_scale,
    out_stride_token, q_stride_token, q_stride_head,
    k_stride_block, k_stride_token, k_stride_head,
    v_stride_block, v_stride_token, v_stride_head,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of a KV head
    HEADS: tl.constexpr,  # of them in a tile
    LANES: tl.constexpr,  # tiles that share an item: KV heads, times the parts of a group
    PAGE: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, WINDOW: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr, HAS_SINKS: tl.constexpr, V_IS_K: tl.constexpr,
    IS_CHUNK: tl.constexpr,  # tiles of prompts, worth a loop without masks
):  # fmt: skip
    """A program: one item in one lane. Lanes are neighbours, for they read the same cache lines."""
    item = tl.program_id(0) // LANES
    lane = tl.program_id(0) % LANES
    record = items_ptr + item * ITEM_FIELDS
    num_tokens = tl.load(record + 2)
    if num_tokens == 0:  # padding
        return
    table_ptr = tables_ptr + tl.load(record)
    first_token = tl.load(record + 1)
    first_position = tl.load(record + 3)
    first_key = tl.load(record + 4)
    end_key = tl.load(record + 5)
    is_whole = tl.load(record + 6) != 0

    PARTS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    kv_head = lane // PARTS
    rows = tl.arange(0, BLOCK_M)
    tokens = rows // HEADS
    in_group = (lane % PARTS) * HEADS + rows % HEADS
    heads = kv_head * GROUP + in_group
    is_row = (tokens < num_tokens) & (in_group < GROUP)
    positions = first_position + tokens

    q_rows = (first_token + tokens).to(tl.int64) * q_stride_token + heads * q_stride_head
    q_main = _rows(q_ptr, q_rows, is_row, 0, MAIN, DIM)
    acc_main = tl.zeros([BLOCK_M, MAIN], dtype=tl.float32)
    REST_SIZE: tl.constexpr = REST if REST > 0 else 16  # unused then, and never computed
    q_rest = _rows(q_ptr, q_rows, is_row, MAIN, REST_SIZE, DIM)
    acc_rest = tl.zeros([BLOCK_M, REST_SIZE], dtype=tl.float32)
    slopes = tl.zeros([BLOCK_M], dtype=tl.float32)
    if HAS_ALIBI:
        slopes = tl.load(slopes_ptr + heads, mask=is_row, other=0.0) * _LOG2_E
    top = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    if HAS_SINKS:  # of a tile in pieces, the merge adds them
        sinks = tl.load(sinks_ptr + heads, mask=is_row, other=0.0).to(tl.float32) * _LOG2_E
        top = tl.where(is_whole, sinks, top)
        total = tl.where(is_whole, 1.0, total)

    k_ptr += kv_head * k_stride_head
    v_ptr += kv_head * v_stride_head
    if IS_CHUNK:
        # A tile's keys: before what its last token's window shows | seen by all | up to each token
        seen_by_all = first_key
        if WINDOW > 0:
            hidden = first_position + num_tokens - WINDOW - first_key
            seen_by_all += tl.minimum(
                tl.maximum(tl.cdiv(hidden, BLOCK_N), 0) * BLOCK_N, end_key - first_key
            )
            top, total, acc_main, acc_rest = _attend(
                top, total, acc_main, acc_rest, q_main, q_rest, slopes, positions,
                k_ptr, v_ptr, table_ptr, first_key, seen_by_all,
                k_stride_block, k_stride_token, v_stride_block, v_stride_token,
                score_scale, cap_scale, BLOCK_N, PAGE, DIM, VALUE_DIM, MAIN, REST, WINDOW,
                HAS_ALIBI, HAS_SOFT_CAP, V_IS_K, True,
            )  # fmt: skip
        num_full = tl.maximum(tl.minimum(first_position + 1, end_key) - seen_by_all, 0) // BLOCK_N
        first_masked = seen_by_all + num_full * BLOCK_N
        top, total, acc_main, acc_rest = _attend(
            top, total, acc_main, acc_rest, q_main, q_rest, slopes, positions,
            k_ptr, v_ptr, table_ptr, seen_by_all, first_masked,
            k_stride_block, k_stride_token, v_stride_block, v_stride_token,
            score_scale, cap_scale, BLOCK_N, PAGE, DIM, VALUE_DIM, MAIN, REST, WINDOW,
            HAS_ALIBI, HAS_SOFT_CAP, V_IS_K, False,
        )  # fmt: skip
        first_key = first_masked
    top, total, acc_main, acc_rest = _attend(
        top, total, acc_main, acc_rest, q_main, q_rest, slopes, positions,
        k_ptr, v_ptr, table_ptr, first_key, end_key,
        k_stride_block, k_stride_token, v_stride_block, v_stride_token,
        score_scale, cap_scale, BLOCK_N, PAGE, DIM, VALUE_DIM, MAIN, REST, WINDOW,
        HAS_ALIBI, HAS_SOFT_CAP, V_IS_K, True,
    )  # fmt: skip

    # A row may see none of a piece's keys.
    total = tl.where(total == 0.0, 1.0, total)
    scale = 1.0 / total
    acc_main = acc_main * scale[:, None]
    acc_rest = acc_rest * scale[:, None]
    if is_whole:
        out_rows = (first_token + tokens).to(tl.int64) * out_stride_token + heads * VALUE_DIM
        out_type = out_ptr.dtype.element_ty
        _store_rows(out_ptr, out_rows, is_row, acc_main.to(out_type), 0, MAIN, VALUE_DIM)
        if VALUE_DIM > MAIN:
            _store_rows(out_ptr, out_rows, is_row, acc_rest.to(out_type), MAIN, REST, VALUE_DIM)
    else:
        part_rows = (tl.load(record + 7) * LANES + lane).to(tl.int64) * BLOCK_M + rows
        tl.store(lse_ptr + part_rows, top + tl.log2(total), mask=is_row)
        part_rows *= VALUE_DIM
        _store_rows(part_ptr, part_rows, is_row, acc_main, 0, MAIN, VALUE_DIM)
        if VALUE_DIM > MAIN:
            _store_rows(part_ptr, part_rows, is_row, acc_rest, MAIN, REST, VALUE_DIM)


@triton.jit
def merge_kernel(
    out_ptr,  # [T, num_heads, VALUE_DIM]
    part_ptr, lse_ptr,  # as above
    tiles_ptr,  # [tiles, TILE_FIELDS] int32
    sinks_ptr,
    out_stride_token,
    TILE_TOKENS: tl.constexpr, NUM_HEADS: tl.constexpr, BLOCK_M: tl.constexpr,
    GROUP: tl.constexpr, HEADS: tl.constexpr, LANES: tl.constexpr,
    VALUE_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, HAS_SINKS: tl.constexpr,
    AT_ONCE: tl.constexpr,  # pieces whose loads are under way together
):  # fmt: skip
    """A program: one token's head. Tiles of one piece are done; of none, the result is zero."""
    head = tl.program_id(0) % NUM_HEADS
    token = tl.program_id(0) // NUM_HEADS % TILE_TOKENS
    record = tiles_ptr + tl.program_id(0) // NUM_HEADS // TILE_TOKENS * TILE_FIELDS
    first_token = tl.load(record)
    first_piece = tl.load(record + 2)
    num_pieces = tl.load(record + 3)
    if (token >= tl.load(record + 1)) | (num_pieces == 1):
        return
    PARTS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    in_group = head % GROUP
    lane = head // GROUP * PARTS + in_group // HEADS
    row = token * HEADS + in_group % HEADS
    columns = tl.arange(0, PADDED_DIM)
    is_column = columns < VALUE_DIM
    top = tl.full([1], float("-inf"), dtype=tl.float32)
    total = tl.zeros([1], dtype=tl.float32)
    if HAS_SINKS:
        top = tl.zeros([1], dtype=tl.float32) + tl.load(sinks_ptr + head).to(tl.float32) * _LOG2_E
        total += 1.0
    acc = tl.zeros([PADDED_DIM], dtype=tl.float32)
    for first in range(0, num_pieces, AT_ONCE):
        pieces = first + tl.arange(0, AT_ONCE)
        is_piece = pieces < num_pieces
        rows = ((first_piece + pieces) * LANES + lane).to(tl.int64) * BLOCK_M + row
        lse = tl.load(lse_ptr + rows, mask=is_piece, other=float("-inf"))
        mask = is_piece[:, None] & is_column[None, :]
        values = tl.load(
            part_ptr + rows[:, None] * VALUE_DIM + columns[None, :], mask=mask, other=0.0
        )
        new_top = tl.maximum(top, tl.max(lse, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(lse - base)
        shrink = tl.exp2(top - base)
        top = new_top
        total = total * shrink + tl.sum(weights, 0)
        acc = acc * shrink + tl.sum(values * weights[:, None], 0)
    out = acc / tl.where(total == 0.0, 1.0, total)
    out_ptr += (first_token + token).to(tl.int64) * out_stride_token + head * VALUE_DIM
    tl.store(out_ptr + columns, out.to(out_ptr.dtype.element_ty), mask=is_column)
