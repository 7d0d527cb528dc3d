"""How a step's attention is cut into pieces of work for GPU programs: array arithmetic, no torch.

A tile is some consecutive query tokens of one sequence; an item is a stretch of the keys that a
tile sees, the work of one program (and lane, see `triton_kernels.py`). Tiles of long histories
become several items, so that a few sequences fill a GPU and one long one does not outlast the
others. Called by `triton_paged.py` once a step and kind of attention.

Symbols: R sequences, N tiles, P items.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]

ITEM_FIELDS = 8
TILE_FIELDS = 4


@dataclass(frozen=True, slots=True)
class Cut:
    """What decides how much is cut."""

    tile_tokens: int  # the most query tokens of a tile
    block_keys: int  # keys that a program looks at together: pieces are multiples of it
    min_piece: int  # keys; below it a program is mostly start and merge
    num_extra: int  # items beyond one a tile


@dataclass(frozen=True, slots=True)
class Work:
    """items: [P, 8], where in the flat tables the sequence's block ids begin, first query token in
    the step, number of query tokens, position of the first, first key, end of the keys, whether
    this is the whole tile, else which piece of all. tiles: [N, 4], first query token, their number,
    first piece, number of items.
    """

    items: IntArray
    tiles: IntArray

    @property
    def num_pieces(self) -> int:
        """At most twice `num_extra`: a tile that is cut has two or more."""
        return int((self.items[:, 6] == 0).sum())


@dataclass(frozen=True, slots=True)
class Sequences:
    """What the tiles are made of. All: [R]."""

    query_lens: IntArray
    context_lens: IntArray
    first_tokens: IntArray  # in the step
    table_starts: IntArray  # in the flat tables

    def take(self, rows: npt.NDArray[np.intp]) -> "Sequences":
        return Sequences(
            self.query_lens[rows],
            self.context_lens[rows],
            self.first_tokens[rows],
            self.table_starts[rows],
        )


def flat_tables(
    block_tables: IntArray, context_lens: IntArray, block_size: int
) -> tuple[IntArray, IntArray]:
    """Only the blocks in use, one sequence behind the other, and where each begins: [R]."""
    counts = -(-context_lens // block_size)
    is_used = np.arange(block_tables.shape[1], dtype=np.int32) < counts[:, None]
    return block_tables[is_used], (np.cumsum(counts) - counts).astype(np.int32)


def cut_work(sequences: Sequences, window: int | None, cut: Cut) -> Work:
    """At most one item a tile and `num_extra` more; the longest tiles first."""
    counts = -(-sequences.query_lens // cut.tile_tokens)
    rows = np.repeat(np.arange(len(counts)), counts)
    starts = (np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]) * cut.tile_tokens
    num_tokens = np.minimum(sequences.query_lens[rows] - starts, cut.tile_tokens)
    positions = (sequences.context_lens - sequences.query_lens)[rows] + starts
    end_keys = positions + num_tokens
    first_keys = np.zeros_like(positions)
    if window is not None:
        first_keys = np.maximum(positions - window + 1, 0)
    if cut.tile_tokens > 1:  # programs start in order: the last to start should be short
        order = np.argsort(first_keys - end_keys, kind="stable")
        rows, starts, num_tokens = rows[order], starts[order], num_tokens[order]
        positions, end_keys, first_keys = positions[order], end_keys[order], first_keys[order]
    pieces, num_pieces = _pieces(end_keys - first_keys, cut)
    first_tokens = sequences.first_tokens[rows] + starts
    first_items = np.cumsum(num_pieces) - num_pieces
    of_item = np.repeat(np.arange(len(rows)), num_pieces)
    begins = (
        first_keys[of_item] + (np.arange(len(of_item)) - first_items[of_item]) * pieces[of_item]
    )
    items = np.zeros((len(of_item), ITEM_FIELDS), dtype=np.int32)
    items[:, 0] = sequences.table_starts[rows][of_item]
    items[:, 1] = first_tokens[of_item]
    items[:, 2] = num_tokens[of_item]
    items[:, 3] = positions[of_item]
    items[:, 4] = begins
    items[:, 5] = np.minimum(begins + pieces[of_item], end_keys[of_item])
    is_piece = num_pieces[of_item] > 1
    items[:, 6] = ~is_piece
    items[:, 7] = np.cumsum(is_piece) - is_piece
    first_pieces = items[first_items, 7]
    tiles = np.stack((first_tokens, num_tokens, first_pieces, num_pieces), axis=1)
    return Work(items, tiles.astype(np.int32))


def _pieces(
    lens: npt.NDArray[np.signedinteger], cut: Cut
) -> tuple[npt.NDArray[np.signedinteger], npt.NDArray[np.signedinteger]]:
    """Keys of each piece of a tile, and how many pieces. lens: [N], keys; returns [N] twice."""
    if cut.num_extra == 0:
        return lens, np.ones_like(lens)
    # The sum of ceil(len / piece) is at most one a tile and total / piece.
    longest = max(-(-int(lens.sum()) // cut.num_extra), cut.min_piece)
    counts = -(-lens // longest)
    pieces = -(-lens // (counts * cut.block_keys)) * cut.block_keys
    return pieces, -(-lens // pieces)
