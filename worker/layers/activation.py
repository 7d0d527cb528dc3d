"""Activations of gated and plain feed-forward blocks, by their names in a checkpoint's config."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from worker.layers.fused import fused_kernels
from worker.layers.linear import TensorOptions

Activation = Callable[[Tensor], Tensor]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "relu": F.relu,
}


def gated(activation: Activation, gate_up: Tensor) -> Tensor:
    """activation(gate) * up. gate_up: [T, 2 * n], gate first; returns [T, n]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate).mul_(up)


def gated_activation(name: str, options: TensorOptions) -> Activation:
    """`gated` with the activation of this name, as one kernel where layers are fused."""
    kernels = fused_kernels(options)
    if kernels is not None:
        kind, fused_gated = kernels.activation_kinds[name], kernels.gated
        return lambda gate_up: fused_gated(gate_up, kind)
    activation = ACTIVATIONS[name]
    return lambda gate_up: gated(activation, gate_up)
