"""The experts of a mixture: which of them, or which slice of each, a rank has, and their products.

Tokens are sorted by expert, and an expert computes all of its tokens in one product: on GPUs all
experts in one grouped kernel, torch's for many tokens and our own for few and for types or sizes
that torch's does not take; else one after another. The router is elsewhere (`moe.py`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.layers.activation import gated_activation
from worker.layers.fused import fused_kernels
from worker.layers.linear import TensorOptions
from worker.layers.moe_spec import ClampedSwiGLU, MoESpec
from worker.layers.shard import Shard, divide_up
from worker.parallel.group import TPGroup

if TYPE_CHECKING:
    from worker.layers.fused_experts import FusedExperts

_GROUPED_ALIGNMENT = 16  # bytes, of a row, that the grouped kernel wants
_GROUPED_CAPABILITY = (8, 0)
# An expert's rows, on average, from which torch's kernel, whose tiles have 128, is the better one.
_GROUPED_ROWS = 64


def own_experts(spec: MoESpec, tp: TPGroup) -> range:
    """All of them where each rank has a slice of every expert; else the rank's even share."""
    if not spec.is_expert_parallel:
        return range(spec.num_experts)
    return range(tp.rank * spec.num_experts // tp.size, (tp.rank + 1) * spec.num_experts // tp.size)


class Experts(nn.Module):
    """Experts' gated MLPs; returns this rank's part of the sum. E experts of this rank.

    gate_up: [E, 2 * n, hidden], gate rows first or, with a clamped SwiGLU, in turns with the up
    rows; down: [E, hidden, n]; n: this rank's intermediate features, padding included.
    """

    def __init__(
        self, spec: MoESpec, hidden_size: int, activation: str, tp: TPGroup, options: TensorOptions
    ) -> None:
        super().__init__()
        self._spec = spec
        self._hidden_size = hidden_size
        self._activate = _gated_activation(spec, activation, options)
        self.own = own_experts(spec, tp)
        num_slices = 1 if spec.is_expert_parallel else tp.size
        self._length = divide_up(spec.intermediate_size, num_slices)
        self._start = 0 if spec.is_expert_parallel else tp.rank * self._length
        # Ranks' parts are added up: the bias of an expert that several have counts once.
        self._adds_down_bias = spec.is_expert_parallel or tp.rank == 0
        count = len(self.own)
        self.gate_up = options.zeros(count, 2 * self._length, hidden_size)
        self.down = options.zeros(count, hidden_size, self._length)
        self.gate_up_bias, self.down_bias = None, None
        if spec.has_bias:
            self.gate_up_bias = options.zeros(count, 2 * self._length)
            self.down_bias = options.zeros(count, hidden_size)
        self._has_grouped_kernel = _has_grouped_kernel(options, hidden_size, self._length)
        self._fused = _fused_experts(spec, activation, options)

    def forward(self, x: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        """weights, expert_ids: [T, k], of all experts."""
        num_tokens, top_k = expert_ids.shape
        if self._fused is not None:
            num_rows = num_tokens * top_k // len(self.own)
            if num_rows < _GROUPED_ROWS or not self._has_grouped_kernel:
                return self._fused(
                    x,
                    weights,
                    expert_ids,
                    self.own.start,
                    self.gate_up,
                    self.down,
                    self.gate_up_bias,
                    self.down_bias if self._adds_down_bias else None,
                )
        # Those of other ranks are sorted behind this rank's, as one more expert.
        count = len(self.own)
        ids = expert_ids.flatten() - self.own.start
        ids = torch.where((ids >= 0) & (ids < count), ids, count)
        order = ids.argsort(stable=True)
        # Not bincount, which waits for a GPU.
        counts = ids.new_zeros(count + 1).scatter_add_(0, ids, torch.ones_like(ids))[:count]
        if self._has_grouped_kernel:
            rows = x.index_select(0, order // top_k)
            rows = self._grouped(rows, ids.index_select(0, order), counts)
        else:
            per_expert = counts.tolist()
            order = order[: sum(per_expert)]
            rows = self._one_by_one(x.index_select(0, order // top_k), per_expert)
        # Back in the tokens' order: a sum over k then adds in an order that no other token changes.
        shape = (num_tokens * top_k, x.shape[1])
        is_all = len(rows) == len(ids)
        y = rows.new_empty(shape) if is_all else rows.new_zeros(shape)
        y = y.index_copy_(0, order, rows).view(num_tokens, top_k, -1)
        return torch.bmm(weights.to(y.dtype).unsqueeze(1), y).squeeze(1)

    def _one_by_one(self, rows: Tensor, counts: list[int]) -> Tensor:
        """rows: [P, hidden], sorted by expert; overwritten with what is returned."""
        for expert, group in enumerate(rows.split(counts)):
            if len(group):
                group.copy_(self._one_expert(expert, group))  # in place: rows may be most of a step
        return rows

    def _one_expert(self, expert: int, x: Tensor) -> Tensor:
        bias = None if self.gate_up_bias is None else self.gate_up_bias[expert]
        hidden = self._activate(F.linear(x, self.gate_up[expert], bias))
        bias = None
        if self.down_bias is not None and self._adds_down_bias:
            bias = self.down_bias[expert]
        return F.linear(hidden, self.down[expert], bias)

    def _grouped(self, rows: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
        """rows: [P, hidden], ids: [P], sorted by expert; those behind the last expert's become 0.
        Nothing here waits for the device.
        """
        ends = counts.cumsum(0).to(torch.int32)
        own_ids = ids.clamp(max=len(self.own) - 1)
        hidden = F.grouped_mm(rows, self.gate_up.transpose(1, 2), offs=ends)
        if self.gate_up_bias is not None:
            hidden = hidden + self.gate_up_bias.index_select(0, own_ids)
        rows = F.grouped_mm(self._activate(hidden), self.down.transpose(1, 2), offs=ends)
        if self.down_bias is not None and self._adds_down_bias:
            rows = rows + self.down_bias.index_select(0, own_ids)
        return rows.masked_fill((ids == len(self.own)).unsqueeze(1), 0)

    def place_of(self, expert: int) -> int | None:
        """Of an expert of the model in this rank's parameters; None: another rank has it."""
        return expert - self.own.start if expert in self.own else None

    @property
    def num_experts(self) -> int:
        """Of the model."""
        return self._spec.num_experts

    def shard(self, parameter: str, part: str) -> Shard:
        """Of one expert's matrix or vector; `part`: gate, up, or "" for what is not split in two"""
        size, start = self._spec.intermediate_size, self._start
        if parameter == "down_bias":
            return Shard.whole(self._hidden_size)
        if parameter == "down":
            return Shard((self._hidden_size, size), dim=1, start=start, length=self._length)
        rest = () if parameter == "gate_up_bias" else (self._hidden_size,)
        if part == "":
            return Shard((2 * size, *rest), dim=0, start=2 * start, length=2 * self._length)
        offset = self._length if part == "up" else 0
        return Shard((size, *rest), dim=0, start=start, length=self._length, offset=offset)


def _has_grouped_kernel(options: TensorOptions, hidden_size: int, length: int) -> bool:
    if options.device.type != "cuda" or options.dtype != torch.bfloat16:
        return False
    rows = (hidden_size * options.dtype.itemsize, length * options.dtype.itemsize)
    is_aligned = all(row % _GROUPED_ALIGNMENT == 0 for row in rows)
    return is_aligned and torch.cuda.get_device_capability(options.device) >= _GROUPED_CAPABILITY


def _gated_activation(
    spec: MoESpec, activation: str, options: TensorOptions
) -> Callable[[Tensor], Tensor]:
    if spec.swiglu is None:
        return gated_activation(activation, options)
    swiglu, kernels = spec.swiglu, fused_kernels(options)
    if kernels is None:
        return lambda gate_up: clamped_swiglu(swiglu, gate_up)
    kind, fused_gated = kernels.clamped_swiglu_kind, kernels.gated
    return lambda gate_up: fused_gated(gate_up, kind, swiglu.alpha, swiglu.limit, takes_turns=True)


def _fused_experts(spec: MoESpec, activation: str, options: TensorOptions) -> "FusedExperts | None":
    kernels = fused_kernels(options)
    if kernels is None:
        return None
    if spec.swiglu is None:
        return kernels.experts(kernels.activation_kinds[activation])
    return kernels.experts(
        kernels.clamped_swiglu_kind, spec.swiglu.alpha, spec.swiglu.limit, takes_turns=True
    )


def clamped_swiglu(kind: ClampedSwiGLU, gate_up: Tensor) -> Tensor:
    """(up + 1) * gate * sigmoid(alpha * gate), both clamped. gate_up: [T, 2 * n], in turns."""
    gate = gate_up[..., ::2].clamp(max=kind.limit)
    up = gate_up[..., 1::2].clamp(min=-kind.limit, max=kind.limit)
    return (up + 1) * gate * torch.sigmoid(gate * kind.alpha)
