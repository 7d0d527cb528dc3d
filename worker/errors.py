"""The worker's exceptions.

ShoalError
├── InvalidRequest      user input breaks a rule; names the field and the limit
├── CheckpointError     a model directory cannot be loaded; says what is missing or left over
├── MemoryPlanError     weights and a minimal KV cache do not fit; shows the plan
├── NativeBuildError    the CPU kernels cannot be compiled here; models then run on torch alone
└── ShardError          a rank failed or its group broke; the replica must be replaced
"""


class ShoalError(Exception):
    """Base of all of Shoal's own exceptions."""


class InvalidRequest(ShoalError):
    """User input breaks a rule. `field` is the parameter's wire name."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class CheckpointError(ShoalError):
    """A model directory cannot be loaded."""


class MemoryPlanError(ShoalError):
    """The model does not fit into the memory it was given."""


class NativeBuildError(ShoalError):
    """The kernels for CPUs cannot be compiled or loaded on this machine."""


class ShardError(ShoalError):
    """A rank failed or its process group broke."""
