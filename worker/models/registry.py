"""Model families by architecture name: one file and one line here add a family."""

from worker.errors import CheckpointError
from worker.models.config import ModelConfig
from worker.models.families import llama, mistral, qwen2, qwen3
from worker.models.family import Family

FAMILIES: tuple[Family, ...] = (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)


def find_family(config: ModelConfig) -> Family:
    """Raises: CheckpointError naming the architecture and the supported ones."""
    for family in FAMILIES:
        if config.architecture in family.architectures:
            return family
    raise CheckpointError(
        f"{config.path}: architecture {config.architecture} is not supported; "
        f"supported: {', '.join(supported_architectures())}"
    )


def supported_architectures() -> list[str]:
    return sorted(name for family in FAMILIES for name in family.architectures)
