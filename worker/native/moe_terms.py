"""A mixture of experts as the structure of the native program, its matrices packed on the way.

Each expert's matrices become packed weights of their own; the torch module keeps none of them.
Called by `worker.native.terms`.
"""

import ctypes

import torch
from torch import Tensor

from worker.layers.linear import frozen
from worker.layers.moe import MoE, SharedExpert
from worker.native.packing import PackedWeight, Packer
from worker.native.structs import MatrixStruct, MoEStruct
from worker.parallel.group import TPGroup


def moe_struct(
    moe: MoE, hidden_size: int, tp: TPGroup, packer: Packer, kept: list[object]
) -> MoEStruct:
    """What the structure points to goes to `kept`. The bias of the second product of an expert that
    several ranks have is rank 0's alone.
    """
    spec = moe.spec
    struct = MoEStruct(
        router_size=hidden_size,
        num_experts=spec.num_experts,
        first_expert=moe.experts.own.start,
        num_own=len(moe.experts.own),
        top_k=spec.top_k,
        renormalize=spec.renormalize,
        is_sigmoid=spec.is_sigmoid,
        num_groups=spec.num_groups,
        top_groups=spec.top_groups,
        best_of_group=spec.best_of_group,
        weight_scale=spec.weight_scale,
    )
    if spec.swiglu is not None:
        struct.swiglu_alpha, struct.swiglu_limit = spec.swiglu.alpha, spec.swiglu.limit
    keeper = _Keeper(kept)
    router = moe.router
    struct.router = keeper.matrix(packer.pack(router.weight, router.bias))
    router.weight = _nothing(torch.float32)
    if router.choice_bias is not None:
        struct.choice_bias = keeper.vector(router.choice_bias)
    struct.up, struct.down = _pack_experts(moe, tp, packer, keeper)
    if moe.shared is not None:
        _fill_shared(struct, moe.shared, packer, keeper)
    return struct


class _Keeper:
    """Addresses for a structure, and what must live as long as it does."""

    def __init__(self, kept: list[object]) -> None:
        self._kept = kept

    def matrix(self, packed: PackedWeight) -> MatrixStruct:
        self._kept.append(packed)
        return packed.struct()

    def matrices(self, packed: list[PackedWeight]) -> ctypes.Array[MatrixStruct]:
        array = (MatrixStruct * len(packed))(*map(self.matrix, packed))
        self._kept.append(array)
        return array

    def vector(self, x: Tensor) -> int:
        wide = x.float().contiguous()
        self._kept.append(wide)
        return wide.data_ptr()


def _pack_experts(
    moe: MoE, tp: TPGroup, packer: Packer, keeper: _Keeper
) -> tuple[ctypes.Array[MatrixStruct], ctypes.Array[MatrixStruct]]:
    experts, is_whole = moe.experts, moe.spec.is_expert_parallel
    is_in_turns = moe.spec.swiglu is not None  # gate and up rows; else the gate's come first
    gate_up, gate_up_bias = experts.gate_up, experts.gate_up_bias
    ups = []
    for expert, matrix in enumerate(gate_up):
        bias = None if gate_up_bias is None else _halves(gate_up_bias[expert], is_in_turns)
        ups.append(packer.pack_pair(*_halves(matrix, is_in_turns), bias))
    experts.gate_up = _nothing(gate_up.dtype)
    down_bias = experts.down_bias if is_whole or tp.rank == 0 else None
    downs = [
        packer.pack(matrix, None if down_bias is None else down_bias[expert])
        for expert, matrix in enumerate(experts.down)
    ]
    experts.down = _nothing(gate_up.dtype)
    return keeper.matrices(ups), keeper.matrices(downs)


def _halves(x: Tensor, is_in_turns: bool) -> tuple[Tensor, Tensor]:
    if is_in_turns:
        return x[::2], x[1::2]
    gate, up = x.chunk(2)
    return gate, up


def _fill_shared(struct: MoEStruct, shared: SharedExpert, packer: Packer, keeper: _Keeper) -> None:
    dtype = shared.down.dtype
    struct.shared_up = keeper.matrix(packer.pack_gated(shared.gate_up.weight))
    shared.gate_up.weight = _nothing(dtype)
    struct.shared_down = keeper.matrix(packer.pack(shared.down))
    shared.down = _nothing(dtype)
    if shared.gate is not None:
        struct.shared_gate = keeper.vector(shared.gate.flatten())


def _nothing(dtype: torch.dtype) -> torch.nn.Parameter:
    """Stands for a parameter that is kept packed."""
    return frozen(torch.empty(0, dtype=dtype))
