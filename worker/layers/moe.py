"""Mixture-of-experts feed-forward block (Shazeer et al. 2017; Mixtral, Jiang et al. 2024).

All ranks compute the same routing; each computes its part of the experts (`experts.py`) and of the
one that all tokens share, and one all-reduce sums the parts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.layers.activation import gated_activation
from worker.layers.experts import Experts
from worker.layers.fused import fused_kernels
from worker.layers.linear import ColumnParallelLinear, TensorOptions
from worker.layers.moe_spec import MoESpec
from worker.layers.shard import Shard, divide_up
from worker.parallel.group import TPGroup


class MoE(nn.Module):
    """x: [T, hidden]; returns [T, hidden] on every rank, after one all-reduce."""

    def __init__(
        self, spec: MoESpec, hidden_size: int, activation: str, tp: TPGroup, options: TensorOptions
    ) -> None:
        super().__init__()
        self._tp = tp
        self.spec = spec
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
        self._kernels = fused_kernels(options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(x.float(), self.weight, self.bias)
        if self._kernels is not None:
            return self._kernels.route(logits, self.choice_bias, self._spec)
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


class SharedExpert(nn.Module):
    """The expert of all tokens, behind a sigmoid gate or none; returns this rank's part."""

    def __init__(
        self, spec: MoESpec, hidden_size: int, activation: str, tp: TPGroup, options: TensorOptions
    ) -> None:
        super().__init__()
        size = spec.shared_intermediate_size
        self._gated = gated_activation(activation, options)
        self._start, self._length = tp.rank * divide_up(size, tp.size), divide_up(size, tp.size)
        self._shapes = {"gate": (1, hidden_size), "down": (hidden_size, size)}
        parts = {"gate": size, "up": size}
        self.gate_up = ColumnParallelLinear(hidden_size, parts, False, tp, options)
        self.down = options.weight(hidden_size, self._length)
        self.gate = options.zeros(1, hidden_size) if spec.is_shared_gated else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(self._gated(self.gate_up(x)), self.down)
        return y if self.gate is None else F.linear(x, self.gate).sigmoid() * y

    def shard(self, parameter: str, part: str) -> Shard:
        if parameter == "gate":
            return Shard.whole(*self._shapes["gate"])
        return Shard(self._shapes["down"], dim=1, start=self._start, length=self._length)
