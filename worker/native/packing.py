"""Weights in the layout of the native products, packed once while a model is loaded.

Owns the packed tensors; the layout itself is `csrc/gemm.h`'s. Called by `worker.native.terms`.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.layers.shard import divide_up
from worker.layers.zeros import zeros
from worker.native.library import Team
from worker.native.structs import BFLOAT16, FLOAT32, MatrixStruct

PANEL = 32  # columns; of a gated pair 16 of each
_DEPTH = 8  # the inner dimension is padded to a multiple

DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}


def padded(size: int, multiple: int = PANEL) -> int:
    return divide_up(size, multiple) * multiple


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """data: [panels, depth, 32] in the kernels' own order; bias: [32 * panels] fp32."""

    data: Tensor
    bias: Tensor | None

    def struct(self) -> MatrixStruct:
        bias = None if self.bias is None else self.bias.data_ptr()
        num_panels, depth, _ = self.data.shape
        return MatrixStruct(self.data.data_ptr(), bias, num_panels, depth)


class Packer:
    """Packs with a team's threads. Used while loading only."""

    def __init__(self, library: ctypes.CDLL, team: Team) -> None:
        self._library = library
        self._team = team

    def pack(self, weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
        """weight: [N, K], of any strides; bias: [N]."""
        data = self._packed(weight, None, padded(weight.shape[0]) // PANEL)
        return PackedWeight(data, None if bias is None else _padded_bias(bias))

    def pack_gated(self, gate_up: Tensor, bias: Tensor | None = None) -> PackedWeight:
        """gate_up: [2 * n, K], the gate's rows first, and a bias [2 * n]."""
        gate, up = gate_up.chunk(2)
        return self.pack_pair(gate, up, None if bias is None else bias.chunk(2))

    def pack_pair(
        self, gate: Tensor, up: Tensor, biases: Sequence[Tensor] | None = None
    ) -> PackedWeight:
        """gate, up: [n, K], with the same strides; biases: [n] each."""
        data = self._packed(gate, up, 2 * padded(gate.shape[0], PANEL // 2) // PANEL)
        return PackedWeight(data, None if biases is None else _gated_bias(*biases))

    def _packed(self, first: Tensor, second: Tensor | None, num_panels: int) -> Tensor:
        num_rows, num_columns = first.shape
        depth = padded(num_columns, _DEPTH)
        packed = zeros((num_panels, depth, PANEL), first.dtype, first.device)
        self._library.shoal_pack(
            self._team.handle,
            DTYPES[first.dtype],
            first.data_ptr(),
            None if second is None else second.data_ptr(),
            *first.stride(),
            num_rows,
            num_columns,
            packed.data_ptr(),
            num_panels,
            depth,
        )
        return packed


def _padded_bias(bias: Tensor) -> Tensor:
    columns = torch.zeros(padded(len(bias)), dtype=torch.float32)
    columns[: len(bias)] = bias
    return columns


def _gated_bias(gate: Tensor, up: Tensor) -> Tensor:
    """In turns 16 of the gate's and 16 of the other's."""
    width = padded(len(gate), PANEL // 2)
    turns = [_padded_bias(half)[:width].view(-1, PANEL // 2) for half in (gate, up)]
    return torch.stack(turns, dim=1).flatten().contiguous()
