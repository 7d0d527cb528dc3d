"""The experts of a mixture on GPUs: routed rows gathered, multiplied and added up without a sort's
round trip, for batches of any size and in CUDA graphs.

Rows are laid into tiles of one expert each on the device (`fused_layout.py`); the grid is the most
tiles that so many rows can fill, and programs of tiles that came out empty end at once. Products
gather their rows as they load them; the first applies the gated activation before it writes. The
torch formulas beside which this is tested are in `experts.py`, which calls it.

P pairs of a token and one of its experts, pair p being of token p // top_k; E experts of this rank.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.layers.fused_activation import activated
from worker.layers.fused_layout import Layout, lay_out

_COMBINED_AT_ONCE = 1024


@triton.jit
def _product_kernel(
    x_ptr, out_ptr,  # [P // PAIRS_PER_ROW, SIZE_IN], [P, SIZE_OUT]
    weight_ptr, bias_ptr,  # [E, SIZE_OUT or 2 * SIZE_OUT, SIZE_IN], [E, as many]
    rows_ptr, tiles_ptr,
    x_stride, alpha, limit,
    PAIRS_PER_ROW: tl.constexpr, SIZE_IN: tl.constexpr, SIZE_OUT: tl.constexpr,
    IS_GATED: tl.constexpr, TAKES_TURNS: tl.constexpr, KIND: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program: one tile's rows, BLOCK_N features of the result. Neighbours share the rows."""
    NUM_PARTS: tl.constexpr = (SIZE_OUT + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0) // NUM_PARTS
    num_rows = tl.load(tiles_ptr + 2 * tile + 1)
    if num_rows == 0:
        return
    expert = tl.load(tiles_ptr + 2 * tile).to(tl.int64)
    is_row = tl.arange(0, BLOCK_M) < num_rows
    pairs = tl.load(rows_ptr + tile * BLOCK_M + tl.arange(0, BLOCK_M), mask=is_row, other=0)
    features = tl.program_id(0) % NUM_PARTS * BLOCK_N + tl.arange(0, BLOCK_N)
    is_feature = features < SIZE_OUT
    columns = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + (pairs // PAIRS_PER_ROW).to(tl.int64)[:, None] * x_stride + columns[None, :]
    NUM_FEATURES: tl.constexpr = 2 * SIZE_OUT if IS_GATED else SIZE_OUT
    first = 2 * features if TAKES_TURNS else features
    second = first + 1 if TAKES_TURNS else first + SIZE_OUT
    weight_ptr += expert * NUM_FEATURES * SIZE_IN
    first_ptrs = weight_ptr + first.to(tl.int64)[:, None] * SIZE_IN + columns[None, :]
    second_ptrs = weight_ptr + second.to(tl.int64)[:, None] * SIZE_IN + columns[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for done in range(0, SIZE_IN, BLOCK_K):
        x_mask, w_mask = is_row[:, None], is_feature[:, None]
        if SIZE_IN % BLOCK_K != 0:
            is_column = (done + columns < SIZE_IN)[None, :]
            x_mask, w_mask = x_mask & is_column, w_mask & is_column
        x = tl.load(x_ptrs + done, mask=x_mask, other=0.0)
        w = tl.load(first_ptrs + done, mask=w_mask, other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
        if IS_GATED:
            w = tl.load(second_ptrs + done, mask=w_mask, other=0.0)
            up = tl.dot(x, tl.trans(w), up, input_precision="ieee")
    if HAS_BIAS:
        bias_ptr += expert * NUM_FEATURES
        acc += tl.load(bias_ptr + first, mask=is_feature, other=0.0).to(tl.float32)[None, :]
    if IS_GATED:
        if HAS_BIAS:
            up += tl.load(bias_ptr + second, mask=is_feature, other=0.0).to(tl.float32)[None, :]
        acc = activated(acc, up, alpha, limit, KIND)
    out_ptrs = out_ptr + pairs.to(tl.int64)[:, None] * SIZE_OUT + features[None, :]
    mask = is_row[:, None] & is_feature[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["first_own"])
def _combine_kernel(
    y_ptr, weights_ptr, ids_ptr, out_ptr,  # [P, SIZE], [T, TOP_K], [T, TOP_K], [T, SIZE]
    first_own,
    NUM_OWN: tl.constexpr, TOP_K: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The weighted sum over a token's experts, in their order whatever else is in the batch."""
    NUM_PARTS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    token = (tl.program_id(0) // NUM_PARTS).to(tl.int64)
    columns = tl.program_id(0) % NUM_PARTS * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < SIZE
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for i in range(TOP_K):
        pair = token * TOP_K + i
        expert = tl.load(ids_ptr + pair) - first_own
        num_columns = tl.where((expert >= 0) & (expert < NUM_OWN), SIZE, 0)
        y = tl.load(y_ptr + pair * SIZE + columns, mask=columns < num_columns, other=0.0)
        total += y.to(tl.float32) * tl.load(weights_ptr + pair).to(tl.float32)
    tl.store(out_ptr + token * SIZE + columns, total.to(out_ptr.dtype.element_ty), mask=is_column)


@dataclass(frozen=True, slots=True)
class _TileShape:
    """Of one product. BLOCK_M follows the rows that an expert has on average."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# Few rows: weights stream through, so narrow tiles, that programs are many, and long ones, that
# much is under way. Many rows: products of the size that tensor cores want.
_SHAPES = (
    _TileShape(16, 32, 128, 4, 4),
    _TileShape(32, 32, 128, 4, 4),
    _TileShape(64, 64, 64, 4, 4),
    _TileShape(128, 64, 64, 8, 4),
)


class FusedExperts:
    """What the products of a layer's experts have in common. Holds no weights."""

    def __init__(
        self, kind: int, alpha: float = 0.0, limit: float = 0.0, takes_turns: bool = False
    ) -> None:
        """kind: see `fused_activation`; takes_turns: gate and up features do, in the weights."""
        self._kind, self._alpha, self._limit = kind, alpha, limit
        self._takes_turns = takes_turns

    def __call__(
        self,
        x: Tensor,
        weights: Tensor,
        expert_ids: Tensor,
        first_own: int,
        gate_up: Tensor,
        down: Tensor,
        gate_up_bias: Tensor | None,
        down_bias: Tensor | None,
    ) -> Tensor:
        """x: [T, hidden]; weights, expert_ids: [T, top_k], of all experts, of which this rank has
        E from first_own on; gate_up: [E, 2 * n, hidden]; down: [E, hidden, n]; returns [T, hidden].
        """
        num_own, _, size = down.shape
        num_tokens, top_k = expert_ids.shape
        out = torch.empty_like(x)
        if num_tokens == 0:
            return out
        shape = _shape(num_tokens * top_k, num_own)
        ids = expert_ids.contiguous()
        layout = lay_out(ids.view(-1), first_own, num_own, shape.block_m)
        hidden = x.new_empty((num_tokens * top_k, size))
        self._multiply(x, hidden, gate_up, gate_up_bias, layout, shape, top_k, is_gated=True)
        y = x.new_empty((num_tokens * top_k, x.shape[1]))
        self._multiply(hidden, y, down, down_bias, layout, shape, 1, is_gated=False)
        block = min(_COMBINED_AT_ONCE, triton.next_power_of_2(x.shape[1]))
        _combine_kernel[(num_tokens * triton.cdiv(x.shape[1], block),)](
            y,
            weights.contiguous(),
            ids,
            out,
            first_own,
            NUM_OWN=num_own,
            TOP_K=top_k,
            SIZE=x.shape[1],
            BLOCK=block,
            num_warps=4,
        )
        return out

    def _multiply(
        self,
        x: Tensor,
        out: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layout: Layout,
        shape: _TileShape,
        pairs_per_row: int,
        is_gated: bool,
    ) -> None:
        assert x.stride(1) == 1 and weight.is_contiguous()
        _product_kernel[(len(layout.tiles) * triton.cdiv(out.shape[1], shape.block_n),)](
            x,
            out,
            weight,
            weight if bias is None else bias,
            layout.rows,
            layout.tiles,
            x.stride(0),
            float(self._alpha),
            float(self._limit),
            PAIRS_PER_ROW=pairs_per_row,
            SIZE_IN=weight.shape[2],
            SIZE_OUT=out.shape[1],
            IS_GATED=is_gated,
            TAKES_TURNS=is_gated and self._takes_turns,
            KIND=self._kind,
            HAS_BIAS=bias is not None,
            BLOCK_M=shape.block_m,
            BLOCK_N=shape.block_n,
            BLOCK_K=shape.block_k,
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
        )


def _shape(num_pairs: int, num_own: int) -> _TileShape:
    """For so many rows an expert, were they even."""
    per_expert = num_pairs / num_own
    for shape in _SHAPES[:-1]:
        if per_expert <= shape.block_m:
            return shape
    return _SHAPES[-1]
