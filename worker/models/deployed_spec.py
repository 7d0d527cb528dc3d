"""A family's ModelSpec as one deployment shards it: what its configuration decides about a model.

No torch: the memory plan counts by it, the runner builds by it.
"""

from dataclasses import replace

from worker.config import RunnerConfig
from worker.errors import InvalidRequest
from worker.models.config import ModelConfig
from worker.models.registry import find_family
from worker.models.spec import ModelSpec


def deployed_spec(model: ModelConfig, config: RunnerConfig, tp_size: int) -> ModelSpec:
    """Raises: CheckpointError for an unknown family; InvalidRequest when the configuration asks for
    what the model cannot do.
    """
    spec = find_family(model).build_spec(model)
    if not config.enable_expert_parallel:
        return spec
    if spec.moe is None:
        raise InvalidRequest(
            f"enable_expert_parallel: {model.architecture} has no experts", "enable_expert_parallel"
        )
    if spec.moe.num_experts < tp_size:
        raise InvalidRequest(
            f"enable_expert_parallel: {spec.moe.num_experts} experts cannot be spread over "
            f"{tp_size} ranks",
            "enable_expert_parallel",
        )
    return replace(spec, moe=replace(spec.moe, is_expert_parallel=True))
