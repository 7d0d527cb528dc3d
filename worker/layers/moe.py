"""Mixture-of-experts feed-forward block (Shazeer et al. 2017; Mixtral, Jiang et al. 2024).

Tokens are sorted by expert, and each expert that has any computes all of its tokens in one product.
Every rank holds a slice of each expert's intermediate features: all ranks compute the same routing,
and one all-reduce sums their parts.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.layers.activation import ACTIVATIONS, gated
from worker.layers.linear import ColumnParallelLinear, TensorOptions
from worker.layers.moe_spec import ClampedSwiGLU, MoESpec
from worker.layers.shard import Shard, divide_up
from worker.parallel.group import TPGroup


class MoE(nn.Module):
    """x: [T, hidden]; returns [T, hidden] on every rank, after one all-reduce."""

    def __init__(
        self, spec: MoESpec, hidden_size: int, activation: str, tp: TPGroup, options: TensorOptions
    ) -> None:
        super().__init__()
        self._tp = tp
        self.router = Router(spec, hidden_size, options)
        self.experts = Experts(spec, hidden_size, activation, tp, options)
        self.shared = None
        if spec.shared_intermediate_size:
            self.shared = SharedExpert(spec, hidden_size, activation, tp, options)

    def forward(self, x: Tensor) -> Tensor:
        y = self.experts(x, *self.router(x))
        if self.shared is not None:
            y = y + self.shared(x)
        return self._tp.all_reduce(y)


class Router(nn.Module):
    """Chooses each token's experts, alike on every rank: weights [T, k] fp32, expert ids [T, k]."""

    def __init__(self, spec: MoESpec, hidden_size: int, options: TensorOptions) -> None:
        super().__init__()
        self._spec = spec
        self._shape = (spec.num_experts, hidden_size)
        # In fp32 whatever the model's type: a choice hangs on small differences.
        wide = TensorOptions(torch.float32, options.device)
        self.weight = wide.zeros(*self._shape)
        self.bias = wide.zeros(spec.num_experts) if spec.has_bias else None
        self.choice_bias = wide.zeros(spec.num_experts) if spec.has_choice_bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(x.float(), self.weight, self.bias)
        scores = logits.sigmoid() if self._spec.is_sigmoid else logits.softmax(dim=-1)
        expert_ids = self._choices(scores).topk(self._spec.top_k, dim=-1).indices
        weights = scores.gather(1, expert_ids)
        if self._spec.renormalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights * self._spec.weight_scale, expert_ids

    def _choices(self, scores: Tensor) -> Tensor:
        """What experts are chosen by: -inf in groups that are out. scores: [T, E]."""
        if self.choice_bias is not None:
            scores = scores + self.choice_bias
        if self._spec.num_groups == 1:
            return scores
        grouped = scores.unflatten(1, (self._spec.num_groups, -1))
        of_group = grouped.topk(self._spec.best_of_group, dim=-1).values.sum(dim=-1)
        groups = of_group.topk(self._spec.top_groups, dim=-1).indices
        is_out = torch.ones_like(of_group, dtype=torch.bool).scatter_(1, groups, False)
        return grouped.masked_fill(is_out.unsqueeze(-1), -torch.inf).flatten(1)

    def shard(self, parameter: str, part: str) -> Shard:
        return Shard.whole(*(self._shape if parameter == "weight" else self._shape[:1]))


class Experts(nn.Module):
    """All experts' gated MLPs; returns this rank's part of the sum. E experts.

    gate_up: [E, 2 * n, hidden], gate rows first or, with a clamped SwiGLU, in turns with the up
    rows; down: [E, hidden, n]; n: this rank's intermediate features, padding included.
    """

    def __init__(
        self, spec: MoESpec, hidden_size: int, activation: str, tp: TPGroup, options: TensorOptions
    ) -> None:
        super().__init__()
        self._tp = tp
        self._spec = spec
        self._hidden_size = hidden_size
        self._activate = _gated_activation(spec, activation)
        self._length = divide_up(spec.intermediate_size, tp.size)
        self.gate_up = options.zeros(spec.num_experts, 2 * self._length, hidden_size)
        self.down = options.zeros(spec.num_experts, hidden_size, self._length)
        self.gate_up_bias, self.down_bias = None, None
        if spec.has_bias:
            self.gate_up_bias = options.zeros(spec.num_experts, 2 * self._length)
            self.down_bias = options.zeros(spec.num_experts, hidden_size)

    def forward(self, x: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        """weights, expert_ids: [T, k]."""
        top_k = expert_ids.shape[1]
        flat_ids = expert_ids.flatten()
        order = flat_ids.argsort(stable=True)
        counts = torch.bincount(flat_ids, minlength=self._spec.num_experts).tolist()
        rows = x.index_select(0, order // top_k)
        for expert, group in enumerate(rows.split(counts)):
            if len(group):
                group.copy_(self._one_expert(expert, group))  # in place: rows may be most of a step
        # Back in the tokens' order: a sum over k then adds in an order that no other token changes.
        y = torch.empty_like(rows).index_copy_(0, order, rows).view(-1, top_k, x.shape[1])
        return torch.bmm(weights.to(y.dtype).unsqueeze(1), y).squeeze(1)

    def _one_expert(self, expert: int, x: Tensor) -> Tensor:
        bias = None if self.gate_up_bias is None else self.gate_up_bias[expert]
        hidden = self._activate(F.linear(x, self.gate_up[expert], bias))
        # Ranks' parts are added up: the bias counts once.
        is_first = self._tp.rank == 0 and self.down_bias is not None
        bias = self.down_bias[expert] if is_first and self.down_bias is not None else None
        return F.linear(hidden, self.down[expert], bias)

    def shard(self, parameter: str, part: str) -> Shard:
        """Of one expert's matrix or vector; `part`: gate, up, or "" for what is not split in two"""
        size, start = self._spec.intermediate_size, self._tp.rank * self._length
        if parameter == "down_bias":
            return Shard.whole(self._hidden_size)
        if parameter == "down":
            return Shard((self._hidden_size, size), dim=1, start=start, length=self._length)
        rest = () if parameter == "gate_up_bias" else (self._hidden_size,)
        if part == "":
            return Shard((2 * size, *rest), dim=0, start=2 * start, length=2 * self._length)
        offset = self._length if part == "up" else 0
        return Shard((size, *rest), dim=0, start=start, length=self._length, offset=offset)


class SharedExpert(nn.Module):
    """The expert of all tokens, behind a sigmoid gate or none; returns this rank's part."""

    def __init__(
        self, spec: MoESpec, hidden_size: int, activation: str, tp: TPGroup, options: TensorOptions
    ) -> None:
        super().__init__()
        size = spec.shared_intermediate_size
        self._activation = ACTIVATIONS[activation]
        self._start, self._length = tp.rank * divide_up(size, tp.size), divide_up(size, tp.size)
        self._shapes = {"gate": (1, hidden_size), "down": (hidden_size, size)}
        parts = {"gate": size, "up": size}
        self.gate_up = ColumnParallelLinear(hidden_size, parts, False, tp, options)
        self.down = options.weight(hidden_size, self._length)
        self.gate = options.zeros(1, hidden_size) if spec.is_shared_gated else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(gated(self._activation, self.gate_up(x)), self.down)
        return y if self.gate is None else F.linear(x, self.gate).sigmoid() * y

    def shard(self, parameter: str, part: str) -> Shard:
        if parameter == "gate":
            return Shard.whole(*self._shapes["gate"])
        return Shard(self._shapes["down"], dim=1, start=self._start, length=self._length)


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
