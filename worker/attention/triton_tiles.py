"""Sizes of the attention kernels' tiles, by arithmetic: no search at run time, for start-up counts.

Measured against an H200: 132 processors with 228 KiB of shared memory each, 4.8 TB/s. A decode is
bound by memory: two programs a processor with three stages of keys and values each under way keep
more than the 25 KiB in flight that 4.8 TB/s at 700 ns ask for. A prompt is bound by its products,
whose tiles should be as large as registers allow.
"""

from dataclasses import dataclass

import torch

_STAGE_BYTES = 40 << 10  # of keys and values; three stages leave room for two programs
_SHARED_BYTES = 200 << 10  # of a program; what is left is for reductions
_MIN_ROWS = 16  # of a matrix product
_MAX_NARROW_ROWS = 64
_PROGRAMS_PER_PROCESSOR = 2  # as many as run at once whatever the tile: one round, no tail
_MIN_PIECE = 128  # keys
_DEFAULT_PROCESSORS = 132


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of one layer's attention on this rank."""

    num_heads: int
    num_kv_heads: int
    dim: int
    value_dim: int  # leading numbers of a value that are used
    itemsize: int  # bytes of a number
    is_shared: bool  # keys and values are the same tensor

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True)
class TileShape:
    """What a program works on. Rows are tokens times heads."""

    block_m: int  # rows
    block_n: int  # keys
    heads: int  # query heads of a tile, of one KV head
    lanes: int  # tiles beside each other that see the same tokens
    num_warps: int
    num_stages: int

    @property
    def tokens(self) -> int:
        return self.block_m // self.heads

    def num_extra(self, num_processors: int) -> int:
        """Items beyond one a tile, so that programs are enough and none outlasts the others."""
        return -(-num_processors * _PROGRAMS_PER_PROCESSOR // self.lanes)

    @property
    def min_piece(self) -> int:
        return max(_MIN_PIECE, self.block_n)


def head_parts(dim: int) -> tuple[int, int]:
    """A power of two, at least what a matrix product takes, and one for the rest, or 0."""
    main = max(1 << (dim.bit_length() - 1), _MIN_ROWS)
    rest = dim - main
    return main, 0 if rest <= 0 else max(_power_of_two(rest), _MIN_ROWS)


def narrow_tile(heads: Heads, query_len: int) -> TileShape:
    """For sequences of at most `query_len` tokens: decodes, and guesses to verify."""
    rows = min(max(_power_of_two(query_len * heads.group), _MIN_ROWS), _MAX_NARROW_ROWS)
    return _tile(heads, rows)


def wide_tile(heads: Heads) -> TileShape:
    """For prompts."""
    main, _ = head_parts(heads.dim)
    is_large = main * heads.itemsize > 256 or heads.itemsize > 2
    return _tile(heads, 64 if is_large else 128)


def longest_narrow(heads: Heads) -> int:
    """The most tokens of a sequence whose rows are worth no wide tile: guesses to verify."""
    return max(1, _MAX_NARROW_ROWS // heads.group)


def num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _DEFAULT_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _tile(heads: Heads, block_m: int) -> TileShape:
    main, rest = head_parts(heads.dim)
    row_bytes = (main + rest) * heads.itemsize
    key_bytes = row_bytes if heads.is_shared else 2 * row_bytes
    block_n = max(1 << ((_STAGE_BYTES // key_bytes).bit_length() - 1), _MIN_ROWS)
    block_n = min(block_n, 128 if row_bytes <= 128 else 64)
    query_bytes = block_m * row_bytes
    while block_m > _MIN_ROWS and query_bytes + 2 * block_n * key_bytes > _SHARED_BYTES:
        block_m //= 2
        query_bytes //= 2
    num_stages = 3 if query_bytes + 3 * block_n * key_bytes <= _SHARED_BYTES else 2
    in_tile = min(heads.group, block_m)
    return TileShape(
        block_m=block_m,
        block_n=block_n,
        heads=in_tile,
        lanes=heads.num_kv_heads * -(-heads.group // in_tile),
        num_warps=8 if block_m * max(main, block_n) >= 128 * 64 else 4,
        num_stages=num_stages,
    )


def _power_of_two(number: int) -> int:
    """The smallest that is not below the number."""
    return 1 << (number - 1).bit_length()
