"""Parameters of a mixture of experts, as data: no torch here, as in all that reads configs."""

from dataclasses import dataclass

from worker.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class MoESpec:
    """Experts in place of the MLP of some layers, a few of them for each token.

    A token's experts are those of the greatest router scores; their outputs are weighted by the
    softmax of all scores, or their sigmoids, taken over the chosen alone where `renormalize`. With
    groups a token's experts are out of the `top_groups` whose best experts score highest.
    """

    num_experts: int
    top_k: int
    intermediate_size: int  # of one expert
    renormalize: bool
    is_sparse: tuple[bool, ...]  # per layer: experts, or the plain MLP
    has_bias: bool = False  # of router and experts
    shared_intermediate_size: int = 0  # of an expert that all tokens have; 0: none
    is_shared_gated: bool = True  # by a sigmoid
    is_sigmoid: bool = False  # not softmax
    has_choice_bias: bool = False  # added to scores for the choice, not for the weights
    num_groups: int = 1
    top_groups: int = 1
    best_of_group: int = 1  # experts whose sum is a group's score
    weight_scale: float = 1.0
    # A deployment's choice: each rank has some experts whole, instead of a slice of every one.
    is_expert_parallel: bool = False
    swiglu: "ClampedSwiGLU | None" = None  # None: the model's activation, gate and up one by one

    def __post_init__(self) -> None:
        """Raises: CheckpointError for choices that there are too few experts for."""
        if not 1 <= self.top_k <= self.num_experts:
            raise CheckpointError(f"{self.top_k} of {self.num_experts} experts for each token")
        if self.num_groups < 1 or self.num_experts % self.num_groups:
            raise CheckpointError(f"{self.num_experts} experts in {self.num_groups} equal groups")
        group_size = self.num_experts // self.num_groups
        if not (1 <= self.top_groups <= self.num_groups and 1 <= self.best_of_group <= group_size):
            raise CheckpointError(
                f"the best {self.top_groups} of {self.num_groups} groups, by the best "
                f"{self.best_of_group} of their {group_size} experts"
            )


@dataclass(frozen=True, slots=True)
class ClampedSwiGLU:
    """gpt-oss's activation, over gate and up features that take turns in a checkpoint's rows."""

    alpha: float
    limit: float
