"""Model families by architecture name: one file and one line here add a family."""

from worker.errors import CheckpointError
from worker.models.config import ModelConfig
from worker.models.families import (
    bloom,
    codegen,
    cohere,
    cohere2,
    deepseek,
    falcon,
    gemma,
    gemma2,
    gemma3,
    glm,
    glm4_moe,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    llama,
    mistral,
    mixtral,
    mpt,
    olmo,
    olmo2,
    olmo3,
    olmoe,
    opt,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    smollm3,
    stablelm,
    starcoder2,
)
from worker.models.family import Family

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    gemma3.TEXT_PART,
    phi3.FAMILY,
    olmo2.FAMILY,
    olmo3.FAMILY,
    granite.FAMILY,
    smollm3.FAMILY,
    glm.FAMILY,
    glm4_moe.FAMILY,
    stablelm.FAMILY,
    mixtral.FAMILY,
    qwen2_moe.FAMILY,
    qwen3_moe.FAMILY,
    olmoe.FAMILY,
    gpt_oss.FAMILY,
    deepseek.FAMILY,
    bloom.FAMILY,
    cohere.FAMILY,
    falcon.FAMILY,
    gpt2.FAMILY,
    gpt_bigcode.FAMILY,
    gpt_neox.FAMILY,
    gptj.FAMILY,
    mpt.FAMILY,
    opt.FAMILY,
    phi.FAMILY,
    starcoder2.FAMILY,
    codegen.FAMILY,
    cohere2.FAMILY,
    gpt_neo.FAMILY,
    olmo.FAMILY,
)


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
