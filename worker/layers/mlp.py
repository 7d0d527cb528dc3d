"""The feed-forward blocks of decoder layers, gated (GLU, Shazeer 2020) and plain."""

from torch import Tensor, nn

from worker.layers.activation import ACTIVATIONS, gated_activation
from worker.layers.linear import ColumnParallelLinear, RowParallelLinear, TensorOptions
from worker.parallel.group import TPGroup


class GatedMLP(nn.Module):
    """x: [T, hidden]; returns [T, hidden] on every rank, after one all-reduce."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        bias: bool,
        tp: TPGroup,
        options: TensorOptions,
    ) -> None:
        super().__init__()
        self._gated = gated_activation(activation, options)
        parts = {"gate": intermediate_size, "up": intermediate_size}
        self.gate_up = ColumnParallelLinear(hidden_size, parts, bias, tp, options)
        self.down = RowParallelLinear(intermediate_size, hidden_size, bias, tp, options)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self._gated(self.gate_up(x)))


class PlainMLP(nn.Module):
    """down(activation(up(x))). x: [T, hidden]; returns [T, hidden] on every rank."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        bias: bool,
        tp: TPGroup,
        options: TensorOptions,
    ) -> None:
        super().__init__()
        self._activation = ACTIVATIONS[activation]
        self.up = ColumnParallelLinear(hidden_size, {"": intermediate_size}, bias, tp, options)
        self.down = RowParallelLinear(intermediate_size, hidden_size, bias, tp, options)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self._activation(self.up(x)))
