"""Weights packed as they are read: values go from a checkpoint's mapped file to where the native
products read them, and the parameters between never take any memory.

Knows which matrices of a decoder the kernels want and in which order of rows, not where in a file
they are. Made by the model runner before it loads; the loader's threads write to it; what is packed
then is `worker.native.terms`'s.
"""

import ctypes
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from worker.layers.attention import Attention
from worker.layers.mlp import GatedMLP, PlainMLP
from worker.layers.moe import MoE
from worker.models.decoder import Decoder
from worker.native.moe_terms import moe_matrices
from worker.native.packing import Order, PackedRows, as_they_are, gated
from worker.native.terms import has_native_attention, has_native_mlp, layers_of
from worker.parallel.group import TPGroup


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A weight [N, K] that stays empty, and the packed one that is filled instead."""

    weight: Tensor
    rows: PackedRows

    @property
    def address(self) -> int:
        return self.weight.data_ptr()

    def first_row(self, slot: Tensor) -> int | None:
        """Of a slot that is some rows of the weight; None: it is another parameter's."""
        distance, place = divmod(slot.data_ptr() - self.address, slot.element_size())
        if place or distance >= self.weight.numel() or slot.dtype != self.weight.dtype:
            return None
        # Of a weight that lies in columns, rows are neighbours.
        row_stride, column_stride = self.weight.stride()
        return distance // row_stride if row_stride >= column_stride else distance


class DirectPacking:
    """Which of a decoder's parameters are packed on their way. Several threads write."""

    def __init__(self, library: ctypes.CDLL, decoder: Decoder, tp: TPGroup) -> None:
        self._library = library
        self._matrices = sorted(
            (
                _Matrix(weight, PackedRows.of(weight, order))
                for weight, order in _matrices_of(decoder, tp)
                if weight.numel()
            ),
            key=lambda matrix: matrix.address,
        )
        self._addresses = [matrix.address for matrix in self._matrices]

    def write(self, slot: Tensor, data: Tensor) -> bool:
        """Packs what belongs into a slot, which stays as it is. slot: rows of a parameter, perhaps
        the first few of their columns; data: of the slot's shape, in any type. False: it is no part
        of a packed weight, and nothing was done.
        """
        i = bisect_right(self._addresses, slot.data_ptr()) - 1
        if i < 0:
            return False
        matrix = self._matrices[i]
        first = matrix.first_row(slot)
        if first is None:
            return False
        matrix.rows.fill(self._library, data.to(slot.dtype), first)
        return True

    def packed(self) -> dict[int, PackedRows]:
        """By the address of the weight, for `Packer`."""
        return {matrix.address: matrix.rows for matrix in self._matrices}


def _matrices_of(decoder: Decoder, tp: TPGroup) -> Iterator[tuple[Tensor, Order]]:
    """What `TermsBuilder` packs."""
    for layer in layers_of(decoder):
        if has_native_attention(layer.attention, tp):
            yield from _attention_matrices(layer.attention)
        if has_native_mlp(layer.mlp):
            yield from _mlp_matrices(layer.mlp)
    if decoder.project_in is None:
        yield decoder.lm_head.weight, as_they_are


def _attention_matrices(attention: Attention) -> Iterator[tuple[Tensor, Order]]:
    yield attention.qkv.weight, as_they_are
    yield attention.output.weight, as_they_are


def _mlp_matrices(mlp: nn.Module) -> Iterator[tuple[Tensor, Order]]:
    if isinstance(mlp, MoE):
        yield from moe_matrices(mlp)
        return
    assert isinstance(mlp, GatedMLP | PlainMLP), f"{type(mlp)}"
    if isinstance(mlp, GatedMLP):
        yield mlp.gate_up.weight, gated
    else:
        yield mlp.up.weight, as_they_are
    yield mlp.down.weight, as_they_are
