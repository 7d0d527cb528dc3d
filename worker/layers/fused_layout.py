"""Which rows of a batch each expert computes, laid into tiles on the device: no host waits for it.

Called by `fused_experts.py`, whose products take a tile each. Few pairs are laid out by one program
of our own, many by torch's sort.

P pairs of a token and one of its experts; E experts of this rank.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_MAX_SMALL_PAIRS = 2048  # one program lays out; beyond, torch's sort has enough to do
_LAID_AT_ONCE = 32


@triton.jit
def _is_own(ids_ptr, pairs, num_pairs, first_own, NUM_OWN: tl.constexpr, PADDED: tl.constexpr):
    """1 where the pair is of this rank's expert: [pairs, PADDED] int32."""
    ids = tl.load(ids_ptr + pairs, mask=pairs < num_pairs, other=-1).to(tl.int32)
    ids = tl.where(pairs < num_pairs, ids - first_own, -1)
    experts = tl.arange(0, PADDED)
    return ((ids[:, None] == experts[None, :]) & (experts < NUM_OWN)[None, :]).to(tl.int32)


# Numbers that differ from step to step: a variant for each multiple of 16 would be compiled when it
# first comes up, in the middle of serving.
@triton.jit(do_not_specialize=["num_pairs", "num_tiles", "first_own"])
def _layout_kernel(
    ids_ptr,  # [P]
    rows_ptr, tiles_ptr,  # [tiles, BLOCK_M] pairs of each; [tiles, 2] expert and number of pairs
    num_pairs, num_tiles, first_own,
    NUM_OWN: tl.constexpr, PADDED: tl.constexpr, BLOCK_M: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One program: counts, then places, an expert's pairs in their order."""
    counts = tl.zeros([PADDED], dtype=tl.int32)
    for first in range(0, num_pairs, AT_ONCE):
        pairs = first + tl.arange(0, AT_ONCE)
        counts += tl.sum(_is_own(ids_ptr, pairs, num_pairs, first_own, NUM_OWN, PADDED), 0)
    tiles_of = (counts + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(tiles_of, 0)
    begins = ends - tiles_of
    for first in range(0, num_tiles, AT_ONCE):
        tiles = first + tl.arange(0, AT_ONCE)
        is_before = (begins[None, :] <= tiles[:, None]) & (tiles[:, None] < ends[None, :])
        # A tile is of the expert whose range it is in, or of none.
        left = counts[None, :] - (tiles[:, None] - begins[None, :]) * BLOCK_M
        num_rows = tl.sum(tl.where(is_before, tl.minimum(left, BLOCK_M), 0), 1)
        expert = tl.sum(tl.where(is_before, tl.arange(0, PADDED)[None, :], 0), 1)
        tl.store(tiles_ptr + 2 * tiles, expert, mask=tiles < num_tiles)
        tl.store(tiles_ptr + 2 * tiles + 1, num_rows, mask=tiles < num_tiles)
    placed = begins * BLOCK_M
    for first in range(0, num_pairs, AT_ONCE):
        pairs = first + tl.arange(0, AT_ONCE)
        own = _is_own(ids_ptr, pairs, num_pairs, first_own, NUM_OWN, PADDED)
        earlier = tl.cumsum(own, 0) - own
        places = tl.sum(own * (placed[None, :] + earlier), 1)
        tl.store(rows_ptr + places, pairs, mask=tl.sum(own, 1) > 0)
        placed += tl.sum(own, 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """Pairs by expert. What is beyond a tile's number of pairs means nothing."""

    rows: Tensor  # [tiles, block_m] int32
    tiles: Tensor  # [tiles, 2] int32: expert of this rank, number of pairs


def lay_out(ids: Tensor, first_own: int, num_own: int, block_m: int) -> Layout:
    """ids: [P], of all experts. The number of tiles depends on the number of pairs alone."""
    num_pairs = len(ids)
    num_tiles = min(num_pairs, (num_pairs + num_own * (block_m - 1)) // block_m)
    if num_pairs > _MAX_SMALL_PAIRS:
        return _sorted_layout(ids, first_own, num_own, block_m, num_tiles)
    rows = torch.empty((num_tiles, block_m), dtype=torch.int32, device=ids.device)
    tiles = torch.empty((num_tiles, 2), dtype=torch.int32, device=ids.device)
    _layout_kernel[(1,)](
        ids,
        rows,
        tiles,
        num_pairs,
        num_tiles,
        first_own,
        NUM_OWN=num_own,
        PADDED=triton.next_power_of_2(num_own),
        BLOCK_M=block_m,
        AT_ONCE=_LAID_AT_ONCE,
        num_warps=4,
    )
    return Layout(rows, tiles)


def _sorted_layout(
    ids: Tensor, first_own: int, num_own: int, block_m: int, num_tiles: int
) -> Layout:
    """The same by torch's operators, none of which waits for the device."""
    ids = ids - first_own
    ids = torch.where((ids >= 0) & (ids < num_own), ids, num_own)
    by_expert, order = ids.sort(stable=True)
    counts = ids.new_zeros(num_own + 1).scatter_add_(0, ids, torch.ones_like(ids))
    firsts = counts.cumsum(0) - counts
    tiles_of = (counts + (block_m - 1)) // block_m
    ends = tiles_of[:num_own].cumsum(0)
    begins = torch.cat((ends - tiles_of[:num_own], ends.new_full((1,), num_tiles)))
    places = begins[by_expert] * block_m + torch.arange(len(ids), device=ids.device)
    places -= firsts[by_expert]
    # Pairs of other ranks' experts all go to one place behind the tiles.
    places = torch.where(by_expert < num_own, places, num_tiles * block_m)
    rows = torch.empty(num_tiles * block_m + 1, dtype=torch.int32, device=ids.device)
    rows.scatter_(0, places, order.to(torch.int32))
    numbers = torch.arange(num_tiles, device=ids.device)
    experts = torch.searchsorted(ends, numbers, right=True).clamp_(max=num_own - 1)
    left = counts[experts] - (numbers - begins[experts]) * block_m
    num_rows = left.clamp_(0, block_m)
    tiles = torch.stack((experts, num_rows), dim=1).to(torch.int32)
    return Layout(rows[:-1].view(num_tiles, block_m), tiles)
