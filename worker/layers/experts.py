"""The experts of a mixture: which of them, or which slice of each, a rank has, and their products.

Tokens are sorted by expert, and an expert computes all of its tokens in one product: on GPUs all
experts in one grouped kernel, else one after another. The router is elsewhere (`moe.py`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.layers.activation import ACTIVATIONS, gated
from worker.layers.linear import TensorOptions
from worker.layers.moe_spec import ClampedSwiGLU, MoESpec
from worker.layers.shard import Shard, divide_up
from worker.parallel.group import TPGroup

_GROUPED_ALIGNMENT = 16  # bytes, of a row, that the grouped kernel wants
_GROUPED_CAPABILITY = (8, 0)


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
        self._activate = _gated_activation(spec, activation)
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

    def forward(self, x: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        """weights, expert_ids: [T, k], of all experts."""
        num_tokens, top_k = expert_ids.shape
        # Those of other ranks are sorted behind this rank's, as one more expert.
        count = len(self.own)
        ids = expert_ids.flatten() - self.own.start
        ids = torch.where((ids >= 0) & (ids < count), ids, count)
        order = ids.argsort(stable=True)
        counts = torch.bincount(ids, minlength=count + 1)[:count]
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


def _gated_activation(spec: MoESpec, activation: str) -> Callable[[Tensor], Tensor]:
    if spec.swiglu is not None:
        swiglu = spec.swiglu
        return lambda gate_up: clamped_swiglu(swiglu, gate_up)
    function = ACTIVATIONS[activation]
    return lambda gate_up: gated(function, gate_up)


def clamped_swiglu(kind: ClampedSwiGLU, gate_up: Tensor) -> Tensor:
    """(up + 1) * gate * sigmoid(alpha * gate), both clamped. gate_up: [T, 2 * n], in turns."""
    gate = gate_up[..., ::2].clamp(max=kind.limit)
    up = gate_up[..., 1::2].clamp(min=-kind.limit, max=kind.limit)
    return (up + 1) * gate * torch.sigmoid(gate * kind.alpha)
