"""Weights in the layout of the native products, packed once while a model is loaded.

Owns the packed tensors and the order of their columns; the layout of a panel itself is
`csrc/gemm.h`'s. Called by `worker.native.terms`, and by `direct_packing`, which packs what it reads
of a file without a parameter between.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.layers.shard import divide_up
from worker.layers.zeros import zeros
from worker.native.library import Team
from worker.native.structs import BFLOAT16, FLOAT32, MatrixStruct

PANEL = 32  # columns; of a gated pair 16 of each
_HALF = PANEL // 2
_DEPTH = 8  # the inner dimension is padded to a multiple

DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}

# The packed columns of a weight's rows, [N] int32, and how many there are with their padding.
Columns = tuple[npt.NDArray[np.int32], int]
# The number of rows it is given, N.
Order = Callable[[int], Columns]


def padded(size: int, multiple: int = PANEL) -> int:
    return divide_up(size, multiple) * multiple


_shared = lru_cache(maxsize=64)  # a model has few sizes, but perhaps thousands of experts


@_shared
def as_they_are(num_rows: int) -> Columns:
    return np.arange(num_rows, dtype=np.int32), padded(num_rows)


@_shared
def gated(num_rows: int) -> Columns:
    """Of a gate's rows and then as many of the other's: 16 of each beside each other."""
    half = np.arange(num_rows // 2, dtype=np.int32)
    gate = half // _HALF * PANEL + half % _HALF
    return np.concatenate((gate, gate + _HALF)), 2 * padded(num_rows // 2, _HALF)


@_shared
def gated_in_turns(num_rows: int) -> Columns:
    """As `gated`, of rows that are the gate's and the other's in turns."""
    columns, num_columns = gated(num_rows)
    return np.ascontiguousarray(columns.reshape(2, -1).T).reshape(-1), num_columns


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """data: [panels, depth, 32] in the kernels' own order; bias: [32 * panels] fp32. Of a coded
    weight (`coding`) data, codes and strays are bytes, [panels, ..].
    """

    data: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    depth: int
    codes: Tensor | None = None
    strays: Tensor | None = None

    @property
    def num_panels(self) -> int:
        return len(self.data)

    def struct(self) -> MatrixStruct:
        parts = (self.data, self.bias, self.codes, self.strays)
        addresses = (None if part is None else part.data_ptr() for part in parts)
        return MatrixStruct(*addresses, self.num_panels, self.depth)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The memory of a packed weight and where in it a weight's rows go."""

    data: Tensor  # [panels, depth, 32], zeros until rows are packed
    columns: npt.NDArray[np.int32]  # of row r of the weight

    @staticmethod
    def of(weight: Tensor, order: Order) -> "PackedRows":
        """Nothing is packed yet, and no memory used. weight: [N, K]."""
        num_rows, num_numbers = weight.shape
        columns, num_columns = order(num_rows)
        shape = (num_columns // PANEL, padded(num_numbers, _DEPTH), PANEL)
        return PackedRows(zeros(shape, weight.dtype, weight.device), columns)

    def fill(
        self, library: ctypes.CDLL, rows: Tensor, first: int = 0, team: Team | None = None
    ) -> None:
        """rows: [n, <= K], of any strides, the weight's from row `first` on. On the caller's thread
        unless a team is given; several threads may fill in different rows.
        """
        assert rows.dtype == self.data.dtype, f"{rows.dtype} for {self.data.dtype}"
        columns = self.columns[first : first + len(rows)]
        assert len(columns) == len(rows) and rows.shape[1] <= self.data.shape[1]
        library.shoal_pack_rows(
            None if team is None else team.handle,
            DTYPES[rows.dtype],
            rows.data_ptr(),
            *rows.stride(),
            *rows.shape,
            columns.ctypes.data,
            self.data.data_ptr(),
            self.data.shape[1],
        )


class Packer:
    """Packs with a team's threads. Used while loading only.

    `packed` has weights that were packed when they were read, by their address; they are taken out.
    `finish` makes of every weight what is kept of it.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        team: Team,
        packed: dict[int, PackedRows] | None = None,
        finish: Callable[[PackedWeight], PackedWeight] = lambda weight: weight,
    ) -> None:
        self._library = library
        self._team = team
        self._packed = {} if packed is None else packed
        self._finish = finish

    def pack(
        self, weight: Tensor, bias: Tensor | None = None, order: Order = as_they_are
    ) -> PackedWeight:
        """weight: [N, K], of any strides; bias: [N]."""
        rows = self._packed.pop(weight.data_ptr(), None)
        if rows is None:
            rows = PackedRows.of(weight, order)
            rows.fill(self._library, weight, team=self._team)
        bias = None if bias is None else _bias_in(order, bias)
        return self._finish(PackedWeight(rows.data, bias, rows.data.dtype, rows.data.shape[1]))

    def close(self) -> None:
        """Every weight that was packed when it was read has been asked for."""
        assert not self._packed, f"{len(self._packed)} packed weights are left"


def _bias_in(order: Order, bias: Tensor) -> Tensor:
    columns, num_columns = order(len(bias))
    in_order = torch.zeros(num_columns, dtype=torch.float32)
    in_order[torch.from_numpy(columns).long()] = bias.float()
    return in_order
